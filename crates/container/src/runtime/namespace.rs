//! The one place with code between fork and exec: what a child has to do before it is the runtime, no other can do for it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{PidfdFlags, getpid, pidfd_open};

/// Starts `command` as the first process of a PID namespace, with the `/proc` of that namespace, which its PIDs refer to, in a
/// mount namespace of its own.
///
/// It is killed when the calling thread ends, and everything in the namespace with it: pid_namespaces(7),
/// PR_SET_PDEATHSIG(2const). What the calling thread starts later is where it was before.
pub(super) fn spawn(command: &mut Command) -> io::Result<Child> {
    let caller = pidfd_open(getpid(), PidfdFlags::empty())?;
    let before = File::open("/proc/thread-self/ns/pid_for_children")?;
    // SAFETY: between fork(2) and execve(2) in a process of several threads only async-signal-safe functions may be called.
    // `prepare` makes system calls on what is on its stack, and nothing else: no allocation, no lock.
    unsafe { command.pre_exec(move || prepare(&caller)) };
    unshare(CloneFlags::CLONE_NEWPID)?;
    let spawned = command.spawn();
    let back = setns(&before, CloneFlags::CLONE_NEWPID);
    match (spawned, back) {
        (Ok(mut child), Err(error)) => {
            child.kill()?;
            child.wait()?;
            Err(error.into())
        }
        (spawned, _) => spawned,
    }
}

fn prepare(caller: &OwnedFd) -> io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    // Whoever ended before that line will not be told of again. The parent's PID says nothing: seen from here it is 0.
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut [PollFd::new(caller, PollFlags::IN)], Some(&now))? > 0 {
        return Err(Errno::SRCH.into());
    }
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, c"/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(c"proc"), c"/proc", Some(c"proc"), flags, None::<&str>)?;
    Ok(())
}
