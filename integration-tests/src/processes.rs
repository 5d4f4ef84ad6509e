//! Processes, as `/proc` has them.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::FOR_EVER;

/// The processes that `pid` has started, and those that they have, each after its parent.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children(*pid));
        next += 1;
    }
    found.split_off(1)
}

/// The processes that the threads of `pid` have started. A process that has ended has none.
///
/// # Panics
/// If the kernel tells something else than numbers.
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_each = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    of_each.flat_map(|all| all.split_whitespace().map(|child| child.parse().unwrap()).collect::<Vec<_>>()).collect()
}

/// The name of a process; empty if it has ended.
pub fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().into()
}

/// The letter for what a process does: `R`, `S`, `T`, `Z` and others of proc_pid_stat(5). `None` if there is no such process.
pub fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which is in parentheses.
    stat.rsplit(") ").next()?.chars().next()
}

/// How often the threads of a process were given a processor. One that has ended has none.
///
/// # Panics
/// If the kernel does not count that.
pub fn times_run(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let times = tasks.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
    times.map(|times| times.split_whitespace().nth(2).unwrap().parse::<u64>().unwrap()).sum()
}

/// A child that is killed when this is dropped, by a failing test, say.
#[derive(Debug)]
pub struct Running {
    child: Child,
    said: Option<BufReader<ChildStdout>>,
}

impl Running {
    /// Starts a program.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        Self::from(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it was waited for already.
    pub fn send(&self, signal: Signal) {
        kill(nix::unistd::Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// The next line that it writes to a pipe, without its end; empty if there is none.
    ///
    /// # Panics
    /// If it does not write to one.
    pub fn line(&mut self) -> String {
        let said = self.said.as_mut().expect("a pipe");
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        line.trim_end_matches('\n').into()
    }

    /// The rest of what it writes to a pipe.
    ///
    /// # Panics
    /// If it does not write to one.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.said.as_mut().expect("a pipe").read_to_end(&mut rest).unwrap();
        rest
    }

    /// What it reads from.
    ///
    /// # Panics
    /// If it does not read from a pipe.
    pub fn input(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("a pipe")
    }

    /// Reads no more of what it writes to a pipe.
    pub fn close_output(&mut self) {
        self.said = None;
    }

    /// Whether it still runs.
    ///
    /// # Panics
    /// If it cannot be waited for.
    pub fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// If it never does.
    pub fn end(&mut self) -> ExitStatus {
        let pidfd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        let deadline = Instant::now() + FOR_EVER;
        loop {
            let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).unwrap();
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
                Ok(0) => panic!("it never ends"),
                Ok(_) => return self.child.wait().unwrap(),
                Err(error) => assert_eq!(error, Errno::INTR),
            }
        }
    }

    /// Waits until it has ended. Returns the exit status and the rest of what it writes to a pipe.
    ///
    /// # Panics
    /// If it never ends, or was killed.
    pub fn result(&mut self) -> (i32, String) {
        let mut rest = String::new();
        if let Some(said) = &mut self.said {
            said.read_to_string(&mut rest).unwrap();
        }
        (self.end().code().expect("an exit status"), rest)
    }
}

impl From<Child> for Running {
    fn from(mut child: Child) -> Self {
        Self { said: child.stdout.take().map(BufReader::new), child }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has been waited for is left alone.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}
