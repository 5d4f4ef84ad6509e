//! Measures the processor time and the memory of a command with all its processes, by getrusage(2)
//! of a process that has no other children. [`images`](crate::images) has the commands.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// The first argument of this program when it measures a command.
const MEASURE: &str = "--measure";

/// The resources that a command has used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// The time in user mode and in the kernel.
    pub(crate) processor: Duration,
    /// The largest resident memory of one of the processes, in kilobytes.
    pub(crate) peak_kilobytes: u64,
}

/// Runs a command, and returns what it has used. Its output is dropped.
pub(crate) fn usage(argv: &[impl AsRef<OsStr>]) -> Result<Usage> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(MEASURE).args(argv).stdin(Stdio::null());
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    let mut next = || numbers.next().context("too few numbers").and_then(|number| Ok(number?));
    Ok(Usage { processor: Duration::from_micros(next()?), peak_kilobytes: next()? })
}

/// Does what [`usage`] has started this process for, if it has. Returns whether it has.
pub(crate) fn measure(arguments: &[String]) -> Result<bool> {
    let [first, program, rest @ ..] = arguments else { return Ok(false) };
    if first != MEASURE {
        return Ok(false);
    }
    let status = Command::new(program).args(rest).stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot start {program}"))?;
    ensure!(status.success(), "{program}: {status}");
    let used = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    println!("{} {}", microseconds(used.user_time()) + microseconds(used.system_time()), used.max_rss());
    Ok(true)
}

fn microseconds(time: TimeVal) -> i64 {
    time.tv_sec() * 1_000_000 + time.tv_usec()
}
