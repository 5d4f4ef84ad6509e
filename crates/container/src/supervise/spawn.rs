//! The one place with code between clone and exec: what a child has to do before it is the runtime, no other can do for it.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, clone};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, WaitOptions, getpid, kill_process, pidfd_open, waitpid};

use super::helper::record::{PROGRAM, REPORT, RUNTIME};

/// What the child's own stack holds: the frames of a few system calls. glibc's posix_spawn(3) has as much for the same.
const STACK_BYTES: usize = 32 << 10;

/// What the keeper starts with. Each descriptor is above those that it is put in the place of.
#[derive(Debug)]
pub(super) struct Start<'a> {
    /// The helper's program.
    pub(super) program: BorrowedFd<'a>,
    /// The keeper's arguments, its name first.
    pub(super) arguments: &'a [CString],
    pub(super) environment: &'a [CString],
    /// What the container has for standard input, output and error.
    pub(super) streams: [BorrowedFd<'a>; 3],
    /// Where the helper writes its report.
    pub(super) report: BorrowedFd<'a>,
    /// A copy of the runtime, if it is executed from one.
    pub(super) runtime: Option<BorrowedFd<'a>>,
    /// The keeper's working directory.
    pub(super) directory: &'a CStr,
    /// A directory that a tmpfs hides from the runtime, if there is one.
    pub(super) hidden: Option<&'a CStr>,
}

/// The first number of a descriptor that none of a child's own has.
pub(super) const FREE: RawFd = RUNTIME + 1;

/// Starts the keeper as the first process of a PID namespace, with the `/proc` of that namespace, which its PIDs refer to, in a
/// mount namespace of its own.
///
/// The kernel kills it when the calling thread ends, and everything in the namespace with it: pid_namespaces(7),
/// PR_SET_PDEATHSIG(2const). All signals are blocked in it.
///
/// The child borrows the caller's memory until it is the program, like vfork(2)'s: copying the tables of a caller that has
/// gigabytes of it would take longer than the rest of a run.
pub(super) fn spawn(start: &Start<'_>) -> io::Result<Pid> {
    let caller = pidfd_open(getpid(), PidfdFlags::empty())?;
    let arguments = pointers(start.arguments);
    let environment = pointers(start.environment);
    let failure = AtomicI32::new(0);
    let mut stack = vec![0; STACK_BYTES];
    // No handler of the caller's may run in the child, with the caller's memory.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let child = Box::new(|| {
        let errno = match become_keeper(start, &arguments, &environment, &caller) {
            Ok(never) => match never {},
            Err(errno) => errno,
        };
        failure.store(errno.raw_os_error(), Ordering::Relaxed);
        127
    });
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS;
    // SAFETY: this thread goes on when the child has executed the program or ended, so all that the child has borrowed is there
    // until then. The child makes system calls on what is there already, and nothing else: no allocation, no panic, and no lock but
    // the C library's own for an action of SIGABRT, which no thread holds for long.
    let started = unsafe { clone(child, &mut stack, flags, Some(libc::SIGCHLD)) };
    let unmasked = mask.thread_set_mask();
    let pid = Pid::from_raw(started?.as_raw()).expect("the PID of a child");
    match (failure.load(Ordering::Relaxed), unmasked) {
        (0, Ok(())) => Ok(pid),
        (failure, unmasked) => {
            // It has ended, or does so now; whoever else has waited for it is welcome.
            let _ = kill_process(pid, rustix::process::Signal::KILL);
            let _ = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
            unmasked?;
            Err(io::Error::from_raw_os_error(failure))
        }
    }
}

enum Never {}

/// The child, until it is the keeper.
fn become_keeper(
    start: &Start<'_>,
    arguments: &[*const c_char],
    environment: &[*const c_char],
    caller: &OwnedFd,
) -> Result<Never, Errno> {
    set_pdeathsig(Signal::SIGKILL).map_err(errno)?;
    // Whoever ended before that line will not be told of again. The parent's PID says nothing: seen from here it is 0.
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut [PollFd::new(caller, PollFlags::IN)], Some(&now))? > 0 {
        return Err(Errno::SRCH);
    }
    mount(None::<&str>, c"/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>).map_err(errno)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(c"proc"), c"/proc", Some(c"proc"), flags, None::<&str>).map_err(errno)?;
    if let Some(hidden) = start.hidden {
        mount(Some(c"tmpfs"), hidden, Some(c"tmpfs"), flags, Some(c"mode=0700,size=1m")).map_err(errno)?;
    }
    // SAFETY: a string that ends with NUL.
    check(unsafe { libc::chdir(start.directory.as_ptr()) })?;
    let [stdin, stdout, stderr] = start.streams;
    let own = [(stdin, 0), (stdout, 1), (stderr, 2), (start.report, REPORT), (start.program, PROGRAM)];
    for (descriptor, target) in own.into_iter().chain(start.runtime.map(|runtime| (runtime, RUNTIME))) {
        // SAFETY: two numbers.
        check(unsafe { libc::dup2(descriptor.as_raw_fd(), target) })?;
    }
    // Without a copy of the runtime there is nothing of the caller's in its place.
    let first = if start.runtime.is_some() { FREE } else { RUNTIME };
    close_on_exec(CLOSE_RANGE, first)?;
    // SAFETY: an empty string and two lists of strings, each with a null pointer at its end.
    check(unsafe {
        libc::syscall(
            libc::SYS_execveat,
            PROGRAM,
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    } as libc::c_int)?;
    unreachable!("exec returns with an error only");
}

/// Closes every descriptor of the caller's but the three streams in a program that `command` starts.
///
/// A runtime that is only asked for its version has no use for them either.
pub(crate) fn close_descriptors(command: &mut Command) -> &mut Command {
    let close = || Ok(close_on_exec(CLOSE_RANGE, 3)?);
    // SAFETY: between fork and exec it makes system calls and nothing else: no allocation, no panic, no lock.
    unsafe { command.pre_exec(close) }
}

/// The number of close_range(2), which older C libraries do not have as a function.
const CLOSE_RANGE: libc::c_long = libc::SYS_close_range;

/// Room for the names of some hundred descriptors: on a stack that is small.
const NAMES_BYTES: usize = 4 << 10;

/// Sees that the program which this process becomes has no descriptor from `first` on. Until then they stay open: a failed
/// exec may have to be reported through one of them.
///
/// A caller's descriptor in a runtime is a way out of the container: a directory of the host's that a link to `/proc/self/fd/9`
/// leads to.
///
/// `close_range` is the number of [`close_range(2)`](https://man7.org/linux/man-pages/man2/close_range.2.html), whose flag for this
/// needs Linux 5.11. Where it fails, for whatever reason, `/proc/self/fd` names the descriptors.
fn close_on_exec(close_range: libc::c_long, first: RawFd) -> Result<(), Errno> {
    // SAFETY: three numbers.
    match unsafe { libc::syscall(close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) } {
        0 => Ok(()),
        _ => close_on_exec_one_by_one(first),
    }
}

/// Not up to the limit of open files: that may be a billion, and may have been lowered after a descriptor was opened.
fn close_on_exec_one_by_one(first: RawFd) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(c"/proc/self/fd", flags, Mode::empty())?;
    let mut names = [MaybeUninit::uninit(); NAMES_BYTES];
    let mut entries = RawDir::new(&directory, &mut names);
    while let Some(entry) = entries.next() {
        // `.` and `..` are no numbers.
        let Some(number) = descriptor(entry?.file_name().to_bytes()) else { continue };
        if number >= first {
            // SAFETY: two numbers and a constant.
            check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
        }
    }
    Ok(())
}

fn descriptor(name: &[u8]) -> Option<RawFd> {
    name.iter().try_fold(0, |number: RawFd, byte| match byte {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(RawFd::from(byte - b'0')),
        _ => None,
    })
}

fn check(result: libc::c_int) -> Result<(), Errno> {
    match result {
        -1 => Err(errno(nix::errno::Errno::last())),
        _ => Ok(()),
    }
}

fn errno(errno: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(errno as i32)
}

/// The list as execve(2) takes it.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Stdio;

    use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

    use super::*;

    /// No system call has it: the kernel answers ENOSYS, as one before 5.9 does.
    const NO_CALL: libc::c_long = 1 << 20;

    #[test]
    fn a_program_gets_no_descriptor_but_the_streams() {
        // A caller that has many open, beyond one buffer of names, and what a program that it starts inherits.
        let inherited: Vec<OwnedFd> = (0..300)
            .map(|n| {
                let file = File::open(if n % 2 == 0 { "/" } else { "/dev/null" }).unwrap();
                let file = fcntl_dupfd_cloexec(&file, if n == 0 { 900 } else { 3 }).unwrap();
                fcntl_setfd(&file, FdFlags::empty()).unwrap();
                file
            })
            .collect();
        let open = |close: fn() -> io::Result<()>| {
            let mut command = Command::new("ls");
            command.arg("/proc/self/fd").stdin(Stdio::null());
            // SAFETY: system calls and nothing else.
            let output = unsafe { command.pre_exec(close) }.output().unwrap();
            String::from_utf8(output.stdout).unwrap().lines().count()
        };
        // The streams, and the directory that `ls` reads.
        const NONE: usize = 4;
        assert!(open(|| Ok(())) >= NONE + inherited.len());
        assert_eq!(open(|| Ok(close_on_exec(CLOSE_RANGE, 3)?)), NONE);
        assert_eq!(open(|| Ok(close_on_exec(NO_CALL, 3)?)), NONE);
        let output = close_descriptors(Command::new("ls").arg("/proc/self/fd")).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "0\n1\n2\n3\n");
        // A program that is not there is still told of.
        let error = close_descriptors(&mut Command::new("/no/such/program")).output().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn descriptors_by_their_names() {
        let table = [("0", Some(0)), ("1048575", Some(1_048_575)), (".", None), ("..", None), ("99999999999", None)];
        for (name, number) in table {
            assert_eq!(descriptor(name.as_bytes()), number, "{name}");
        }
    }
}
