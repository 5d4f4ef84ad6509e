//! Processes as `/proc` describes them, and a child that ends with its test.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::FOR_EVER;

/// Returns all descendants of `pid`, each after its parent.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children(*pid));
        next += 1;
    }
    found.split_off(1)
}

/// Returns the processes that the threads of `pid` have started. A process that has ended has no
/// children.
///
/// # Panics
/// If the kernel lists anything other than numbers.
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_each = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    of_each.flat_map(|all| all.split_whitespace().map(|child| child.parse().unwrap()).collect::<Vec<_>>()).collect()
}

/// Returns the name of a process, or an empty string if the process has ended.
pub fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().into()
}

/// Returns the state of a process: `R`, `S`, `T`, `Z` or another letter of proc_pid_stat(5). `None`
/// if the process does not exist.
pub fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The state follows the name, which is in parentheses.
    stat.rsplit(") ").next()?.chars().next()
}

/// Returns how often the kernel has scheduled the threads of a process. 0 for a process that has
/// ended.
///
/// # Panics
/// If the kernel does not keep this count.
pub fn times_run(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let times = tasks.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
    times.map(|times| times.split_whitespace().nth(2).unwrap().parse::<u64>().unwrap()).sum()
}

/// A child that is killed when this value is dropped, for example by a failing test.
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

    /// Returns the PID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the child.
    ///
    /// # Panics
    /// If the child has been waited for already.
    pub fn send(&self, signal: Signal) {
        kill(nix::unistd::Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Reads the next line of the child's standard output, without the newline. Empty at the end of
    /// the output.
    ///
    /// # Panics
    /// If standard output is not a pipe.
    pub fn line(&mut self) -> String {
        let said = self.said.as_mut().expect("a pipe");
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        line.trim_end_matches('\n').into()
    }

    /// Reads the rest of the child's standard output.
    ///
    /// # Panics
    /// If standard output is not a pipe.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.said.as_mut().expect("a pipe").read_to_end(&mut rest).unwrap();
        rest
    }

    /// Returns the pipe to the child's standard input.
    ///
    /// # Panics
    /// If standard input is not a pipe, or was taken before.
    pub fn input(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("a pipe")
    }

    /// Closes the pipe from the child's standard output.
    pub fn close_output(&mut self) {
        self.said = None;
    }

    /// Whether the child still runs.
    ///
    /// # Panics
    /// If the child cannot be waited for.
    pub fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until the child has ended.
    ///
    /// # Panics
    /// If the child never ends.
    pub fn end(&mut self) -> ExitStatus {
        let pidfd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        let deadline = Instant::now() + FOR_EVER;
        loop {
            let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).unwrap();
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
                Ok(0) => panic!("the child never ends"),
                Ok(_) => return self.child.wait().unwrap(),
                Err(error) => assert_eq!(error, Errno::INTR),
            }
        }
    }

    /// Waits until the child has ended. Returns its exit status and the rest of its standard
    /// output.
    ///
    /// # Panics
    /// If the child never ends, or if a signal killed it.
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
        // This does nothing if the child has been waited for already.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}
