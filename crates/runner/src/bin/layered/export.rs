//! `layered export`: decides what becomes an image and how the result is shown.
//! `layer::oci::Export` writes it. [`import`](crate::import) is the way back.

mod run_config;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::ValueEnum;
use layer::display::quoted;
use layer::oci::{Compression, Destination, Export};
use layer::{Hold, Layer};
use runner::CommandRecord;
use serde_json::{Map, Value};

use crate::progress::Progress;
#[cfg(feature = "registry")]
use crate::registry::{RegistryArgs, conclude};
use crate::stack::{BaseArgs, LayerArgs, read_object};
use crate::table;

/// Write a stack as an OCI image.
///
/// The base and each layer become one layer of the image. A base that came from an image gives back
/// the layers of that image unchanged, as long as the image is where it was and the base has the
/// digest that its import recorded. Otherwise the base becomes one layer, with a warning.
///
/// The image starts the command that made the topmost layer, as its run.json records it: program
/// and arguments become the Entrypoint, and the working directory, the user and recorded values of
/// the environment are set, too. The rest of the configuration is that of the image that the
/// topmost imported layer came from, and without such a layer that of the base's image.
///
/// The same stack gives the same bytes. Sockets are left out, because no image can have them.
/// Without root, files of owners that your user namespace lacks become root's.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Image to write: oci:DIR:TAG, oci-archive:FILE:TAG or docker://HOST/REPOSITORY:TAG.
    ///
    /// DIR can have other images, which stay. FILE is replaced, unless it is a FIFO or a device.
    /// docker:// is an image in a registry, with the login of `podman login` or `docker login`. One
    /// of the same tag is replaced. The exit status is 75 if a later attempt to write it can
    /// succeed, and 1 if it cannot. A layer waits in a file in TMPDIR, or in /tmp, until it is
    /// sent.
    #[arg(value_name = "IMAGE")]
    image: Destination,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    layers: LayerArgs,
    /// Compress the layers with gzip, zstd or not at all.
    #[arg(long, value_name = "HOW", default_value = "gzip")]
    zip: Zip,
    /// JSON object with keys for the configuration of the image.
    ///
    /// Its keys are those of the image specification: `architecture`, `author`, and `config` with
    /// `Entrypoint`, `Cmd`, `Env`, `WorkingDir`, `User`. They replace those of the recorded run and
    /// of the image that the stack comes from. An `Entrypoint` also removes the `Cmd` of that
    /// image, and a `Cmd` the recorded command. FILE can be a pipe.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Do not start the command that made the topmost layer.
    ///
    /// The configuration is then that of the image that the stack comes from.
    #[arg(long)]
    no_run_config: bool,
    #[cfg(feature = "registry")]
    #[command(flatten)]
    registry: RegistryArgs,
    /// Print one JSON object instead of a line.
    ///
    /// Its keys are `manifest`, `blobs` (each with `media_type`, `digest`, `size` and `diff_id`,
    /// the lowest first), `original` (how many are those of the base's own image), `sockets` and
    /// `owners_as_root` (how many files have an owner that your user namespace lacks).
    #[arg(long)]
    json: bool,
}

/// The value of `--zip`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Zip {
    Gzip,
    Zstd,
    None,
}

const AFTER_HELP: &str = "\
Examples:
  layered export oci:images:hello --base debian --layer store/hello
  layered export oci-archive:hello.tar:latest --base debian --layers-from deps.txt --zip zstd
  echo '{\"config\": {\"Entrypoint\": [\"/usr/bin/hello\"]}}' |
    layered export oci:images:hello --base debian --layer store/hello --config /dev/stdin
  layered export docker://registry.example/hello:1.0 --base debian --layer store/hello";

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (base, layers) = (args.base.open()?, args.layers.open()?);
    if base.is_none() && layers.is_empty() {
        bail!("there is nothing to export; pass --base, --layer or --layers-from");
    }
    // A tree, or a directory without a layer.json, is no layer that a collector could take.
    let held_base = base.as_ref().filter(|base| !base.is_tree()).map(|base| Layer::at(base.path()));
    let held_base = held_base.filter(|base| base.meta_path().symlink_metadata().is_ok());
    let hold = Hold::of(layers.iter().chain(&held_base).map(Layer::path))?;
    let compression = match args.zip {
        Zip::Gzip => Compression::Gzip,
        Zip::Zstd => Compression::Zstd,
        Zip::None => Compression::None,
    };
    let mut export = Export::new(&layers).base(base.as_ref()).compression(compression);
    export = export.xattrs(runner::xattrs_of_process());
    let mut config = match layers.first() {
        Some(topmost) if !args.no_run_config => recorded_config(topmost, &export),
        _ => Map::new(),
    };
    if let Some(path) = &args.config {
        run_config::add(&mut config, read_object(path)?);
    }
    export = export.config(config);
    let progress = Progress::begin("writing the image");
    let show = |step: layer::oci::Progress| progress.tell(|| format!("{} packed", table::bytes(step.done_bytes)));
    #[cfg(feature = "registry")]
    let first = match args.image {
        Destination::Registry { .. } => {
            let (options, first) = args.registry.options()?;
            export = export.registry(options);
            Some(first)
        }
        _ => {
            // The base can be in a registry.
            export = export.registry(args.registry.without_signals());
            None
        }
    };
    let exported = export.progress(&show).run(&args.image);
    drop(progress);
    drop(hold);
    #[cfg(feature = "registry")]
    if let (Err(error), Some(first)) = (&exported, &first) {
        return Ok(conclude([error], first));
    }
    let exported = exported?;
    warn(&exported.sockets, exported.owners_as_root);
    let mut out = io::stdout().lock();
    if args.json {
        table::print_json(&mut out, &exported)?;
    } else {
        let bytes = exported.blobs.iter().map(|blob| blob.size).sum();
        let layers = table::count(exported.blobs.len() as u64, "layer");
        writeln!(out, "{}: {layers} of {}, {}", args.image, table::bytes(bytes), exported.manifest)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reports what the archive of a layer lacks.
pub(crate) fn warn<'a>(sockets: impl IntoIterator<Item = &'a PathBuf>, owners_as_root: u64) {
    for socket in sockets {
        log::warn!("left out the socket {}", quoted(socket));
    }
    if owners_as_root > 0 {
        log::warn!(
            "{owners_as_root} files became root's: their owners have no number in your user namespace; do this as root to keep them"
        );
    }
}

/// Returns the configuration of an image that starts the command that made a layer. It is empty if
/// no command is recorded.
fn recorded_config(layer: &Layer, export: &Export<'_>) -> Map<String, Value> {
    let record = match layer.read_sidecar::<CommandRecord>(CommandRecord::SIDECAR) {
        Ok(Some(record)) => record,
        Ok(None) => return Map::new(),
        Err(error) => {
            log::warn!("the image has no entrypoint of {}: {:#}", quoted(layer.path()), anyhow::Error::from(error));
            return Map::new();
        }
    };
    // The export itself reports a record that cannot be read.
    let mut of_image = export.image_config().unwrap_or_default();
    let of_image = match of_image.remove("config") {
        Some(Value::Object(config)) => config,
        _ => Map::new(),
    };
    Map::from_iter([("config".to_string(), run_config::of_record(&record, &of_image).into())])
}
