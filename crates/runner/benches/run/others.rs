//! Measures other programs that run a command in a separate root file system.
//! [`subjects`](crate::subjects) and [`steps`](crate::steps) have their command lines.

use std::process::Command;

use anyhow::Result;

use crate::bare::{Configuration, bare};
use crate::markdown::{cells, explained_table};
use crate::places::Places;
use crate::sample::Sample;
use crate::steps::bubblewrap_command;
use crate::subjects::{command, is_installed, peers, quiet, run, template};
use crate::{LAYERS, Missing};

const EXPLANATION: &str = "\
The command is `/bin/true`. bubblewrap stacks the same layers as `layered run`, and gets the same compiled seccomp filter. It has no \
control group, no limits and no init. Podman and systemd-nspawn run on one directory under an overlay of their own.

";

/// Makes the command of a program.
type Make<'a> = Box<dyn Fn() -> Result<Command> + 'a>;

pub(crate) fn measured(places: &Places, rounds: usize, missing: &mut Missing) -> Result<String> {
    let template = template(&["/bin/true"])?;
    let mut subjects: Vec<(&str, usize, Make<'_>)> = Vec::new();
    for layers in LAYERS {
        subjects.push(("bubblewrap", layers, Box::new(move || bubblewrap_command(places, layers, None))));
    }
    for (name, argv) in peers(places) {
        let make = move || {
            let mut command = quiet(&argv[0]);
            command.args(&argv[1..]);
            Ok(command)
        };
        subjects.push((name, 0, Box::new(make)));
    }
    let head = ["", "layers", "time", "/ bare runc", "`layered run` with crun over these layers / this"];
    let mut rows = vec![cells(head)];
    for (name, layers, make) in subjects {
        if let Err(error) = make().and_then(|mut command| run(&mut command)) {
            let reason = error.to_string();
            missing.add(&format!("{name}, {layers} layers"), reason.lines().next().unwrap_or_default());
            continue;
        }
        let [mut theirs, mut alone, mut ours] = [const { Sample(Vec::new()) }; 3];
        let is_stacked = layers > 0 && is_installed("crun");
        for _ in 0..rounds {
            bare(places, "runc", &template, Configuration::Same)?;
            let mut command_of_theirs = make()?;
            theirs.time(|| run(&mut command_of_theirs))?;
            if is_stacked {
                let mut command_of_ours = command(places, "crun", layers, &["/bin/true"]);
                ours.time(|| run(&mut command_of_ours))?;
            }
            alone.push(bare(places, "runc", &template, Configuration::Same)?);
        }
        let ours = if is_stacked { ours.ratio(&theirs) } else { "–".into() };
        rows.push(vec![name.into(), layers.to_string(), theirs.milliseconds(), theirs.ratio(&alone), ours]);
    }
    Ok(if rows.len() == 1 { String::new() } else { explained_table("Others", EXPLANATION, &rows) })
}
