//! Builds ten packages on four worker threads, each as a layer in STORE, and runs a command over
//! all ten. On a terminal, a line per worker shows what it is doing.
//!
//! `cargo run -p runner --example farm BASE STORE` (as root)

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Mutex;
use std::{fs, thread};

use anyhow::{bail, ensure};
use container::{Output, Template};
use layer::{Base, Layer, Store};
use runner::{Event, Options, Report};

const WORKERS: usize = 4;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [base, store] = &*args else { bail!("usage: farm BASE STORE") };
    let (base, store) = (Base::open(base)?, Path::new(store));
    fs::create_dir_all(store.join("scratch"))?;
    let packages: Vec<_> = (0..10).map(|number| Layer::at(store.join(format!("package-{number}")))).collect();

    let queue = Mutex::new(packages.iter());
    let next = || queue.lock().expect("no thread panics with the lock").next();
    let live = Live(Mutex::default());
    let work = |worker| {
        let show = |package: &Layer, event: &Event| live.show(worker, format!("{}: {event:?}", package.hash()));
        std::iter::from_fn(next).try_for_each(|package| build(&base, store, package, |event| show(package, event)))
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|worker| scope.spawn(move || work(worker))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker panicked"))
    })?;
    if std::io::stderr().is_terminal() {
        eprint!("\x1b[J"); // clears the live lines
    }
    run(&base, &packages, store, "echo Installed: $(cat /opt/*)", |_| {})?.upper.close()?;
    Ok(())
}

/// What each worker is doing.
struct Live(Mutex<[String; WORKERS]>);

impl Live {
    fn show(&self, worker: usize, text: String) {
        let mut lines = self.0.lock().expect("no thread panics with the lock");
        lines[worker] = text;
        if std::io::stderr().is_terminal() {
            // Clears each line, and moves back up to the first.
            let lines: String = lines.iter().map(|line| format!("\x1b[K{line}\n")).collect();
            eprint!("{lines}\x1b[{WORKERS}F");
        }
    }
}

fn build(base: &Base, store: &Path, package: &Layer, watch: impl FnMut(&Event) + Send) -> anyhow::Result<()> {
    let script = format!("mkdir -p /opt && echo {0} >/opt/{0}", package.hash());
    let report = run(base, &[], store, &script, watch)?;
    report.publish(&Store::open(store)?, package.name(), |_| Ok(()))?;
    Ok(())
}

/// Runs a shell script. An error if it fails: its upper is then deleted.
fn run(
    base: &Base,
    layers: &[Layer],
    store: &Path,
    script: &str,
    watch: impl FnMut(&Event) + Send,
) -> anyhow::Result<Report> {
    let template = Template::builder(["sh", "-c", script]).build()?;
    let options = Options::new().scratch(store.join("scratch")).stdout(Output::Inherit).stderr(Output::Inherit);
    let report = runner::run(base, layers, &template, options.watch(watch))?;
    ensure!(report.status.success(), "{script}: {:?}", report.status);
    Ok(report)
}
