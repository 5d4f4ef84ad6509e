//! Reads a tar archive entry by entry, from a stream or from a file in which it can skip. Holds a
//! bounded part of it in memory. `entry.rs` checks each entry.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use tar_core::HEADER_SIZE;
use tar_core::parse::{Limits, ParseEvent, ParsedEntry, Parser};

use super::entry::Entry;
use super::error::{Error, Problem};
use super::files::lossless;
use super::pax::Pax;

/// The size of the buffer, as long as the headers are of the usual size.
const BUFFER_BYTES: usize = 128 * 1024;

/// The largest header with its extensions. `tar-core` limits extensions to 1 MiB, but not the maps
/// of sparse files.
const MAX_HEADER_BYTES: usize = 2 << 20;

/// The largest number of entries. The largest images have about a million.
pub(crate) const MAX_ENTRIES: u64 = 20_000_000;

/// Where an archive is read from.
pub(crate) trait Input: Read {
    /// Skips at most `bytes` bytes without reading them. Returns how many were skipped.
    fn skip(&mut self, bytes: u64) -> io::Result<u64>;

    /// Replaces `buffer`, of which `rest` is still needed, with a buffer that has the rest and the
    /// next bytes of the input. Returns their range, or `None` if the bytes must be read.
    fn exchange(&mut self, buffer: &mut Vec<u8>, rest: Range<usize>) -> Option<Range<usize>> {
        let _ = (buffer, rest);
        None
    }
}

/// An input in which nothing can be skipped.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct Stream<R>(pub(crate) R);

#[cfg(test)]
impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

#[cfg(test)]
impl<R: Read> Input for Stream<R> {
    fn skip(&mut self, _: u64) -> io::Result<u64> {
        Ok(0)
    }
}

impl Input for File {
    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        // A position behind the end would hide that the archive is cut off.
        let (here, end) = (self.stream_position()?, self.metadata()?.len());
        let skipped = bytes.min(end.saturating_sub(here));
        self.seek(SeekFrom::Current(i64::try_from(skipped).map_err(io::Error::other)?))?;
        Ok(skipped)
    }
}

/// A reader of a tar archive.
#[derive(Debug)]
pub(crate) struct Archive<R> {
    input: R,
    parser: Parser,
    buffer: Vec<u8>,
    /// The part of the buffer that is read and not consumed.
    start: usize,
    end: usize,
    /// The number of bytes consumed so far, which is the position in the archive.
    position: u64,
    /// The content of the current entry that is still to come, and the padding behind it.
    content: u64,
    padding: u64,
    entries: u64,
    has_end: bool,
}

/// The reason why an archive cannot be read further.
#[derive(Debug)]
pub(crate) struct Refused {
    /// The path of the entry, if it could be read.
    pub(crate) entry: Option<Vec<u8>>,
    pub(crate) problem: Problem,
}

impl Refused {
    /// Returns the error about the archive at `path`, whose last good entry was `last`.
    pub(crate) fn at(self, path: &Path, last: &Path) -> Error {
        let archive = path.into();
        match self.entry {
            Some(entry) => {
                Error::Entry { operation: "unpack", archive, entry: lossless(&entry), problem: self.problem }
            }
            None => Error::Archive { archive, after: last.into(), problem: self.problem },
        }
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self { entry: None, problem }
    }
}

impl<R: Input> Archive<R> {
    pub(crate) fn new(input: R) -> Self {
        let limits = Limits { max_path_len: Some(4095), ..Limits::default() };
        let mut parser = Parser::new(limits);
        // It would refuse times before 1970. `Pax::check` refuses what is really malformed.
        parser.set_ignore_pax_errors(true);
        // "./" is an entry, and so is "" in some archives.
        parser.set_allow_empty_path(true);
        Self {
            input,
            parser,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            position: 0,
            content: 0,
            padding: 0,
            entries: 0,
            has_end: false,
        }
    }

    /// Reads headers whose checksums are wrong, as nearly all are that a test has changed.
    #[cfg(test)]
    pub(crate) fn without_checksums(input: R) -> Self {
        let mut archive = Self::new(input);
        archive.parser.set_verify_checksums(false);
        archive
    }

    /// Returns the next entry. Skips what is left of the content of the last one. Returns `None` at
    /// the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Refused> {
        self.skip_content()?;
        loop {
            let available = &self.buffer[self.start..self.end];
            let (consumed, parsed) = match self.parser.parse(available) {
                Err(error) => return Err(Problem::Header(error).into()),
                Ok(ParseEvent::NeedData { min_bytes }) => {
                    // It may ask for less than it has, where a number has no end.
                    let least = min_bytes.max(available.len() + 1);
                    match self.fill(least)? {
                        Filled::Enough => continue,
                        Filled::End if self.start == self.end => return Ok(None),
                        Filled::End => return Err(Problem::Truncated.into()),
                    }
                }
                Ok(ParseEvent::Entry { consumed, entry }) => (consumed, named(&entry, Entry::check(&entry, None))?),
                Ok(ParseEvent::SparseEntry { consumed, entry, sparse_map, real_size }) => {
                    (consumed, named(&entry, Entry::check(&entry, Some((&sparse_map, real_size))))?)
                }
                Ok(ParseEvent::GlobalExtensions { consumed, pax_data }) => {
                    Pax::check_global(pax_data)?;
                    self.consume(consumed);
                    continue;
                }
                Ok(ParseEvent::End { consumed }) => {
                    self.consume(consumed);
                    self.has_end = true;
                    return Ok(None);
                }
            };
            self.consume(consumed);
            self.content = parsed.size;
            self.padding = padding(parsed.size);
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(Problem::TooManyEntries { max: MAX_ENTRIES }.into());
            }
            return Ok(Some(parsed));
        }
    }

    /// Returns the next part of the content of the current entry. It is empty at the end.
    pub(crate) fn content(&mut self) -> Result<&[u8], Problem> {
        if self.content > 0 && self.start == self.end {
            match self.fill(1)? {
                Filled::Enough => {}
                Filled::End => return Err(Problem::Truncated),
            }
        }
        let available = self.end - self.start;
        let length = usize::try_from(self.content).map_or(available, |content| content.min(available));
        let start = self.start;
        self.content -= length as u64;
        self.consume(length);
        Ok(&self.buffer[start..start + length])
    }

    /// Returns the position of the content of the current entry in the archive.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Returns whether the archive has ended with its end mark. Without one, it may be cut off
    /// between two entries.
    pub(crate) fn has_end(&self) -> bool {
        self.has_end
    }

    /// Reads the input to its end.
    pub(crate) fn drain(&mut self) -> Result<(), Problem> {
        loop {
            (self.start, self.end) = (0, 0);
            if matches!(self.fill(1)?, Filled::End) {
                return Ok(());
            }
        }
    }

    fn skip_content(&mut self) -> Result<(), Problem> {
        while self.content > 0 || self.padding > 0 {
            let left = self.content.saturating_add(self.padding);
            let available = self.end - self.start;
            let mut skipped = usize::try_from(left).map_or(available, |left| left.min(available)) as u64;
            match skipped {
                0 => {
                    skipped = self.input.skip(left).map_err(Problem::io("read"))?;
                    self.position += skipped;
                    if skipped == 0 && matches!(self.fill(1)?, Filled::End) {
                        return Err(Problem::Truncated);
                    }
                }
                #[allow(clippy::cast_possible_truncation)]
                skipped => self.consume(skipped as usize),
            }
            let content = skipped.min(self.content);
            self.content -= content;
            self.padding -= skipped - content;
        }
        Ok(())
    }

    fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        self.position += bytes as u64;
    }

    /// Reads until `least` bytes are available, or until the input ends.
    fn fill(&mut self, least: usize) -> Result<Filled, Problem> {
        if least > MAX_HEADER_BYTES {
            return Err(Problem::HeaderTooLarge { max_bytes: MAX_HEADER_BYTES });
        }
        if let Some(range) = self.input.exchange(&mut self.buffer, self.start..self.end) {
            (self.start, self.end) = (range.start, range.end);
            if range.len() >= least {
                return Ok(Filled::Enough);
            }
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start + least > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if least > self.buffer.len() {
            // More than is needed, since every attempt to parse the header begins at its start.
            self.buffer.resize((2 * least).min(MAX_HEADER_BYTES), 0);
        }
        while self.end - self.start < least {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(Filled::End),
                Ok(read) => self.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Problem::Truncated),
                Err(error) => return Err(Problem::io("read")(error)),
            }
        }
        Ok(Filled::Enough)
    }
}

enum Filled {
    Enough,
    End,
}

/// Returns the bytes between the end of a content and the next header.
fn padding(size: u64) -> u64 {
    let block = HEADER_SIZE as u64;
    (block - size % block) % block
}

fn named(entry: &ParsedEntry<'_>, checked: Result<Entry, Problem>) -> Result<Entry, Refused> {
    checked.map_err(|problem| Refused { entry: Some(entry.path.to_vec()), problem })
}
