//! Measures other programs that run a command in a separate root file system.
//! [`subjects`](crate::subjects) has their command lines.

use anyhow::Result;

use crate::bare::{Configuration, bare};
use crate::markdown::{cells, table};
use crate::places::Places;
use crate::sample::Sample;
use crate::subjects::{peers, quiet, run, template};
use crate::{LAYERS, Missing};

pub(crate) fn measured(places: &Places, rounds: usize, missing: &mut Missing) -> Result<String> {
    let template = template(&["/bin/true"])?;
    let mut rows = vec![cells(["", "layers", "time", "/ bare runc"])];
    for (name, layers, argv) in LAYERS.iter().flat_map(|layers| peers(places, *layers)) {
        let once = || run(quiet(&argv[0]).args(&argv[1..]));
        if let Err(error) = once() {
            let reason = error.to_string();
            missing.add(&format!("{name}, {layers} layers"), reason.lines().next().unwrap_or_default());
            continue;
        }
        let [mut theirs, mut alone] = [Sample::default(), Sample::default()];
        for _ in 0..rounds {
            bare(places, "runc", &template, Configuration::Same)?;
            theirs.time(once)?;
            alone.push(bare(places, "runc", &template, Configuration::Same)?);
        }
        rows.push(vec![name.into(), layers.to_string(), theirs.milliseconds(), theirs.ratio(&alone)]);
    }
    Ok(if rows.len() == 1 { String::new() } else { table("Others", &rows) })
}
