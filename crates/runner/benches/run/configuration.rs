//! Measures the cost of the parts of a container's configuration. [`bare`](crate::bare) runs the
//! runtime with it.

use anyhow::Result;
use container::{Seccomp, Template};
use serde_json::Value;

use crate::bare::{Configuration, bare};
use crate::markdown::{cells, table};
use crate::places::Places;
use crate::sample::Sample;
use crate::subjects::{RUNTIMES, is_installed};

pub(crate) fn measured(places: &Places, rounds: usize) -> Result<String> {
    let all = with(Seccomp::Default)?;
    let subjects = [
        ("everything", all.clone(), Configuration::Same),
        ("no cgroup mount", all.clone(), Configuration::Changed(|config| without_mount(config, "/sys/fs/cgroup"))),
        ("no `/dev/mqueue`", all.clone(), Configuration::Changed(|config| without_mount(config, "/dev/mqueue"))),
        ("no masked and read-only paths", all, Configuration::Changed(without_masks)),
        ("`Seccomp::Native`", with(Seccomp::Native)?, Configuration::Same),
        ("`Seccomp::Unconfined`", with(Seccomp::Unconfined)?, Configuration::Same),
    ];
    let runtimes: Vec<_> = RUNTIMES.into_iter().filter(|runtime| is_installed(runtime)).collect();
    let mut samples = vec![vec![Sample::default(); subjects.len()]; runtimes.len()];
    for round in 0..rounds {
        for (runtime, samples) in runtimes.iter().zip(&mut samples) {
            // As in `costs`, the first process after a pause waits.
            bare(places, runtime, &subjects[0].1, Configuration::Same)?;
            for index in 0..subjects.len() {
                let index = (round + index) % subjects.len();
                let (_, template, configuration) = &subjects[index];
                samples[index].push(bare(places, runtime, template, *configuration)?);
            }
        }
    }
    let mut rows = vec![cells(["a container with"])];
    rows[0].extend(runtimes.iter().map(|runtime| format!("bare {runtime} / with everything")));
    for (index, (name, ..)) in subjects.iter().enumerate() {
        let ratios = samples.iter().map(|samples| samples[index].ratio(&samples[0]));
        rows.push([String::from(*name)].into_iter().chain(ratios).collect());
    }
    Ok(table("The configuration", &rows))
}

fn with(seccomp: Seccomp) -> Result<Template> {
    Ok(Template::builder(["/bin/true"]).seccomp(seccomp).build()?)
}

fn without_mount(config: &mut Value, destination: &str) {
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["destination"] != destination);
    }
}

fn without_masks(config: &mut Value) {
    for paths in ["maskedPaths", "readonlyPaths"] {
        config["linux"][paths] = Value::from(Vec::<Value>::new());
    }
}
