//! The source of the command's standard input. `output` has the destinations of its output.

use std::{fmt, fs};

/// The source of the command's standard input. What applies to a file also applies to the caller's
/// own standard input.
#[derive(Default)]
#[non_exhaustive]
pub enum Input {
    /// Empty: the command reads end-of-file immediately.
    #[default]
    Null,
    /// Reads the caller's standard input. A terminal is read only while the caller is in its
    /// foreground.
    Inherit,
    /// Reads a file, starting at its current offset. The command gets a pipe, unless the file is
    /// itself a pipe without a name, a socket or `/dev/null`. After the run, the offset of a
    /// regular file is where the command stopped reading.
    File(fs::File),
    /// These bytes, then end-of-file. They stay in memory until the command has read them. With a
    /// [terminal](crate::Terminal::Attached), they are typed into it, and no end-of-file follows.
    Bytes(Vec<u8>),
}

impl fmt::Debug for Input {
    /// Shows the number of the [bytes](Self::Bytes) only: they may be a secret, or many.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => formatter.write_str("Null"),
            Self::Inherit => formatter.write_str("Inherit"),
            Self::File(file) => formatter.debug_tuple("File").field(file).finish(),
            Self::Bytes(bytes) => write!(formatter, "Bytes({} bytes)", bytes.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_bytes() {
        assert_eq!(format!("{:?}", Input::Bytes(b"secret".to_vec())), "Bytes(6 bytes)");
    }
}
