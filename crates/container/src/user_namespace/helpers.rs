//! Runs newuidmap(1) and newgidmap(1) for the namespace that this process enters. Both programs
//! must run outside of it, and it must exist before. Therefore each is a child that waits until
//! this process has entered. This module has unsafe code, because std cannot start a child that
//! waits before it executes its program.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::{env, ptr};

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::error::{Obstacle, UserNamespaceError};
use super::read_map;

/// Children that wait until this process has entered its namespace. If this process ends first, or
/// drops this value, they exit.
#[derive(Debug)]
pub(super) struct Helpers {
    // Fields are dropped in this order: the end of `go` ends the children, and then they are
    // reaped.
    go: OwnedFd,
    waits: OwnedFd,
    children: Vec<Helper>,
}

/// A child that executes `program` when it may.
#[derive(Debug)]
struct Helper {
    program: &'static str,
    path: PathBuf,
    pid: Pid,
    stderr: File,
    is_reaped: bool,
}

/// The exit status of a child that has not executed its program, as in a shell.
const NOT_EXECUTED: i32 = 127;

impl Helpers {
    pub(super) fn new() -> Result<Self, UserNamespaceError> {
        // All children share one pipe. With one each, a child would inherit the pipes of those
        // before it, and these would not see the end of theirs.
        let (waits, go) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| UserNamespaceError::Io {
            operation: "make",
            path: "a pipe",
            source: error.into(),
        })?;
        Ok(Self { go, waits, children: Vec::new() })
    }

    /// Starts a child that waits, and then executes `program` with these arguments.
    ///
    /// # Errors
    /// [`UserNamespaceError::NoHelper`] if the program is not in `PATH`. [`UserNamespaceError::Io`]
    /// if the child cannot be started.
    pub(super) fn start(&mut self, program: &'static str, arguments: &[String]) -> Result<(), UserNamespaceError> {
        let path = find_in_path(program).ok_or(UserNamespaceError::NoHelper { program })?;
        let started = self.fork(&path, [program].into_iter().chain(arguments.iter().map(|word| &**word)));
        let (pid, stderr) =
            started.map_err(|source| UserNamespaceError::Io { operation: "start", path: program, source })?;
        self.children.push(Helper { program, path, pid, stderr, is_reaped: false });
        Ok(())
    }

    /// Returns the PID of the child, and the read end of its standard error.
    fn fork<'w>(&self, path: &Path, words: impl Iterator<Item = &'w str>) -> io::Result<(Pid, File)> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let words = words.map(CString::new).collect::<Result<Vec<_>, _>>()?;
        let words: Vec<*const c_char> = words.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect();
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let (stderr, messages) = pipe_with(PipeFlags::CLOEXEC)?;
        // A signal handler of the caller must not run twice.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        // SAFETY: the child only makes system calls on data that exists: no allocation, no panic
        // and no lock. It then executes a program or exits.
        let forked = unsafe { libc::fork() };
        if forked == 0 {
            // SAFETY: as above. The descriptors are open, and are used by no other code of the
            // child. The path and the words end with a NUL, and the list of words with a null
            // pointer.
            unsafe {
                libc::close(self.go.as_raw_fd());
                if libc::read(self.waits.as_raw_fd(), ptr::from_mut(&mut [0_u8]).cast(), 1) == 1 {
                    libc::dup2(null.as_raw_fd(), 0);
                    libc::dup2(null.as_raw_fd(), 1);
                    libc::dup2(messages.as_raw_fd(), 2);
                    let _ = mask.thread_set_mask();
                    libc::execv(path.as_ptr(), words.as_ptr());
                }
                libc::_exit(NOT_EXECUTED)
            }
        }
        let error = io::Error::last_os_error();
        let unmasked = mask.thread_set_mask();
        if forked < 0 {
            return Err(error);
        }
        unmasked?;
        let pid = Pid::from_raw(forked).expect("the PID of a child");
        Ok((pid, stderr.into()))
    }

    /// Lets the children execute their programs. Waits for them, and checks that they have set
    /// `maps`, the files of this process in the order in which the children were started.
    pub(super) fn finish(mut self, maps: &[&'static str]) -> Result<(), UserNamespaceError> {
        let failed = |source: rustix::io::Errno| UserNamespaceError::Io {
            operation: "write to",
            path: "a pipe",
            source: source.into(),
        };
        // Each child reads one byte.
        retry_on_intr(|| rustix::io::write(&self.go, &vec![0; self.children.len()])).map_err(failed)?;
        self.children.iter_mut().zip(maps).try_for_each(|(child, map)| child.finish(map))
    }
}

impl Helper {
    /// Waits for the program. The map itself says whether the program has succeeded: its exit
    /// status is lost if this process ignores SIGCHLD.
    fn finish(&mut self, map: &'static str) -> Result<(), UserNamespaceError> {
        let mut message = String::new();
        let _ = self.stderr.read_to_string(&mut message);
        let status = self.reap();
        if !read_map(map)?.is_empty() {
            return Ok(());
        }
        let program = self.program;
        if let Some(obstacle) = Obstacle::find(&self.path) {
            return Err(UserNamespaceError::HelperPowerless { program, obstacle });
        }
        if message.trim().is_empty() {
            message = match status {
                Ok(status) if status.code() == Some(NOT_EXECUTED) => "it cannot be executed".into(),
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            };
        }
        Err(UserNamespaceError::HelperFailed { program, message })
    }

    fn reap(&mut self) -> rustix::io::Result<ExitStatus> {
        self.is_reaped = true;
        let ended = retry_on_intr(|| waitpid(Some(self.pid), WaitOptions::empty()))?;
        // Without an option, the call returns only when the child has ended.
        let (_, status) = ended.expect("a child that has ended");
        Ok(ExitStatus::from_raw(status.as_raw()))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if !self.is_reaped {
            let _ = self.reap();
        }
    }
}

fn find_in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_that_may_not_begin_end_with_their_value() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("made");
        let mut helpers = Helpers::new().unwrap();
        for _ in 0..2 {
            helpers.start("touch", &[file.to_str().unwrap().into()]).unwrap();
        }
        // This waits for them.
        drop(helpers);
        assert!(!file.exists());
    }

    #[test]
    fn a_program_that_is_missing_or_fails_is_named() {
        let mut helpers = Helpers::new().unwrap();
        let error = helpers.start("no-such-program", &[]).unwrap_err();
        assert!(matches!(error, UserNamespaceError::NoHelper { program: "no-such-program" }), "{error}");
        for (script, message) in [("echo no >&2", "sh failed (no)"), ("exit 3", "exit status: 3")] {
            let mut helpers = Helpers::new().unwrap();
            helpers.start("sh", &["-c".into(), script.into()]).unwrap();
            // An empty file, as the map of a namespace without IDs.
            let error = helpers.finish(&["/dev/null"]).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
