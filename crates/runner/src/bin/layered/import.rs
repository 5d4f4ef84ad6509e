//! `layered import`: decides where an image goes and how the result is shown. `layer::oci::Import`
//! unpacks it. [`export`](crate::export) is the way back.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use container::UserNamespace;
use layer::Store;
use layer::display::quoted;
use layer::json_path::JsonPath;
use layer::oci::{Digest, Import, Imported, ImportedLayer, LeftOut, Platform, Privileges, Source, TreeDigest};
use serde::Serialize;

use crate::progress::Progress;
#[cfg(feature = "registry")]
use crate::registry::{RegistryArgs, conclude};
use crate::table;

/// Make a base or layers from an image.
///
/// With DIR, all layers of the image become one tree, the base DIR. With --layers, each becomes a
/// layer of STORE, which other images share; the list of them goes to standard output.
///
/// Nothing appears under its name before all digests of the image are verified. An import that was
/// killed can be repeated; `layered gc` on the directory of DIR, or on STORE, removes what is left.
///
/// The configuration of the image is kept in DIR/oci.json, or in that of each layer.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP, override_usage = USAGE)]
#[command(group = clap::ArgGroup::new("target").required(true).args(["dir", "layers"]))]
pub(crate) struct Args {
    /// Image: oci:DIR:TAG, oci-archive:FILE:TAG, docker-archive:FILE:TAG, tar:FILE, - or
    /// docker://HOST/REPOSITORY:TAG.
    ///
    /// :TAG can be left out if there is only one image. tar:FILE is an archive of a root file
    /// system, plain or compressed with gzip or zstd. - is such an archive on standard input.
    /// docker:// is an image in a registry, which @DIGEST can pin; without a host, it is one of
    /// Docker Hub. The login is that of `podman login` or `docker login`. The exit status is 75 if
    /// a later attempt to read it can succeed, and 1 if it cannot.
    #[arg(value_name = "IMAGE")]
    image: Source,
    /// Directory of the new base, which must not exist.
    dir: Option<PathBuf>,
    /// Make one layer of the directory STORE per layer of the image.
    ///
    /// Prints a file for --layers-from, topmost first. Its first line is a comment with the base,
    /// which is the lowest layer of the image. A layer that STORE has from another image is reused.
    /// As root, that is an error if it lacks what only root can make: remove it with `layered rm`.
    #[arg(long, value_name = "STORE")]
    layers: Option<PathBuf>,
    /// Choose the image for PLATFORM, e.g. linux/arm64 [default: this machine].
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Refuse an image whose layers have more than SIZE bytes, decompressed [default: 64g].
    ///
    /// The files of the image have the same limit: each counts with its size, holes included, and
    /// 4096 bytes. SIZE is a number of bytes, or one with a suffix: k, m, g, t (powers of 1024).
    #[arg(long, value_name = "SIZE", value_parser = container::advanced::parse_size)]
    max_bytes: Option<u64>,
    /// Do not record the digest of the tree, which `layered verify` needs. This is faster.
    #[arg(long)]
    no_digest: bool,
    #[cfg(feature = "registry")]
    #[command(flatten)]
    registry: RegistryArgs,
    /// Print one JSON object.
    ///
    /// Its keys are `base` (a path), `layers` (paths of the others, topmost first), `diff_ids` (of
    /// all, topmost first), `manifest`, `bytes` (decompressed) and `left_out`.
    #[arg(long)]
    json: bool,
}

/// clap would print DIR before IMAGE.
const USAGE: &str = "\
layered import [OPTIONS] IMAGE DIR
       layered import [OPTIONS] IMAGE --layers STORE";

const AFTER_HELP: &str = "\
Examples:
  layered import docker://debian:12 debian
  layered import oci:images:debian debian
  layered run --base debian -- cat /etc/os-release
  layered import docker-archive:saved.tar --layers store > stack
  layered run --base store/0123456789ab --layers-from stack -- cat /etc/os-release
  layered import tar:root.tar.zst --max-bytes 4g base
  xz -dc root.tar.xz | layered import - base";

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut import = Import::new(&args.image).platform(args.platform.clone());
    import = import.privileges(privileges()).xattrs(runner::xattrs_of_process());
    if let Some(bytes) = args.max_bytes {
        import = import.max_bytes(bytes);
    }
    if args.no_digest {
        import = import.tree_digest(TreeDigest::Omitted);
    }
    let progress = Progress::begin("reading the image");
    let show = |step: layer::oci::Progress| {
        let text = || format!("{} read", table::bytes(step.done_bytes));
        // The numbers are too large for a `usize` only on machines with 32 bits, which layered does
        // not support.
        match step.total_bytes.map(|total| (usize::try_from(step.done_bytes), usize::try_from(total))) {
            Some((Ok(done), Ok(total))) => progress.fill(done, total, text),
            _ => progress.tell(text),
        }
    };
    import = import.progress(&show);
    #[cfg(feature = "registry")]
    let first = match args.image {
        Source::Registry { .. } => {
            let (options, first) = args.registry.options()?;
            import = import.registry(options);
            Some(first)
        }
        _ => None,
    };
    let imported = match (&args.dir, &args.layers) {
        (Some(dir), None) => import.into_base(dir),
        (None, Some(store)) => import.into_layers(&Store::open(store)?),
        _ => bail!("give the directory of a base, or --layers and a store"),
    };
    drop(progress);
    #[cfg(feature = "registry")]
    if let (Err(error), Some(first)) = (&imported, &first) {
        return Ok(conclude([error], first));
    }
    let imported = imported?;
    warn(imported.left_out);
    let mut out = io::stdout().lock();
    match (args.json, &args.dir) {
        (true, _) => table::print_json(&mut out, &Output::of(&imported))?,
        (false, Some(dir)) => writeln!(out, "{}", summary(dir, &imported))?,
        (false, None) => write_list(&mut out, &imported)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(dir: &Path, imported: &Imported) -> String {
    let layers = table::count(imported.blobs as u64, "layer");
    let id = imported.layers.first().map_or_else(String::new, |layer| format!(", {}", layer.chain_id));
    format!("{}: {layers} of {}{id}", quoted(dir), table::bytes(imported.bytes))
}

/// Prints the layers as a file for `--layers-from`.
fn write_list(out: &mut impl Write, imported: &Imported) -> anyhow::Result<()> {
    let Some((base, layers)) = imported.layers.split_last() else { return Ok(()) };
    // A newline in a path would begin a new line of the list.
    if imported.layers.iter().any(|layer| layer.layer.path().as_os_str().as_encoded_bytes().contains(&b'\n')) {
        bail!("the path of the store has a newline, which a list cannot have; use --json");
    }
    writeln!(out, "# --base {}", quoted(&std::path::absolute(base.layer.path())?))?;
    for layer in layers {
        out.write_all(std::path::absolute(layer.layer.path())?.as_os_str().as_encoded_bytes())?;
        writeln!(out)?;
    }
    Ok(())
}

/// The result as JSON.
#[derive(Debug, Serialize)]
struct Output<'a> {
    base: Option<JsonPath>,
    layers: Vec<JsonPath>,
    diff_ids: Vec<Digest>,
    manifest: &'a Option<Digest>,
    bytes: u64,
    left_out: LeftOut,
}

impl<'a> Output<'a> {
    fn of(imported: &'a Imported) -> Self {
        let path = |layer: &ImportedLayer| JsonPath(layer.layer.path().into());
        let split = imported.layers.split_last();
        Self {
            base: split.map(|(base, _)| path(base)),
            layers: split.map_or_else(Vec::new, |(_, layers)| layers.iter().map(path).collect()),
            diff_ids: imported.layers.iter().map(|layer| layer.diff_id).collect(),
            manifest: &imported.manifest,
            bytes: imported.bytes,
            left_out: imported.left_out,
        }
    }
}

/// Returns what an import does without a privilege. Only root outside of a user namespace can set
/// every owner and make every device.
pub(crate) fn privileges() -> Privileges {
    match rustix::process::geteuid().is_root() && !UserNamespace::is_here() {
        true => Privileges::Required,
        false => Privileges::AsAvailable,
    }
}

/// Reports once what could not be made.
pub(crate) fn warn(left_out: LeftOut) {
    let counts = [
        (left_out.owners, "files belong to you instead of their user or group"),
        (left_out.devices, "device nodes are missing"),
        (left_out.xattrs, "files lack a capability, an ACL or another attribute that you cannot set"),
        (left_out.acl_texts, "files lack their ACL, which the archive has in the form of GNU tar"),
    ];
    let parts: Vec<_> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    if !parts.is_empty() {
        log::warn!("{}", parts.join("; "));
    }
}
