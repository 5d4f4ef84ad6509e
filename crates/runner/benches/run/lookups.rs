//! Compares lookups in a [`layer::Stack`], which needs no mount, with lookups in the kernel's
//! overlay.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Result, ensure};
use container::{Overlay, in_private_mount_namespace};
use layer::{Layer, Stack, XattrNamespace};

use crate::markdown::{cells, explained_table};
use crate::places::Places;
use crate::sample::Sample;

const LAYERS: usize = 100;

/// The number of files that are looked up. A fifth of them does not exist.
const LOOKUPS: usize = 10_000;

const EXPLANATION: &str = "\
10,000 names are looked up in a stack of 100 layers. 2,000 of them do not exist. A `layer::Stack` looks into the layers themselves. The \
kernel's overlay remembers the names: the first lookups are those after the mount, and the warm ones are the same again.

";

pub(crate) fn measured(places: &Places, rounds: usize) -> Result<String> {
    let trees: Vec<_> = places.layers[..LAYERS].iter().map(Layer::fs).chain([places.base.fs()]).collect();
    let names: Vec<_> = (0..LOOKUPS).map(name).collect();
    let [mut first, mut warm, mut ours] = [const { Sample(Vec::new()) }; 3];
    let dir = places.new_dir()?;
    let merged = dir.path().join("merged");
    DirBuilder::new().create(&merged)?;
    in_private_mount_namespace(|| -> Result<()> {
        for _ in 0..rounds {
            let mounted = Overlay::new(&trees).mount(&merged)?;
            let look =
                || counted(&names, |name| fs::symlink_metadata(merged.join(name)).map(drop).map_err(|e| e.kind()));
            first.time(look)?;
            warm.time(look)?;
            mounted.unmount()?;
            ours.time(|| {
                let stack = Stack::new(&trees, XattrNamespace::Trusted)?;
                let kind = |error: layer::Error| match error {
                    layer::Error::Io { source, .. } => source.kind(),
                    _ => ErrorKind::Other,
                };
                counted(&names, |name| stack.metadata_no_follow(name).map(drop).map_err(kind))
            })?;
        }
        Ok(())
    })??;
    let head = cells(["", "time", "`layer::Stack` / this"]);
    let rows = [
        head,
        vec!["the kernel, first".into(), first.milliseconds(), ours.ratio(&first)],
        vec!["the kernel, warm".into(), warm.milliseconds(), ours.ratio(&warm)],
        vec!["`layer::Stack`".into(), ours.milliseconds(), "1".into()],
    ];
    Ok(explained_table("Lookups without a mount", EXPLANATION, &rows))
}

/// Returns a name. The layers have the files of four of five numbers.
fn name(number: usize) -> String {
    let (layer, part, file) =
        (number % LAYERS, number / LAYERS % 19, ["one", "two", "three", "four", "none"][number % 5]);
    // A layer with a number that ends in 4 or 9 would otherwise only be asked for missing files.
    let layer = (layer + number / LAYERS) % LAYERS;
    format!("usr/lib/package-{layer}/part-{part}/{file}-{layer}")
}

/// Looks all names up, and checks how many exist.
fn counted(names: &[String], look: impl Fn(&Path) -> Result<(), ErrorKind>) -> Result<()> {
    let mut missing = 0;
    for name in names {
        match look(Path::new(name)) {
            Ok(()) => {}
            Err(ErrorKind::NotFound) => missing += 1,
            Err(kind) => anyhow::bail!("{name}: {kind}"),
        }
    }
    ensure!(missing == LOOKUPS / 5, "{missing} names are missing");
    Ok(())
}
