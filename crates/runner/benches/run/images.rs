//! Measures imports and exports of images against umoci and GNU tar, as processor time.
//! [`children`](crate::children) measures one command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::Missing;
use crate::children::usage;
use crate::markdown::{cells, explained_table};
use crate::places::Places;
use crate::sample::Sample;
use crate::subjects::{is_installed, quiet, run};

/// The programs that make the input, and those that are compared.
const PROGRAMS: [&str; 5] = ["mmdebstrap", "umoci", "tar", "gzip", "zstd"];

/// The most rounds, because one takes a minute.
const MOST_ROUNDS: usize = 7;

/// The size of the file system that a command writes to. Its file is sparse.
const FILE_SYSTEM_BYTES: u64 = 4 << 30;

/// Something that several programs do. A command is for `sh`. `IN` is the directory of the input,
/// `OUT` an empty directory.
struct Work {
    name: &'static str,
    /// The import or the export.
    ours: &'static str,
    /// The same without the digest of the tree, which no other program records.
    without_digest: Option<&'static str>,
    /// The other programs.
    others: &'static [(&'static str, &'static str)],
}

const WORKS: [Work; 5] = [
    Work {
        name: "import of the image, gzip",
        ours: "LAYERED import oci:IN/image OUT/base",
        without_digest: Some("LAYERED import --no-digest oci:IN/image OUT/base"),
        others: &[
            ("`umoci unpack`", "umoci unpack --image IN/image:input OUT/bundle"),
            ("`tar -xz` per layer", "for layer in 1 2 3; do EXTRACT --gzip --file=IN/layer-$layer.tar.gz; done"),
        ],
    },
    Work {
        name: "import of the archive, zstd",
        ours: "LAYERED import tar:IN/root.tar.zst OUT/base",
        without_digest: Some("LAYERED import --no-digest tar:IN/root.tar.zst OUT/base"),
        others: &[("`tar -x --zstd`", "EXTRACT --zstd --file=IN/root.tar.zst")],
    },
    Work {
        name: "import of the archive, plain",
        ours: "LAYERED import tar:IN/root.tar OUT/base",
        without_digest: Some("LAYERED import --no-digest tar:IN/root.tar OUT/base"),
        others: &[("`tar -x`", "EXTRACT --file=IN/root.tar")],
    },
    Work {
        name: "export of the tree, gzip",
        ours: "LAYERED export --rootfs IN/root --zip gzip oci:OUT/image:output",
        without_digest: None,
        others: &[("`tar -c \\| gzip`", "CREATE | gzip >OUT/layer")],
    },
    Work {
        name: "export of the tree, zstd",
        ours: "LAYERED export --rootfs IN/root --zip zstd oci:OUT/image:output",
        without_digest: None,
        others: &[("`tar -c \\| zstd`", "CREATE | zstd --quiet >OUT/layer")],
    },
];

const EXTRACT: &str = "tar --extract --directory=OUT --numeric-owner --xattrs --xattrs-include='*'";
const CREATE: &str =
    "tar --create --directory=IN/root --sort=name --numeric-owner --xattrs --xattrs-include='*' --format=pax .";

/// One command, and what it has used.
struct Subject {
    script: String,
    processor: Sample,
    peak_kilobytes: u64,
}

/// Measures with a root file system that mmdebstrap makes.
pub(crate) fn measured(places: &Places, rounds: usize, missing: &mut Missing) -> Result<String> {
    if let Some(program) = PROGRAMS.iter().find(|program| !is_installed(program)) {
        missing.add("images", &format!("{program} is not installed"));
        return Ok(String::new());
    }
    let dir = places.new_dir()?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/bench-input");
    if let Err(error) = run(quiet(script).arg(dir.path())) {
        missing.add("images", &format!("cannot make the input: {error:#}"));
        return Ok(String::new());
    }
    let layered = Path::new(env!("CARGO_BIN_EXE_layered"));
    let mut works: Vec<Vec<Subject>> =
        WORKS.iter().map(|work| subjects(work, layered, dir.path())).collect::<Result<_>>()?;
    for round in 0..rounds.min(MOST_ROUNDS) {
        for subjects in &mut works {
            let first = round % subjects.len();
            let (behind, before) = subjects.split_at_mut(first);
            for subject in before.iter_mut().chain(behind) {
                let out = FileSystem::new(dir.path())?;
                let used =
                    usage(Command::new("sh").args(["-ec", &subject.script.replace("OUT", path_text(&out.mount)?)]))?;
                subject.processor.push(used.processor);
                subject.peak_kilobytes = subject.peak_kilobytes.max(used.peak_kilobytes);
            }
        }
    }
    let mut rows = vec![cells([
        "",
        "against",
        "its processor time",
        "layered / it",
        "layered `--no-digest` / it",
        "peak memory of layered",
    ])];
    for (work, subjects) in WORKS.iter().zip(&works) {
        let own = 1 + usize::from(work.without_digest.is_some());
        let (own, others) = subjects.split_at(own);
        for ((name, _), other) in work.others.iter().zip(others) {
            rows.push(vec![
                work.name.into(),
                (*name).into(),
                other.processor.milliseconds(),
                own[0].processor.ratio(&other.processor),
                own.get(1).map_or_else(|| "–".into(), |subject| subject.processor.ratio(&other.processor)),
                format!("{:.1} MB", own[0].peak_kilobytes as f64 / 1024.0),
            ]);
        }
    }
    Ok(explained_table("Images", &explanation(dir.path())?, &rows))
}

fn explanation(input: &Path) -> Result<String> {
    let megabytes = |name: &str| -> Result<u64> { Ok(input.join(name).metadata()?.len() / 1_000_000) };
    let layers = (1..=3).map(|number| megabytes(&format!("layer-{number}.tar.gz"))).sum::<Result<u64>>()?;
    Ok(format!(
        "The input is a root file system of Debian packages: an archive of {} MB, or {} MB as zstd. As an image, it has three layers of \
         {layers} MB together as gzip. Times are processor times of all processes of a command, in user mode and in the kernel. Each command \
         writes to a new ext4 file system. layered verifies the digests of the image and computes its diff IDs; tar does neither. It also \
         reads the finished tree once more and records its digest, unless `--no-digest` is given.\n\n",
        megabytes("root.tar")?,
        megabytes("root.tar.zst")?,
    ))
}

/// Returns the subjects of one work: layered's own, then the others.
fn subjects(work: &Work, layered: &Path, input: &Path) -> Result<Vec<Subject>> {
    let (layered, input) = (path_text(layered)?, path_text(input)?);
    let others = work.others.iter().map(|(_, script)| *script);
    let scripts = [work.ours].into_iter().chain(work.without_digest).chain(others);
    let subject = |script: &str| Subject {
        script: script
            .replace("EXTRACT", EXTRACT)
            .replace("CREATE", CREATE)
            .replace("LAYERED", layered)
            .replace("IN/", &format!("{input}/")),
        processor: Sample::default(),
        peak_kilobytes: 0,
    };
    Ok(scripts.map(subject).collect())
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// A new ext4 file system in a file. After many files were removed from one, a new file costs ten
/// times as much, because the kernel searches the freed inodes.
#[must_use = "it is unmounted when it is dropped"]
struct FileSystem {
    file: PathBuf,
    mount: PathBuf,
}

impl FileSystem {
    fn new(dir: &Path) -> Result<Self> {
        let (file, mount) = (dir.join("file-system"), dir.join("mount"));
        fs::File::create(&file)?.set_len(FILE_SYSTEM_BYTES)?;
        fs::create_dir_all(&mount)?;
        run(quiet("mkfs.ext4").arg("-q").arg(&file))?;
        run(quiet("mount").args(["-o", "loop"]).args([&file, &mount]))?;
        Ok(Self { file, mount })
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        // The next one, or the removal of the directory, reports what is left.
        let _ = quiet("umount").arg(&self.mount).status();
        let _ = fs::remove_file(&self.file);
    }
}
