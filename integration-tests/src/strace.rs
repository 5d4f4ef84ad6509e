//! The system calls that a program makes on its way, listed or disturbed.
//!
//! strace(1) comes to a program that waits for a fifo to be read, so that what any program does when it starts is not seen, and
//! follows its threads and children to where one of them executes another program: the runtime is left alone.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use crate::{FOR_EVER, find};

/// A system call of a program: the n-th of its name, counted for each thread by itself. Where two threads make as many, both are
/// meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// The name of the call.
    pub call: String,
    /// From 1 on.
    pub nth: u32,
}

/// What happens at a [`Point`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Disturbance {
    /// The call is not made and answers with this, `EIO` say.
    Error(&'static str),
    /// The process is killed.
    Kill,
}

/// A program that reads the fifo `fifo` before it does anything else, and `text` from it.
#[derive(Debug)]
pub struct Program<'a> {
    /// The program and its arguments. It gets no input; its output is captured.
    pub command: Command,
    /// A fifo, made by the caller.
    pub fifo: PathBuf,
    /// No more than a pipe holds, 64 KiB.
    pub text: &'a str,
}

/// What the language and its libraries need for themselves: memory, random seeds, limits, threads that wait, signals. It says
/// nothing about files, mounts and processes, and who gets none of it ends at once.
const OF_THE_LIBRARIES: [&str; 26] = [
    "brk",
    "exit",
    "exit_group",
    "futex",
    "getpid",
    "getrandom",
    "gettid",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "prlimit64",
    // How std's child and signal-hook's handler report.
    "recvfrom",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "set_robust_list",
    "set_tid_address",
    "sigaltstack",
    "tgkill",
    "uname",
];

/// A call that is not made does not do what it does in any case either: close(2) closes whatever it answers, and at execve(2)
/// strace lets go.
const DONE_IN_ANY_CASE: [&str; 2] = ["close", "execve"];

impl Program<'_> {
    /// The points that it passes when nothing disturbs it, in order.
    ///
    /// # Panics
    /// If strace is missing or may not trace, or the program fails.
    pub fn points(&mut self) -> Vec<Point> {
        parse("", &self.log())
    }

    /// What strace lists of it when nothing disturbs it.
    ///
    /// # Panics
    /// As [`points`](Self::points).
    pub fn log(&mut self) -> String {
        let log = tempfile::NamedTempFile::new().unwrap();
        let output = self.traced(&["-o", log.path().to_str().unwrap()]);
        assert!(output.status.success(), "{:?}: {output:?}", self.command);
        String::from_utf8_lossy(&fs::read(log.path()).unwrap()).into_owned()
    }

    /// Lets it run, disturbed at `point`.
    ///
    /// # Panics
    /// If strace is missing or may not trace, or the program does not end.
    pub fn disturbed(&mut self, point: &Point, disturbance: Disturbance) -> Output {
        let what = match disturbance {
            Disturbance::Error(error) => format!("error={error}"),
            Disturbance::Kill => "signal=KILL".into(),
        };
        let Point { call, nth } = point;
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:{what}:when={nth}"));
        self.traced(&["-o", "/dev/null", "-e", &trace, "-e", &inject])
    }

    fn traced(&mut self, options: &[&str]) -> Output {
        // For reading, too: neither end has to wait for the other.
        let mut fifo = OpenOptions::new().read(true).write(true).open(&self.fifo).unwrap();
        let mut child =
            self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until_it_reads(&mut child, &fs::canonicalize(&self.fifo).unwrap());
        let mut strace = Command::new(find("strace"));
        strace.args(["-f", "-b", "execve", "-p", &child.id().to_string()]).args(options);
        let mut strace = strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(strace.stderr.take().unwrap());
        let mut line = String::new();
        told.read_line(&mut line).unwrap();
        assert!(line.contains("attached"), "strace cannot trace: {line}");
        fifo.write_all(self.text.as_bytes()).unwrap();
        // Now it has an end.
        drop(fifo);
        until_it_ends(&mut child);
        // What it tells is read, lest it waits.
        std::io::copy(&mut told, &mut std::io::sink()).unwrap();
        strace.wait().unwrap();
        child.wait_with_output().unwrap()
    }
}

/// Returns when `child` waits for the fifo to be written to, which no event tells.
fn until_it_reads(child: &mut Child, fifo: &Path) {
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    // The number of the call and its arguments in hexadecimal, or `running`: proc_pid_syscall(5).
    let reads = |call: &str| {
        let mut fields = call.split(' ');
        let number = fields.next().and_then(|number| number.parse().ok());
        let descriptor = fields.next().and_then(|field| u32::from_str_radix(field.strip_prefix("0x")?, 16).ok());
        let (Some(nix::libc::SYS_read), Some(descriptor)) = (number, descriptor) else { return false };
        fs::read_link(proc.join(format!("fd/{descriptor}"))).is_ok_and(|file| file == fifo)
    };
    while !fs::read_to_string(proc.join("syscall")).is_ok_and(|call| reads(&call)) {
        assert_eq!(child.try_wait().unwrap(), None, "it ended before it read the fifo");
        std::thread::yield_now();
    }
}

fn until_it_ends(child: &mut Child) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
    let deadline = Instant::now() + FOR_EVER;
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).unwrap();
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(0) => {
                child.kill().unwrap();
                panic!("it waits for ever");
            }
            Ok(_) => return,
            Err(error) => assert_eq!(error, rustix::io::Errno::INTR),
        }
    }
}

/// How many calls are in a [log](Program::log), without those that the language and its libraries need for themselves.
pub fn count(log: &str) -> usize {
    calls(log).filter(|(_, name)| !OF_THE_LIBRARIES.contains(name)).count()
}

/// The thread and the name of each call. A line of the log is `1234  name(arguments…`, or `1234  <... name resumed>…`, which was
/// counted when it began.
fn calls(log: &str) -> impl Iterator<Item = (&str, &str)> {
    log.lines().filter_map(|line| {
        let (thread, call) = line.split_once(' ')?;
        let (name, _) = call.trim_start().split_once('(')?;
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_').then_some((thread, name))
    })
}

/// Every point in a log of strace's, in order, those of the language and its libraries included.
pub fn all_points(log: &str) -> Vec<Point> {
    points(log, HashMap::new(), |_| true)
}

/// The points in `log`, which goes on after `before`.
fn parse(before: &str, log: &str) -> Vec<Point> {
    let mut counts: HashMap<(&str, &str), u32> = HashMap::new();
    calls(before).for_each(|call| *counts.entry(call).or_default() += 1);
    points(log, counts, |name| !OF_THE_LIBRARIES.contains(&name))
}

fn points<'a>(
    log: &'a str,
    mut counts: HashMap<(&'a str, &'a str), u32>,
    is_meant: impl Fn(&str) -> bool,
) -> Vec<Point> {
    let mut seen = BTreeSet::new();
    calls(log)
        .filter_map(|(thread, name)| {
            let nth = counts.entry((thread, name)).or_default();
            *nth += 1;
            let point = Point { call: name.into(), nth: *nth };
            (is_meant(name) && seen.insert(point.clone())).then_some(point)
        })
        .collect()
}

/// A program that strace starts, and follows through all that it does.
#[derive(Debug)]
pub struct Started<'a> {
    /// The program and its arguments. It does the same every time.
    pub command: &'a Command,
    /// One of the arguments. What the program does before it makes a system call with it, any program does when it starts.
    pub path: &'a Path,
    /// Further options of strace, in every run: faults that are always there, say.
    pub options: &'static [&'static str],
}

impl Started<'_> {
    /// The points that it passes when nothing else disturbs it, in order.
    ///
    /// # Panics
    /// If strace is missing or may not trace, or the program fails.
    pub fn points(&self) -> Vec<Point> {
        let log = tempfile::NamedTempFile::new().unwrap();
        let output = self.traced(&["-s", "4096", "-o", log.path().to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
        let log = String::from_utf8_lossy(&fs::read(log.path()).unwrap()).into_owned();
        // The first line starts the program.
        let (start, rest) = log.split_once('\n').unwrap();
        let at = rest.find(self.path.to_str().unwrap()).expect("it looks at the path");
        let own = start.len() + 1 + rest[..at].rfind('\n').map_or(0, |at| at + 1);
        parse(&log[..own], &log[own..])
    }

    /// Lets it run with the faults of its options alone.
    ///
    /// # Panics
    /// If strace is missing or may not trace.
    pub fn run(&self) -> Output {
        self.traced(&["-o", "/dev/null"])
    }

    /// Lets it run, killed at `point`.
    ///
    /// # Panics
    /// If strace is missing or may not trace.
    pub fn killed(&self, point: &Point) -> Output {
        let inject = format!("inject={}:signal=KILL:when={}", point.call, point.nth);
        self.traced(&["-o", "/dev/null", "-e", &inject])
    }

    fn traced(&self, options: &[&str]) -> Output {
        let mut strace = Command::new(find("strace"));
        strace.arg("-f").args(self.options).args(options).arg("--");
        strace.arg(self.command.get_program()).args(self.command.get_args());
        strace.stdin(Stdio::null()).output().unwrap()
    }
}

impl Point {
    /// Whether an error of the call says that it has done nothing.
    pub fn can_fail(&self) -> bool {
        !DONE_IN_ANY_CASE.contains(&&*self.call)
    }
}
