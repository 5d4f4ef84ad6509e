//! The same layers show the same tree on every rung, at any number of layers, and the kernel's own
//! overlay shows it, too. `stacking` does this with whole runs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use container::{LowerNames, MountApi, Overlay, in_private_mount_namespace};
use integration_tests::stack::{Dir, Mount, new_merge};
use integration_tests::tree::Snapshot;
use layer::{Base, Layer, Rung};
use runner::Options;

const COUNTS: [usize; 8] = [1, 2, 60, 200, 499, 500, 520, 1000];

/// Makes a layer that interacts with others: files over files, deletions, directories that hide
/// others, names that change between file and directory.
fn layer(n: usize) -> Dir {
    let shared = Dir::new()
        .file(format!("by-7-{}", n % 7), &n.to_string())
        .file(format!("by-31-{}", n % 31), &n.to_string())
        .whiteout(format!("by-31-{}", (n + 11) % 31));
    let mut hiding = Dir::new().mode(0o700 + n as u32 % 8).file(n.to_string(), "");
    if n % 13 == 5 {
        hiding = hiding.opaque();
    }
    let mut dir = Dir::new().with("shared", shared).with("hiding", hiding).file(format!("of-{n}"), &n.to_string());
    dir = match n % 17 {
        3 => dir.whiteout("turns"),
        8 => dir.file("turns", "a file"),
        _ => dir.with("turns", Dir::new().file((n % 5).to_string(), &n.to_string())),
    };
    if n % 3 == 0 { dir.whiteout(format!("of-{}", n + 40)) } else { dir }
}

/// Mounts the trees with overlayfs alone. One overlay holds up to 500 lowers. The lowest trees
/// beyond that form a second overlay below the first; overlayfs allows no third.
fn by_the_kernel(trees: &[PathBuf]) -> Result<Snapshot> {
    let (top, rest) = trees.split_at(trees.len().saturating_sub(layer::MAX_LOWERS));
    let below = Mount::read_only(rest).context("the lowest")?;
    if top.is_empty() {
        return Snapshot::of(&below);
    }
    let mut lowers = top.to_vec();
    lowers.push(below.path());
    Snapshot::of(Mount::read_only(&lowers).context("the rest")?)
}

/// Returns the tree that a run would mount on `rung`.
fn on_a_rung(rung: Rung, base: &Base, layers: &[Layer], dir: &Path) -> Result<Snapshot> {
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| dir.join(name));
    for path in [&upper, &work, &merged] {
        fs::create_dir_all(path)?;
    }
    let plan = runner::plan(base, layers, &Options::new().scratch(dir).rung(rung))?;
    if !plan.merged.is_empty() {
        new_merge().run(&plan.merged, &lower)?;
    }
    let lowers = plan.lowers(&lower);
    ensure!(lowers.len() <= layer::MAX_LOWERS);
    container::advanced::copy_root_attributes(&lowers[0], &upper)?;
    let overlay = Overlay::new(lowers).writable(&upper, &work);
    let overlay = match rung {
        Rung::LowerdirPlus => overlay.api(MountApi::Fsconfig),
        Rung::MountPaths => overlay.api(MountApi::Mount2).names(LowerNames::Paths),
        _ => overlay.api(MountApi::Mount2).names(LowerNames::Short),
    };
    let snapshot = in_private_mount_namespace(|| {
        let mounted = overlay.mount(&merged)?;
        let snapshot = Snapshot::of_path(mounted.path())?;
        mounted.unmount()?;
        anyhow::Ok(snapshot)
    })??;
    layer::remove_tree(dir)?;
    Ok(snapshot)
}

#[test]
fn every_rung_shows_what_the_kernel_shows() -> Result<()> {
    integration_tests::stack::require_root();
    let dir = tempfile::tempdir()?;
    // The names are as long as those in a store.
    let path = |n: usize| dir.path().join(format!("{n:060}"));
    fs::create_dir(path(9999))?;
    let base = Dir::new()
        .file("of-41", "base")
        .with("hiding", Dir::new().file("base", ""))
        .with("turns", Dir::new().file("9", ""));
    base.make(&path(9999).join("fs"))?;
    let base = Base::open(path(9999))?;
    let most = COUNTS[COUNTS.len() - 1];
    for n in 0..most {
        fs::create_dir(path(n))?;
        layer(n).make(&path(n).join("fs"))?;
    }
    let layers: Vec<_> = (0..most).map(|n| Layer::open(path(n))).collect::<layer::Result<_>>()?;

    for count in COUNTS {
        let layers = &layers[..count];
        let mut trees: Vec<_> = layers.iter().map(Layer::fs).collect();
        trees.push(base.fs());
        // Two overlays hold 999 trees. If there are more, the lowest layers are merged into one.
        let expected = match count {
            ..=998 => by_the_kernel(&trees)?,
            _ => {
                let lowest = dir.path().join("lowest");
                new_merge().run(&trees[997..count], &lowest)?;
                let trees = [&trees[..997], &[lowest, base.fs()]].concat();
                by_the_kernel(&trees)?
            }
        };
        for rung in Rung::LADDER {
            let found = on_a_rung(rung, &base, layers, &dir.path().join("run"))?;
            let diff = expected.diff(&found);
            ensure!(diff.is_empty(), "{count} layers, {rung}:\n{diff}");
            ensure!(found.phantoms.is_subset(&expected.phantoms), "{count} layers, {rung}: {:?}", found.phantoms);
        }
    }
    Ok(())
}
