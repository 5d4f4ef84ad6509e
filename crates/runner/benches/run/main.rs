//! Measures the cost of a run against the bare runtime and against other programs. `scripts/bench`
//! calls this benchmark.
//!
//! Each round runs every subject once, because times drift by half from minute to minute. The
//! results are ratios of medians of the same call. A subject that this machine cannot run is listed
//! as missing.
//!
//! Arguments, all optional:
//! - the number of rounds (30);
//! - the directory for `results.md`, `phases.svg` and `steps.svg` (`-` for none);
//! - the parts to measure (all): `costs steps memory output others users unmount throughput upkeep
//!   lookups configuration caller steady stacks farm registry images`. Each is in the module of its
//!   name, but `caller` and `steady` are in [`memory`].

// A benchmark prints its results.
#![allow(clippy::print_stdout)]

mod bare;
mod chart;
mod children;
mod configuration;
mod costs;
mod farm;
mod images;
mod lookups;
mod machine;
mod markdown;
mod memory;
mod others;
mod output;
mod places;
mod registry;
mod sample;
mod stacks;
mod steps;
mod subjects;
mod throughput;
mod unmount;
mod upkeep;
mod users;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::places::Places;

/// The numbers of layers over the base.
const LAYERS: [usize; 4] = [1, 30, 100, 400];

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if children::measure(&arguments)? {
        return Ok(());
    }
    let rounds = arguments
        .first()
        .map_or(Ok(30), |rounds| rounds.parse())
        .context("the first argument must be a number of rounds")?;
    let destination = arguments.get(1).filter(|dir| *dir != "-").map(PathBuf::from);
    let parts = arguments.get(2..).unwrap_or_default();
    let places = Places::new(LAYERS[LAYERS.len() - 1])?;

    if let Some(dir) = &destination {
        fs::create_dir_all(dir)?;
    }
    let mut results = Results {
        text: format!("{}\n", machine::description(rounds)),
        file: destination.as_ref().map(|dir| dir.join("results.md")),
        wanted: parts.to_vec(),
        missing: Missing::default(),
        failed: Vec::new(),
    };
    // The fastest installed runtime, for the parts that do not measure the runtime.
    let runtime = if subjects::is_installed("crun") { "crun" } else { "runc" };
    let (mut phases, mut lines) = (Vec::new(), Vec::new());
    results.part("costs", |missing| {
        let (costs, bars) = costs::measured(&places, rounds, missing)?;
        phases = bars;
        Ok(costs)
    })?;
    results.part("steps", |missing| {
        let (steps, rates) = steps::measured(&places, rounds, missing)?;
        lines = rates;
        Ok(steps)
    })?;
    results.part("memory", |_| memory::in_flight(&places))?;
    results.part("output", |_| output::measured(&places, rounds))?;
    results.part("others", |missing| others::measured(&places, rounds, missing))?;
    results.part("users", |missing| users::measured(rounds, missing))?;
    results.part("unmount", |_| unmount::measured(&places, rounds))?;
    results.part("throughput", |_| throughput::measured(&places, rounds))?;
    results.part("upkeep", |_| upkeep::measured(&places, rounds))?;
    results.part("lookups", |_| lookups::measured(&places, rounds))?;
    results.part("configuration", |_| configuration::measured(&places, rounds))?;
    results.part("caller", |_| memory::large_caller(&places, runtime, rounds))?;
    results.part("steady", |_| memory::steady(&places, runtime))?;
    results.part("stacks", |_| stacks::measured(&places, runtime, rounds))?;
    results.part("farm", |_| farm::measured(&places, runtime, rounds))?;
    results.part("registry", |missing| registry::measured(rounds, missing))?;
    results.part("images", |missing| images::measured(&places, rounds, missing))?;
    if let Some(dir) = &destination {
        fs::write(dir.join("phases.svg"), chart::stacked_bars(&phases))?;
        fs::write(dir.join("steps.svg"), chart::lines(&lines))?;
    }
    let missing = results.missing.lines();
    results.add(&format!("{missing}![The phases of a run](phases.svg)\n\n![Build steps per second](steps.svg)"))?;
    ensure!(results.failed.is_empty(), "{}", results.failed.join("\n"));
    Ok(())
}

/// The text of the results.
struct Results {
    text: String,
    file: Option<PathBuf>,
    /// The names of the parts to measure. Empty: all.
    wanted: Vec<String>,
    missing: Missing,
    /// The parts that failed, with the reasons.
    failed: Vec<String>,
}

impl Results {
    /// Measures a part, if it is wanted. A failure does not prevent the parts after it.
    fn part(&mut self, name: &str, measure: impl FnOnce(&mut Missing) -> Result<String>) -> Result<()> {
        if !self.wanted.is_empty() && !self.wanted.iter().any(|wanted| wanted == name) {
            return Ok(());
        }
        match measure(&mut self.missing) {
            Ok(text) => self.add(&text),
            Err(error) => {
                self.missing.add(name, &format!("{error:#}"));
                self.failed.push(format!("{name}: {error:?}"));
                Ok(())
            }
        }
    }

    /// Prints a text and adds it to the file, so that an interrupted benchmark leaves what it has
    /// measured.
    fn add(&mut self, text: &str) -> Result<()> {
        println!("{text}");
        self.text.push_str(text);
        self.text.push('\n');
        self.file.as_ref().map_or(Ok(()), |file| Ok(fs::write(file, &self.text)?))
    }
}

/// The subjects that this machine cannot run, with the reasons.
#[derive(Debug, Default)]
struct Missing(Vec<String>);

impl Missing {
    /// Adds a subject. Keeps the start and the end of a long reason.
    fn add(&mut self, what: &str, why: &str) {
        let characters: Vec<char> = why.chars().collect();
        let shown = match characters.len() {
            0..=160 => why.to_owned(),
            length => [&characters[..80], &[' ', '…', ' '], &characters[length - 60..]].concat().into_iter().collect(),
        };
        self.0.push(format!("{what}: {shown}"));
    }

    fn lines(&self) -> String {
        self.0.iter().map(|line| format!("Missing: {line}\n\n")).collect()
    }
}
