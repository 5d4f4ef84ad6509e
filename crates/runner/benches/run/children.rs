//! Measures the time and the memory of a command with all its processes, by getrusage(2) of a
//! process that has no other children. [`images`](crate::images) and [`users`](crate::users) have
//! the commands.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Pid, User};

/// The first argument of this program when it measures a command. The user and the group of the
/// command follow, and then the command.
const MEASURE: &str = "--measure";

/// The resources that a command has used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// The time in user mode and in the kernel, of all processes. Processes that the command leaves
    /// behind count, too: the measurement ends when the last one has ended.
    pub(crate) processor: Duration,
    /// The time until the last of these processes has ended.
    pub(crate) elapsed: Duration,
    /// The largest resident memory of one of the processes, in kilobytes.
    pub(crate) peak_kilobytes: u64,
}

/// Runs a command as root, and returns what it has used. Its output is dropped.
pub(crate) fn usage(command: &Command) -> Result<Usage> {
    measured(Command::new(env::current_exe()?), 0, 0, command)
}

/// Runs a command as `user`, without supplementary groups and with the variables that are set for
/// it alone, and returns what it has used. Its output is dropped.
pub(crate) fn usage_of(command: &Command, user: &User) -> Result<Usage> {
    let mut measure = Command::new(env::current_exe()?);
    measure.env_clear();
    measured(measure, user.uid.as_raw(), user.gid.as_raw(), command)
}

/// Lets this program, as the command `measure`, run and measure `command`.
fn measured(mut measure: Command, uid: u32, gid: u32, command: &Command) -> Result<Usage> {
    measure.args([MEASURE, &uid.to_string(), &gid.to_string()]).arg(command.get_program()).args(command.get_args());
    measure.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(dir) = command.get_current_dir() {
        measure.current_dir(dir);
    }
    let output = measure.stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    let mut next = || numbers.next().context("too few numbers").and_then(|number| Ok(number?));
    Ok(Usage {
        processor: Duration::from_micros(next()?),
        elapsed: Duration::from_micros(next()?),
        peak_kilobytes: next()?,
    })
}

/// Does what [`usage_of`] has started this process for, if it has. Returns whether it has.
pub(crate) fn measure(arguments: &[String]) -> Result<bool> {
    let [first, uid, gid, program, rest @ ..] = arguments else { return Ok(false) };
    if first != MEASURE {
        return Ok(false);
    }
    // Monitors such as conmon leave their parents. This process inherits and reaps them, or neither
    // their time nor their end would be seen.
    set_child_subreaper(true)?;
    let mut command = Command::new(program);
    command.args(rest).stdout(Stdio::null()).uid(uid.parse()?).gid(gid.parse()?);
    let start = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot start {}", program))?;
    let child = Pid::from_raw(i32::try_from(child.id())?);
    let mut ended = None;
    loop {
        match wait() {
            Ok(status) if status.pid() == Some(child) => ended = Some(status),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    let elapsed = start.elapsed();
    let status = ended.context("the command was not waited for")?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{}: {status:?}", program);
    let used = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let processor = microseconds(used.user_time()) + microseconds(used.system_time());
    println!("{processor} {} {}", elapsed.as_micros(), used.max_rss());
    Ok(true)
}

fn microseconds(time: TimeVal) -> i64 {
    time.tv_sec() * 1_000_000 + time.tv_usec()
}
