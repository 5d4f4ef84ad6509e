//! Measures pulls and pushes of a hundred layers against skopeo, at a registry of this machine.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use layer::{Layer, Meta};

use crate::Missing;
use crate::children::{Usage, usage};
use crate::markdown::{cells, explained_table};
use crate::sample::Sample;

/// The number of layers, and the files of each.
const LAYERS: usize = 100;
const FILES: usize = 20;

/// The bytes of a file: 600 kB per layer.
const FILE_BYTES: usize = 30_000;

const EXPLANATION: &str = "A hundred layers of 20 files and 600 kB each are in Debian's `docker-registry` on \
    this machine, as `layered push` has written them. `skopeo` copies them into OCI layouts: once per layer, or all \
    of them as one image of a hundred layers in one call. It unpacks nothing. All programs write to the file system \
    of the head. The second pull and push find everything in its place.\n\n";

/// What is compared.
#[derive(Debug, Default)]
struct Samples {
    pull: Sample,
    copies: Sample,
    copy: Sample,
    again: Sample,
    push: Sample,
    push_again: Sample,
}

pub(crate) fn measured(rounds: usize, missing: &mut Missing) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let registry = match Registry::start(dir.path()) {
        Ok(registry) => registry,
        Err(error) => {
            missing.add("registry", &format!("{error:#}"));
            return Ok(String::new());
        }
    };
    let layers = make_layers(&dir.path().join("source"))?;
    let names: Vec<_> = layers.iter().map(|layer| layer.name().to_string_lossy().into_owned()).collect();
    let farm = registry.repository("farm");
    run(layered().arg("push").args(layers.iter().map(Layer::path)).arg(&farm))?;
    let image = format!("{}:1", registry.repository("image"));
    let list = dir.path().join("layers");
    fs::write(&list, layers.iter().map(|layer| format!("{}\n", layer.path().display())).collect::<String>())?;
    run(layered().args(["export", &image, "--zip", "zstd", "--layers-from"]).arg(&list))?;

    let mut samples = Samples::default();
    // One call of skopeo per layer takes longer than all else together.
    for round in 0..rounds.min(10) {
        let here = dir.path().join(format!("round-{round}"));
        let store = here.join("store");
        fs::create_dir_all(&store)?;
        let pull = || run(layered().arg("pull").arg(&store).arg(&farm).args(&names));
        samples.pull.time(pull)?;
        samples.again.time(pull)?;
        let layout = |name: &str| format!("oci:{}", here.join(name).display());
        samples.copies.time(|| {
            names.iter().try_for_each(|name| copy(&format!("{farm}:{name}"), &format!("{}:{name}", layout("many"))))
        })?;
        samples.copy.time(|| copy(&image, &format!("{}:1", layout("one"))))?;
        // Neither the registry nor the layers know of an earlier push.
        for layer in &layers {
            let _ = fs::remove_file(layer.path().join("oci.json"));
        }
        let other = registry.repository(&format!("round-{round}"));
        let push = || run(layered().arg("push").args(layers.iter().map(Layer::path)).arg(&other));
        samples.push.time(push)?;
        samples.push_again.time(push)?;
        fs::remove_dir_all(&here)?;
    }
    let store = dir.path().join("peak");
    fs::create_dir(&store)?;
    let pulled = usage(layered().arg("pull").arg(&store).arg(&farm).args(&names))?;
    let copied = usage(&skopeo_copy(&image, &format!("oci:{}:1", dir.path().join("copy").display())))?;
    let Samples { pull, copies, copy, again, push, push_again } = &samples;
    let per_layer = |sample: &Sample| {
        format!("{:.2} ms ({:.2})", sample.median() * 1e3 / LAYERS as f64, sample.minimum() * 1e3 / LAYERS as f64)
    };
    let row = |what: &str, sample: &Sample, ratios: [String; 2]| {
        let [copies, copy] = ratios;
        vec![what.to_string(), sample.milliseconds(), per_layer(sample), copies, copy]
    };
    let ratios = |sample: &Sample| [sample.ratio(copies), sample.ratio(copy)];
    let none = || ["–".to_string(), "–".to_string()];
    let rows = [
        cells(["", "time", "per layer", "/ 100 × `skopeo copy`", "/ one `skopeo copy`"]),
        row("`layered pull` of 100 layers", pull, ratios(pull)),
        row("the second one", again, ratios(again)),
        row("100 × `skopeo copy`", copies, none()),
        row("one `skopeo copy` of one image", copy, none()),
        row("`layered push` of 100 layers", push, none()),
        row("the second one", push_again, none()),
    ];
    let text = explained_table("Layers in a registry", EXPLANATION, &rows);
    let used = |used: Usage| {
        format!(
            "{:.0} ms of processor time and {} kB of memory",
            used.processor.as_secs_f64() * 1e3,
            used.peak_kilobytes
        )
    };
    let (pulled, copied) = (used(pulled), used(copied));
    Ok(format!(
        "{text}\nWithout the registry's own part, `layered pull` uses {pulled}, and one `skopeo copy` of one image {copied}.\n"
    ))
}

fn layered() -> Command {
    Command::new(env!("CARGO_BIN_EXE_layered"))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn copy(from: &str, to: &str) -> Result<()> {
    run(&mut skopeo_copy(from, to))
}

fn skopeo_copy(from: &str, to: &str) -> Command {
    let mut command = Command::new("skopeo");
    command.args(["copy", "--quiet", "--src-tls-verify=false", "--preserve-digests", from, to]);
    command
}

/// Makes the layers from the bytes of programs, which a compressor makes smaller as it does most
/// layers.
fn make_layers(store: &Path) -> Result<Vec<Layer>> {
    let mut programs = Vec::new();
    for entry in fs::read_dir("/usr/bin")? {
        let path = entry?.path();
        if programs.len() < LAYERS * FILES * FILE_BYTES && path.is_file() {
            programs.extend(fs::read(path)?);
        }
    }
    ensure!(programs.len() >= LAYERS * FILES * FILE_BYTES, "/usr/bin has too few programs");
    let mut parts = programs.chunks_exact(FILE_BYTES);
    (0..LAYERS)
        .map(|number| {
            let layer = Layer::at(store.join(format!("layer-{number}")));
            fs::create_dir_all(layer.fs().join("usr/lib"))?;
            for file in 0..FILES {
                fs::write(layer.fs().join(format!("usr/lib/{file}")), parts.next().unwrap_or_default())?;
            }
            layer.write_meta(&Meta::new("base", std::time::SystemTime::UNIX_EPOCH))?;
            Ok(layer)
        })
        .collect()
}

/// A registry without TLS, which ends when it is dropped.
#[derive(Debug)]
struct Registry {
    server: Child,
    address: String,
}

impl Registry {
    fn start(dir: &Path) -> Result<Self> {
        let config: PathBuf = dir.join("config.yml");
        let data = dir.join("registry");
        let text = format!(
            "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n\
             http: {{addr: '127.0.0.1:0', secret: bench}}\n",
            data.display()
        );
        fs::write(&config, text)?;
        let mut command = Command::new("docker-registry");
        command
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(File::create("/dev/null")?)
            .stderr(Stdio::piped());
        let mut server = command.spawn().context("docker-registry is not installed")?;
        let mut log = BufReader::new(server.stderr.take().context("it has no log")?);
        let mut line = String::new();
        while log.read_line(&mut line)? > 0 {
            if let Some((_, rest)) = line.split_once("listening on ") {
                let address = rest.split([',', '"']).next().unwrap_or_default().trim().to_string();
                std::thread::spawn(move || log.read_to_end(&mut Vec::new()));
                return Ok(Self { server, address });
            }
            line.clear();
        }
        anyhow::bail!("docker-registry does not start")
    }

    fn repository(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
