//! The system calls that the helper makes, and everything else that depends on the architecture.

use core::arch::asm;
use core::ffi::{CStr, c_char};

use crate::record::{HEAD_BYTES, Kind, PATH_BYTES, REPORT};

/// The numbers of the system calls: `arch/x86/entry/syscalls/syscall_64.tbl`.
#[cfg(target_arch = "x86_64")]
mod number {
    pub(super) const READ: usize = 0;
    pub(super) const WRITE: usize = 1;
    pub(super) const CLOSE: usize = 3;
    pub(super) const RT_SIGACTION: usize = 13;
    pub(super) const RT_SIGPROCMASK: usize = 14;
    pub(super) const IOCTL: usize = 16;
    pub(super) const CLONE: usize = 56;
    pub(super) const EXECVE: usize = 59;
    pub(super) const WAIT4: usize = 61;
    pub(super) const KILL: usize = 62;
    pub(super) const FCNTL: usize = 72;
    pub(super) const SETSID: usize = 112;
    pub(super) const RT_SIGTIMEDWAIT: usize = 128;
    pub(super) const PRCTL: usize = 157;
    pub(super) const SCHED_SETAFFINITY: usize = 203;
    pub(super) const EXIT_GROUP: usize = 231;
    pub(super) const OPENAT: usize = 257;
    pub(super) const FACCESSAT: usize = 269;
}

/// The numbers of the system calls: `include/uapi/asm-generic/unistd.h`.
#[cfg(target_arch = "aarch64")]
mod number {
    pub(super) const FCNTL: usize = 25;
    pub(super) const IOCTL: usize = 29;
    pub(super) const FACCESSAT: usize = 48;
    pub(super) const OPENAT: usize = 56;
    pub(super) const CLOSE: usize = 57;
    pub(super) const READ: usize = 63;
    pub(super) const WRITE: usize = 64;
    pub(super) const EXIT_GROUP: usize = 94;
    pub(super) const SCHED_SETAFFINITY: usize = 122;
    pub(super) const KILL: usize = 129;
    pub(super) const RT_SIGACTION: usize = 134;
    pub(super) const RT_SIGPROCMASK: usize = 135;
    pub(super) const RT_SIGTIMEDWAIT: usize = 137;
    pub(super) const SETSID: usize = 157;
    pub(super) const PRCTL: usize = 167;
    pub(super) const CLONE: usize = 220;
    pub(super) const EXECVE: usize = 221;
    pub(super) const WAIT4: usize = 260;
}

/// The ID of a process.
pub(crate) type Pid = i32;

pub(crate) const ENOENT: i32 = 2;
pub(crate) const EINTR: i32 = 4;
pub(crate) const EACCES: i32 = 13;
pub(crate) const ENOTDIR: i32 = 20;
pub(crate) const ENAMETOOLONG: i32 = 36;

/// Relative paths start at the working directory.
const AT_FDCWD: usize = -100_isize as usize;

pub(crate) const SIGHUP: i32 = 1;
const SIGKILL: i32 = 9;
pub(crate) const SIGCHLD: i32 = 17;
const SIGSTOP: i32 = 19;
/// The number of the last signal.
const SIGNALS: i32 = 64;

/// A set of all signals.
const ALL: u64 = u64::MAX;

/// # Safety
/// The arguments must let the kernel write only to memory that the caller owns.
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result;
    // SAFETY: this is the kernel's x86-64 ABI; the caller is responsible for the rest.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
             in("r8") 0, out("rcx") _, out("r11") _, options(nostack));
    }
    result
}

/// # Safety
/// The arguments must let the kernel write only to memory that the caller owns.
#[cfg(target_arch = "aarch64")]
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result;
    // SAFETY: this is the kernel's arm64 ABI; the caller is responsible for the rest.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c, in("x3") d, in("x4") 0,
             options(nostack));
    }
    result
}

fn result(value: isize) -> Result<usize, i32> {
    match value {
        -4095..=-1 => Err(-value as i32),
        _ => Ok(value as usize),
    }
}

/// Makes a system call that neither reads nor writes memory.
fn call_by_value(number: usize, a: usize, b: usize, c: usize) -> Result<usize, i32> {
    // SAFETY: every caller in this file passes only numbers.
    result(unsafe { call(number, a, b, c, 0) })
}

pub(crate) fn exit(status: i32) -> ! {
    loop {
        let _ = call_by_value(number::EXIT_GROUP, status as usize, 0, 0);
    }
}

pub(crate) fn close(descriptor: i32) {
    let _ = call_by_value(number::CLOSE, descriptor as usize, 0, 0);
}

/// Marks a descriptor so that the kernel closes it at the next execve(2).
pub(crate) fn close_on_exec(descriptor: i32) {
    const F_SETFD: usize = 2;
    const FD_CLOEXEC: usize = 1;
    let _ = call_by_value(number::FCNTL, descriptor as usize, F_SETFD, FD_CLOEXEC);
}

/// Reads the beginning of a file into `buffer` with one read(2). Returns the number of bytes read.
pub(crate) fn read_file(path: &CStr, buffer: &mut [u8]) -> Result<usize, i32> {
    // O_NONBLOCK: opening a FIFO must not block the caller.
    const O_NONBLOCK_CLOEXEC: usize = 0o2_004_000;
    // SAFETY: the kernel only reads the string.
    let file = result(unsafe { call(number::OPENAT, AT_FDCWD, path.as_ptr() as usize, O_NONBLOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel writes at most the length of the buffer.
    let read = result(unsafe { call(number::READ, file, buffer.as_mut_ptr() as usize, buffer.len(), 0) });
    close(file as i32);
    read
}

/// Opens `/dev/null` three times: as the standard streams, if those are closed.
pub(crate) fn open_null_streams() {
    for _ in 0..3 {
        let _ = open(c"/dev/null", O_RDWR);
    }
}

/// Replaces the standard streams: the input by `/dev/null`, and both outputs by the file `log`,
/// which is created if it is missing.
pub(crate) fn log_streams(log: &CStr) -> Result<(), i32> {
    const O_WRONLY_CREAT_APPEND: usize = 0o2101;
    for descriptor in 0..3 {
        close(descriptor);
    }
    open(c"/dev/null", O_RDWR)?;
    open(log, O_WRONLY_CREAT_APPEND)?;
    open(log, O_WRONLY_CREAT_APPEND)?;
    Ok(())
}

const O_RDWR: usize = 2;

/// Opens a file as the lowest free descriptor. Only its owner may read and write a file that this
/// creates.
fn open(path: &CStr, flags: usize) -> Result<usize, i32> {
    const OWNER_ONLY: usize = 0o600;
    // SAFETY: a string, which the kernel reads.
    result(unsafe { call(number::OPENAT, AT_FDCWD, path.as_ptr() as usize, flags, OWNER_ONLY) })
}

/// Returns whether `path` exists.
pub(crate) fn exists(path: &CStr) -> bool {
    // SAFETY: the kernel only reads the string.
    result(unsafe { call(number::FACCESSAT, AT_FDCWD, path.as_ptr() as usize, 0, 0) }).is_ok()
}

/// Forks this process. Returns the PID of the child in the parent, and 0 in the child.
pub(crate) fn fork() -> Result<Pid, i32> {
    // SAFETY: without CLONE_VM, the child gets its own copy of the memory.
    result(unsafe { call(number::CLONE, SIGCHLD as usize, 0, 0, 0) }).map(|pid| pid as Pid)
}

/// Executes the program at `path` in this process. Returns only if that fails, with the errno.
pub(crate) fn execute(path: &CStr, arguments: *const *const c_char, environment: *const *const c_char) -> i32 {
    // SAFETY: the kernel only reads the path and the two lists, which have the form that execve(2)
    // requires.
    let failed = unsafe { call(number::EXECVE, path.as_ptr() as usize, arguments as usize, environment as usize, 0) };
    -failed as i32
}

/// Whether wait4(2) blocks until a child ends or returns immediately.
#[derive(Clone, Copy)]
pub(crate) enum Wait {
    Blocks,
    Looks,
}

/// Reaps a child that has ended. Returns its PID and its wait status, or `None` if no child has
/// ended yet. A `pid` of -1 stands for any child.
///
/// Fails with ECHILD if there is no such child.
pub(crate) fn reap(pid: Pid, wait: Wait) -> Result<Option<(Pid, i32)>, i32> {
    // WNOHANG, and __WALL: a child may have been created with a signal other than SIGCHLD.
    let options: u32 = match wait {
        Wait::Blocks => 0x4000_0000,
        Wait::Looks => 0x4000_0001,
    };
    let mut status = 0_i32;
    loop {
        let pointer = &raw mut status as usize;
        // SAFETY: the kernel writes only the status.
        match result(unsafe { call(number::WAIT4, pid as usize, pointer, options as usize, 0) }) {
            Err(EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(0) => return Ok(None),
            // WIFSTOPPED: if a child has made this process its tracer, wait4(2) also reports its
            // stops.
            Ok(_) if status & 0xff == 0x7f => {}
            Ok(pid) => return Ok(Some((pid as Pid, status))),
        }
    }
}

/// Sends a signal. Returns whether the kernel accepted it.
pub(crate) fn kill(pid: Pid, signal: i32) -> bool {
    call_by_value(number::KILL, pid as usize, signal as usize, 0).is_ok()
}

/// Returns whether there is a process with that PID. A zombie counts.
pub(crate) fn is_process(pid: Pid) -> bool {
    kill(pid, 0)
}

/// A signal that has arrived.
pub(crate) struct Signal {
    pub(crate) number: i32,
    /// The sender.
    pub(crate) origin: Origin,
}

/// The sender of a signal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The kernel itself, on behalf of a terminal or a child.
    Kernel,
    /// A process outside this PID namespace.
    Outside,
    /// A process in this PID namespace.
    Inside,
}

/// Blocks every signal, so that it stays pending until [`next_signal`] takes it. The kernel keeps a
/// blocked signal pending even if the process ignores it. Also resets SIGCHLD to its default
/// action: while a process ignores it, the kernel reaps its children.
pub(crate) fn block_signals() -> Result<(), i32> {
    default_signal(SIGCHLD)?;
    set_mask(ALL)
}

/// Waits for the next signal.
pub(crate) fn next_signal() -> Signal {
    // siginfo_t: the signal number, an errno, the code, padding, and the sender's PID. The PID is 0
    // if the sender has none in this namespace.
    let mut info = [0_i32; 32];
    let set = ALL;
    loop {
        // SAFETY: the kernel reads the set and writes the siginfo_t. A null pointer means no
        // timeout.
        let number = result(unsafe {
            call(number::RT_SIGTIMEDWAIT, &raw const set as usize, info.as_mut_ptr() as usize, 0, size_of::<u64>())
        });
        if let Ok(number) = number {
            // A positive code comes from the kernel. SI_USER is 0, and the other codes that a
            // process can send are negative.
            let origin = match (info[2], info[4]) {
                (1.., _) => Origin::Kernel,
                (_, 0) => Origin::Outside,
                _ => Origin::Inside,
            };
            return Signal { number: number as i32, origin };
        }
    }
}

/// Resets all signals for a new program: none blocked, none ignored.
pub(crate) fn default_signals() -> Result<(), i32> {
    for signal in 1..=SIGNALS {
        if signal != SIGKILL && signal != SIGSTOP {
            default_signal(signal)?;
        }
    }
    set_mask(0)
}

fn default_signal(signal: i32) -> Result<(), i32> {
    // The kernel's struct sigaction: SIG_DFL, no flags, no restorer, an empty mask.
    let action = [0_u64; 4];
    // SAFETY: the kernel reads the action. The null pointer means that it does not return the old
    // one.
    result(unsafe { call(number::RT_SIGACTION, signal as usize, action.as_ptr() as usize, 0, size_of::<u64>()) })
        .map(drop)
}

fn set_mask(set: u64) -> Result<(), i32> {
    const SIG_SETMASK: usize = 2;
    // SAFETY: the kernel reads the set. The null pointer means that it does not return the old one.
    result(unsafe { call(number::RT_SIGPROCMASK, SIG_SETMASK, &raw const set as usize, 0, size_of::<u64>()) }).map(drop)
}

/// Makes this process the leader of a new session, which has no terminal.
pub(crate) fn new_session() {
    let _ = call_by_value(number::SETSID, 0, 0, 0);
}

/// Returns whether descriptor 0 is the controlling terminal of this process's session.
pub(crate) fn has_terminal() -> bool {
    const TIOCGPGRP: usize = 0x540f;
    let mut group = 0_i32;
    // SAFETY: the kernel writes only the number of the process group.
    result(unsafe { call(number::IOCTL, 0, TIOCGPGRP, &raw mut group as usize, 0) }).is_ok()
}

/// Sets the name of the process, at most 15 bytes, that ps(1) and `/proc/PID/comm` show.
pub(crate) fn set_name(name: &CStr) {
    const PR_SET_NAME: usize = 15;
    // SAFETY: the kernel reads up to the end of the string.
    let _ = unsafe { call(number::PRCTL, PR_SET_NAME, name.as_ptr() as usize, 0, 0) };
}

/// Restricts this process to the given processors: one bit each, as sched_setaffinity(2) takes
/// them.
pub(crate) fn set_affinity(processors: &[u64]) {
    // SAFETY: the kernel reads the mask.
    let _ = unsafe { call(number::SCHED_SETAFFINITY, 0, size_of_val(processors), processors.as_ptr() as usize, 0) };
}

/// The length of a record in bytes, without a path or a head.
const RECORD_BYTES: usize = 8;

fn record(kind: Kind, value: i32) -> [u8; RECORD_BYTES] {
    let [a, b, c, d] = (kind as u32).to_ne_bytes();
    let [e, f, g, h] = value.to_ne_bytes();
    [a, b, c, d, e, f, g, h]
}

/// Reports one record.
pub(crate) fn report(kind: Kind, value: i32) {
    write(&record(kind, value));
}

/// Reports that the program at `path` cannot be executed. `head` is the beginning of its file.
pub(crate) fn report_not_executed(path: &[u8], head: &[u8], errno: i32) {
    let path = path.get(..PATH_BYTES).unwrap_or(path);
    let head = head.get(..HEAD_BYTES).unwrap_or(head);
    let headers = [(Kind::Path, path.len() as i32), (Kind::Head, head.len() as i32), (Kind::NotExecuted, errno)];
    let [before_path, before_head, last] = headers.map(|(kind, value)| record(kind, value));
    let parts: [&[u8]; 5] = [&before_path, path, &before_head, head, &last];
    let mut bytes = [0; 3 * RECORD_BYTES + PATH_BYTES + HEAD_BYTES];
    let mut length = 0;
    for (place, byte) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
        *place = *byte;
        length += 1;
    }
    write(bytes.get(..length).unwrap_or_default());
}

fn write(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: the kernel only reads the bytes.
        let written = unsafe { call(number::WRITE, REPORT as usize, bytes.as_ptr() as usize, bytes.len(), 0) };
        match result(written) {
            Err(EINTR) => {}
            // The caller no longer reads the report.
            Err(_) => return,
            Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
        }
    }
}
