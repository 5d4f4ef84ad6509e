//! Builds ten packages on four worker threads, each as a layer in STORE, and runs a command over
//! all ten:
//!
//! `cargo run -p runner --example farm BASE STORE` (as root)

use std::path::Path;
use std::sync::Mutex;
use std::{fs, thread};

use anyhow::{bail, ensure};
use container::{Output, Template};
use layer::{Base, Layer};
use runner::{Options, Report};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [base, store] = &*args else { bail!("usage: farm BASE STORE") };
    let (base, store) = (Base::open(base)?, Path::new(store));
    fs::create_dir_all(store.join("scratch"))?;
    let packages: Vec<_> = (0..10).map(|number| Layer::at(store.join(format!("package-{number}")))).collect();

    let queue = Mutex::new(packages.iter());
    let next = || queue.lock().expect("no thread panics with the lock").next();
    let work = || std::iter::from_fn(next).try_for_each(|package| build(&base, store, package));
    thread::scope(|scope| {
        let workers = [(); 4].map(|()| scope.spawn(work));
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker panicked"))
    })?;
    run(&base, &packages, store, "echo Installed: $(cat /opt/*)")?.upper.close()?;
    Ok(())
}

fn build(base: &Base, store: &Path, package: &Layer) -> anyhow::Result<()> {
    let report = run(base, &[], store, &format!("mkdir -p /opt && echo {0} >/opt/{0}", package.hash()))?;
    let (capture, meta) = (report.capture(), report.meta());
    report.upper.capture(&capture, package, meta)?;
    Ok(())
}

/// Runs a shell script. An error if it fails: its upper is then deleted.
fn run(base: &Base, layers: &[Layer], store: &Path, script: &str) -> anyhow::Result<Report> {
    let template = Template::builder(["sh", "-c", script]).build()?;
    let options = Options::new().scratch(store.join("scratch")).stdout(Output::Inherit).stderr(Output::Inherit);
    let report = runner::run(base, layers, &template, options)?;
    ensure!(report.status.success(), "{script}: {:?}", report.status);
    Ok(report)
}
