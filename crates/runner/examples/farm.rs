//! Builds sixty packages on four threads, each as a layer in STORE over the layers of those that it
//! depends on. With `--break`, one package fails, and those that depend on it are not built. Ctrl-C
//! asks the builds to end, and a second one kills them. On a terminal, a line per worker shows what
//! it is doing.
//!
//! `cargo run -p runner --example farm BASE STORE [--break]` (as root)

// A program prints.
#![allow(clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::ops::Range;
use std::os::unix::fs::chown;
use std::process::ExitCode;
use std::sync::{Condvar, Mutex};
use std::time::SystemTime;
use std::{fs, iter, thread};

use anyhow::bail;
use container::{Cancel, CaptureLimit, Output, Status, Template};
use layer::{Base, Layer, Meta, Store};
use runner::{Event, Options, Report, Stacks};
use signal_hook::{consts::SIGINT, iterator::Signals};

const PACKAGES: usize = 60;
const WORKERS: usize = 4;
const USER: u32 = 1000;

fn name(package: usize) -> String {
    format!("package-{package}")
}

/// The packages that a package depends on. Their numbers are smaller.
fn dependencies(package: usize) -> BTreeSet<usize> {
    if package < 6 { BTreeSet::new() } else { [package / 2, package / 3, package - 5].into() }
}

/// The dependencies of a package, theirs, and so on.
fn below(package: usize) -> BTreeSet<usize> {
    let mut below = dependencies(package);
    for other in (0..package).rev() {
        if below.contains(&other) {
            below.extend(dependencies(other));
        }
    }
    below
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Built,
    Cached,
    Failed,
    DepFailed,
    Cancelled,
}

impl Outcome {
    fn is_built(self) -> bool {
        matches!(self, Outcome::Built | Outcome::Cached)
    }
}

struct Farm {
    base: Base,
    store: Store,
    broken: Option<usize>,
    cancel: Cancel,
    /// Most packages have many layers in common with others.
    stacks: Stacks,
    queue: Mutex<Range<usize>>,
    outcomes: Mutex<BTreeMap<usize, Outcome>>,
    ended: Condvar,
    live: Mutex<[String; WORKERS]>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (base, store, broken) = match &*args {
        [base, store] => (Base::open(base)?, store, None),
        [base, store, option] if option == "--break" => (Base::open(base)?, store, Some(13)),
        _ => bail!("usage: farm BASE STORE [--break]"),
    };
    fs::create_dir_all(format!("{store}/scratch"))?;
    runner::sweep(format!("{store}/scratch"))?; // what a killed farm has left

    let (store, cancel) = (Store::open(store)?, Cancel::new()?);
    let (mut signals, handler) = (Signals::new([SIGINT])?, cancel.clone());
    thread::spawn(move || {
        signals.forever().for_each(|_| if handler.is_cancelled() { handler.kill() } else { handler.cancel() })
    });
    let (queue, outcomes, ended, live) = (Mutex::new(0..PACKAGES), Mutex::default(), Condvar::new(), Mutex::default());
    let stacks = Stacks::new();
    let farm = &Farm { base, store, broken, cancel, stacks, queue, outcomes, ended, live };
    thread::scope(|scope| (0..WORKERS).for_each(|worker| drop(scope.spawn(move || farm.work(worker)))));

    let mut counts = BTreeMap::<Outcome, usize>::new();
    farm.outcomes.lock().unwrap().values().for_each(|outcome| *counts.entry(*outcome).or_default() += 1);
    println!("{counts:?}");
    Ok(if counts.keys().all(|outcome| outcome.is_built()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Farm {
    fn work(&self, worker: usize) {
        // Other workers have already begun the dependencies, because their numbers are smaller.
        for package in iter::from_fn(|| self.queue.lock().unwrap().next()) {
            let outcome = match self.failed_dependency(package) {
                Some((_, Outcome::Cancelled)) => Ok(Outcome::Cancelled),
                Some((dependency, _)) => self.skip(package, dependency),
                None => self.build(package, |event| self.show(worker, format!("{}: {event:?}", name(package)))),
            };
            let outcome = outcome.unwrap_or_else(|error| {
                self.say(&format!("{}: {error:#}", name(package)));
                Outcome::Failed
            });
            self.outcomes.lock().unwrap().insert(package, outcome);
            self.ended.notify_all();
        }
        self.show(worker, String::new());
    }

    /// Waits until the dependencies of a package have ended. Returns one that is not built, if any.
    fn failed_dependency(&self, package: usize) -> Option<(usize, Outcome)> {
        let all = dependencies(package);
        let is_waiting = |ended: &mut BTreeMap<_, _>| !all.iter().all(|other| ended.contains_key(other));
        let ended = self.ended.wait_while(self.outcomes.lock().unwrap(), is_waiting).unwrap();
        let mut outcomes = all.iter().map(|other| (*other, ended[other]));
        outcomes.find(|(_, outcome)| !outcome.is_built())
    }

    fn build(&self, package: usize, watch: impl FnMut(&Event) + Send) -> anyhow::Result<Outcome> {
        let layer = self.store.layer(name(package))?;
        match layer.meta()? {
            Some(meta) if meta.exit_status == 0 => return Ok(layer.touch().map(|()| Outcome::Cached)?),
            Some(_) => self.store.remove(name(package))?, // a dependency had failed
            None => {}
        }
        // Topmost first: a package is above those that it depends on.
        let layers = below(package).into_iter().rev().map(|other| self.store.layer(name(other)));
        let layers: Vec<Layer> = layers.collect::<Result<_, _>>()?;
        let needed: String = dependencies(package).into_iter().map(|other| format!("/opt/{} ", name(other))).collect();
        let end = if self.broken == Some(package) { "echo oh no; exit 3" } else { "echo built" };
        let script = format!("exec 2>&1; set -e; cat /opt/installed {needed}; touch /opt/{}; {end}", name(package));
        let template = Template::builder(["sh", "-c", &script]).user(USER, USER).pids_limit(64).build()?;
        let options = Options::new()
            .scratch(self.store.path().join("scratch"))
            .cancel(self.cancel.clone())
            .stacks(&self.stacks)
            .stdout(Output::Capture(CaptureLimit::default()))
            .watch(watch)
            .prep_upper(|upper, lowers| {
                fs::create_dir(upper.join("opt"))?;
                chown(upper.join("opt"), Some(USER), Some(USER))?;
                Ok(fs::write(upper.join("opt/installed"), format!("over {} layers\n", lowers.len() - 1))?)
            });
        let report = runner::run(&self.base, &layers, &template, options)?;
        let log = report.stdout.as_ref().map(ToString::to_string).unwrap_or_default();
        match report.status {
            Status::Cancelled => Ok(Outcome::Cancelled),
            status if status.success() => publish(report, &self.store, &name(package), &log),
            status => bail!("{status:?}, kept in {}: {}", report.upper.keep().display(), log.trim_end()),
        }
    }

    /// Publishes a layer without files, which names the dependency that failed.
    fn skip(&self, package: usize, dependency: usize) -> anyhow::Result<Outcome> {
        if self.store.layer(name(package))?.meta()?.is_none() {
            let (draft, meta) = (self.store.draft()?, Meta::new(self.base.hash(), SystemTime::now()));
            fs::create_dir(draft.layer().fs())?;
            draft.layer().write_meta(&Meta { exit_status: 1, failed_dep: Some(name(dependency)), ..meta })?;
            draft.publish(name(package))?;
        }
        Ok(Outcome::DepFailed)
    }

    /// Shows on a terminal what each worker is doing. The cursor stays on the first of the lines.
    fn show(&self, worker: usize, text: String) {
        let mut lines = self.live.lock().unwrap();
        lines[worker] = text;
        if std::io::stderr().is_terminal() {
            let lines: String = lines.iter().map(|line| format!("\x1b[K{line}\n")).collect();
            eprint!("{lines}\x1b[{WORKERS}F");
        }
    }

    /// Prints a line above those of the workers.
    fn say(&self, text: &str) {
        let _live = self.live.lock().unwrap();
        let clear = if std::io::stderr().is_terminal() { "\x1b[J" } else { "" };
        eprintln!("{clear}{text}");
    }
}

/// Makes the upper of a build a layer, with its output as the log.
fn publish(report: Report, store: &Store, name: &str, log: &str) -> anyhow::Result<Outcome> {
    report.publish(store, name, |new| Ok(fs::write(new.layer.log_path(), log)?))?;
    Ok(Outcome::Built)
}
