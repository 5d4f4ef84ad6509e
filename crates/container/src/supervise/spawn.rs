//! Starts the keeper. This is the only module with code between clone and exec: some steps can only
//! be done by the child itself, before it becomes the keeper. It also makes the madvise(2) call for
//! `pages`, which needs unsafe code, too.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

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

use super::helper::record::{NETWORK, PROGRAM, REPORT, RUNTIME};

/// The size of the child's stack. It holds the frames of a few system calls. glibc's posix_spawn(3)
/// uses a stack of the same size for the same purpose.
const STACK_BYTES: usize = 32 << 10;

/// The keeper's program, arguments and descriptors. Each descriptor number must be at least
/// [`FREE`], so that no dup2(2) to a lower number overwrites a descriptor that is still needed.
#[derive(Debug)]
pub(super) struct Start<'a> {
    /// The helper's program.
    pub(super) program: BorrowedFd<'a>,
    /// The keeper's arguments, its name first.
    pub(super) arguments: &'a [CString],
    pub(super) environment: &'a [CString],
    /// The container's standard input, output and error.
    pub(super) streams: [BorrowedFd<'a>; 3],
    /// The pipe to which the helper writes its report.
    pub(super) report: BorrowedFd<'a>,
    /// The sealed copy of the runtime, if the runtime is executed from one.
    pub(super) runtime: Option<BorrowedFd<'a>>,
    /// The network namespace that the keeper connects, if it does.
    pub(super) network: Option<BorrowedFd<'a>>,
    /// The keeper's working directory.
    pub(super) directory: &'a CStr,
    /// A directory to hide from the runtime under a tmpfs.
    pub(super) hidden: Option<&'a CStr>,
}

/// Unmaps the pages of `range`, which must be a mapping that the loader made of a program or a
/// library that is running, private, read-only and without changed pages.
pub(super) fn release_pages(range: &Range<usize>) -> io::Result<()> {
    // SAFETY: MADV_DONTNEED keeps the mapping, and the next access to a page reads the file again.
    // That finds the same bytes, because no page has been changed in memory. The mapping cannot
    // have been replaced, because the code in it or next to it is running.
    match unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The file in the keeper's working directory on which its network namespace is mounted. The caller
/// has created it.
pub(crate) const NETWORK_FILE: &CStr = c"network";

/// The path of descriptor [`NETWORK`] in the keeper.
const NETWORK_OF_KEEPER: &CStr = c"/proc/self/fd/6";

/// The first descriptor number that the keeper does not use itself.
pub(super) const FREE: RawFd = NETWORK + 1;

/// Starts the keeper as the first process of a new PID namespace. It also gets a private mount
/// namespace with a `/proc` of the new PID namespace.
///
/// The kernel kills the keeper when the calling thread ends, and with it every process in the
/// namespace: pid_namespaces(7), PR_SET_PDEATHSIG(2const). All signals are blocked in the keeper.
///
/// The child shares the caller's memory until it executes the program, as with vfork(2). If the
/// caller has gigabytes of memory, copying its page tables would take longer than the rest of a
/// run.
pub(super) fn spawn(start: &Start<'_>) -> io::Result<Pid> {
    let caller = pidfd_open(getpid(), PidfdFlags::empty())?;
    let arguments = pointers(start.arguments);
    let environment = pointers(start.environment);
    let failure = AtomicI32::new(0);
    let mut stack = vec![0; STACK_BYTES];
    // No signal handler of the caller may run in the child: it would change the caller's memory.
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
    // SAFETY: this thread continues only after the child has executed the program or ended, so
    // everything that the child borrows outlives its use. The child only makes system calls on
    // existing data: no allocation and no panic. It takes no lock except the C library's own for
    // the action of SIGABRT, which no thread holds for long.
    let started = unsafe { clone(child, &mut stack, flags, Some(libc::SIGCHLD)) };
    let unmasked = mask.thread_set_mask();
    let pid = Pid::from_raw(started?.as_raw()).expect("the PID of a child");
    match (failure.load(Ordering::Relaxed), unmasked) {
        (0, Ok(())) => Ok(pid),
        (failure, unmasked) => {
            // The child has ended or will end now. It is not an error if another thread has already
            // reaped it.
            let _ = kill_process(pid, rustix::process::Signal::KILL);
            let _ = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
            unmasked?;
            Err(io::Error::from_raw_os_error(failure))
        }
    }
}

/// Waits for the child `pid` and reaps it. Returns the processor time of the child and of all
/// processes that it or its children have waited for, in user and in kernel mode.
///
/// This is here because wait4(2) is the only call that returns that time for one child.
pub(super) fn reap(pid: Pid) -> Result<Duration, Errno> {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    retry_on_intr(|| {
        // SAFETY: the kernel writes no status, and the usage into memory of its own type.
        check(unsafe { libc::wait4(pid.as_raw_nonzero().get(), ptr::null_mut(), 0, usage.as_mut_ptr()) })
    })?;
    // SAFETY: all bytes were zero before the call, which is a valid value.
    let usage = unsafe { usage.assume_init() };
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    Ok(time(usage.ru_utime) + time(usage.ru_stime))
}

enum Never {}

/// Turns the child into the keeper.
fn become_keeper(
    start: &Start<'_>,
    arguments: &[*const c_char],
    environment: &[*const c_char],
    caller: &OwnedFd,
) -> Result<Never, Errno> {
    set_pdeathsig(Signal::SIGKILL).map_err(errno)?;
    // If the calling thread's process ended before the previous line, the kernel will not send the
    // signal. Checking getppid(2) does not help: it returns 0 in the new PID namespace.
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut [PollFd::new(caller, PollFlags::IN)], Some(&now))? > 0 {
        return Err(Errno::SRCH);
    }
    let [stdin, stdout, stderr] = start.streams;
    let own = [(stdin, 0), (stdout, 1), (stderr, 2), (start.report, REPORT), (start.program, PROGRAM)];
    let own = own.map(|(descriptor, target)| (Some(descriptor), target));
    for (descriptor, target) in own.into_iter().chain([(start.runtime, RUNTIME), (start.network, NETWORK)]) {
        match descriptor {
            // SAFETY: the call takes only two numbers.
            Some(descriptor) => check(unsafe { libc::dup2(descriptor.as_raw_fd(), target) })?,
            // It may be one of the caller's. It is not an error if there is none.
            // SAFETY: the call takes only a number, and nothing in this process uses the
            // descriptor.
            None => drop(unsafe { libc::close(target) }),
        }
    }
    // Before the mounts, which may have to wait: a copy of another run's descriptor keeps that
    // run's overlay busy.
    close_from(FREE)?;
    mount(None::<&str>, c"/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>).map_err(errno)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(c"proc"), c"/proc", Some(c"proc"), flags, None::<&str>).map_err(errno)?;
    // SAFETY: the string ends with a NUL.
    check(unsafe { libc::chdir(start.directory.as_ptr()) })?;
    if start.network.is_some() {
        mount(Some(NETWORK_OF_KEEPER), NETWORK_FILE, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(errno)?;
    }
    if let Some(hidden) = start.hidden {
        mount(Some(c"tmpfs"), hidden, Some(c"tmpfs"), flags, Some(c"mode=0700,size=1m")).map_err(errno)?;
    }
    // SAFETY: an empty string and two lists of strings, each of which ends with a null pointer.
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

/// Closes every descriptor of the caller's except the three streams in the program that `command`
/// starts.
///
/// This is also used for a runtime that is only asked for its version: it needs none of those
/// descriptors.
pub(crate) fn close_descriptors(command: &mut Command) -> &mut Command {
    let close = || Ok(close_on_exec(CLOSE_RANGE, 3)?);
    // SAFETY: between fork and exec, the closure only makes system calls: no allocation, no panic,
    // no lock.
    unsafe { command.pre_exec(close) }
}

/// The number of close_range(2). Older C libraries have no function for it.
const CLOSE_RANGE: libc::c_long = libc::SYS_close_range;

/// Closes every descriptor from `first` on. Before Linux 5.9, the kernel closes them when this
/// process executes another program.
fn close_from(first: RawFd) -> Result<(), Errno> {
    // SAFETY: the call takes only numbers.
    match unsafe { libc::syscall(CLOSE_RANGE, first, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => close_on_exec_one_by_one(first),
    }
}

/// The buffer for directory entries, in bytes. It holds the names of a few hundred descriptors and
/// fits on the child's small stack.
const NAMES_BYTES: usize = 4 << 10;

/// Marks every descriptor from `first` on to be closed when this process executes another program.
/// They stay open until then, because one of them may be needed to report a failed exec.
///
/// A caller's descriptor inside the runtime is a way out of the container: for example, a link to
/// `/proc/self/fd/9` could lead to a directory of the host.
///
/// `close_range` is the number of
/// [`close_range(2)`](https://man7.org/linux/man-pages/man2/close_range.2.html). The flag used here
/// needs Linux 5.11. If the call fails for any reason, the descriptors are listed from
/// `/proc/self/fd` instead.
fn close_on_exec(close_range: libc::c_long, first: RawFd) -> Result<(), Errno> {
    // SAFETY: the call takes only numbers.
    match unsafe { libc::syscall(close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) } {
        0 => Ok(()),
        _ => close_on_exec_one_by_one(first),
    }
}

/// Marks the descriptors that `/proc/self/fd` lists. Counting up to the limit of open files would
/// not do: the limit may be a billion, and it may have been lowered after a descriptor was opened.
fn close_on_exec_one_by_one(first: RawFd) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(c"/proc/self/fd", flags, Mode::empty())?;
    let mut names = [MaybeUninit::uninit(); NAMES_BYTES];
    let mut entries = RawDir::new(&directory, &mut names);
    while let Some(entry) = entries.next() {
        // Skips `.` and `..`.
        let Some(number) = descriptor(entry?.file_name().to_bytes()) else { continue };
        if number >= first {
            // SAFETY: the call takes two numbers and a constant.
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

/// Returns the list in the form that execve(2) takes.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Stdio;

    use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

    use super::*;

    /// A number that no system call has. The kernel returns ENOSYS, as kernels before 5.9 do for
    /// close_range(2).
    const NO_CALL: libc::c_long = 1 << 20;

    #[test]
    fn a_program_gets_no_descriptor_but_the_streams() {
        // The caller has more descriptors open than one buffer of names can hold, and a child
        // inherits them.
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
            // SAFETY: the closure only makes system calls.
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
        // A missing program is still reported.
        let error = close_descriptors(&mut Command::new("/no/such/program")).output().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn only_a_number_is_the_name_of_a_descriptor() {
        let table = [("0", Some(0)), ("1048575", Some(1_048_575)), (".", None), ("..", None), ("99999999999", None)];
        for (name, number) in table {
            assert_eq!(descriptor(name.as_bytes()), number, "{name}");
        }
    }
}
