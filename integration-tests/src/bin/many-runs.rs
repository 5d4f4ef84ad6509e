//! Performs many runs in one process, several at a time. The test modules `load` and `stacks` start
//! it as a separate process, so that threads and descriptors of other tests do not count.
//!
//! `many-runs BASE STORE SCRATCH RUNS IN_FLIGHT`: every run uses all layers in `STORE`, and every
//! fourth one merges. Prints the directory of every run.
//!
//! `many-runs BASE STORE SCRATCH RUNS IN_FLIGHT shared`: no run merges, and all of them share their
//! layers. When they have ended, waits for the end of standard input.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use container::{CaptureLimit, Output, Status};
use integration_tests::{FOR_EVER, shell};
use layer::{Base, Layer};
use runner::{Options, Stacks};

struct Load {
    base: Base,
    layers: Vec<Layer>,
    scratch: PathBuf,
    stacks: Option<Stacks>,
}

fn main() -> Result<()> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [base, store, scratch, runs, in_flight, rest @ ..] = &arguments[..] else {
        bail!("BASE STORE SCRATCH RUNS IN_FLIGHT [shared]")
    };
    let is_shared = match rest {
        [] => false,
        [shared] if shared == "shared" => true,
        _ => bail!("too many arguments"),
    };
    let number = |text: &OsString| text.to_str().and_then(|text| text.parse::<usize>().ok()).context("not a number");
    let (runs, in_flight) = (number(runs)?, number(in_flight)?);
    let mut paths = fs::read_dir(store)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    // The store's own directory has no tree.
    paths.retain(|path| path.join("fs").is_dir());
    paths.sort();
    let layers = paths.into_iter().map(Layer::open).collect::<layer::Result<Vec<_>>>()?;
    let mut load = Load { base: Base::open(base)?, layers, scratch: scratch.into(), stacks: None };

    // Descriptors that the first run opens and keeps are not a leak.
    load.run(0)?;
    let before = descriptors_without_threads()?;
    load.stacks = is_shared.then(Stacks::new);
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..in_flight {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= runs {
                        break;
                    }
                    if let Err(error) = load.run(n) {
                        failed.lock().unwrap().push(format!("run {n}: {error:?}"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner()?;
    ensure!(failed.is_empty(), "{} runs have failed:\n{}", failed.len(), failed.join("\n"));
    if let Some(stacks) = load.stacks.take() {
        ensure!(stacks.lowers() == [load.layers.len() + 1], "{stacks:?}");
        io::stdin().read_to_end(&mut Vec::new())?;
    }
    let after = descriptors_without_threads()?;
    ensure!(after == before, "{after} descriptors, {before} before");
    Ok(())
}

impl Load {
    fn run(&self, n: usize) -> Result<()> {
        let template = shell(&format!("echo {n} > /n; cat /n /top; ls /deps | wc -l")).build()?;
        let mut options = Options::new().scratch(&self.scratch);
        options =
            options.stdout(Output::Capture(CaptureLimit::default())).stderr(Output::Capture(CaptureLimit::default()));
        options = match &self.stacks {
            Some(stacks) => options.stacks(stacks),
            None if n % 4 == 0 => options.max_lowers(4),
            None => options,
        };
        let report = runner::run(&self.base, &self.layers, &template, options)?;
        let said = report.stdout.as_ref().context("standard output is captured")?.to_string();
        ensure!(report.status == Status::Exited(0), "{:?}: {:?}", report.status, report.stderr);
        ensure!(self.stacks.is_none() || report.shared == self.layers.len(), "{} layers are shared", report.shared);
        ensure!(said == format!("{n}\n0\n{}\n", self.layers.len()), "{said:?}");
        ensure!(fs::read(report.upper.path().join("n"))? == format!("{n}\n").as_bytes(), "the upper is another run's");
        let run = report.upper.path().parent().context("an upper is in a run's directory")?.to_path_buf();
        report.upper.close()?;
        Ok(writeln!(io::stdout(), "{}", run.display())?)
    }
}

/// Waits until this process has no thread but this one. Returns its number of open descriptors.
///
/// The kernel lists a thread for a moment after it was joined, and no event reports when it is
/// gone.
fn descriptors_without_threads() -> Result<usize> {
    let count = |dir: &str| -> Result<usize> { Ok(fs::read_dir(dir)?.count()) };
    let deadline = Instant::now() + FOR_EVER;
    loop {
        match count("/proc/self/task")? {
            1 => return count("/proc/self/fd"),
            threads => ensure!(Instant::now() < deadline, "{threads} threads are left"),
        }
        std::thread::yield_now();
    }
}
