//! Measures build steps: a trivial command over a stack, whose result is kept as one more layer.
//! [`costs`](crate::costs) measures the run alone, and [`chart`](crate::chart) draws the steps per
//! second.

use std::fs::{self, DirBuilder, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use base64::Engine;
use container::advanced::prepare_config;
use container::{Bundle, Overlay, Runtime, in_private_mount_namespace};
use layer::Layer;

use crate::bare::privately;
use crate::chart::Line;
use crate::markdown::{cells, explained_table};
use crate::places::Places;
use crate::sample::Sample;
use crate::subjects::{RUNTIMES, command, is_installed, quiet, run, template};
use crate::{LAYERS, Missing};

const EXPLANATION: &str = "\
A build step runs `/bin/true` over a stack and keeps the result as one more layer. `layered run --commit` is one process; its layer is \
durable when it ends. Buildah and Podman are three or four processes each (`from`, `run`, `commit`, `rm`, or `run`, `commit`, `rm`), on \
an image of the same layers in a storage of their own with the driver `overlay`; they make nothing durable. bubblewrap stacks the layers \
itself, and gets the same compiled seccomp filter. systemd-nspawn cannot stack layers: it runs in an overlay that layered's library \
mounts, and has its own filter. For both, keeping the result is a rename of the upper.

";

/// A program that makes build steps. It gets the number of layers, and returns the time of a step.
type Step<'a> = Box<dyn Fn(usize) -> Result<Duration> + 'a>;

pub(crate) fn measured(places: &Places, rounds: usize, missing: &mut Missing) -> Result<(String, Vec<Line>)> {
    let dir = places.new_dir()?;
    let storage = Storage { places, dir: dir.path() };
    let mut subjects: Vec<(String, Step<'_>)> = Vec::new();
    for runtime in RUNTIMES.into_iter().filter(|runtime| is_installed(runtime)) {
        subjects.push((format!("layered, {runtime}"), Box::new(move |layers| layered(places, runtime, layers))));
        let storage = &storage;
        subjects.push((format!("Buildah, {runtime}"), Box::new(move |layers| storage.buildah(runtime, layers))));
    }
    subjects.push(("Podman, runc".into(), Box::new(|layers| storage.podman(layers))));
    subjects.push(("bubblewrap".into(), Box::new(|layers| bubblewrap(places, layers))));
    subjects.push(("systemd-nspawn".into(), Box::new(|layers| nspawn(places, layers))));

    let mut rows = vec![cells(["", "layers", "a step", "steps per second", "/ `layered`, same runtime or runc"])];
    let mut lines: Vec<Line> =
        subjects.iter().map(|(name, _)| Line { name: name.clone(), points: Vec::new() }).collect();
    for layers in LAYERS {
        if let Err(error) = storage.add_image(layers) {
            missing.add(&format!("Buildah and Podman, {layers} layers"), &format!("{error:#}"));
        }
        let mut samples = vec![Some(Sample::default()); subjects.len()];
        for round in 0..rounds.clamp(2, 7) {
            for ((name, step), sample) in subjects.iter().zip(&mut samples) {
                let Some(times) = sample else { continue };
                // A step that syncs must not write what the step of another program has left to
                // write.
                rustix::fs::syncfs(File::open(dir.path())?)?;
                match step(layers) {
                    // The first round only fills caches.
                    Ok(time) if round > 0 => times.push(time),
                    Ok(_) => {}
                    Err(error) => {
                        missing.add(&format!("a build step with {name}, {layers} layers"), &format!("{error:#}"));
                        *sample = None;
                    }
                }
            }
        }
        for (index, (name, _)) in subjects.iter().enumerate() {
            let Some(times) = &samples[index] else { continue };
            let is_peer = |(other, _): &&(String, Step<'_>)| {
                let runtime = name.split(", ").nth(1).unwrap_or("runc");
                **other == format!("layered, {runtime}")
            };
            let ours = subjects.iter().enumerate().find(|(_, subject)| is_peer(subject)).map(|(index, _)| index);
            let ratio = ours.and_then(|ours| samples[ours].as_ref()).map(|ours| times.ratio(ours));
            rows.push(vec![
                name.clone(),
                layers.to_string(),
                times.milliseconds(),
                format!("{:.1}", 1.0 / times.median()),
                ratio.unwrap_or_default(),
            ]);
            lines[index].points.push((layers, 1.0 / times.median()));
        }
    }
    Ok((explained_table("Build steps", EXPLANATION, &rows), lines))
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

fn layered(places: &Places, runtime: &str, layers: usize) -> Result<Duration> {
    let store = places.new_dir()?;
    let mut command = command(places, runtime, layers, &["/bin/true"]);
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    // Options come before the command.
    let (options, words) = arguments.split_at(arguments.len() - 2);
    let layer = store.path().join("layer");
    command = quiet(command.get_program());
    command.args(options).arg("--commit").arg(&layer).args(words);
    let time = timed(|| run(&mut command))?;
    ensure!(layer.join("layer.json").exists(), "there is no layer");
    Ok(time)
}

/// The storage of Buildah and Podman, with one image for each number of layers.
struct Storage<'a> {
    places: &'a Places,
    dir: &'a Path,
}

impl Storage<'_> {
    /// Writes a stack as an image, and adds it to the storage.
    fn add_image(&self, layers: usize) -> Result<()> {
        let image = format!("oci:{}:n{layers}", self.dir.join("image").display());
        let mut export = quiet(env!("CARGO_BIN_EXE_layered"));
        export.args(["export", "--zip", "none", "--base"]).arg(self.places.base.path());
        for layer in &self.places.layers[..layers] {
            export.arg("--layer").arg(layer.path());
        }
        run(export.arg(&image))?;
        // buildah(1) would make the image's name of the directory's.
        let storage = format!("overlay@{}+{}", self.dir.join("storage").display(), self.dir.join("run").display());
        run(quiet("skopeo")
            .args(["copy", "--quiet", &image])
            .arg(format!("containers-storage:[{storage}]{}", name(layers))))
    }

    fn tool(&self, program: &str) -> Command {
        let mut command = quiet(program);
        command.arg("--root").arg(self.dir.join("storage")).arg("--runroot").arg(self.dir.join("run"));
        command.args(["--storage-driver", "overlay"]);
        command
    }

    fn output(&self, command: &mut Command) -> Result<String> {
        let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8(output.stdout)?)
    }

    fn buildah(&self, runtime: &str, layers: usize) -> Result<Duration> {
        privately(runtime, || {
            let start = Instant::now();
            let made = self.output(self.tool("buildah").args(["from", "--pull-never", &name(layers)]))?;
            let container = made.trim();
            let isolation = ["run", "--isolation", "oci", "--network", "none", "--runtime", runtime];
            run(self.tool("buildah").args(isolation).args([container, "/bin/true"]))?;
            let image = self.output(self.tool("buildah").args(["commit", "--quiet", container]))?;
            run(self.tool("buildah").args(["rm", container]))?;
            let time = start.elapsed();
            run(self.tool("buildah").args(["rmi", "--force", image.trim()]))?;
            Ok(time)
        })
    }

    fn podman(&self, layers: usize) -> Result<Duration> {
        let start = Instant::now();
        let mut command = self.tool("podman");
        command.args(["--runtime", "runc", "run", "--quiet", "--pull", "never", "--name", "step"]);
        // These limits need no capability.
        command.args(["--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
        run(command.args([&name(layers), "/bin/true"]))?;
        let image = self.output(self.tool("podman").args(["commit", "--quiet", "step"]))?;
        run(self.tool("podman").args(["rm", "step"]))?;
        let time = start.elapsed();
        run(self.tool("podman").args(["rmi", "--force", image.trim()]))?;
        Ok(time)
    }
}

impl Drop for Storage<'_> {
    fn drop(&mut self) {
        // The library of both mounts this directory on itself. If it has not, there is nothing to
        // unmount.
        let _ = nix::mount::umount(&self.dir.join("storage/overlay"));
    }
}

fn name(layers: usize) -> String {
    format!("localhost/layers:n{layers}")
}

/// Returns the program and first arguments of bubblewrap. `LAYERED_BWRAP` can name a newer one than
/// the machine has, with words between blanks.
pub(crate) fn bubblewrap_program() -> Vec<String> {
    let words = std::env::var("LAYERED_BWRAP").unwrap_or_else(|_| "bwrap".into());
    words.split(' ').map(String::from).collect()
}

/// Returns a bubblewrap that runs `/bin/true` over the layers with a seccomp filter, which is its
/// standard input.
pub(crate) fn bubblewrap_command(places: &Places, layers: usize, writable: Option<[&Path; 2]>) -> Result<Command> {
    let program = bubblewrap_program();
    let mut command = quiet(&program[0]);
    command.args(&program[1..]);
    let trees = [places.base.fs()].into_iter().chain(places.layers[..layers].iter().rev().map(Layer::fs));
    for tree in trees {
        command.arg("--overlay-src").arg(tree);
    }
    match writable {
        Some(dirs) => command.arg("--overlay").args(dirs).arg("/"),
        None => command.args(["--tmp-overlay", "/"]),
    };
    command.args(["--dev", "/dev", "--proc", "/proc", "--unshare-all", "--seccomp", "0", "/bin/true"]);
    command.stdin(File::open(filter(places)?)?);
    Ok(command)
}

/// Writes the compiled seccomp filter of a run, and returns the file.
fn filter(places: &Places) -> Result<PathBuf> {
    let file = places.root().with_file_name("filter");
    if !file.exists() {
        let dir = places.new_dir()?;
        let config = template(&["/bin/true"])?.instantiate(&places.root())?.resolve_user(dir.path())?;
        let config = prepare_config(&Runtime::new("crun"), config);
        Bundle::create(dir.path(), config.clone())?.write(&config)?;
        let config: serde_json::Value = serde_json::from_slice(&fs::read(dir.path().join("config.json"))?)?;
        let filter = config["annotations"]["run.oci.seccomp_bpf_data"].as_str().context("there is no filter")?;
        fs::write(&file, base64::engine::general_purpose::STANDARD.decode(filter).map_err(Error::msg)?)?;
    }
    Ok(file)
}

fn bubblewrap(places: &Places, layers: usize) -> Result<Duration> {
    let dir = places.new_dir()?;
    let [upper, work, layer] = ["upper", "work", "layer"].map(|name| dir.path().join(name));
    [&upper, &work].into_iter().try_for_each(|dir| DirBuilder::new().create(dir))?;
    let mut command = bubblewrap_command(places, layers, Some([&upper, &work]))?;
    timed(|| {
        run(&mut command)?;
        Ok(fs::rename(&upper, &layer)?)
    })
}

fn nspawn(places: &Places, layers: usize) -> Result<Duration> {
    let dir = places.new_dir()?;
    let [upper, work, merged, layer] = ["upper", "work", "merged", "layer"].map(|name| dir.path().join(name));
    [&upper, &work, &merged].into_iter().try_for_each(|dir| DirBuilder::new().create(dir))?;
    let trees = places.layers[..layers].iter().map(Layer::fs).chain([places.base.fs()]);
    let overlay = Overlay::new(trees).writable(&upper, &work);
    in_private_mount_namespace(|| {
        timed(|| {
            let mounted = overlay.mount(&merged)?;
            let mut command = quiet("systemd-nspawn");
            command.args(["--quiet", "--register=no", "--keep-unit", "--directory"]).arg(&merged).arg("/bin/true");
            run(&mut command)?;
            mounted.unmount()?;
            Ok(fs::rename(&upper, &layer)?)
        })
    })?
}
