//! The init: process 1 inside the container. It starts the command as its child, forwards signals
//! to it, reaps the processes that the command leaves behind, and reports how the command ended. It
//! can also execute the command in its own place, for a command that is itself an init.
//!
//! Usage: `PROGRAM init|exec AFFINITY COMMAND ARGUMENT…`. AFFINITY is a mask of processors as a
//! hexadecimal number of any length. An empty mask allows all processors. When this process ends,
//! the kernel kills every other process in the container.

use core::ffi::CStr;

use crate::record::{HEAD_BYTES, Kind, PROGRAM, REPORT};
use crate::sys::{self, EACCES, ENAMETOOLONG, ENOENT, ENOTDIR, Origin, Pid, SIGCHLD, SIGHUP, Wait};
use crate::{USAGE, Words};

/// How the init starts the command.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The command is a child of this process.
    Child,
    /// The command replaces this process.
    First,
}

/// The index of the processor mask among the arguments.
const AFFINITY: usize = 2;
/// The index of the command's name among the arguments.
const COMMAND: usize = 3;

/// The exit status of a process that cannot execute the command, as in a shell.
const NOT_EXECUTED: i32 = 127;

pub(crate) fn run(words: Words, mode: Mode) -> ! {
    let (Some(affinity), Some(command)) = (words.argument(AFFINITY), words.argument(COMMAND)) else { sys::exit(USAGE) };
    if mode == Mode::Child {
        sys::block_signals().unwrap_or_else(|errno| fail(command, errno));
    }
    set_affinity(affinity.to_bytes());
    sys::close(PROGRAM);
    sys::close_on_exec(REPORT);
    sys::report(Kind::Ready, 0);
    if mode == Mode::First {
        become_command(words, command);
    }
    let has_terminal = sys::has_terminal();
    match sys::fork() {
        Ok(0) => {
            // The container's terminal belongs to this session. The command stays in the session,
            // and so in the foreground of the terminal.
            if !has_terminal {
                sys::new_session();
            }
            become_command(words, command)
        }
        Ok(pid) => {
            sys::set_name(c"layered-init");
            hide_arguments(words);
            // Otherwise a reader would not see the end of a stream when the command closes it. With
            // a terminal, standard input stays open: the caller would treat a terminal that no
            // process has open as ended.
            for stream in if has_terminal { 1..3 } else { 0..3 } {
                sys::close(stream);
            }
            // Without the command's status, the run has no result.
            let Ok(status) = supervise(pid, has_terminal) else { sys::exit(USAGE) };
            sys::report(Kind::CommandEnded, status);
            if has_no_child() {
                sys::report(Kind::NothingLeft, 0);
            }
            // As in a shell: the exit status, or 128 plus the number of the signal.
            sys::exit(if status & 0x7f == 0 { status >> 8 & 0xff } else { 128 + (status & 0x7f) })
        }
        // A limit on processes can make fork(2) fail.
        Err(errno) => fail(command, errno),
    }
}

/// Forwards signals and reaps children until the command has ended. Returns the command's wait
/// status, or the errno if it cannot be waited for.
fn supervise(command: Pid, has_terminal: bool) -> Result<i32, i32> {
    loop {
        let signal = sys::next_signal();
        if signal.number == SIGCHLD {
            while let Some((pid, status)) = sys::reap(-1, Wait::Looks)? {
                if pid == command {
                    return Ok(status);
                }
            }
            continue;
        }
        let is_for_command = match signal.origin {
            // The kernel sends the terminal's signals to the command as well. The exception is
            // SIGHUP at a hang-up: the kernel sends it only to the session leader, which is this
            // process.
            Origin::Kernel => signal.number == SIGHUP,
            Origin::Outside => true,
            // With a terminal, this process is in the command's process group, so the command
            // already gets signals that are sent to the group (`kill 0`).
            Origin::Inside => !has_terminal,
        };
        if is_for_command {
            sys::kill(command, signal.number);
        }
    }
}

/// Reaps the children that have ended. Returns whether no child is left. The kernel makes this
/// process the parent of every process that the command leaves behind.
fn has_no_child() -> bool {
    loop {
        match sys::reap(-1, Wait::Looks) {
            Ok(Some(_)) => {}
            Ok(None) => return false,
            Err(_) => return true,
        }
    }
}

/// Overwrites the arguments that other processes see as the command line. `pkill -f NAME` then
/// matches the command and not this process.
fn hide_arguments(words: Words) {
    const NAME: &[u8] = b"layered-init";
    let mut name = NAME.iter();
    let mut index = 0;
    while let Some(word) = words.argument(index) {
        let length = word.to_bytes().len();
        for place in 0..length {
            // SAFETY: the word is a string in this process's own memory, and nothing reads it as a
            // string from here on.
            unsafe { word.as_ptr().cast_mut().add(place).write(name.next().map_or(0, |byte| *byte as _)) };
        }
        index += 1;
    }
}

/// Executes the command in this process. Reports the reason if that fails.
fn become_command(words: Words, command: &CStr) -> ! {
    sys::default_signals().unwrap_or_else(|errno| fail(command, errno));
    let arguments = words.arguments_from(COMMAND);
    let name = command.to_bytes();
    if name.contains(&b'/') {
        fail(command, sys::execute(command, arguments, words.environment));
    }
    // Like execvp(3), but without running a file of unknown format by a shell.
    let mut failure = ENOENT;
    let mut denied = None;
    let search = path_of(words).unwrap_or(b"/bin:/usr/bin");
    let mut buffer = [0_u8; PATH_BYTES];
    for directory in search.split(|byte| *byte == b':').filter(|_| !name.is_empty()) {
        let Some(path) = join(&mut buffer, directory, name) else {
            failure = ENAMETOOLONG;
            continue;
        };
        match sys::execute(path, arguments, words.environment) {
            ENOENT | ENOTDIR if !sys::exists(path) => {}
            EACCES => denied = Some(directory),
            errno => fail(path, errno),
        }
    }
    if let Some(path) = denied.and_then(|directory| join(&mut buffer, directory, name)) {
        fail(path, EACCES);
    }
    // The search found no file, so the head stays empty. A file of that name in the working
    // directory would be unrelated.
    sys::report_not_executed(name, b"", failure);
    sys::exit(NOT_EXECUTED)
}

/// `PATH_MAX` of the kernel, including the NUL.
const PATH_BYTES: usize = 4096;

/// Returns the path of `name` in `directory`. An empty `directory` stands for the working
/// directory.
fn join<'b>(buffer: &'b mut [u8; PATH_BYTES], directory: &[u8], name: &[u8]) -> Option<&'b CStr> {
    let directory = if directory.is_empty() { b"." } else { directory };
    let mut path = buffer.iter_mut();
    for byte in directory.iter().chain(b"/").chain(name).chain(b"\0") {
        *path.next()? = *byte;
    }
    CStr::from_bytes_until_nul(buffer).ok()
}

/// Returns the value of `PATH` in the environment.
fn path_of(words: Words) -> Option<&'static [u8]> {
    let environment = Words { arguments: words.environment, ..words };
    let mut index = 0;
    while let Some(word) = environment.argument(index) {
        if let Some(value) = word.to_bytes().strip_prefix(b"PATH=") {
            return Some(value);
        }
        index += 1;
    }
    None
}

/// Reports that the command at `path` cannot be executed, along with the first bytes of its file.
/// The caller derives the reason from those bytes.
fn fail(path: &CStr, errno: i32) -> ! {
    let mut head = [0; HEAD_BYTES];
    let length = sys::read_file(path, &mut head).unwrap_or(0);
    sys::report_not_executed(path.to_bytes(), head.get(..length).unwrap_or_default(), errno);
    sys::exit(NOT_EXECUTED)
}

/// Restricts this process to the processors in the mask. The control group may allow fewer; the
/// kernel then uses the intersection.
fn set_affinity(mask: &[u8]) {
    // The largest number of processors that the kernel can be built for (CONFIG_NR_CPUS): 8,192.
    let mut processors = [0_u64; 128];
    for (place, digit) in mask.iter().rev().enumerate() {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return,
        };
        match processors.get_mut(place / 16) {
            Some(word) => *word |= u64::from(digit) << (place % 16 * 4),
            None => return,
        }
    }
    if !mask.is_empty() {
        sys::set_affinity(&processors);
    }
}
