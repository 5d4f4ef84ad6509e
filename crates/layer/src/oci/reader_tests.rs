//! Gives the reader of archives input that is nearly valid. It must read or refuse it, without a
//! panic, without an end that never comes, and without a path that leads out.

use proptest::prelude::*;

use super::archive::{Archive, Stream};
use super::entry::Kind;
use super::entry_name::EntryName;
use super::pax::Pax;
use super::testing::{Tar, spec};
use crate::mutated::{self, config};

/// An archive with every kind of entry and extension.
fn archive() -> Vec<u8> {
    Tar::new()
        .add(spec(b'5', "./"))
        .add(spec(b'5', "usr/"))
        .add(spec(b'0', "usr/f").content(&[b'x'; 700]).pax("mtime", b"-1.5").pax("SCHILY.xattr.user.a", b"1\n2"))
        .add(spec(b'1', "usr/h").target("usr/f"))
        .add(spec(b'2', "usr/s").target("f"))
        .add(spec(b'6', "usr/.wh.p"))
        .raw(b'g', b"g", b"", b"15 comment=abc\n", 0o644, (0, 0), None)
        .raw(b'L', b"l", b"", &[b'n'; 200], 0o644, (0, 0), None)
        .add(spec(b'0', "short"))
        .add(spec(b'0', "sparse").content(b"ab").pax("GNU.sparse.realsize", b"9").pax("GNU.sparse.map", b"0,1,5,1"))
        .end()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_archive_is_read_to_its_end_or_refused(bytes in mutated::bytes([archive()])) {
        let mut archive = Archive::without_checksums(Stream(&*bytes));
        let mut contents = 0;
        while let Ok(Some(entry)) = archive.next() {
            if let Ok(EntryName::File { parent, name } | EntryName::Whiteout { parent, name }) = EntryName::parse(&entry.path) {
                let names = parent.names().chain([name.to_bytes()]);
                names.for_each(|name| assert!(!matches!(name, b"" | b"." | b"..") && !name.contains(&b'/')));
            }
            if let Kind::Sparse { pieces, size } = &entry.kind {
                prop_assert!(pieces.iter().all(|piece| piece.offset + piece.length <= *size));
                prop_assert_eq!(pieces.iter().map(|piece| piece.length).sum::<u64>(), entry.size);
            }
            let mut read = 0;
            while let Ok(part) = archive.content() {
                if part.is_empty() {
                    prop_assert_eq!(read, entry.size);
                    break;
                }
                read += part.len() as u64;
            }
            contents += read;
            prop_assert!(read <= entry.size);
        }
        prop_assert!(contents <= bytes.len() as u64);
    }

    #[test]
    fn any_pax_records_are_read_or_refused(bytes in mutated::bytes(["12 uid=1000\n14 mtime=-1.5\n24 SCHILY.xattr.user.a=\n"])) {
        if let Ok(Pax { mtime: Some(time), .. }) = Pax::check(&bytes) {
            prop_assert!((0..1_000_000_000).contains(&time.tv_nsec));
        }
    }
}

#[test]
fn the_archive_that_is_changed_is_valid() {
    let bytes = archive();
    let mut archive = Archive::new(Stream(&*bytes));
    let mut lengths = Vec::new();
    while let Some(entry) = archive.next().unwrap() {
        lengths.push(entry.path.len());
    }
    assert_eq!((lengths, archive.has_end()), (vec![2, 4, 5, 5, 5, 9, 200, 6], true));
}
