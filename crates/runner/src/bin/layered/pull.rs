//! `layered pull`: decides which layers come from a registry and how the result is shown.
//! `layer::oci::registry::Pull` makes them. [`push`](crate::push) is the way there.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use layer::display::quoted;
use layer::oci::registry::{Pins, Pull, Pulled, Registry, Wanted};
use layer::oci::{Digest, Error, Repository, TreeDigest};
use layer::{Existing, Store};
use serde::Serialize;

use crate::import::{privileges, warn};
use crate::progress::Progress;
use crate::registry::{Failed, RegistryArgs, conclude, split};
use crate::table;

/// Copy layers from a registry into a store.
///
/// REPOSITORY has the layers that `layered push` has written, each under its name. A layer that
/// STORE has already is only marked as used. This needs no registry, unless the layer is pinned and
/// came from elsewhere. No layer appears under its name before all its digests are verified. Two
/// pulls of one layer into one store do the work once.
///
/// NAME@DIGEST pins a layer: only the manifest with this digest will do. `layered push` prints it.
/// With --pins, a directory has the digests.
///
/// A name that is not in the registry ends the pull of that layer with "... is not in ...", and the
/// others go on. With --ignore-missing, it is not an error.
///
/// The exit status is 75 if a later attempt can succeed, such as when the registry is unreachable
/// or the disk is full, and 1 if it cannot.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Directory that contains the layers.
    store: PathBuf,
    /// Repository: docker://HOST/REPOSITORY.
    repository: Repository,
    /// Layers: NAME or NAME@sha256:DIGEST.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<Wanted>,
    /// Pin the layers to the manifests with these digests, in the order of the names.
    #[arg(long, value_name = "DIGEST")]
    digest: Vec<Digest>,
    /// Pull each layer by its pin: the file DIR/NAME has the digest of its manifest.
    ///
    /// A layer without a pin is pulled by its name. A layer of STORE that is not the pinned one is
    /// replaced, unless it is in use or the base of others. `layered push --pins DIR` writes the
    /// pins. DIR must exist.
    #[arg(long, value_name = "DIR")]
    pins: Option<PathBuf>,
    /// Succeed also if a layer without a digest and without a pin is not in the registry.
    #[arg(long)]
    ignore_missing: bool,
    /// Pull N layers at a time.
    #[arg(long, value_name = "N", default_value_t = 4)]
    jobs: usize,
    /// Refuse a layer with more than SIZE bytes, decompressed [default: 64g].
    ///
    /// The files of the layer have the same limit: each counts as its size, holes included, plus
    /// 4096 bytes. SIZE is a number of bytes, or one with a suffix: k, m, g, t (powers of 1024).
    #[arg(long, value_name = "SIZE", value_parser = container::advanced::parse_size)]
    max_bytes: Option<u64>,
    /// Do not record the digests of the trees, which `layered verify` needs. This is faster.
    #[arg(long)]
    no_digest: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Print one JSON object instead of a line per layer.
    ///
    /// Its keys are `layers` (each with `name`, `layer`, `manifest`, `diff_id`, `pulled`,
    /// `bytes_received`, `bytes_spared` and `left_out`), `failed` (each with `name`, `error`,
    /// `temporary` and `kind`), `missing` (the names that --ignore-missing ignores),
    /// `bytes_received` and `bytes_spared`. `pulled` is false if the store had the layer. `kind` is
    /// `absent` if the registry has no such layer, `not_pinned` if the store has another one than
    /// the pinned one, `damaged` or `other`.
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
Examples:
  layered pull store docker://registry.example/farm gcc libc6-dev
  layered pull store docker://127.0.0.1:5000/farm gcc --json
  layered pull store docker://registry.example/farm gcc@sha256:DIGITS
  layered pull store docker://registry.example/farm gcc --pins /srv/pins
  layered pull store docker://registry.example/farm gcc || echo 'build it'";

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let wanted = wanted(args)?;
    let (options, first) = args.registry.options()?;
    let opened = || -> Result<_, Error> {
        let store = Store::open(&args.store)?;
        Ok((store, args.pins.as_deref().map_or_else(|| Ok(wanted.clone()), |dir| pinned(dir, &wanted))?))
    };
    let (store, wanted) = match opened() {
        Ok(opened) => opened,
        Err(error) => return Ok(conclude([&error], &first)),
    };
    let registry = Registry::open(&args.repository, &options);
    let progress = Progress::begin("asking the registry");
    let show = |step: layer::oci::Progress| progress.tell(|| format!("{} received", table::bytes(step.done_bytes)));
    let mut pull = Pull::new(&registry).jobs(args.jobs).progress(&show);
    pull = pull.privileges(privileges()).xattrs(runner::xattrs_of_process());
    if let Some(bytes) = args.max_bytes {
        pull = pull.max_bytes(bytes);
    }
    if args.no_digest {
        pull = pull.tree_digest(TreeDigest::Omitted);
    }
    if args.pins.is_some() {
        pull = pull.existing(Existing::Replaced);
    }
    let results = pull.run(&store, &wanted);
    drop(progress);
    let (pulled, failed) = split(&wanted, results);
    let may_be_missing = |(wanted, error): &(&Wanted, Error)| {
        args.ignore_missing && wanted.digest().is_none() && matches!(error, Error::NotInRegistry { .. })
    };
    let (missing, failed): (Vec<_>, Vec<_>) = failed.into_iter().partition(may_be_missing);
    let mut left_out = layer::oci::LeftOut::default();
    pulled.iter().for_each(|(_, one)| left_out += one.left_out);
    warn(left_out);
    let mut out = io::stdout().lock();
    match args.json {
        true => table::print_json(&mut out, &Output::of(&pulled, &missing, &failed))?,
        false => {
            pulled.iter().try_for_each(|(_, one)| writeln!(out, "{}: {}", quoted(one.layer.path()), describe(one)))?;
            missing.iter().try_for_each(|(wanted, _)| writeln!(out, "{}: not in the registry", wanted.name()))?;
        }
    }
    Ok(conclude(failed.iter().map(|(_, error)| error), &first))
}

/// Returns the layers with their pins, each name once.
fn wanted(args: &Args) -> anyhow::Result<Vec<Wanted>> {
    let mut wanted = args.names.clone();
    if !args.digest.is_empty() {
        if args.digest.len() != wanted.len() {
            bail!(
                "there are {} for {}; give one --digest for each name, in the same order, or write NAME@DIGEST",
                table::count(args.digest.len() as u64, "digest"),
                table::count(wanted.len() as u64, "name")
            );
        }
        let pin = |(wanted, digest): (Wanted, Digest)| match wanted.digest() {
            Some(other) if other != digest => bail!("{wanted} has another --digest, {digest}; give one of them"),
            _ => Ok(wanted.pinned(digest)),
        };
        wanted = wanted.into_iter().zip(args.digest.iter().copied()).map(pin).collect::<anyhow::Result<_>>()?;
    }
    let mut names = HashSet::new();
    let mut once = Vec::with_capacity(wanted.len());
    for one in wanted {
        if names.insert(one.name().to_string()) {
            once.push(one);
        } else if !once.contains(&one) {
            bail!("{} is given with different digests; give one of them", one.name());
        }
    }
    Ok(once)
}

/// Returns the layers with the digests that the directory `dir` pins. A digest that the caller
/// gives counts more than a pin.
fn pinned(dir: &Path, wanted: &[Wanted]) -> Result<Vec<Wanted>, Error> {
    let pins = Pins::open(dir)?;
    let pin = |wanted: &Wanted| match wanted.digest() {
        Some(_) => Ok(wanted.clone()),
        None => Ok(wanted.clone().pinned(pins.get(wanted.name())?)),
    };
    wanted.iter().map(pin).collect()
}

fn describe(pulled: &Pulled) -> String {
    let manifest = pulled.manifest.map_or_else(String::new, |manifest| format!(", {manifest}"));
    match pulled.pulled {
        true => format!("pulled, {} received{manifest}", table::bytes(pulled.bytes_received)),
        false => format!("in the store already{manifest}"),
    }
}

/// The result as JSON.
#[derive(Debug, Serialize)]
struct Output<'a> {
    layers: Vec<&'a Pulled>,
    failed: Vec<Failed>,
    missing: Vec<&'a str>,
    bytes_received: u64,
    bytes_spared: u64,
}

impl<'a> Output<'a> {
    fn of(pulled: &'a [(&Wanted, Pulled)], missing: &[(&'a Wanted, Error)], failed: &[(&Wanted, Error)]) -> Self {
        Self {
            layers: pulled.iter().map(|(_, pulled)| pulled).collect(),
            missing: missing.iter().map(|(wanted, _)| wanted.name()).collect(),
            failed: failed.iter().map(|(wanted, error)| Failed::of(wanted.name().into(), error)).collect(),
            bytes_received: pulled.iter().map(|(_, pulled)| pulled.bytes_received).sum(),
            bytes_spared: pulled.iter().map(|(_, pulled)| pulled.bytes_spared).sum(),
        }
    }
}
