//! Creates the directories of the benchmark: a base, layers, a prepared root and a scratch
//! directory. All are on one file system, and are removed at the end. [`subjects`](crate::subjects)
//! runs in them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use layer::{Base, Layer};
use tempfile::TempDir;

pub(crate) struct Places {
    dir: TempDir,
    pub(crate) base: Base,
    pub(crate) layers: Vec<Layer>,
}

impl Places {
    /// Creates a base with busybox and `count` layers. Each layer has 80 files in 24 directories,
    /// most of which no other layer has. That is the average size of the 111 packages of Debian 12
    /// that build-essential and debhelper need.
    pub(crate) fn new(count: usize) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        fill_root(&dir.path().join("base/fs"))?;
        fill_root(&dir.path().join("root"))?;
        fs::create_dir(dir.path().join("scratch"))?;
        let layers = (0..count).map(|n| {
            let layer = dir.path().join(format!("layers/{n}"));
            let parts = (0..19).map(|part| format!("usr/lib/package-{n}/part-{part}"));
            for path in parts.chain(["usr/share/all".into()]) {
                fs::create_dir_all(layer.join("fs").join(&path))?;
                for file in ["one", "two", "three", "four"] {
                    fs::write(layer.join("fs").join(&path).join(format!("{file}-{n}")), file)?;
                }
            }
            Ok(Layer::open(layer)?)
        });
        let layers = layers.collect::<Result<_>>()?;
        Ok(Self { base: Base::open(dir.path().join("base"))?, layers, dir })
    }

    /// Returns the root file system of the bare runtime: one directory without layers.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(crate) fn scratch(&self) -> PathBuf {
        self.dir.path().join("scratch")
    }

    /// Creates a new directory.
    pub(crate) fn new_dir(&self) -> Result<TempDir> {
        Ok(TempDir::new_in(self.dir.path())?)
    }
}

fn fill_root(root: &Path) -> Result<()> {
    for path in ["bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr"] {
        fs::create_dir_all(root.join(path))?;
    }
    fs::set_permissions(root.join("tmp"), Permissions::from_mode(0o1777))?;
    fs::copy(busybox()?, root.join("bin/busybox"))?;
    for applet in ["dd", "sh", "sleep", "true"] {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    Ok(())
}

fn busybox() -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/static-busybox");
    let output = Command::new(&script).output().with_context(|| format!("{}", script.display()))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().into())
}
