//! Decides whether the size in a layer's `layer.json` is possible, or must be measured instead.
//! `store/gc/sizes.rs` decides the same for a whole store; `tree/size.rs` measures.

use std::path::Path;

use rustix::fs::statvfs;

use crate::display::quoted;
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::layer::meta::Meta;
use crate::tree::size::TreeSize;

impl Layer {
    /// Returns the number of bytes that the layer takes on the disk: the [`Meta::disk_usage`] of
    /// its `meta`. If that is 0, or more than is in use on the whole file system, measures the
    /// layer instead.
    ///
    /// The measured size is that of the layer's directory and everything in it.
    ///
    /// # Errors
    /// As [`TreeSize::of`].
    pub fn disk_usage(&self, meta: &Meta) -> Result<u64> {
        match self.recorded_disk_usage(meta)? {
            Some(recorded) => Ok(recorded),
            None => Ok(TreeSize::of(self.path())?.bytes),
        }
    }

    /// Returns the [`Meta::disk_usage`] of the layer's `meta`, or `None` if
    /// [`disk_usage`](Self::disk_usage) would measure the layer. Walks no tree.
    ///
    /// # Errors
    /// [`Error::Io`] if the size of the file system cannot be read.
    pub fn recorded_disk_usage(&self, meta: &Meta) -> Result<Option<u64>> {
        match meta.disk_usage {
            0 => Ok(None),
            recorded if recorded <= used_bytes(self.path())? => Ok(Some(recorded)),
            impossible => {
                log::debug!("the disk_usage of {} is impossible: {impossible} bytes", quoted(self.path()));
                Ok(None)
            }
        }
    }
}

/// Returns the number of bytes that are in use on the file system of `path`, or `u64::MAX` if the
/// file system does not report it. No tree on the file system has more.
pub(crate) fn used_bytes(path: &Path) -> Result<u64> {
    let stat = statvfs(path).map_err(Error::io("ask for the size of the file system of", path))?;
    // A tmpfs without a limit reports 0 blocks, and so do some network file systems.
    match stat.f_blocks {
        0 => Ok(u64::MAX),
        blocks => Ok(blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_layer_with_an_impossible_size_is_measured() {
        let dir = tempfile::tempdir().unwrap();
        let layer = Layer::at(dir.path());
        fs::create_dir(layer.fs()).unwrap();
        fs::write(layer.fs().join("file"), [1; 100_000]).unwrap();
        let measured = TreeSize::of(layer.path()).unwrap().bytes;
        let stat = statvfs(dir.path()).unwrap();
        let capacity = stat.f_blocks * stat.f_frsize;
        for (recorded, told) in [(1, 1), (150_000, 150_000), (0, measured), (capacity, measured), (u64::MAX, measured)]
        {
            let meta = Meta { disk_usage: recorded, ..Meta::new("base", SystemTime::UNIX_EPOCH) };
            assert_eq!(layer.disk_usage(&meta).unwrap(), told, "{recorded}");
            let believed = (recorded == told).then_some(recorded);
            assert_eq!(layer.recorded_disk_usage(&meta).unwrap(), believed, "{recorded}");
        }
    }
}
