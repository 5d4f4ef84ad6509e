//! Writes the content of files that have holes, or long runs of zeros that become holes: an archive
//! of an image has the holes of a file as zeros.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::ftruncate;

use crate::oci::archive::{Archive, Input};
use crate::oci::entry::Piece;
use crate::oci::error::Problem;

/// The smallest file in which zeros are looked for, in bytes. A smaller one saves too little.
pub(super) const LEAST_BYTES: u64 = 64 * 1024;

/// The size of the blocks of most file systems.
const BLOCK: usize = 4096;

/// Writes the pieces of a sparse file, whose contents follow each other in `archive`.
pub(super) fn write_pieces<R: Input>(
    file: &File,
    pieces: &[Piece],
    size: u64,
    archive: &mut Archive<R>,
) -> Result<(), Problem> {
    ftruncate(file, size).map_err(Problem::io("set the size of"))?;
    let mut pieces = pieces.iter().copied();
    let mut piece = pieces.next();
    loop {
        let mut content = archive.content()?;
        if content.is_empty() {
            return Ok(());
        }
        while let Some(Piece { offset, length }) = piece.filter(|_| !content.is_empty()) {
            let now = usize::try_from(length).map_or(content.len(), |length| length.min(content.len()));
            file.write_all_at(&content[..now], offset).map_err(Problem::io("write"))?;
            content = &content[now..];
            let left = Piece { offset: offset + now as u64, length: length - now as u64 };
            piece = if left.length > 0 { Some(left) } else { pieces.next() };
        }
    }
}

/// Writes the content of a file of `size` bytes, except for blocks of zeros.
pub(super) fn write_without_zeros<R: Input>(file: &File, size: u64, archive: &mut Archive<R>) -> Result<(), Problem> {
    // Without it, zeros at the end would be missing.
    ftruncate(file, size).map_err(Problem::io("set the size of"))?;
    let mut position = 0;
    loop {
        let content = archive.content()?;
        if content.is_empty() {
            return Ok(());
        }
        for (start, data) in Data::of(content, position) {
            file.write_all_at(data, start).map_err(Problem::io("write"))?;
        }
        position += content.len() as u64;
    }
}

/// The parts of a content that have other bytes than zeros, by whole blocks of the file.
struct Data<'a> {
    rest: &'a [u8],
    position: u64,
}

impl<'a> Data<'a> {
    fn of(content: &'a [u8], position: u64) -> Self {
        Self { rest: content, position }
    }

    /// Takes the part that is in one block of the file.
    fn block(&mut self) -> Option<&'a [u8]> {
        let into = usize::try_from(self.position % BLOCK as u64).unwrap_or(0);
        let (block, rest) = self.rest.split_at(self.rest.len().min(BLOCK - into));
        (self.rest, self.position) = (rest, self.position + block.len() as u64);
        (!block.is_empty()).then_some(block)
    }
}

impl<'a> Iterator for Data<'a> {
    /// The position in the file, and the bytes there.
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (mut all, mut start) = (self.rest, self.position);
        while is_zero(self.block()?) {
            (all, start) = (self.rest, self.position);
        }
        loop {
            let length = all.len() - self.rest.len();
            match self.block() {
                Some(block) if !is_zero(block) => {}
                _ => return Some((start, &all[..length])),
            }
        }
    }
}

fn is_zero(block: &[u8]) -> bool {
    *block == [0; BLOCK][..block.len()]
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::oci::archive::Stream;
    use crate::oci::testing::{Tar, spec};

    #[test]
    fn only_blocks_with_data_are_written() {
        let mut content = vec![0; 5 * BLOCK];
        content[BLOCK + 5] = 1;
        content[2 * BLOCK] = 1;
        content[5 * BLOCK - 1] = 1;
        let parts = |start: usize, position: u64| {
            Data::of(&content[start..], position).map(|(start, data)| (start, data.len())).collect::<Vec<_>>()
        };
        let block = BLOCK as u64;
        assert_eq!(parts(0, 0), [(block, 2 * BLOCK), (4 * block, BLOCK)]);
        // The rest of a block, and one at another place of the file.
        assert_eq!(parts(BLOCK + 1, block + 1), [(block + 1, 2 * BLOCK - 1), (4 * block, BLOCK)]);
        assert_eq!(parts(BLOCK + 6, 7 * block + 6), [(8 * block, BLOCK), (10 * block, BLOCK)]);
        assert_eq!(Data::of(&[], 3).count(), 0);
    }

    #[test]
    fn zeros_become_holes_and_the_content_stays() {
        let mut sizes = Vec::new();
        for data in [&[][..], &[0], &[1], &[(1 << 20) - 1], &[300_000, 300_001, 700_000]] {
            let mut content = vec![0; 1 << 20];
            data.iter().for_each(|position| content[*position] = 7);
            let bytes = Tar::new().add(spec(b'0', "f").content(&content)).end();
            let mut archive = Archive::new(Stream(&*bytes));
            let size = archive.next().unwrap().unwrap().size;
            let file = tempfile::NamedTempFile::new().unwrap();
            write_without_zeros(file.as_file(), size, &mut archive).unwrap();
            assert!(std::fs::read(file.path()).unwrap() == content, "{data:?}");
            sizes.push(file.as_file().metadata().unwrap().blocks() * 512);
        }
        assert!(sizes.iter().all(|size| *size <= 64 * 1024), "{sizes:?}");
    }
}
