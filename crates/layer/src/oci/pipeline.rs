//! Reads the blob of a layer: decompresses it on a second thread, and computes both digests
//! while its entries are unpacked on the caller's.

use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use super::archive::{Archive, Input};
use super::compression::{Compression, Decoder, detect};
use super::digest::{Digest, Hashing, Measured};
use super::error::{Error, Problem, Result};
use super::files::known;
use super::image::Blob;

/// The size of a part that is passed from thread to thread, and how many are on the way at most.
const PART_BYTES: usize = 256 * 1024;
const PARTS: usize = 4;

/// The space before the bytes of a part. It takes the end of the part before, where a header is in
/// both, so that contents are not copied.
const SPACE_BYTES: usize = 8 * 1024;

/// What a layer must be, and what it may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected<'a> {
    /// The blob or the archive, for messages.
    pub(crate) path: &'a Path,
    pub(crate) blob: Option<&'a Blob>,
    pub(crate) diff_id: Option<Digest>,
    /// The decompressed bytes that this layer may still have.
    pub(crate) left_bytes: u64,
    /// The limit of the whole image, for messages.
    pub(crate) max_bytes: u64,
}

/// A layer that was read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) diff_id: Digest,
    /// The decompressed bytes.
    pub(crate) bytes: u64,
}

/// Reads a layer from `reader`, whose entries `unpack` takes from the archive, and checks its
/// digests. `progress` gets the number of bytes of the blob that were read since it was last
/// called.
pub(crate) fn read(
    reader: impl Read + Send,
    expected: Expected<'_>,
    progress: &(dyn Fn(u64) + Sync),
    unpack: impl FnOnce(&mut Archive<Parts>) -> Result<()>,
) -> Result<Finished> {
    let (sender, receiver) = sync_channel(PARTS);
    let (used_sender, used) = channel();
    thread::scope(|scope| {
        let decompress = scope.spawn(move || decompress(reader, expected, progress, &sender, &used));
        let mut archive = Archive::new(Parts::new(receiver, used_sender));
        let unpacked = unpack(&mut archive).and_then(|()| archive.finish(expected));
        // The other thread ends when nobody takes its parts.
        drop(archive);
        let read = decompress.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (read, unpacked) {
            // An error of the reader shows itself as an archive that ends too early.
            (Err(Failure::Error(error)), _) => Err(error),
            (_, Err(error)) => Err(error),
            (Err(Failure::NotWanted), Ok(())) => Err(Error::malformed(expected.path, "an archive")),
            (Ok(finished), Ok(())) => Ok(finished),
        }
    })
}

/// Why a layer was not read to its end.
enum Failure {
    Error(Error),
    /// The archive was refused, so that nobody takes its bytes.
    NotWanted,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

fn decompress(
    reader: impl Read,
    expected: Expected<'_>,
    progress: &(dyn Fn(u64) + Sync),
    parts: &SyncSender<Part>,
    used: &Receiver<Vec<u8>>,
) -> Result<Finished, Failure> {
    let path = expected.path;
    // The kernel's errors have numbers, those of the decoders have none.
    let failed = |error: io::Error| match error.raw_os_error() {
        None => Error::Malformed {
            path: path.into(),
            expected: "a layer: it is damaged or cut off",
            source: Some(Box::new(error)),
        },
        Some(_) => Error::io("read", path)(error),
    };
    // One byte more than expected shows that there is more.
    let most = expected.blob.map_or(u64::MAX, |blob| blob.size.saturating_add(1));
    let (detected, begun) = detect(Reporting { reader: reader.take(most), progress }).map_err(failed)?;
    let compression = known(detected, path)?;
    let mut blob = match compression {
        // The digest of the archive is that of the blob.
        Compression::None => Measured::Counted { inner: begun, bytes: 0 },
        _ if expected.blob.is_none() => Measured::Counted { inner: begun, bytes: 0 },
        _ => Measured::Hashed(Hashing::new(begun)),
    };
    let mut archive = Hashing::new(Decoder::new(compression, &mut blob).map_err(failed)?);
    let mut left = expected.left_bytes;
    loop {
        // A new buffer would cost a page fault for each of its pages.
        let mut bytes = used.try_recv().unwrap_or_else(|_| vec![0; SPACE_BYTES + PART_BYTES]);
        let length = read_full(&mut archive, &mut bytes[SPACE_BYTES..]).map_err(failed)?;
        if length == 0 {
            break;
        }
        left = left
            .checked_sub(length as u64)
            .ok_or_else(|| Error::TooLarge { archive: path.into(), max_bytes: expected.max_bytes })?;
        if parts.send(Part { bytes, range: SPACE_BYTES..SPACE_BYTES + length }).is_err() {
            return Err(Failure::NotWanted);
        }
    }
    let (decoder, diff_id, bytes) = archive.finish();
    decoder.finish().map_err(failed)?;
    let (digest, size) = blob.finish();
    if let Some(blob) = expected.blob {
        if size != blob.size {
            let (path, digest) = (path.to_path_buf(), blob.digest);
            return Err(Error::WrongSize { path, digest, expected: blob.size, found: size }.into());
        }
        let found = digest.unwrap_or(diff_id);
        if found != blob.digest {
            return Err(Error::WrongDigest { path: path.into(), expected: blob.digest, found }.into());
        }
    }
    if let Some(wanted) = expected.diff_id.filter(|wanted| *wanted != diff_id) {
        return Err(Error::WrongDiffId { path: path.into(), expected: wanted, found: diff_id }.into());
    }
    Ok(Finished { diff_id, bytes })
}

/// Fills the buffer, unless the reader ends.
fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match reader.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// A reader that reports how much was read.
struct Reporting<'a, R> {
    reader: R,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl<R: Read> Read for Reporting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        (self.progress)(read as u64);
        Ok(read)
    }
}

/// A part of an archive: a range of a buffer. The bytes before it are free.
#[derive(Debug, Default)]
struct Part {
    bytes: Vec<u8>,
    range: Range<usize>,
}

/// The parts of an archive that the other thread sends. It gets their buffers back.
#[derive(Debug)]
pub(crate) struct Parts {
    receiver: Receiver<Part>,
    used: Sender<Vec<u8>>,
    part: Part,
}

impl Parts {
    fn new(receiver: Receiver<Part>, used: Sender<Vec<u8>>) -> Self {
        Self { receiver, used, part: Part::default() }
    }

    /// Waits for the next part if the current one is used up. Returns whether there is one.
    fn has_more(&mut self) -> bool {
        if self.part.range.is_empty() {
            let Ok(part) = self.receiver.recv() else { return false };
            let read = std::mem::replace(&mut self.part, part);
            self.give_back(read.bytes);
        }
        true
    }

    fn give_back(&self, buffer: Vec<u8>) {
        // An archive has a buffer of another size at its beginning, and for a large header. The
        // other thread may have ended.
        if buffer.len() == SPACE_BYTES + PART_BYTES {
            let _ = self.used.send(buffer);
        }
    }
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.has_more() {
            return Ok(0);
        }
        let length = buffer.len().min(self.part.range.len());
        let start = self.part.range.start;
        buffer[..length].copy_from_slice(&self.part.bytes[start..start + length]);
        self.part.range.start += length;
        Ok(length)
    }
}

impl Input for Parts {
    fn skip(&mut self, _: u64) -> io::Result<u64> {
        Ok(0)
    }

    fn exchange(&mut self, buffer: &mut Vec<u8>, rest: Range<usize>) -> Option<Range<usize>> {
        if !self.has_more() || rest.len() > self.part.range.start {
            return None;
        }
        let Part { mut bytes, range } = std::mem::take(&mut self.part);
        let start = range.start - rest.len();
        bytes[start..range.start].copy_from_slice(&buffer[rest]);
        self.give_back(std::mem::replace(buffer, bytes));
        Some(start..range.end)
    }
}

impl<R: Input> Archive<R> {
    /// Reads what is behind the end mark, which belongs to the digests.
    fn finish(&mut self, expected: Expected<'_>) -> Result<()> {
        let refused = |problem| Error::Archive { archive: expected.path.into(), after: ".".into(), problem };
        // A digest would show that something is missing.
        if !self.has_end() && expected.diff_id.is_none() {
            return Err(refused(Problem::NoEnd));
        }
        self.drain().map_err(refused)
    }
}
