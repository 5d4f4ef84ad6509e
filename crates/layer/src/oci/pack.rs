//! Writes a tree as the archive of a layer. Equal trees give equal bytes: names are sorted, and
//! nothing of the machine or of the time is in the archive. `unpack.rs` is the way back.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, SeekFrom, Stat, Timespec, fstat, major, minor, openat, readlinkat, seek,
    statat,
};
use rustix::io::Errno;
use tar_core::{EntryType, HEADER_SIZE, HeaderBuilder, PaxBuilder};

use super::entry_name::{OPAQUE, WHITEOUT};
use super::error::{Error, Problem, Result};
use super::first_names::FirstNames;
use super::pax::format_time;
use crate::stack::overlayfs::{self, EntryKind, XattrNamespace};
use crate::tree::attributes::{Attributes, Keep};
use crate::tree::owner;
use crate::tree::walk::{Entries, Identity, READ, as_os_str, identity, open_above, open_in};
use crate::tree::xattr::XattrList;

/// The largest numbers in the fields of a header: 7 and 11 octal digits.
const MAX_ID: u32 = 0o7_777_777;
const MAX_NUMBER: u64 = 0o77_777_777_777;

/// The length of the longest name in a header, in bytes.
const MAX_NAME: usize = 100;

/// What an archive has in another form than the tree.
#[derive(Debug, Default)]
pub(crate) struct Differences {
    /// The paths of sockets, which no archive can have. Whiteouts take their place.
    pub(crate) sockets: Vec<PathBuf>,
    /// The number of files whose user or group has no number in this process's user namespace. They
    /// are root's in the archive, as in a merge.
    pub(crate) owners_as_root: u64,
}

impl Differences {
    /// Adds those of another archive.
    pub(crate) fn add(&mut self, other: Self) {
        self.sockets.extend(other.sockets);
        self.owners_as_root += other.owners_as_root;
    }
}

/// Writes the directory `tree` into `out`.
pub(crate) fn pack(tree: &Path, xattrs: XattrNamespace, out: &mut dyn Write) -> Result<Differences> {
    let root = openat(CWD, tree, READ, Mode::empty()).map_err(crate::Error::io("open", tree))?;
    let (names, buffer) = (FirstNames::default(), vec![0; 64 * 1024]);
    let mut packer = Packer { root, xattrs, out, names, buffer, differences: Differences::default() };
    let mut current = PathBuf::new();
    packer.walk(&mut current).map_err(|problem| Error::Entry {
        operation: "pack",
        archive: tree.into(),
        entry: if current.as_os_str().is_empty() { ".".into() } else { current },
        problem,
    })?;
    Ok(packer.differences)
}

/// One member of an archive.
pub(crate) struct Member<'a> {
    pub(crate) kind: EntryType,
    pub(crate) path: &'a [u8],
    pub(crate) target: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) modified: Timespec,
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: &'a [(CString, Vec<u8>)],
}

impl<'a> Member<'a> {
    /// Returns a file of root, from 1970.
    pub(crate) fn plain(path: &'a [u8], mode: u32, size: u64) -> Self {
        let modified = Timespec { tv_sec: 0, tv_nsec: 0 };
        let (kind, target, xattrs) = (EntryType::Regular, &b""[..], &[][..]);
        Self { kind, path, target, mode, owner: (0, 0), modified, size, device: (0, 0), xattrs }
    }
}

/// Returns the header of a member, with a pax header before it for what a header cannot have.
pub(crate) fn header(member: &Member<'_>) -> Result<Vec<u8>, Problem> {
    let mut pax = PaxBuilder::new();
    if member.path.len() > MAX_NAME {
        pax.path(member.path);
    }
    if member.target.len() > MAX_NAME {
        pax.linkpath(member.target);
    }
    let (uid, gid) = member.owner;
    if uid > MAX_ID {
        pax.uid(uid.into());
    }
    if gid > MAX_ID {
        pax.gid(gid.into());
    }
    if member.size > MAX_NUMBER {
        pax.size(member.size);
    }
    let seconds = u64::try_from(member.modified.tv_sec).ok().filter(|seconds| *seconds <= MAX_NUMBER);
    if member.modified.tv_nsec != 0 || seconds.is_none() {
        pax.add("mtime", format_time(member.modified));
    }
    let mut xattrs: Vec<_> = member.xattrs.iter().collect();
    xattrs.sort();
    for (name, value) in xattrs {
        let refused = || Problem::AttributeName { name: name.to_string_lossy().into_owned() };
        let name = name.to_str().ok().filter(|name| !name.contains(['=', '\n'])).ok_or_else(refused)?;
        pax.add(&format!("SCHILY.xattr.{name}"), value);
    }
    let pax = pax.finish();
    let mut bytes = Vec::new();
    if !pax.is_empty() {
        let name = Member::plain(b"././@PaxHeader", 0o644, pax.len() as u64);
        bytes.extend_from_slice(&block(&Member { kind: EntryType::XHeader, ..name }, 0)?);
        bytes.extend_from_slice(&pax);
        bytes.resize(bytes.len().next_multiple_of(HEADER_SIZE), 0);
    }
    bytes.extend_from_slice(&block(member, seconds.unwrap_or(0))?);
    Ok(bytes)
}

fn block(member: &Member<'_>, seconds: u64) -> Result<[u8; HEADER_SIZE], Problem> {
    let short = |name: &[u8]| name[..name.len().min(MAX_NAME)].to_vec();
    let (uid, gid) = member.owner;
    let mut header = HeaderBuilder::new_ustar();
    let written = header.entry_type(member.kind).path(short(member.path)).and_then(|header| {
        header
            .link_name(short(member.target))?
            .mode(member.mode)?
            .uid(uid.min(MAX_ID).into())?
            .gid(gid.min(MAX_ID).into())?
            .size(member.size.min(MAX_NUMBER))?
            .mtime(seconds)?
            .device(member.device.0, member.device.1)
    });
    written.map_err(|error| Problem::Header(error.into()))?;
    Ok(*header.finish().as_bytes())
}

/// Writes the padding behind a content of `size` bytes.
pub(crate) fn pad(out: &mut (impl Write + ?Sized), size: u64) -> io::Result<()> {
    let block = HEADER_SIZE as u64;
    let padding = (block - size % block) % block;
    io::copy(&mut io::repeat(0).take(padding), out).map(drop)
}

/// Writes the end mark of an archive.
pub(crate) fn end(out: &mut (impl Write + ?Sized)) -> io::Result<()> {
    out.write_all(&[0; 2 * HEADER_SIZE])
}

/// A directory whose entries are being written.
struct Listed {
    identity: Identity,
    /// The entries that are still to come, the next one last.
    names: Vec<(CString, FileType)>,
    is_opaque: bool,
}

/// What an archive shows of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shows {
    Entry,
    /// Nothing, and nothing of that name in the layers below, either.
    Nothing,
}

struct Packer<'a> {
    root: OwnedFd,
    xattrs: XattrNamespace,
    out: &'a mut dyn Write,
    names: FirstNames,
    /// A part of a file on its way to the archive.
    buffer: Vec<u8>,
    differences: Differences,
}

impl Packer<'_> {
    /// Writes everything. Leaves in `current` the path of the entry that failed.
    fn walk(&mut self, current: &mut PathBuf) -> Result<(), Problem> {
        let open_root = |root: &OwnedFd| openat(root, c".", READ, Mode::empty()).map_err(Problem::io("open"));
        let mut dir = open_root(&self.root)?;
        // The directories on the way. Only the last one is open, because a tree can be deeper than
        // the limit of open files.
        let mut way = vec![self.directory(&dir, current)?];
        while let Some(here) = way.last_mut() {
            let Some((name, listed)) = here.names.pop() else {
                way.pop();
                if let Some(above) = way.last() {
                    dir = open_above(dir.as_fd(), above.identity).map_err(Problem::io("leave"))?;
                    current.pop();
                }
                continue;
            };
            current.push(as_os_str(&name));
            if name.to_bytes().starts_with(WHITEOUT) {
                return Err(Problem::WhiteoutName);
            }
            if listed.is_dir() {
                dir = open_in(dir.as_fd(), &name, READ).map_err(Problem::io("open"))?;
                way.push(self.directory(&dir, current)?);
            } else {
                let is_opaque = here.is_opaque;
                let stat = statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(Problem::io("look at"))?;
                if FileType::from_raw_mode(stat.st_mode) != listed {
                    return Err(Problem::Changed);
                }
                // In an opaque directory, a whiteout has nothing to hide.
                if self.file(dir.as_fd(), &name, current, &stat)? == Shows::Nothing && !is_opaque {
                    self.whiteout(current)?;
                }
                current.pop();
            }
        }
        end(self.out).map_err(Problem::io("write the end of the archive after"))
    }

    /// Writes a directory itself.
    fn directory(&mut self, dir: &OwnedFd, path: &Path) -> Result<Listed, Problem> {
        let is_root = path.as_os_str().is_empty();
        let listed = XattrList::of(dir.as_fd()).map_err(Problem::io("list the extended attributes of"))?;
        let stat = fstat(dir).map_err(Problem::io("look at"))?;
        let attributes = Attributes::of_known(dir.as_fd(), &stat, &listed, Keep::Visible(self.xattrs));
        let attributes = attributes.map_err(Problem::io("read the attributes of"))?;
        let name = if is_root { b"./".to_vec() } else { [path.as_os_str().as_bytes(), b"/"].concat() };
        self.member(EntryType::Directory, &name, b"", &stat, 0, &attributes)?;
        // The kernel does not look for the mark on the root.
        let is_opaque =
            !is_root && overlayfs::hides_below(dir.as_fd(), Some(&listed), self.xattrs).map_err(below(path))?;
        if is_opaque {
            let mark = [&name, OPAQUE].concat();
            self.write(&header(&Member::plain(&mark, 0o644, 0))?)?;
        }
        let again = openat(dir, c".", READ, Mode::empty()).map_err(Problem::io("read"))?;
        let names = Entries::new(again).and_then(Iterator::collect);
        let mut names: Vec<(CString, FileType)> = names.map_err(Problem::io("read"))?;
        names.sort_unstable_by(|(one, _), (other, _)| other.cmp(one));
        Ok(Listed { identity: identity(&stat), names, is_opaque })
    }

    /// Writes anything but a directory.
    fn file(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &Path, stat: &Stat) -> Result<Shows, Problem> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        // A file with content is not a whiteout. `regular_file` looks for other marks of overlayfs,
        // when the file is open and one call lists all attributes.
        let may_be_whiteout = kind != FileType::RegularFile || stat.st_size == 0;
        let entry = overlayfs::Entry::new(dir, name, stat);
        if may_be_whiteout && entry.classify(self.xattrs).map_err(below(path))? == EntryKind::Whiteout {
            return Ok(Shows::Nothing);
        }
        let bytes = path.as_os_str().as_bytes();
        if stat.st_nlink > 1 && kind != FileType::Socket {
            if let Some(first) = self.names.find(stat) {
                let link =
                    Member { kind: EntryType::Link, target: &first, ..Member::plain(bytes, stat.st_mode & 0o7777, 0) };
                let (uid, gid) = owner::of_copy(stat);
                let link = Member { owner: (uid.as_raw(), gid.as_raw()), modified: modified(stat), ..link };
                let link = header(&link)?;
                self.write(&link)?;
                return Ok(Shows::Entry);
            }
            self.names.add(stat, bytes)?;
        }
        let (kind, target) = match kind {
            FileType::RegularFile => {
                self.regular_file(dir, name, path, stat)?;
                return Ok(Shows::Entry);
            }
            FileType::Symlink => {
                let target = readlinkat(dir, name, Vec::new()).map_err(Problem::io("read"))?;
                (EntryType::Symlink, target.into_bytes())
            }
            FileType::CharacterDevice => (EntryType::Char, Vec::new()),
            FileType::BlockDevice => (EntryType::Block, Vec::new()),
            FileType::Fifo => (EntryType::Fifo, Vec::new()),
            _ => {
                self.differences.sockets.push(path.into());
                // Without the socket, a file of its name in a layer below would appear.
                return Ok(Shows::Nothing);
            }
        };
        let attributes = Attributes::of_name(dir, name, stat, Keep::Visible(self.xattrs));
        let attributes = attributes.map_err(Problem::io("read the attributes of"))?;
        self.member(kind, bytes, &target, stat, 0, &attributes)?;
        Ok(Shows::Entry)
    }

    fn whiteout(&mut self, path: &Path) -> Result<(), Problem> {
        let name = path.file_name().unwrap_or_default().as_bytes();
        let parent = path.parent().unwrap_or(Path::new("")).as_os_str().as_bytes();
        let slash: &[u8] = if parent.is_empty() { b"" } else { b"/" };
        let path = [parent, slash, WHITEOUT, name].concat();
        self.write(&header(&Member::plain(&path, 0o644, 0))?)
    }

    fn regular_file(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &Path, stat: &Stat) -> Result<(), Problem> {
        let file = open_in(dir, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC);
        let mut file = File::from(file.map_err(Problem::io("open"))?);
        let opened = fstat(&file).map_err(Problem::io("look at"))?;
        if identity(&opened) != identity(stat) {
            return Err(Problem::Changed);
        }
        let listed = XattrList::of(file.as_fd()).map_err(Problem::io("list the extended attributes of"))?;
        let entry = overlayfs::Entry { names: Some(&listed), ..overlayfs::Entry::new(dir, name, &opened) };
        if entry.classify(self.xattrs).map_err(below(path))? == EntryKind::Whiteout {
            return Err(Problem::Changed);
        }
        let attributes = Attributes::of_known(file.as_fd(), &opened, &listed, Keep::Visible(self.xattrs));
        let attributes = attributes.map_err(Problem::io("read the attributes of"))?;
        let path = path.as_os_str().as_bytes();
        let size = u64::try_from(opened.st_size).unwrap_or(0);
        self.member(EntryType::Regular, path, b"", &opened, size, &attributes)?;
        let mut position = 0;
        while position < size {
            let data = next_data(&file, &opened, position).map_err(Problem::io("look for the holes of"))?;
            self.zeros(data.start - position)?;
            self.copy(&mut file, data.end - data.start)?;
            position = data.end;
        }
        pad(self.out, size).map_err(Problem::io("write the archive with"))
    }

    /// Writes `length` zeros, which no file is read for.
    fn zeros(&mut self, length: u64) -> Result<(), Problem> {
        if length > 0 {
            self.buffer.fill(0);
        }
        let mut left = length;
        while left > 0 {
            let now = usize::try_from(left).map_or(self.buffer.len(), |left| left.min(self.buffer.len()));
            self.out.write_all(&self.buffer[..now]).map_err(Problem::io("write the archive with"))?;
            left -= now as u64;
        }
        Ok(())
    }

    /// Copies `left` bytes from the position of `file`.
    fn copy(&mut self, file: &mut File, mut left: u64) -> Result<(), Problem> {
        while left > 0 {
            let most = usize::try_from(left).map_or(self.buffer.len(), |left| left.min(self.buffer.len()));
            match file.read(&mut self.buffer[..most]) {
                Ok(0) => return Err(Problem::Changed),
                Ok(read) => {
                    let written = self.out.write_all(&self.buffer[..read]);
                    written.map_err(Problem::io("write the archive with"))?;
                    left -= read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Problem::io("read")(error)),
            }
        }
        Ok(())
    }

    fn member(
        &mut self,
        kind: EntryType,
        path: &[u8],
        target: &[u8],
        stat: &Stat,
        size: u64,
        attributes: &Attributes,
    ) -> Result<(), Problem> {
        let xattrs: Vec<_> =
            attributes.xattrs().iter().filter(|(name, _)| is_portable(name.to_bytes())).cloned().collect();
        let device = match kind {
            EntryType::Char | EntryType::Block => (major(stat.st_rdev), minor(stat.st_rdev)),
            _ => (0, 0),
        };
        let (owner, mode, modified) = (attributes.owner(), stat.st_mode & 0o7777, modified(stat));
        self.differences.owners_as_root += u64::from(owner != (stat.st_uid, stat.st_gid));
        let header = header(&Member { kind, path, target, mode, owner, modified, size, device, xattrs: &xattrs })?;
        self.write(&header)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        self.out.write_all(bytes).map_err(Problem::io("write the archive with"))
    }
}

/// Returns the next part of a file from `position` on that is not a hole, and leaves the position
/// of the file there. It is empty, and at the end, if only a hole follows.
fn next_data(file: &File, stat: &Stat, position: u64) -> rustix::io::Result<Range<u64>> {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    // The number of blocks says whether there are holes.
    let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
    if blocks.saturating_mul(512) >= size {
        return Ok(position..size);
    }
    let start = match seek(file, SeekFrom::Data(position)) {
        Err(Errno::NXIO) => return Ok(size..size),
        start => start?.min(size),
    };
    let end = seek(file, SeekFrom::Hole(start))?.min(size);
    seek(file, SeekFrom::Start(start))?;
    Ok(start..end)
}

fn modified(stat: &Stat) -> Timespec {
    Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ }
}

fn below(path: &Path) -> impl FnOnce(overlayfs::Unclassified) -> Problem {
    move |why| Problem::Below(Box::new(why.at(path)))
}

/// Returns whether an extended attribute means the same on another machine. The labels of security
/// modules do not, and those of overlayfs belong to one mount.
fn is_portable(name: &[u8]) -> bool {
    let is_local = [&b"trusted.overlay."[..], b"user.overlay.", b"security.selinux", b"security.ima", b"security.evm"];
    !is_local.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::oci::archive::{Archive, Stream};
    use crate::oci::entry::{Entry, Kind};

    fn entries(bytes: &[u8]) -> Vec<Entry> {
        let mut archive = Archive::new(Stream(bytes));
        std::iter::from_fn(|| archive.next().unwrap()).collect()
    }

    fn packed(tree: &Path) -> (Vec<u8>, Vec<PathBuf>) {
        let mut bytes = Vec::new();
        let differences = pack(tree, XattrNamespace::User, &mut bytes).unwrap();
        assert_eq!(differences.owners_as_root, 0);
        (bytes, differences.sockets)
    }

    #[test]
    fn a_header_keeps_what_it_cannot_have_in_pax_records() {
        let long = [b'n'; 150];
        let xattrs = [(c"user.b".to_owned(), b"1\n\0\xff".to_vec()), (c"user.a".to_owned(), Vec::new())];
        let times = [(0, 0), (1, 0), (1, 5), (-1, 0), (-2, 500_000_000), (1 << 40, 0)];
        for (path, target, id, size, (tv_sec, tv_nsec)) in [
            (&b"a"[..], &b"t"[..], 0, 0, times[0]),
            (&long[..100], &long[..100], MAX_ID, 0, times[1]),
            (&long[..101], &long[..], MAX_ID + 1, 0, times[2]),
            (&long[..], b"\xff", u32::MAX - 1, 0, times[3]),
            (b"a", b"t", 7, 0, times[4]),
            (b"a", b"t", 7, 0, times[5]),
        ] {
            let modified = Timespec { tv_sec, tv_nsec };
            let plain = Member::plain(path, 0o4755, size);
            let member =
                Member { kind: EntryType::Symlink, target, owner: (id, id), modified, xattrs: &xattrs, ..plain };
            let mut bytes = header(&member).unwrap();
            end(&mut bytes).unwrap();
            let [entry] = &*entries(&bytes) else { panic!("more than one entry") };
            let sorted = vec![xattrs[1].clone(), xattrs[0].clone()];
            let kind = Kind::Symlink { target: CString::new(target).unwrap() };
            let expected = Entry {
                path: path.to_vec(),
                kind,
                mode: 0o4755,
                uid: id,
                gid: id,
                mtime: modified,
                xattrs: sorted,
                size: 0,
                has_acl_text: false,
            };
            assert_eq!(entry, &expected);
        }
        let odd = [(c"user.a=b".to_owned(), Vec::new())];
        let refused = header(&Member { xattrs: &odd, ..Member::plain(b"a", 0, 0) });
        assert!(matches!(refused, Err(Problem::AttributeName { .. })));
    }

    #[test]
    fn equal_trees_give_equal_archives_in_the_order_of_names() {
        let dir = tempfile::tempdir().unwrap();
        let archives = ["one", "other"].map(|name| {
            let tree = dir.path().join(name);
            let mut names = ["b/c", "b/a", "a", "b.c"];
            if name == "other" {
                names.reverse();
            }
            fs::create_dir_all(tree.join("b")).unwrap();
            for file in names {
                fs::write(tree.join(file), file).unwrap();
            }
            fs::hard_link(tree.join("b/a"), tree.join("link")).unwrap();
            symlink("a", tree.join("b/s")).unwrap();
            let _socket = UnixListener::bind(tree.join("socket")).unwrap();
            overlayfs::make_whiteout(File::open(tree.join("b")).unwrap().as_fd(), c"gone").unwrap();
            overlayfs::set_opaque(File::open(tree.join("b")).unwrap().as_fd(), XattrNamespace::User).unwrap();
            let epoch = rustix::fs::Timespec { tv_sec: 5, tv_nsec: 7 };
            let times = rustix::fs::Timestamps { last_access: epoch, last_modification: epoch };
            for path in ["b/c", "b/a", "b/s", "a", "b.c", "b", ""] {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::utimensat(CWD, tree.join(path).components().as_path(), &times, flags).unwrap();
            }
            packed(&tree)
        });
        assert!(archives[0] == archives[1]);
        let (bytes, sockets) = &archives[0];
        assert_eq!(*sockets, [Path::new("socket")]);
        let entries = entries(bytes);
        let names: Vec<_> = entries.iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect();
        let expected = ["./", "a", "b/", "b/.wh..wh..opq", "b/a", "b/c", "b/s", "b.c", "link", ".wh.socket"];
        assert_eq!(names, expected);
        assert_eq!(entries[8].kind, Kind::HardLink { target: b"b/a".to_vec() });
    }

    #[test]
    fn holes_become_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let hole = 1 << 20;
        // Each has data where the number says.
        for places in [&[][..], &[0], &[1], &[2], &[0, 2], &[1, 3]] {
            let file = File::create(&path).unwrap();
            file.set_len(3 * hole + 5).unwrap();
            for place in places {
                std::os::unix::fs::FileExt::write_all_at(&file, b"data", place * hole).unwrap();
            }
            let expected = fs::read(&path).unwrap();
            let (bytes, _) = packed(dir.path());
            let mut archive = Archive::new(Stream(&*bytes));
            let mut content = Vec::new();
            while let Some(entry) = archive.next().unwrap() {
                if entry.path == b"f" {
                    while let part @ [_, ..] = archive.content().unwrap() {
                        content.extend_from_slice(part);
                    }
                }
            }
            assert!(content == expected, "{places:?}");
        }
    }

    #[test]
    fn a_name_of_a_whiteout_cannot_be_packed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".wh.a"), "").unwrap();
        let error = pack(dir.path(), XattrNamespace::User, &mut io::sink()).unwrap_err();
        assert!(
            matches!(&error, Error::Entry { entry, problem: Problem::WhiteoutName, .. } if entry == Path::new(".wh.a"))
        );
    }
}
