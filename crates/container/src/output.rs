use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// Where one of the command's output streams goes.
///
/// Standard output and standard error each have one. If both go to the same file or terminal, they share one pipe, so that it has
/// their lines in the order in which the command wrote them.
///
/// The command never gets a file or a terminal of the caller's: it writes to a pipe, and the thread that waits for the command
/// copies. A pipe, a socket or `/dev/null` of the caller's it gets as it is.
///
/// If a file cannot be written to, since its disk is full, the command goes on, the rest of its output is thrown away, and
/// [`Finished::output_error`](crate::Finished::output_error) says why.
#[derive(Default)]
#[non_exhaustive]
pub enum Output<'a> {
    /// Nowhere.
    #[default]
    Null,
    /// To where the caller's own stream goes.
    Inherit,
    /// Into a file, from where it stands.
    File(File),
    /// Into memory, bounded: see [`Excerpt`].
    Capture(CaptureLimit),
    /// To a function, piece by piece, in order, on the thread that waits for the command. A slow one slows the command, and
    /// the deadline is looked at between pieces.
    Callback(Callback<'a>),
    /// To a function, line by line, each with its newline; the last one may have none. A line of more than
    /// [`MAX_LINE_BYTES`](Self::MAX_LINE_BYTES) comes in parts. Otherwise as [`Callback`](Self::Callback).
    Lines(Callback<'a>),
    /// To all of these at once, in this order. Of several excerpts the first is kept.
    Tee(Vec<Output<'a>>),
}

/// Takes an output stream piece by piece.
pub type Callback<'a> = Box<dyn FnMut(&[u8]) + Send + 'a>;

impl<'a> Output<'a> {
    /// The most bytes of a line that [`Lines`](Self::Lines) waits for the end of.
    pub const MAX_LINE_BYTES: usize = 1 << 20;

    /// [`Callback`](Self::Callback) with this function.
    pub fn callback(function: impl FnMut(&[u8]) + Send + 'a) -> Self {
        Output::Callback(Box::new(function))
    }

    /// [`Lines`](Self::Lines) with this function.
    ///
    /// ```
    /// use container::Output;
    ///
    /// let mut warnings = 0;
    /// let stderr = Output::lines(|line| warnings += usize::from(line.starts_with(b"warning:")));
    /// # drop(stderr);
    /// ```
    pub fn lines(function: impl FnMut(&[u8]) + Send + 'a) -> Self {
        Output::Lines(Box::new(function))
    }

    /// [`Tee`](Self::Tee) to these.
    ///
    /// ```
    /// use container::{CaptureLimit, Output};
    ///
    /// let log = std::fs::File::create("/dev/null")?;
    /// let stdout = Output::tee([Output::File(log), Output::Capture(CaptureLimit::default()), Output::Inherit]);
    /// # drop(stdout);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn tee(outputs: impl IntoIterator<Item = Output<'a>>) -> Self {
        Output::Tee(outputs.into_iter().collect())
    }
}

impl fmt::Debug for Output<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Output::Null => formatter.write_str("Null"),
            Output::Inherit => formatter.write_str("Inherit"),
            Output::File(file) => formatter.debug_tuple("File").field(file).finish(),
            Output::Capture(limit) => formatter.debug_tuple("Capture").field(limit).finish(),
            Output::Callback(_) => formatter.write_str("Callback(..)"),
            Output::Lines(_) => formatter.write_str("Lines(..)"),
            Output::Tee(outputs) => formatter.debug_tuple("Tee").field(outputs).finish(),
        }
    }
}

/// How much of an output stream is held in memory: its first bytes and its last ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureLimit {
    /// Bytes of the beginning.
    pub head_bytes: usize,
    /// Bytes of the end.
    pub tail_bytes: usize,
}

impl Default for CaptureLimit {
    /// 64 KiB of either.
    fn default() -> Self {
        Self { head_bytes: 64 << 10, tail_bytes: 64 << 10 }
    }
}

/// The beginning and the end of an output stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    limit: CaptureLimit,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total: u64,
}

impl Excerpt {
    /// An empty one that will hold no more than `limit`.
    pub fn new(limit: CaptureLimit) -> Self {
        Self { limit, head: Vec::new(), tail: VecDeque::new(), total: 0 }
    }

    /// Of a log on disk, read from its beginning.
    ///
    /// # Errors
    /// The kernel's, if the file cannot be read.
    pub fn of_file(mut log: &File, limit: CaptureLimit) -> io::Result<Self> {
        let mut excerpt = Self::new(limit);
        excerpt.total = log.seek(SeekFrom::End(0))?;
        log.rewind()?;
        log.take(limit.head_bytes as u64).read_to_end(&mut excerpt.head)?;
        let tail = excerpt.total.saturating_sub(excerpt.head.len() as u64).min(limit.tail_bytes as u64);
        log.seek(SeekFrom::Start(excerpt.total - tail))?;
        let mut bytes = Vec::new();
        log.take(tail).read_to_end(&mut bytes)?;
        excerpt.tail = bytes.into();
        Ok(excerpt)
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let (head, rest) = bytes.split_at(bytes.len().min(self.limit.head_bytes - self.head.len()));
        self.head.extend_from_slice(head);
        let rest = &rest[rest.len().saturating_sub(self.limit.tail_bytes)..];
        let surplus = (self.tail.len() + rest.len()).saturating_sub(self.limit.tail_bytes);
        self.tail.drain(..surplus);
        self.tail.extend(rest);
    }

    /// How many bytes there were in all.
    pub fn total_bytes(&self) -> u64 {
        self.total
    }

    /// How many bytes between the beginning and the end were not kept.
    pub fn omitted_bytes(&self) -> u64 {
        self.total - self.head.len() as u64 - self.tail.len() as u64
    }

    /// What was kept: the beginning and, right behind it, the end. It is all there was if nothing was
    /// [omitted](Self::omitted_bytes).
    pub fn to_bytes(&self) -> Vec<u8> {
        let (front, back) = self.tail.as_slices();
        [&self.head, front, back].concat()
    }
}

impl fmt::Display for Excerpt {
    /// The text, with a line in the middle that says how much was omitted.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.omitted_bytes() == 0 {
            return formatter.write_str(&String::from_utf8_lossy(&self.to_bytes()));
        }
        let (front, back) = self.tail.as_slices();
        let tail = [front, back].concat();
        formatter.write_str(&String::from_utf8_lossy(&self.head))?;
        write!(formatter, "\n[... {} bytes omitted ...]\n", self.omitted_bytes())?;
        formatter.write_str(&String::from_utf8_lossy(&tail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn an_excerpt_keeps_both_ends_however_the_pieces_fall() {
        let text: Vec<u8> = (b'a'..=b'z').collect();
        // (head, tail, what is kept)
        let table = [
            (0, 0, ""),
            (3, 0, "abc"),
            (0, 3, "xyz"),
            (3, 2, "abcyz"),
            (13, 13, "abcdefghijklmnopqrstuvwxyz"),
            (30, 5, "abcdefghijklmnopqrstuvwxyz"),
        ];
        for (head_bytes, tail_bytes, kept) in table {
            for piece in [1, 2, 3, 5, 7, 26] {
                let mut excerpt = Excerpt::new(CaptureLimit { head_bytes, tail_bytes });
                text.chunks(piece).for_each(|piece| excerpt.push(piece));
                assert_eq!(excerpt.to_bytes(), kept.as_bytes(), "{head_bytes}+{tail_bytes} in pieces of {piece}");
                assert_eq!(excerpt.total_bytes(), 26);
                assert_eq!(excerpt.omitted_bytes(), 26 - kept.len() as u64);
                assert!(excerpt.tail.capacity() <= 64 && excerpt.head.capacity() <= 64);
                let mut log = tempfile::tempfile().unwrap();
                log.write_all(&text).unwrap();
                assert_eq!(Excerpt::of_file(&log, excerpt.limit).unwrap(), excerpt);
            }
        }
    }

    #[test]
    fn an_excerpt_says_what_it_omits() {
        let mut excerpt = Excerpt::new(CaptureLimit { head_bytes: 2, tail_bytes: 2 });
        excerpt.push(b"abc");
        assert_eq!(excerpt.to_string(), "abc");
        excerpt.push(b"def");
        assert_eq!(excerpt.to_string(), "ab\n[... 2 bytes omitted ...]\nef");
    }
}
