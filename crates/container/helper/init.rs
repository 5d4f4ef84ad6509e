//! The init: process 1 inside the container. It starts the command as its child, hands signals on to it, reaps what the command
//! leaves behind, and reports how it ended. It can also become the command, for one that is an init itself.
//!
//! `PROGRAM init|exec AFFINITY COMMAND ARGUMENT…`: AFFINITY is the mask of processors as a hexadecimal number, of any length; empty
//! for all. The kernel kills everything else in the container when this process ends.

use core::ffi::CStr;

use crate::record::{HEAD_BYTES, Kind, PROGRAM, REPORT};
use crate::sys::{self, EACCES, ENAMETOOLONG, ENOENT, ENOTDIR, Origin, Pid, SIGCHLD, SIGHUP, Wait};
use crate::{USAGE, Words};

/// What becomes of the command.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It is a child of this process.
    Child,
    /// It takes the place of this process.
    First,
}

/// The index of the mask of processors.
const AFFINITY: usize = 2;
/// The index of the command's name.
const COMMAND: usize = 3;

/// The status of a process that could not become the command, as a shell has it.
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
            // With a terminal it stays in this session, which the terminal belongs to, and in its foreground.
            if !has_terminal {
                sys::new_session();
            }
            become_command(words, command)
        }
        Ok(pid) => {
            sys::set_name(c"layered-init");
            hide_arguments(words);
            // A reader sees the end of a stream when the command closes it. A terminal without anybody is closed for good.
            for stream in if has_terminal { 1..3 } else { 0..3 } {
                sys::close(stream);
            }
            // Without its status the command has no result.
            let Ok(status) = supervise(pid, has_terminal) else { sys::exit(USAGE) };
            sys::report(Kind::CommandEnded, status);
            // As a shell has it: the status, or 128 and the number of the signal.
            sys::exit(if status & 0x7f == 0 { status >> 8 & 0xff } else { 128 + (status & 0x7f) })
        }
        // Of processes, there may be a limit.
        Err(errno) => fail(command, errno),
    }
}

/// Hands on signals and reaps until the command has ended. Returns its wait status, or the errno if the command cannot be waited for.
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
            // What a terminal sends the command gets itself, but for the end of that: the kernel tells the session's leader alone.
            Origin::Kernel => signal.number == SIGHUP,
            Origin::Outside => true,
            // With a terminal it is in the process group of the command, which gets itself what is sent to that (`kill 0`).
            Origin::Inside => !has_terminal,
        };
        if is_for_command {
            sys::kill(command, signal.number);
        }
    }
}

/// Overwrites the arguments, for those who read the command line: `pkill -f NAME` means the command, and not this process, too.
fn hide_arguments(words: Words) {
    const NAME: &[u8] = b"layered-init";
    let mut name = NAME.iter();
    let mut index = 0;
    while let Some(word) = words.argument(index) {
        let length = word.to_bytes().len();
        for place in 0..length {
            // SAFETY: the word is a string in this process's own memory, and nothing reads it as such any more.
            unsafe { word.as_ptr().cast_mut().add(place).write(name.next().map_or(0, |byte| *byte as _)) };
        }
        index += 1;
    }
}

/// Becomes the command; reports what keeps it from that.
fn become_command(words: Words, command: &CStr) -> ! {
    sys::default_signals().unwrap_or_else(|errno| fail(command, errno));
    let arguments = words.arguments_from(COMMAND);
    let name = command.to_bytes();
    if name.contains(&b'/') {
        fail(command, sys::execute(command, arguments, words.environment));
    }
    // As execvp(3) has it, but that no shell reads what is no program.
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
    // There is no file whose beginning would say more: one of that name in the working directory is another.
    sys::report_not_executed(name, b"", failure);
    sys::exit(NOT_EXECUTED)
}

/// PATH_MAX of the kernel, a NUL included.
const PATH_BYTES: usize = 4096;

/// The path of `name` in `directory`, the working directory if that is empty.
fn join<'b>(buffer: &'b mut [u8; PATH_BYTES], directory: &[u8], name: &[u8]) -> Option<&'b CStr> {
    let directory = if directory.is_empty() { b"." } else { directory };
    let mut path = buffer.iter_mut();
    for byte in directory.iter().chain(b"/").chain(name).chain(b"\0") {
        *path.next()? = *byte;
    }
    CStr::from_bytes_until_nul(buffer).ok()
}

/// The value of `PATH` in the environment.
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

/// Reports that the command at `path` cannot be executed, and what its file begins with, by which the reason may be known.
fn fail(path: &CStr, errno: i32) -> ! {
    let mut head = [0; HEAD_BYTES];
    let length = sys::read_file(path, &mut head).unwrap_or(0);
    sys::report_not_executed(path.to_bytes(), head.get(..length).unwrap_or_default(), errno);
    sys::exit(NOT_EXECUTED)
}

/// Runs on the processors of the mask only. The control group may allow fewer; then the kernel takes those of both.
fn set_affinity(mask: &[u8]) {
    // As many processors as the kernel can be built for (CONFIG_NR_CPUS).
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
