//! What a run costs, against the bare runtime and against what people use else: `scripts/bench`.
//!
//! Every subject is run in turn, round by round, since times drift by half from minute to minute; what counts are the ratios of the
//! medians of one call. What this machine cannot do is said to be missing. Arguments: how many rounds (30 if none is given), and
//! the directory that `results.md` and `phases.svg` are written to.

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
    let destination = arguments.get(1).map(PathBuf::from);
    let places = Places::new(LAYERS[LAYERS.len() - 1])?;

    let mut text = format!("{}\n", machine::description(rounds));
    let mut add = |part: String| {
        println!("{part}");
        text.push_str(&part);
        text.push('\n');
    };
    let mut missing = Missing::default();
    let (costs, phases) = costs::measured(&places, rounds, &mut missing)?;
    add(costs);
    add(others::measured(&places, rounds, &mut missing)?);
    add(unmount::measured(&places, rounds)?);
    add(throughput::measured(&places, rounds)?);
    add(configuration::measured(&places, rounds)?);
    // The quickest that is there: it is not about the runtime.
    let runtime = if subjects::is_installed("crun") { "crun" } else { "runc" };
    add(memory::large_caller(&places, runtime, rounds)?);
    add(memory::peak(&places)?);
    add(memory::steady(&places, runtime)?);
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
