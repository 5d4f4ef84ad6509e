//! What a run costs, against the bare runtime and against what people use else: `scripts/bench`.
//!
//! Every subject is run in turn, round by round, since times drift by half from minute to minute; what counts are the ratios of the
//! medians of one call. What this machine cannot do is said to be missing. Arguments: how many rounds (30 if none is given), the
//! directory that `results.md` and `phases.svg` are written to (`-` for none), and the parts to measure, if not all: `costs memory output
//! others unmount throughput configuration caller steady`.

// What a benchmark is for.
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
mod sample;
mod subjects;
mod throughput;
mod unmount;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::places::Places;

/// How many layers there are under the base.
const LAYERS: [usize; 4] = [1, 30, 100, 400];

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let rounds = arguments.first().map_or(Ok(30), |rounds| rounds.parse()).context("ROUNDS is a number")?;
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
    // The quickest that is there: it is not about the runtime.
    let runtime = if subjects::is_installed("crun") { "crun" } else { "runc" };
    if is_wanted("caller") {
        add(memory::large_caller(&places, runtime, rounds)?);
    }
    if is_wanted("steady") {
        add(memory::steady(&places, runtime)?);
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

/// What this machine cannot do.
#[derive(Debug, Default)]
struct Missing(Vec<String>);

impl Missing {
    /// Of a long reason the beginning and the end.
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
