//! Measures the unmount after a job that writes 100 MB, with and without `volatile`.
//! [`costs`](crate::costs) measures the phases of a command that writes nothing.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::mount::{MsFlags, mount, umount};
use runner::{Cleanup, Phase};

use crate::LAYERS;
use crate::bare::{Configuration, bare};
use crate::markdown::{cells, table};
use crate::places::Places;
use crate::sample::Sample;
use crate::subjects::{RUNTIMES, in_process, is_installed, template};

pub(crate) fn measured(places: &Places, rounds: usize) -> Result<String> {
    let write = template(&["/bin/dd", "if=/dev/zero", "of=/large", "bs=1M", "count=100"])?;
    let head = ["runtime", "layers", "`run` / bare runtime", "unmount", "unmount without `volatile`", "ratio"];
    let mut rows = vec![cells(head)];
    for runtime in RUNTIMES.into_iter().filter(|runtime| is_installed(runtime)) {
        for layers in LAYERS {
            let [mut ours, mut flushed, mut whole, mut alone] = [const { Sample(Vec::new()) }; 4];
            for _ in 0..rounds.min(5) {
                alone.push(bare(places, runtime, &write, Configuration::Same)?);
                // The bare runtime wrote the file into the prepared root.
                fs::remove_file(places.root().join("large"))?;
                let report = whole.time(|| in_process(places, runtime, layers, &write, Cleanup::Awaited))?;
                ours.push(report.timings.phase(Phase::OverlayUmount));
                report.upper.close()?;
                flushed.push(unmounted_without_volatile(places)?);
            }
            rows.push(vec![
                runtime.into(),
                layers.to_string(),
                whole.ratio(&alone),
                ours.milliseconds(),
                flushed.milliseconds(),
                format!("{:.4}", ours.median() / flushed.median()),
            ]);
        }
    }
    Ok(table("A job that writes 100 MB", &rows))
}

fn unmounted_without_volatile(places: &Places) -> Result<Duration> {
    let dir = places.new_dir()?;
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| dir.path().join(name));
    for path in [&upper, &work, &merged] {
        fs::create_dir(path)?;
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}", places.base.fs().display(), upper.display(), work.display());
    mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(&*options))?;
    let mut file = fs::File::create(merged.join("large"))?;
    let written = (0..100).try_for_each(|_| file.write_all(&[0; 1 << 20]));
    drop(file);
    let start = Instant::now();
    umount(&merged)?;
    let time = start.elapsed();
    written?;
    Ok(time)
}
