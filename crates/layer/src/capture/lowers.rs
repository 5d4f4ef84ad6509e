//! The lowers that an upper was made over, some of which may not exist any more. `stack/view.rs`
//! shows their content.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::stack::overlayfs::XattrNamespace;
use crate::stack::sources::Unreadable;
use crate::stack::view::View;
use crate::store::hold::Hold;

/// The lowers of an upper. Layers among them are held, so that no collector removes them.
#[derive(Debug)]
pub(super) struct Lowers {
    /// The lowers that exist.
    view: View,
    missing: Option<PathBuf>,
    _hold: Hold,
}

impl Lowers {
    /// Opens the lowers. Relies on `held` for the layers that it holds. Hides directories that this
    /// process may not list or search if `unreadable` says that the command was shown nothing of
    /// them.
    pub(super) fn open(
        lowers: &[PathBuf],
        held: Option<&Hold>,
        xattrs: XattrNamespace,
        unreadable: Unreadable,
    ) -> Result<Self> {
        // A layer that exists after it was held cannot be half removed.
        let layers = lowers.iter().filter(|tree| tree.ends_with("fs")).filter_map(|tree| tree.parent());
        let others = match held {
            Some(held) => held.others(layers),
            None => layers.collect(),
        };
        let is_whole = |layer: &&Path| Layer::at(*layer).meta_path().symlink_metadata().is_ok();
        let hold = Hold::of(others.into_iter().filter(is_whole));
        let hold = match hold {
            // A layer was removed just now.
            Err(Error::NotADirectory { .. }) => Hold::default(),
            hold => hold?,
        };
        let (view, missing) = View::of_existing(lowers)?;
        let view = view.xattrs(xattrs);
        let view = match unreadable {
            Unreadable::Refused => view,
            Unreadable::Hidden => view.hide_unreadable(),
        };
        Ok(Self { view, missing, _hold: hold })
    }

    /// Returns the stack of the lowers that exist.
    pub(super) fn present(&self) -> &View {
        &self.view
    }

    /// Returns the stack of all lowers, for a comparison with the directory `path` in the upper.
    ///
    /// # Errors
    /// [`Error::LowerMissing`] if one of them does not exist.
    pub(super) fn whole(&self, path: &Path) -> Result<&View> {
        match &self.missing {
            None => Ok(&self.view),
            Some(lower) => Err(Error::LowerMissing { path: path.into(), lower: lower.clone() }),
        }
    }

    /// Returns the stack of all lowers, if all of them exist.
    pub(super) fn if_whole(&self) -> Option<&View> {
        self.missing.is_none().then_some(&self.view)
    }
}
