//! `layered push`: decides which layers go to a registry and how the result is shown.
//! `layer::oci::registry::Push` writes them. [`pull`](crate::pull) is the way back.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use layer::display::quoted;
use layer::oci::registry::{Local, Pins, Push, Pushed, Registry};
use layer::oci::{Error, Repository};
use layer::{Layer, Store};
use serde::Serialize;

use crate::defaults::{self, STORE};
use crate::export::warn;
use crate::progress::Progress;
use crate::registry::{Failed, RegistryArgs, conclude, split};
use crate::stack::is_bare;
use crate::table;

/// Copy layers into a registry.
///
/// Each layer becomes an image in REPOSITORY: its tag is the name of the layer, and layer.json and
/// the sidecars go with it. `layered pull` makes it a layer again, and every other program can read
/// it as an image. The files that are about this machine stay here: last_used, layer.log, oci.json
/// and digest.json.
///
/// A push does not change a name that the registry already has: the first push wins, the second
/// reports that, and both succeed. The layer's oci.json records the registry, so that the next push
/// sends nothing.
///
/// The login is that of `podman login` or `docker login`.
///
/// The exit status is 75 if a later attempt can succeed, such as when the registry is unreachable
/// or the disk is full, and 1 if it cannot.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP, override_usage = "layered push [OPTIONS] STORE/NAME... docker://HOST/REPOSITORY")]
pub(crate) struct Args {
    /// Layers, and the repository as the last argument: STORE/NAME... docker://HOST/REPOSITORY.
    ///
    /// NAME alone is a layer of $LAYERED_STORE.
    #[arg(required = true, num_args = 2.., value_names = ["LAYER", "REPOSITORY"])]
    layers: Vec<PathBuf>,
    /// Push N layers at a time.
    #[arg(long, value_name = "N", default_value_t = 4)]
    jobs: usize,
    /// Pin each layer: write the digest of its manifest to the file DIR/NAME.
    ///
    /// The first pin stays, so it also decides between two pushes of the same moment. Machines can
    /// share DIR, which must exist. `layered pull --pins DIR` pulls only the pinned layers.
    #[arg(long, value_name = "DIR")]
    pins: Option<PathBuf>,
    /// Move each layer to STORE after its push if it is the one that others get.
    ///
    /// If the registry has another tree under the name, or the name is pinned to another manifest,
    /// the layer is removed instead. So is a layer whose name STORE has already. A layer of STORE
    /// itself stays, and so does a layer that another process uses. If a layer does not exist, but
    /// STORE has its name, that one is pushed. STORE must be on the same mount as the layers.
    #[arg(long, value_name = "STORE")]
    into: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Print one JSON object instead of a line per layer.
    ///
    /// Its keys are `layers` (each with `name`, `manifest`, `diff_id`, `blob`, `pushed`, `same`,
    /// `pin`, `local`, `bytes_sent`, `bytes_spared`, `sockets` and `owners_as_root`), `failed`
    /// (each with `name`, `error`, `temporary` and `kind`), `bytes_sent` and `bytes_spared`.
    /// `pushed` is false if the registry had the name. `same` is false if the registry has another
    /// tree under the name. `pin` is the digest to which the name is pinned. `local` is `moved`,
    /// `removed` or `in_use` after --into, and else `kept`.
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
Examples:
  layered push store/gcc docker://registry.example/farm
  layered push store/* docker://127.0.0.1:5000/farm --json
  layered push store/gcc docker://10.0.0.1:5000/farm --plain-http
  layered push new/gcc docker://registry.example/farm --pins /srv/pins --into store
  skopeo inspect docker://registry.example/farm:gcc";

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (repository, layers) = match args.layers.split_last() {
        Some((repository, layers)) if !layers.is_empty() => (repository, layers),
        _ => bail!("give layers and a repository: layered push STORE/NAME docker://HOST/REPOSITORY"),
    };
    let repository: Repository = repository.to_string_lossy().parse()?;
    let layers: Vec<_> = layers.iter().map(|path| find(path)).collect();
    let (options, first) = args.registry.options()?;
    let opened = || -> Result<_, Error> {
        let pins = args.pins.as_ref().map(Pins::open).transpose()?;
        Ok((pins, args.into.as_ref().map(Store::open).transpose()?))
    };
    let (pins, into) = match opened() {
        Ok(opened) => opened,
        Err(error) => return Ok(conclude([&error], &first)),
    };
    let registry = Registry::open(&repository, &options);
    let progress = Progress::begin("packing the layers");
    let show = |step: layer::oci::Progress| progress.tell(|| format!("{} sent", table::bytes(step.done_bytes)));
    let push = Push::new(&registry).jobs(args.jobs).xattrs(runner::xattrs_of_process()).progress(&show);
    let results = push.pins(&pins).into(&into).run(&layers);
    drop(progress);
    let (pushed, failed) = split(&layers, results);
    let owners_as_root = pushed.iter().map(|(_, one)| one.owners_as_root).sum();
    warn(pushed.iter().flat_map(|(_, one)| &one.sockets), owners_as_root);
    let mut out = io::stdout().lock();
    match args.json {
        true => table::print_json(&mut out, &Output::of(&pushed, &failed))?,
        false => {
            pushed.iter().try_for_each(|(layer, one)| writeln!(out, "{}: {}", quoted(layer.path()), describe(one)))?
        }
    }
    Ok(conclude(failed.iter().map(|(_, error)| error), &first))
}

/// Returns the layer at a path, or the one of a bare name in the store of the environment.
fn find(path: &Path) -> Layer {
    match (is_bare(path), defaults::path(STORE)) {
        (true, Some(store)) if path.symlink_metadata().is_err() => Layer::at(store.join(path)),
        // The name of `store/name/` is `name`.
        _ => Layer::at(path.components().collect::<PathBuf>()),
    }
}

fn describe(pushed: &Pushed) -> String {
    let Pushed { manifest, bytes_sent, bytes_spared, .. } = pushed;
    let pushed_or_not = match (pushed.pushed, pushed.same) {
        (true, _) if *bytes_spared > 0 => {
            format!("pushed, {} sent, {} spared, {manifest}", table::bytes(*bytes_sent), table::bytes(*bytes_spared))
        }
        (true, _) => format!("pushed, {} sent, {manifest}", table::bytes(*bytes_sent)),
        (false, true) => format!("in the registry already, {manifest}"),
        (false, false) => format!("in the registry already with another tree, which stays, {manifest}"),
    };
    let pin = match pushed.pin {
        Some(pin) if pin != *manifest => format!(", but pinned to {pin}"),
        _ => String::new(),
    };
    let local = match pushed.local {
        Local::Moved => ", moved to the store",
        Local::Removed => ", removed here",
        Local::InUse => ", in use, so not moved or removed",
        _ => "",
    };
    format!("{pushed_or_not}{pin}{local}")
}

/// The result as JSON.
#[derive(Debug, Serialize)]
struct Output<'a> {
    layers: Vec<&'a Pushed>,
    failed: Vec<Failed>,
    bytes_sent: u64,
    bytes_spared: u64,
}

impl<'a> Output<'a> {
    fn of(pushed: &'a [(&Layer, Pushed)], failed: &[(&Layer, Error)]) -> Self {
        let name = |layer: &Layer| layer.name().to_string_lossy().into_owned();
        Self {
            layers: pushed.iter().map(|(_, pushed)| pushed).collect(),
            failed: failed.iter().map(|(layer, error)| Failed::of(name(layer), error)).collect(),
            bytes_sent: pushed.iter().map(|(_, pushed)| pushed.bytes_sent).sum(),
            bytes_spared: pushed.iter().map(|(_, pushed)| pushed.bytes_spared).sum(),
        }
    }
}
