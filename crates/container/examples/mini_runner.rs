//! Runs commands in a root file system of the caller's own: with binds and limits, from a
//! configuration of `runc spec`, fifty at a time over overlays, and on a terminal. Prints the
//! output of each command, and then how the command ended.
//!
//! `cargo run -p container --example mini_runner ROOTFS WORK [RUNTIME]` (as root)

// A program prints.
#![allow(clippy::print_stdout)]

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, absolute};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{bail, ensure};
use container::{
    Input, Mount, Output, Overlay, RootAccess, Runtime, Status, Supervision, Template, Terminal,
    in_private_mount_namespace, run_in,
};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (root, work, runtime) = match &*args {
        [root, work] => (Path::new(root), absolute(work)?, Runtime::default()),
        [root, work, runtime] => (Path::new(root), absolute(work)?, Runtime::new(runtime)),
        _ => bail!("usage: mini_runner ROOTFS WORK [RUNTIME]"),
    };
    let run = |name: &str, template: &Template, supervision: Supervision<'_>| {
        let print = |line: &[u8]| print!("  {}", String::from_utf8_lossy(line));
        let supervision = supervision.stdout(Output::lines(print)).stderr(Output::lines(print));
        match run_in(root, template, &runtime, supervision) {
            Ok(finished) => println!("{name}: {:?}", finished.status),
            Err(error) => println!("{name}: {:#}", anyhow::Error::from(error)),
        }
    };

    fs::create_dir_all(work.join("src"))?;
    fs::write(work.join("src/hello"), "from the host\n")?;
    let script =
        "exec 2>&1; cat /src/hello; grep -c '^tmpfs /scratch.*size=8192k' /proc/mounts; id -u; touch /new || exit 3";
    let limited = Template::builder(["sh", "-c", script])
        .mount(Mount::bind(work.join("src"), "/src").read_only())
        .mount("type=tmpfs,target=/scratch,size=8m".parse::<Mount>()?)
        .user(1000, 1000)
        .root_access(RootAccess::ReadOnly)
        .memory_limit_bytes(64 << 20)
        .pids_limit(32)
        .cpu_quota(Duration::from_millis(50), Duration::from_millis(100));
    run("limited", &limited.build()?, Supervision::new());

    let timeout = Supervision::new().timeout(Duration::from_millis(300)).grace(Duration::from_millis(200));
    run("slow", &Template::builder(["sleep", "1000"]).build()?, timeout);
    let large = Template::builder(["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]);
    run("large", &large.memory_limit_bytes(32 << 20).build()?, Supervision::new());
    run("missing", &Template::builder(["no-such-command"]).build()?, Supervision::new());

    let _ = fs::remove_file(work.join("config.json")); // `runc spec` replaces no file
    ensure!(Command::new("runc").arg("spec").current_dir(&work).status()?.success(), "runc spec failed");
    let spec = Template::from_file(work.join("config.json"))?
        .with_args(["sh", "-c", "hostname; id -u"])?
        .with_terminal(Terminal::None);
    run("spec", &spec, Supervision::new());

    let own = Template::builder(["sh", "-c", "echo hi >/made"]).build()?;
    let succeeded = thread::scope(|scope| {
        let runs: Vec<_> = (0..50)
            .map(|number| work.join(format!("overlay-{number}")))
            .map(|dir| scope.spawn(|| over(root, dir, &own, &runtime)))
            .collect();
        runs.into_iter().try_fold(0, |count, run| run.join().expect("a run panicked").map(|()| count + 1))
    })?;
    println!("fifty at once: {succeeded} succeeded");

    if std::io::stdin().is_terminal() {
        let template = Template::builder(["sh", "-c", "stty size"]).terminal(Terminal::Attached).build()?;
        let supervision = Supervision::new().stdin(Input::Inherit).stdout(Output::Inherit);
        println!("terminal: {:?}", run_in(root, &template, &runtime, supervision)?.status);
    }
    Ok(())
}

/// Runs `template` over an overlay in `dir`. An error if the command fails.
fn over(root: &Path, dir: impl AsRef<Path>, template: &Template, runtime: &Runtime) -> anyhow::Result<()> {
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| dir.as_ref().join(name));
    [&upper, &work, &merged].into_iter().try_for_each(fs::create_dir_all)?;
    let finished = in_private_mount_namespace(|| {
        let mounted = Overlay::new([root]).writable(&upper, &work).mount(&merged)?;
        let finished = run_in(mounted.path(), template, runtime, Supervision::new())?;
        mounted.unmount()?;
        Ok::<_, container::Error>(finished)
    })??;
    ensure!(finished.status == Status::Exited(0), "{}: {:?}", upper.display(), finished.status);
    ensure!(fs::read_to_string(upper.join("made"))? == "hi\n", "{} has no file", upper.display());
    Ok(())
}
