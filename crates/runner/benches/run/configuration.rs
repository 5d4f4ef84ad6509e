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
    let templates = [
        ("everything", with(Seccomp::Default, |_| {})?),
        ("no cgroup mount", with(Seccomp::Default, |config| without_mount(config, "/sys/fs/cgroup"))?),
        ("no `/dev/mqueue`", with(Seccomp::Default, |config| without_mount(config, "/dev/mqueue"))?),
        ("no masked and read-only paths", with(Seccomp::Default, without_masks)?),
        ("`Seccomp::Native`", with(Seccomp::Native, |_| {})?),
        ("`Seccomp::Unconfined`", with(Seccomp::Unconfined, |_| {})?),
    ];
    let runtimes: Vec<_> = RUNTIMES.into_iter().filter(|runtime| is_installed(runtime)).collect();
    let mut samples = vec![vec![Sample::default(); templates.len()]; runtimes.len()];
    for round in 0..rounds {
        for (runtime, samples) in runtimes.iter().zip(&mut samples) {
            // As in `costs`, the first process after a pause waits.
            bare(places, runtime, &templates[0].1, Configuration::Same)?;
            for index in 0..templates.len() {
                let index = (round + index) % templates.len();
                samples[index].push(bare(places, runtime, &templates[index].1, Configuration::Same)?);
            }
        }
    }
    let mut rows = vec![cells(["a container with"])];
    rows[0].extend(runtimes.iter().map(|runtime| format!("bare {runtime} / with everything")));
    for (index, (name, _)) in templates.iter().enumerate() {
        let ratios = samples.iter().map(|samples| samples[index].ratio(&samples[0]));
        rows.push([String::from(*name)].into_iter().chain(ratios).collect());
    }
    Ok(table("The configuration", &rows))
}

/// Returns a template without a part, which only a change to the `config.json` can remove.
fn with(seccomp: Seccomp, change: impl FnOnce(&mut Value)) -> Result<Template> {
    let mut config = serde_json::to_value(Template::builder(["/bin/true"]).seccomp(seccomp).build()?)?;
    change(&mut config);
    Ok(Template::from_value(config)?)
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
