//! Measures the cost of a run against the bare runtime and against other programs. `scripts/bench`
//! calls this benchmark.
//!
//! Each round runs every subject once, because times drift by half from minute to minute. The
//! results are ratios of medians of the same call. A subject that this machine cannot run is listed
//! as missing.
//!
//! Arguments, all optional:
//! - the number of rounds (30);
//! - the directory for `results.md` and `phases.svg` (`-` for none);
//! - the parts to measure (all): `costs memory output others unmount throughput configuration
//! caller
//!   steady registry`. Each is in the module of its name, but `caller` and `steady` are in [`memory`].

// A benchmark prints its results.
#![allow(clippy::print_stdout)]

mod bare;
mod chart;
mod configuration;
mod costs;
mod machine;
mod markdown;
mod memory;
mod others;
mod output;
mod places;
mod registry;
mod sample;
mod subjects;
mod throughput;
mod unmount;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::places::Places;

/// The numbers of layers over the base.
const LAYERS: [usize; 4] = [1, 30, 100, 400];

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let rounds = arguments
        .first()
        .map_or(Ok(30), |rounds| rounds.parse())
        .context("the first argument must be a number of rounds")?;
    let destination = arguments.get(1).filter(|dir| *dir != "-").map(PathBuf::from);
    let parts = arguments.get(2..).unwrap_or_default();
    let places = Places::new(LAYERS[LAYERS.len() - 1])?;

    let mut text = format!("{}\n", machine::description(rounds));
    let mut add = |part: String| {
        println!("{part}");
        text.push_str(&part);
        text.push('\n');
    };
    let mut missing = Missing::default();
    let is_wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    let mut phases = Vec::new();
    if is_wanted("costs") {
        let (costs, bars) = costs::measured(&places, rounds, &mut missing)?;
        add(costs);
        phases = bars;
    }
    if is_wanted("memory") {
        add(memory::in_flight(&places)?);
    }
    if is_wanted("output") {
        add(output::measured(&places, rounds)?);
    }
    if is_wanted("others") {
        add(others::measured(&places, rounds, &mut missing)?);
    }
    if is_wanted("unmount") {
        add(unmount::measured(&places, rounds)?);
    }
    if is_wanted("throughput") {
        add(throughput::measured(&places, rounds)?);
    }
    if is_wanted("configuration") {
        add(configuration::measured(&places, rounds)?);
    }
    // The fastest installed runtime, because these parts do not measure the runtime.
    let runtime = if subjects::is_installed("crun") { "crun" } else { "runc" };
    if is_wanted("caller") {
        add(memory::large_caller(&places, runtime, rounds)?);
    }
    if is_wanted("steady") {
        add(memory::steady(&places, runtime)?);
    }
    if is_wanted("registry") {
        add(registry::measured(rounds, &mut missing)?);
    }
    add(missing.lines());
    if let Some(dir) = destination {
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("phases.svg"), chart::stacked_bars(&phases))?;
        text.push_str("![The phases of a run](phases.svg)\n");
        fs::write(dir.join("results.md"), text)?;
    }
    Ok(())
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
