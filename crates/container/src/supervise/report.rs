//! The helper's report of a run, as far as it has arrived.

use std::fs::File;
use std::io::{self, Read};

use super::helper::record::{HEAD_BYTES, Kind, PATH_BYTES};

/// The facts of a run. A process in the container that runs as the command's user can write to the
/// same pipe, so these facts are untrusted input. A forged record can claim nothing that the
/// command could not have caused anyway.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The errno of execve(2), if the runtime could not be executed.
    pub(crate) runtime_not_executed: Option<i32>,
    /// The errno of execve(2), if the program that connects the network could not be executed.
    pub(crate) network_not_executed: Option<i32>,
    /// The wait status of that program, if it has failed.
    pub(crate) network_failed: Option<i32>,
    /// The wait status of the runtime.
    pub(crate) runtime: Option<i32>,
    /// Whether the init accepts signals.
    pub(crate) is_ready: bool,
    /// Why the command could not be executed: the errno, the path, and the first bytes of the file.
    pub(crate) not_executed: Option<NotExecuted>,
    /// The wait status of the command.
    pub(crate) command: Option<i32>,
    /// The wait status of the container's first process.
    pub(crate) container: Option<i32>,
    /// Whether the init has found that no process is left after the command.
    pub(crate) has_nothing_left: bool,
}

impl Facts {
    /// Returns whether every process of the run has been waited for by its parent. The kernel
    /// counts the processor time of no other process: it discards that of processes that it kills
    /// because the first process of their PID namespace has ended.
    pub(crate) fn are_all_waited_for(&self) -> bool {
        // Without the keeper's record, the keeper was killed, and everything with it.
        self.has_nothing_left && self.container.is_some()
    }
}

/// The errno of a failed execve(2), the path, and the first bytes of the file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct NotExecuted {
    pub(crate) errno: i32,
    pub(crate) path: Vec<u8>,
    pub(crate) head: Vec<u8>,
}

/// Reads the records of one run.
#[derive(Debug)]
pub(super) struct Report {
    /// The read end of the pipe, which does not block; `None` after the end of the report.
    pipe: Option<File>,
    /// The beginning of a record that has not arrived completely.
    unread: Vec<u8>,
    facts: Facts,
    path: Vec<u8>,
    head: Vec<u8>,
}

/// The most bytes that may follow a record. A record that announces more ends the report.
const MOST_BYTES: usize = if HEAD_BYTES > PATH_BYTES { HEAD_BYTES } else { PATH_BYTES };

impl Report {
    pub(super) fn new(pipe: File) -> Self {
        Self { pipe: Some(pipe), unread: Vec::new(), facts: Facts::default(), path: Vec::new(), head: Vec::new() }
    }

    pub(super) fn pipe(&self) -> Option<&File> {
        self.pipe.as_ref()
    }

    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(super) fn into_facts(self) -> Facts {
        self.facts
    }

    /// Reads the available bytes, at most one buffer. Returns whether there may be more. The caller
    /// must not loop on that while the container runs: a process in it may write faster than this
    /// reads.
    pub(super) fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let Some(pipe) = &mut self.pipe else { return false };
        match pipe.read(&mut buffer) {
            Ok(length @ 1..) => self.accept(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Ok(0) | Err(_) => self.pipe = None,
        }
        self.pipe.is_some()
    }

    /// Reads everything that is left. Call it only after all writers have ended.
    pub(super) fn read_to_end(&mut self) {
        while self.read() {}
    }

    fn accept(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
        let mut rest = &*self.unread;
        while let Some((kind, value, after)) = header(rest) {
            let length = if [Kind::Path as u32, Kind::Head as u32].contains(&kind) { value as usize } else { 0 };
            if length > MOST_BYTES {
                // The helper writes no such record.
                self.pipe = None;
                return;
            }
            let Some((bytes, after)) = after.split_at_checked(length) else { break };
            rest = after;
            let facts = &mut self.facts;
            match kind {
                kind if kind == Kind::RuntimeNotExecuted as u32 => facts.runtime_not_executed = Some(value),
                // Only the keeper writes these, before there is a container.
                kind if kind == Kind::NetworkNotExecuted as u32 && !facts.is_ready => {
                    facts.network_not_executed = Some(value);
                }
                kind if kind == Kind::NetworkFailed as u32 && !facts.is_ready => facts.network_failed = Some(value),
                kind if kind == Kind::RuntimeEnded as u32 => facts.runtime = Some(value),
                kind if kind == Kind::Ready as u32 => facts.is_ready = true,
                kind if kind == Kind::Path as u32 => self.path = bytes.to_vec(),
                kind if kind == Kind::Head as u32 => self.head = bytes.to_vec(),
                kind if kind == Kind::NotExecuted as u32 => {
                    let (path, head) = (std::mem::take(&mut self.path), std::mem::take(&mut self.head));
                    facts.not_executed = Some(NotExecuted { errno: value, path, head });
                }
                kind if kind == Kind::CommandEnded as u32 => facts.command = Some(value),
                kind if kind == Kind::ContainerEnded as u32 => facts.container = Some(value),
                kind if kind == Kind::NothingLeft as u32 => facts.has_nothing_left = true,
                _ => {}
            }
        }
        self.unread = rest.to_vec();
    }
}

/// Splits `bytes` into the kind, the value and the rest.
fn header(bytes: &[u8]) -> Option<(u32, i32, &[u8])> {
    let (kind, rest) = bytes.split_first_chunk()?;
    let (value, rest) = rest.split_first_chunk()?;
    Some((u32::from_ne_bytes(*kind), i32::from_ne_bytes(*value), rest))
}

/// Returns the facts of a complete report.
#[cfg(test)]
pub(super) fn facts_of(report: &[u8]) -> Facts {
    let mut read = Report { pipe: None, ..Report::new(tempfile::tempfile().unwrap()) };
    read.accept(report);
    read.facts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;

    fn record(kind: Kind, value: i32) -> Vec<u8> {
        [(kind as u32).to_ne_bytes(), value.to_ne_bytes()].concat()
    }

    fn not_executed() -> Vec<u8> {
        let (path, head) = (b"/x".as_slice(), b"#!/y\n".as_slice());
        let parts =
            [record(Kind::Path, 2), path.into(), record(Kind::Head, 5), head.into(), record(Kind::NotExecuted, 2)];
        parts.concat()
    }

    fn read(pieces: &[&[u8]]) -> Facts {
        let mut report = Report { pipe: None, ..Report::new(tempfile::tempfile().unwrap()) };
        pieces.iter().for_each(|piece| report.accept(piece));
        report.facts
    }

    #[test]
    fn records_are_read_however_the_pieces_fall() {
        let all = [record(Kind::Ready, 0), not_executed(), record(Kind::CommandEnded, 127 << 8)].concat();
        let expected = Facts {
            is_ready: true,
            not_executed: Some(NotExecuted { errno: 2, path: b"/x".into(), head: b"#!/y\n".into() }),
            command: Some(127 << 8),
            ..Facts::default()
        };
        for size in 1..all.len() {
            let pieces: Vec<_> = all.chunks(size).collect();
            assert_eq!(read(&pieces), expected, "pieces of {size}");
        }
        let table = [
            (record(Kind::RuntimeNotExecuted, 2), Facts { runtime_not_executed: Some(2), ..Facts::default() }),
            (record(Kind::RuntimeEnded, 256), Facts { runtime: Some(256), ..Facts::default() }),
            (record(Kind::NetworkNotExecuted, 2), Facts { network_not_executed: Some(2), ..Facts::default() }),
            (record(Kind::NetworkFailed, 256), Facts { network_failed: Some(256), ..Facts::default() }),
            // A command that claims that its own network has failed.
            (
                [record(Kind::Ready, 0), record(Kind::NetworkFailed, 256)].concat(),
                Facts { is_ready: true, ..Facts::default() },
            ),
            (record(Kind::ContainerEnded, 9), Facts { container: Some(9), ..Facts::default() }),
            (record(Kind::NothingLeft, 0), Facts { has_nothing_left: true, ..Facts::default() }),
            (record(Kind::Path, -1), Facts::default()),
            ([record(Kind::Head, MOST_BYTES as i32 + 1), record(Kind::Ready, 0)].concat(), Facts::default()),
        ];
        for (bytes, facts) in table {
            assert_eq!(read(&[&bytes]), facts, "{bytes:?}");
        }
    }

    #[test]
    fn only_a_run_that_nobody_has_killed_has_waited_for_all() {
        let (command, nothing_left) = (record(Kind::CommandEnded, 9), record(Kind::NothingLeft, 0));
        let container = record(Kind::ContainerEnded, 0);
        let table = [
            ([&*command, &nothing_left, &container].concat(), true),
            // Other processes were left, or the command was process 1 itself.
            ([&*command, &container].concat(), false),
            // The keeper was killed.
            ([&*command, &nothing_left].concat(), false),
            (Vec::new(), false),
        ];
        for (bytes, expected) in table {
            assert_eq!(read(&[&bytes]).are_all_waited_for(), expected, "{bytes:?}");
        }
    }

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn a_report_of_any_content_has_a_bounded_path(bytes in mutated::bytes([not_executed(), record(Kind::Ready, 0)])) {
            let facts = read(&[&bytes]);
            prop_assert!(facts.not_executed.is_none_or(|failure| failure.path.len() <= MOST_BYTES));
        }
    }
}
