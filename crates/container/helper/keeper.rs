//! The keeper: process 1 of a run's outer PID namespace. It starts the runtime, which starts the
//! container and exits. The keeper then waits for the container to end. When the keeper ends, for
//! whatever reason, the kernel kills every process left in the namespace.
//!
//! Usage: `keeper PID-FILE COMMAND ["" [COMMAND] ["" COMMAND]]`, where COMMAND is `PROGRAM NAME
//! ARGUMENT…`. The first command starts the container. The second one runs after the container has
//! ended. The third one connects the container's network before the container starts. It goes to
//! the background once that is done, and ends with the namespace.

use core::ffi::{CStr, c_char};
use core::ptr;

use crate::record::{Kind, NETWORK, NETWORK_LOG, PROGRAM, REPORT, RUNTIME};
use crate::sys::{self, Origin, Pid, SIGCHLD, Wait};
use crate::{USAGE, Words};

/// The index of the PID file, where the runtime writes the PID of the container's first process.
const PID_FILE: usize = 2;
/// The index of the first command, which starts with the runtime's path.
const START: usize = 3;

/// The exit status of a process that could not do its work and has reported why.
const FAILED: i32 = 1;

pub(crate) fn run(words: Words) -> ! {
    if let Err(errno) = sys::block_signals() {
        sys::report(Kind::RuntimeNotExecuted, errno);
        sys::exit(FAILED);
    }
    sys::set_name(c"layered-keeper");
    // In its own session, the keeper does not get signals from the caller's terminal. The caller
    // gets them and forwards them.
    sys::new_session();
    let Some(pid_file) = words.argument(PID_FILE) else { sys::exit(USAGE) };
    let [last, network] = split(words);
    // No program inherits it: the runtime opens it in `/proc`.
    sys::close_on_exec(NETWORK);
    if network.is_some_and(|network| !connect(words, network)) {
        sys::exit(0);
    }
    let runtime = start(words, START);
    // Only the container may hold these open. Otherwise a reader would not see the end of a stream
    // when the command closes it.
    for descriptor in [0, 1, 2, PROGRAM] {
        sys::close(descriptor);
    }
    if let Some(container) = supervise(runtime, pid_file) {
        sys::report(Kind::ContainerEnded, container);
    }
    if let Some(index) = last {
        // The second program gets none of the run's streams, but it expects its standard streams to
        // be open.
        sys::open_null_streams();
        sys::close_on_exec(REPORT);
        let program = start(words, index);
        let _ = sys::reap(program, Wait::Blocks);
    }
    sys::exit(0)
}

/// Ends each command at the empty word after it. Returns the indexes of the second and the third
/// command, if they have words.
fn split(words: Words) -> [Option<usize>; 2] {
    let mut commands = [None; 2];
    let mut index = START;
    for place in &mut commands {
        loop {
            match words.argument(index) {
                None => return commands,
                Some(word) if word.is_empty() => break,
                Some(_) => index += 1,
            }
        }
        // SAFETY: this is an element of the argument list, which is in this process's own memory.
        unsafe { words.arguments.cast_mut().add(index).write(ptr::null::<c_char>()) };
        index += 1;
        *place = words.argument(index).filter(|word| !word.is_empty()).map(|_| index);
    }
    commands
}

/// Runs the command at `index`, which connects the container's network, and waits until it has gone
/// to the background. Returns whether that succeeded. Reports a failure.
fn connect(words: Words, index: usize) -> bool {
    let Some(program) = words.argument(index) else { sys::exit(USAGE) };
    let status = match sys::fork() {
        Ok(0) => {
            // It lives as long as the container, and must not hold anything of the run open.
            for descriptor in [REPORT, PROGRAM, RUNTIME] {
                sys::close_on_exec(descriptor);
            }
            let execute = |()| sys::execute(program, words.arguments_from(index + 1), words.environment);
            let prepared = sys::log_streams(NETWORK_LOG).and_then(|()| sys::default_signals());
            sys::report(Kind::NetworkNotExecuted, prepared.map_or_else(|errno| errno, execute));
            sys::exit(FAILED)
        }
        Ok(pid) => sys::reap(pid, Wait::Blocks).map(|ended| ended.map_or(0, |(_, status)| status)),
        Err(errno) => Err(errno),
    };
    match status {
        Ok(0) => return true,
        Ok(status) => sys::report(Kind::NetworkFailed, status),
        Err(errno) => sys::report(Kind::NetworkNotExecuted, errno),
    }
    false
}

/// Starts the program whose path is the argument at `index`, with the arguments after it. If the
/// program cannot be executed, the child reports that and exits with [`FAILED`].
fn start(words: Words, index: usize) -> Pid {
    let Some(program) = words.argument(index) else { sys::exit(USAGE) };
    match sys::fork() {
        Ok(0) => {
            // The kernel executes the copy by its path in /proc, so the runtime itself does not
            // need the descriptor.
            sys::close_on_exec(RUNTIME);
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

/// Waits for the runtime and then for the container, and forwards signals. Signals that arrive
/// before the container exists are kept and forwarded later. Returns the wait status of the
/// container's first process. Returns `None` if the runtime started no container, or if the
/// container's end cannot be waited for.
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
        // Waits for the runtime alone until it has ended. Only then does the PID file name the
        // container.
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
        // Give up if the PID in the file names no process here. The check must not look only at
        // children: crun starts the container through an intermediate process, which ends later
        // than the runtime. Its end makes the container a child of this process and causes another
        // SIGCHLD.
        if container.is_some_and(|pid| !sys::is_process(pid)) {
            return None;
        }
    }
}

/// Reads the PID in the file. It must be greater than 1, which is this process.
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
