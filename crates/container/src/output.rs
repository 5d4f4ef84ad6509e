//! The destinations of the command's output, and excerpts of it. `supervise` copies the output
//! there.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;

/// The destination of one of the command's output streams.
///
/// Standard output and standard error each have their own destination. If both are the same file or
/// terminal, they share one pipe, so that their lines keep the order in which the command wrote
/// them.
///
/// The command never gets a file or a terminal of the caller's. It writes to a pipe, and the thread
/// that waits for the command copies from there. A pipe without a name, a socket or `/dev/null` of
/// the caller's is passed on as it is.
///
/// If a file cannot be written to, for example because its disk is full, the command keeps running.
/// The rest of its output to that file is discarded, and
/// [`Finished::output_error`](crate::Finished::output_error) holds the reason.
#[derive(Default)]
#[non_exhaustive]
pub enum Output<'a> {
    /// Discards the output.
    #[default]
    Null,
    /// Writes to the caller's own stream.
    Inherit,
    /// Writes to a file, starting at its current offset.
    File(File),
    /// Keeps a bounded part of the output in memory: see [`Excerpt`].
    Capture(CaptureLimit),
    /// Calls a function with each piece of the output, in order, on the thread that waits for the
    /// command. A slow function slows the command down. The timeout is checked only between pieces.
    Callback(Callback<'a>),
    /// Calls a function with each line, including its newline. The last line may have none. A line
    /// longer than [`MAX_LINE_BYTES`](Self::MAX_LINE_BYTES) is delivered in parts. Otherwise like
    /// [`Callback`](Self::Callback).
    Lines(Callback<'a>),
    /// Sends the output to each of these, in this order. If several of them are excerpts, the first
    /// is returned.
    Tee(Vec<Output<'a>>),
}

/// A function that receives an output stream in pieces.
pub type Callback<'a> = Box<dyn FnMut(&[u8]) + Send + 'a>;

impl<'a> Output<'a> {
    /// The longest line, in bytes, that [`Lines`](Self::Lines) delivers in one part.
    pub const MAX_LINE_BYTES: usize = 1 << 20;

    /// Returns [`Callback`](Self::Callback) with this function.
    pub fn callback(function: impl FnMut(&[u8]) + Send + 'a) -> Self {
        Output::Callback(Box::new(function))
    }

    /// Returns [`Lines`](Self::Lines) with this function.
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

    /// Returns [`Tee`](Self::Tee) with these destinations.
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

/// How much of an output stream is kept in memory: its first and its last bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureLimit {
    /// The number of bytes kept from the beginning.
    pub head_bytes: usize,
    /// The number of bytes kept from the end.
    pub tail_bytes: usize,
}

impl Default for CaptureLimit {
    /// 64 KiB from the beginning and 64 KiB from the end.
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
    /// Creates an empty excerpt that will hold no more than `limit`.
    pub(crate) fn new(limit: CaptureLimit) -> Self {
        Self { limit, head: Vec::new(), tail: VecDeque::new(), total: 0 }
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

    /// Returns the number of bytes of the whole stream.
    pub fn total_bytes(&self) -> u64 {
        self.total
    }

    /// Returns the number of bytes between the beginning and the end that were not kept.
    pub fn omitted_bytes(&self) -> u64 {
        self.total - self.head.len() as u64 - self.tail.len() as u64
    }

    /// Returns the kept bytes: the beginning, immediately followed by the end. They are the whole
    /// stream if [`omitted_bytes`](Self::omitted_bytes) is 0.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (front, back) = self.tail.as_slices();
        [&self.head, front, back].concat()
    }
}

impl fmt::Display for Excerpt {
    /// Formats the text. If bytes were omitted, a line in the middle says how many.
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

    #[test]
    fn an_excerpt_keeps_both_ends_however_the_pieces_fall() {
        let text: Vec<u8> = (b'a'..=b'z').collect();
        // (head, tail, the kept bytes)
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
