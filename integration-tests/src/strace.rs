//! Lists the system calls of a program with strace(1), or disturbs the program at one of them.
//!
//! strace attaches while the program waits for a FIFO. So the calls that every program makes at its
//! start are not seen. strace follows threads and children until one of them executes another
//! program, so it does not trace the runtime.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use crate::{FOR_EVER, find};

/// A system call of a program: the n-th call of its name. Each thread counts separately, so a point
/// means one call of each thread that gets that far.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// The name of the call.
    pub call: String,
    /// The count, from 1.
    pub nth: u32,
}

/// A disturbance at a [`Point`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Disturbance {
    /// strace skips the call, which then fails with this error, for example `EIO`.
    Error(&'static str),
    /// strace kills the process.
    Kill,
}

/// A program that first reads `text` from a FIFO.
#[derive(Debug)]
pub struct Program<'a> {
    /// The program and its arguments. Its input is empty; its output is captured.
    pub command: Command,
    /// The path of the FIFO, which the caller has made.
    pub fifo: PathBuf,
    /// At most 64 KiB, the capacity of a pipe.
    pub text: &'a str,
}

/// Calls that Rust's standard library and other libraries make for themselves: memory, random
/// seeds, limits, waiting threads, signals. They concern no files, mounts or processes. A program
/// for which they fail ends immediately.
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
    // std's child and signal-hook's handler report by this call.
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

/// Calls whose injected error proves nothing. close(2) closes the descriptor even if it returns an
/// error, strace detaches at execve(2), and the calls for IDs never fail.
const WITHOUT_A_FAILURE: [&str; 6] = ["close", "execve", "geteuid", "getuid", "getegid", "getgid"];

impl Program<'_> {
    /// Returns the points that the program passes when nothing disturbs it, in order.
    ///
    /// # Panics
    /// If strace is missing or is not allowed to trace, or the program fails.
    pub fn points(&mut self) -> Vec<Point> {
        parse("", &self.log())
    }

    /// Returns strace's log when nothing disturbs the program.
    ///
    /// # Panics
    /// As [`points`](Self::points).
    pub fn log(&mut self) -> String {
        let log = tempfile::NamedTempFile::new().unwrap();
        let output = self.traced(&["-o", log.path().to_str().unwrap()]);
        assert!(output.status.success(), "{:?}: {output:?}", self.command);
        String::from_utf8_lossy(&fs::read(log.path()).unwrap()).into_owned()
    }

    /// Runs the program with a disturbance at `point`.
    ///
    /// # Panics
    /// If strace is missing or is not allowed to trace, or the program does not end.
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
        // The FIFO is opened for reading, too, so that neither end waits for the other.
        let mut fifo = OpenOptions::new().read(true).write(true).open(&self.fifo).unwrap();
        let mut child =
            self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until_it_reads(&mut child, &fs::canonicalize(&self.fifo).unwrap());
        let mut strace = Command::new(find("strace"));
        strace.args(["-f", "-b", "execve", "-p", &child.id().to_string()]).args(options);
        let mut strace = strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut messages = BufReader::new(strace.stderr.take().unwrap());
        let mut line = String::new();
        messages.read_line(&mut line).unwrap();
        assert!(line.contains("attached"), "strace cannot trace: {line}");
        fifo.write_all(self.text.as_bytes()).unwrap();
        // The program sees the end of the FIFO after this.
        drop(fifo);
        until_it_ends(&mut child);
        // This reads the rest of strace's messages, so that strace does not block on a full pipe.
        std::io::copy(&mut messages, &mut std::io::sink()).unwrap();
        strace.wait().unwrap();
        child.wait_with_output().unwrap()
    }
}

/// Waits until `child` waits for data in the FIFO. The kernel reports no event for that.
fn until_it_reads(child: &mut Child, fifo: &Path) {
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    // The file contains the number of the call and its arguments in hexadecimal, or `running`:
    // proc_pid_syscall(5).
    let reads = |call: &str| {
        let mut fields = call.split(' ');
        let number = fields.next().and_then(|number| number.parse().ok());
        let descriptor = fields.next().and_then(|field| u32::from_str_radix(field.strip_prefix("0x")?, 16).ok());
        let (Some(nix::libc::SYS_read), Some(descriptor)) = (number, descriptor) else { return false };
        fs::read_link(proc.join(format!("fd/{descriptor}"))).is_ok_and(|file| file == fifo)
    };
    while !fs::read_to_string(proc.join("syscall")).is_ok_and(|call| reads(&call)) {
        assert_eq!(child.try_wait().unwrap(), None, "the program ended before it read the fifo");
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
                panic!("the program never ends");
            }
            Ok(_) => return,
            Err(error) => assert_eq!(error, rustix::io::Errno::INTR),
        }
    }
}

/// Counts the calls in a [log](Program::log), without those that libraries make for themselves.
pub fn count(log: &str) -> usize {
    calls(log).filter(|(_, name)| !OF_THE_LIBRARIES.contains(name)).count()
}

/// Returns the thread and the name of each call. A line of the log is `1234  name(arguments…` or
/// `1234  <... name resumed>…`. The second form continues a call that was counted when it began.
fn calls(log: &str) -> impl Iterator<Item = (&str, &str)> {
    log.lines().filter_map(|line| {
        let (thread, call) = line.split_once(' ')?;
        let (name, _) = call.trim_start().split_once('(')?;
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_').then_some((thread, name))
    })
}

/// Returns every point in a log of strace, in order, including those of the libraries.
pub fn all_points(log: &str) -> Vec<Point> {
    points(log, HashMap::new(), |_| true)
}

/// Returns the points in `log`, which continues `before`.
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

/// A program that strace starts and follows to its end.
#[derive(Debug)]
pub struct Started<'a> {
    /// The program and its arguments. It must make the same calls every time.
    pub command: &'a Command,
    /// One of the arguments. The program's own work begins with the first system call that uses it;
    /// the calls before are those of any program's start.
    pub path: &'a Path,
    /// Further options of strace for every run, for example faults that are always injected.
    pub options: &'static [&'static str],
}

impl Started<'_> {
    /// Returns the points that the program passes without another disturbance, in order.
    ///
    /// # Panics
    /// If strace is missing or is not allowed to trace, or the program fails.
    pub fn points(&self) -> Vec<Point> {
        let log = tempfile::NamedTempFile::new().unwrap();
        let output = self.traced(&["-s", "4096", "-o", log.path().to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
        let log = String::from_utf8_lossy(&fs::read(log.path()).unwrap()).into_owned();
        // The first line is the execve(2) that starts the program.
        let (start, rest) = log.split_once('\n').unwrap();
        let at = rest.find(self.path.to_str().unwrap()).expect("no call uses the path");
        let own = start.len() + 1 + rest[..at].rfind('\n').map_or(0, |at| at + 1);
        parse(&log[..own], &log[own..])
    }

    /// Runs the program with no disturbance but that of its options.
    ///
    /// # Panics
    /// If strace is missing or is not allowed to trace.
    pub fn run(&self) -> Output {
        self.traced(&["-o", "/dev/null"])
    }

    /// Runs the program and kills it at `point`.
    ///
    /// # Panics
    /// If strace is missing or is not allowed to trace.
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
    /// Whether an injected error of this call means that the call did nothing.
    pub fn can_fail(&self) -> bool {
        !WITHOUT_A_FAILURE.contains(&&*self.call)
    }
}
