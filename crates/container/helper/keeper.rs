//! The keeper: process 1 of a run's outer PID namespace. It starts the runtime, which starts the container and ends, and waits for
//! the end of the container. When the keeper ends, however that happens, the kernel kills all that is left in the namespace.
//!
//! `keeper PID-FILE PROGRAM NAME ARGUMENT… ["" PROGRAM NAME ARGUMENT…]`: the first command starts the container, the second one, if
//! there is one, runs when the container has ended.

use core::ffi::{CStr, c_char};
use core::ptr;

use crate::record::{self, Kind, PROGRAM};
use crate::sys::{self, Origin, Pid, SIGCHLD, Wait};
use crate::{USAGE, Words};

/// The index of the file in which the runtime leaves the number of the container's first process.
const PID_FILE: usize = 2;
/// The index of the runtime's path.
const RUNTIME: usize = 3;

/// What a process of the keeper's exits with that cannot do its work. It has reported why.
const FAILED: i32 = 1;

pub(crate) fn run(words: Words) -> ! {
    if let Err(errno) = sys::block_signals() {
        sys::report(Kind::RuntimeNotExecuted, errno);
        sys::exit(FAILED);
    }
    sys::set_name(c"layered-keeper");
    // The caller's terminal sends its signals to the caller, who hands them on.
    sys::new_session();
    let Some(pid_file) = words.argument(PID_FILE) else { sys::exit(USAGE) };
    let last = split(words);
    let runtime = start(words, RUNTIME);
    // They are the container's alone: a reader sees the end of a stream when the command closes it.
    for descriptor in [0, 1, 2, PROGRAM] {
        sys::close(descriptor);
    }
    if let Some(container) = supervise(runtime, pid_file) {
        sys::report(Kind::ContainerEnded, container);
    }
    if let Some(index) = last {
        let program = start(words, index);
        let _ = sys::reap(program, Wait::Blocks);
    }
    sys::exit(0)
}

/// Ends the first command at the empty word, and returns the index of the second one.
fn split(words: Words) -> Option<usize> {
    let mut index = RUNTIME;
    while let Some(word) = words.argument(index) {
        if word.is_empty() {
            // SAFETY: it is one of the pointers of the list, which is this process's own to change.
            unsafe { words.arguments.cast_mut().add(index).write(ptr::null::<c_char>()) };
            return Some(index + 1);
        }
        index += 1;
    }
    None
}

/// Starts the program whose path is the argument `index`, with the arguments behind that. A program that cannot be started is
/// reported, and counts as one that has ended.
fn start(words: Words, index: usize) -> Pid {
    let Some(program) = words.argument(index) else { sys::exit(USAGE) };
    match sys::fork() {
        Ok(0) => {
            // Executed by its path in /proc, it is of no use to the runtime any more.
            sys::close_on_exec(record::RUNTIME);
            let execute = |()| sys::execute(program, words.arguments_from(index + 1), words.environment);
            let errno = sys::default_signals().map_or_else(|errno| errno, execute);
            sys::report(Kind::RuntimeNotExecuted, errno);
            sys::exit(FAILED)
        }
        Ok(pid) => pid,
        Err(errno) => {
            sys::report(Kind::RuntimeNotExecuted, errno);
            sys::exit(FAILED)
        }
    }
}

/// Waits for the runtime and then for the container, and hands on signals: those that come before the container is there are kept
/// for it. Returns the wait status of the container's first process, or `None` if the runtime has started none, or its end can
/// not be waited for.
fn supervise(runtime: Pid, pid_file: &CStr) -> Option<i32> {
    let mut pending = 0_u64;
    let mut container = None;
    loop {
        let signal = sys::next_signal();
        if signal.number != SIGCHLD {
            match container {
                _ if signal.origin == Origin::Kernel => {}
                Some(pid) => {
                    sys::kill(pid, signal.number);
                }
                None => pending |= 1 << (signal.number - 1),
            }
            continue;
        }
        // The runtime alone, until it has ended: then its file says who the container is.
        while let Some((pid, status)) = sys::reap(container.map_or(runtime, |_| -1), Wait::Looks).ok()? {
            if Some(pid) == container {
                return Some(status);
            }
            if pid != runtime {
                continue;
            }
            sys::report(Kind::RuntimeEnded, status);
            if status != 0 {
                return None;
            }
            let pid = read_pid(pid_file)?;
            container = Some(pid);
            while pending != 0 {
                sys::kill(pid, pending.trailing_zeros() as i32 + 1);
                pending &= pending - 1;
            }
        }
        // A number that means nothing here. The container is not a child of this process at first: crun has a process in between,
        // which ends after the one that was started, and tells of that by another SIGCHLD.
        if container.is_some_and(|pid| !sys::is_process(pid)) {
            return None;
        }
    }
}

/// The number in the file, which must be more than 1: 1 is this process.
fn read_pid(path: &CStr) -> Option<Pid> {
    let mut buffer = [0; 16];
    let length = sys::read_file(path, &mut buffer).ok()?;
    let mut pid: Pid = 0;
    for byte in buffer.get(..length)? {
        match byte {
            b'0'..=b'9' => pid = pid.checked_mul(10)?.checked_add(Pid::from(byte - b'0'))?,
            _ => break,
        }
    }
    (pid > 1).then_some(pid)
}
