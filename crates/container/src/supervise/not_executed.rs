//! Explains why the kernel does not execute a command: interprets the errno with the help of the
//! first bytes of the file.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use super::report::NotExecuted;
use crate::Error;
use crate::display::escaped;

impl NotExecuted {
    /// Returns an error that names the path, the reason, and the remedy.
    pub(crate) fn into_error(self) -> Error {
        use std::os::unix::ffi::OsStringExt;
        let source = Errno::from_raw_os_error(self.errno);
        let reason = reason(source, &self.head);
        let is_missing = reason.is_none() && [Errno::NOENT, Errno::NOTDIR].contains(&source);
        let path = PathBuf::from(std::ffi::OsString::from_vec(self.path));
        let source = io::Error::from(source);
        match is_missing {
            true => Error::CommandNotFound { path, source },
            false => Error::CommandNotExecutable { path, reason: reason.unwrap_or_default(), source },
        }
    }
}

/// Returns the reason that the first bytes of the file reveal, or `None` if they reveal nothing.
fn reason(errno: Errno, head: &[u8]) -> Option<String> {
    let interpreter = interpreter(head);
    match (errno, interpreter) {
        // The kernel uses the same errno for a missing file and for a missing interpreter.
        (Errno::NOENT | Errno::NOTDIR, Some(Interpreter::Of(name))) if name.ends_with(b"\r") => Some(format!(
            "its first line names the interpreter {}: end its lines as Unix does, without a carriage return",
            quoted(&name)
        )),
        (Errno::NOENT | Errno::NOTDIR, Some(Interpreter::Of(name))) => {
            Some(format!("its interpreter {} does not exist: add the layer that has it", quoted(&name)))
        }
        (Errno::NOENT | Errno::NOTDIR, Some(Interpreter::Loader(name))) => Some(format!(
            "its dynamic loader {} does not exist: add the layer of its C library, or link it statically",
            quoted(&name)
        )),
        (Errno::NOENT, None) if !head.is_empty() => Some("the program that loads it does not exist".into()),
        (Errno::ACCESS, Some(Interpreter::Of(name))) => {
            Some(format!("it, or its interpreter {}, must be a file with permission to execute", quoted(&name)))
        }
        (Errno::ACCESS, _) => Some("it must be a file with permission to execute".into()),
        (Errno::NOEXEC, _) if head.is_empty() => Some("it is empty".into()),
        (Errno::NOEXEC, _) if head.starts_with(ELF) => Some("it is a program for another machine, or damaged".into()),
        (Errno::NOEXEC, _) => {
            Some("it is neither a program of this machine nor a script with `#!` in its first line".into())
        }
        _ => None,
    }
}

fn quoted(name: &[u8]) -> String {
    format!("\"{}\"", escaped(&String::from_utf8_lossy(name)))
}

/// The program that the kernel executes to run a file.
#[derive(Debug, PartialEq, Eq)]
enum Interpreter {
    /// The interpreter of a script: execve(2), "Interpreter scripts".
    Of(Vec<u8>),
    /// The dynamic loader of an ELF program: `PT_INTERP` in elf(5).
    Loader(Vec<u8>),
}

const ELF: &[u8] = b"\x7fELF";

fn interpreter(head: &[u8]) -> Option<Interpreter> {
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let mut words = line.split(|byte| [b' ', b'\t'].contains(byte)).filter(|word| !word.is_empty());
        return words.next().map(|name| Interpreter::Of(name.into()));
    }
    loader(head).map(|name| Interpreter::Loader(name.into()))
}

/// Returns the dynamic loader that an ELF program names, if the name is within `head`; linkers put
/// it at the beginning of the file. Handles little-endian files of 64 and 32 bits.
fn loader(head: &[u8]) -> Option<&[u8]> {
    const PT_INTERP: u64 = 3;
    if !head.starts_with(ELF) || head.get(5) != Some(&1) {
        return None;
    }
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let bytes = head.get(at..at.checked_add(bytes)?)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    // Offsets in the ELF header: the position of the program header table and the width of that
    // field, the size of an entry, and the number of entries. Then the offsets in an entry: the
    // position and the size of its segment.
    let (table, width, size, count, place, length) = match head.get(4)? {
        2 => (32, 8, 54, 56, 8, 32),
        1 => (28, 4, 42, 44, 4, 16),
        _ => return None,
    };
    let (table, size, count) = (number(table, width)?, number(size, 2)?, number(count, 2)?);
    for index in 0..count {
        let header = usize::try_from(table.checked_add(index * size)?).ok()?;
        if number(header, 4)? == PT_INTERP {
            let from = usize::try_from(number(header + place, width)?).ok()?;
            let length = usize::try_from(number(header + length, width)?).ok()?;
            let name = head.get(from..from.checked_add(length)?)?;
            return Some(name.strip_suffix(b"\0").unwrap_or(name));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;

    /// A 64-bit ELF header with one program header, which names a dynamic loader.
    fn elf() -> Vec<u8> {
        let mut head = vec![0; 120];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        head[32] = 64;
        head[54] = 56;
        head[56] = 1;
        head[64] = 3;
        head[72] = 120;
        head[96] = 8;
        head.extend_from_slice(b"/ld.so\0\0");
        head
    }

    #[test]
    fn the_errno_and_the_file_give_the_reason() {
        let elf = elf();
        // (errno, first bytes of the file, whether the command is missing, part of the message)
        let table: [(Errno, &[u8], bool, &str); 12] = [
            (Errno::NOENT, b"", true, "does not exist in the container: /x"),
            (Errno::NOTDIR, b"", true, "does not exist in the container: /x"),
            (Errno::NOENT, b"#! /no/sh -e\n", false, "its interpreter \"/no/sh\" does not exist"),
            (
                Errno::NOENT,
                b"#!/bin/sh\r\necho\r\n",
                false,
                "the interpreter \"/bin/sh\\r\": end its lines as Unix does",
            ),
            (Errno::NOENT, &elf, false, "its dynamic loader \"/ld.so"),
            (Errno::NOENT, b"\x7fELF", false, "the program that loads it"),
            (Errno::ACCESS, b"", false, "permission to execute"),
            (Errno::ACCESS, b"#!/etc\n", false, "its interpreter \"/etc\""),
            (Errno::NOEXEC, b"", false, "it is empty"),
            (Errno::NOEXEC, b"echo\n", false, "nor a script with `#!`"),
            (Errno::NOEXEC, &elf, false, "for another machine"),
            (Errno::TOOBIG, b"#!/bin/sh\n", false, "cannot be executed in the container: /x"),
        ];
        for (errno, head, is_missing, part) in table {
            let failure = NotExecuted { errno: errno.raw_os_error(), path: b"/x".into(), head: head.into() };
            let error = failure.into_error();
            assert_eq!(matches!(error, Error::CommandNotFound { .. }), is_missing, "{errno:?} {error}");
            assert!(error.to_string().contains(part), "{errno:?} {error}");
        }
    }

    #[test]
    fn a_loader_is_named_by_both_kinds_of_programs() {
        assert_eq!(loader(&elf()), Some(&b"/ld.so\0"[..]));
        let own = std::fs::read("/proc/self/exe").unwrap();
        let of_own = loader(&own[..1024]).map(|name| String::from_utf8_lossy(name).into_owned());
        assert!(of_own.is_none_or(|name| name.contains("/ld-")), "a test of another C library");
    }

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn a_file_of_any_content_gives_a_printable_reason(head in mutated::bytes([elf(), b"#!/bin/sh -e\r\n".to_vec()])) {
            for errno in [Errno::NOENT, Errno::ACCESS, Errno::NOEXEC] {
                let reason = reason(errno, &head).unwrap_or_default();
                prop_assert!(!reason.chars().any(char::is_control), "{reason:?}");
            }
        }
    }
}
