//! Makes the upper of a run a layer of a store, in one step.
//!
//! `upper` captures it; `layer::Draft` decides how the layer appears. `command_record` defines the
//! sidecar.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;

use layer::display::quoted;
use layer::{Access, Capture, Existing, Layer, Meta, Store};

use crate::error::{BoxError, Cause, chain};
use crate::{CaptureError, CommandRecord, Error, Report};

/// A layer that [`Report::publish`] is about to make. The caller can change it until the upper is
/// captured.
#[derive(Debug)]
#[non_exhaustive]
pub struct NewLayer<'a> {
    /// The layer at the place where it is made. The caller writes sidecars, a log and other files
    /// into its directory. It has the sidecar [`run`](CommandRecord::SIDECAR) already, and neither
    /// a tree nor a `layer.json`.
    pub layer: &'a Layer,
    /// The `layer.json`: [`Report::meta`].
    pub meta: Meta,
    /// How the upper is captured: [`Report::capture`].
    pub capture: Capture<'static>,
    /// The mode and group of the layer's directory. With `None`, the default, they are those of the
    /// layer that it replaces, or else the mode is 0700: [`Draft::access`](layer::Draft::access).
    pub access: Option<Access>,
    /// What happens to a layer that already has the name: by default, it stays and the new one is
    /// refused.
    pub existing: Existing,
}

/// A report whose upper could not be published. Nothing is lost: the [report](Self::report) has its
/// upper, which can be published again.
#[derive(thiserror::Error)]
#[error("cannot create the layer {} from the upper", quoted(layer))]
pub struct PublishError {
    /// The report. Its upper is where it was, unless the source says otherwise.
    pub report: Report,
    /// The path of the layer that was not made.
    pub layer: PathBuf,
    /// The reason.
    pub source: Error,
}

impl fmt::Debug for PublishError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&chain(self))
    }
}

impl Report {
    /// Makes the upper the layer `name` of `store`. `prepare` can write sidecars and a log into the
    /// layer, and change its `layer.json`.
    ///
    /// ```no_run
    /// # fn example(report: runner::Report, package: serde_json::Value) -> Result<(), Box<dyn std::error::Error>> {
    /// let store = layer::Store::open("/var/cache/layers")?;
    /// let layer = report.publish(&store, "hello", |new| {
    ///     new.layer.write_sidecar("package", &package)?;
    ///     Ok(())
    /// })?;
    /// println!("{}", layer.path().display());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A failed command makes a layer, too: its `layer.json` has the exit status. Look at
    /// [`status`](Self::status) first. The sidecar [`run`](CommandRecord::SIDECAR) has the
    /// [record of the command](Self::command_record).
    ///
    /// The layer is made in a [draft](layer::Draft) and appears in the store with one rename: it
    /// has all its files from the beginning, and is durable when this function returns, unless the
    /// log says that the last sync [failed](Capture::publish). The scratch directory of the run
    /// must be on the file system of the store, because the upper is moved, not copied. If the
    /// process is killed in between, the layer does not appear, and the upper is deleted as by any
    /// kill of a run.
    ///
    /// # Errors
    /// [`PublishError`], which gives the report with its upper back. Its source has one of these
    /// [causes](Error::cause):
    /// - [`Cause::Prepare`] with the error of `prepare`.
    /// - [`Cause::Layer`] with [`LayerName`](layer::Error::LayerName),
    ///   [`LayerExists`](layer::Error::LayerExists),
    ///   [`OtherFileSystem`](layer::Error::OtherFileSystem), or another error of
    ///   [`Capture::publish`].
    ///
    /// The store has no trace of the layer, unless the source is
    /// [`NotMovedBack`](layer::Error::NotMovedBack).
    pub fn publish(
        self,
        store: &Store,
        name: impl AsRef<OsStr>,
        prepare: impl FnOnce(&mut NewLayer<'_>) -> Result<(), BoxError>,
    ) -> Result<Layer, Box<PublishError>> {
        let name = name.as_ref();
        let path = store.path().join(name);
        match self.try_publish(store, name, prepare) {
            Ok(layer) => Ok(layer),
            Err((report, source)) => Err(Box::new(PublishError { report, layer: path, source })),
        }
    }

    #[expect(clippy::result_large_err, reason = "the caller boxes it")]
    fn try_publish(
        self,
        store: &Store,
        name: &OsStr,
        prepare: impl FnOnce(&mut NewLayer<'_>) -> Result<(), BoxError>,
    ) -> Result<Layer, (Self, Error)> {
        let prepared = || {
            // Before anything is made: `prepare` may be slow.
            let layer = store.layer(name)?;
            let draft = store.draft()?;
            let (capture, meta) = (self.capture(), self.meta());
            draft.write_sidecar(CommandRecord::SIDECAR, self.command_record())?;
            let (access, existing) = (None, Existing::default());
            let mut new = NewLayer { layer: draft.layer(), meta, capture, access, existing };
            prepare(&mut new).map_err(Cause::Prepare)?;
            let NewLayer { meta, capture, access, existing, .. } = new;
            Ok((layer, draft.access(access).existing(existing), capture, meta))
        };
        let (layer, draft, capture, meta) = match prepared() {
            Ok(prepared) => prepared,
            Err(error) => return Err((self, error)),
        };
        match self.upper.publish(&capture, draft, name, meta) {
            Ok(_) => Ok(layer),
            Err(error) => {
                let CaptureError { upper, source, .. } = *error;
                Err((Report { upper, ..self }, source.into()))
            }
        }
    }
}
