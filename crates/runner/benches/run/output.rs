//! Measures the throughput of a command's output against cat(1). [`throughput`](crate::throughput)
//! measures runs per second.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use container::{Output, Runtime};
use runner::Options;

use crate::bare::{Bare, Configuration, privately};
use crate::markdown::{cells, explained_table};
use crate::places::Places;
use crate::sample::Sample;
use crate::subjects::{RUNTIMES, is_installed, quiet, run, template};

const BYTES: u64 = 1 << 30;

/// The writer, in the container and on the host: busybox.
const WRITER: [&str; 5] = ["/bin/dd", "if=/dev/zero", "bs=64k", "count=16384", "status=none"];

/// The destination of the output.
#[derive(Clone, Copy)]
enum Way {
    File,
    Callback,
    Pipe,
}

const WAYS: [(Way, &str); 3] = [
    (Way::File, "`Output::File`, as for `layered run --output`"),
    (Way::Callback, "`Output::Callback` that counts bytes"),
    (Way::Pipe, "`Output::Inherit` or `File` with a pipe to `cat >/dev/null`"),
];

const EXPLANATION: &str = "\
The command is busybox's `dd`, which writes 1 GiB to standard output in pieces of 64 KiB. For `cat`, the same program runs on the host \
and writes through a pipe to `cat`. That writes to a file on the same file system, or for the other destinations to `/dev/null`. The \
times do not include the start and the end of the container: each is the difference to a command that writes nothing, measured in the \
same round.

";

pub(crate) fn measured(places: &Places, rounds: usize) -> Result<String> {
    let mut rows = vec![cells(["runtime", "to", "`cat`", "`run` / `cat`", "bare / `cat`"])];
    for runtime in RUNTIMES.into_iter().filter(|runtime| is_installed(runtime)) {
        for (way, name) in WAYS {
            let [mut cat, mut ours, mut bare] = [const { Sample(Vec::new()) }; 3];
            for round in 0..rounds.min(7) {
                for subject in 0..3 {
                    match (round + subject) % 3 {
                        0 => cat.push(by_cat(places, way)?),
                        1 => ours.push(beyond_nothing(|writer| by_run(places, runtime, way, writer))?),
                        _ => bare.push(beyond_nothing(|writer| by_bare(places, runtime, way, writer))?),
                    }
                }
            }
            rows.push(vec![
                runtime.into(),
                name.into(),
                cat.milliseconds(),
                ours.ratio(&cat),
                // The bare runtime has no callback.
                if matches!(way, Way::Callback) { "–".into() } else { bare.ratio(&cat) },
            ]);
        }
    }
    Ok(explained_table("Output", EXPLANATION, &rows))
}

/// Returns how much longer the writer takes than a command that writes nothing.
fn beyond_nothing(mut work: impl FnMut(&[&str]) -> Result<Duration>) -> Result<Duration> {
    let nothing = work(&["/bin/true"])?;
    Ok(work(&WRITER)?.saturating_sub(nothing))
}

fn by_cat(places: &Places, way: Way) -> Result<Duration> {
    let dir = places.new_dir()?;
    let path = dir.path().join("log");
    let file = File::create(if matches!(way, Way::File) { &path } else { Path::new("/dev/null") })?;
    let start = Instant::now();
    let mut writer = Command::new(places.root().join("bin/busybox"))
        .arg("dd")
        .args(&WRITER[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let pipe = writer.stdout.take().context("a pipe")?;
    let status = Command::new("cat").stdin(pipe).stdout(file).status()?;
    ensure!(status.success() && writer.wait()?.success(), "{status}");
    let time = start.elapsed();
    ensure!(!matches!(way, Way::File) || path.metadata()?.len() == BYTES, "cat did not write all bytes");
    Ok(time)
}

fn by_run(places: &Places, runtime: &str, way: Way, writer: &[&str]) -> Result<Duration> {
    let dir = places.new_dir()?;
    let path = dir.path().join("log");
    let (mut count, mut reader) = (0, None);
    let output = match way {
        Way::File => Output::File(File::create(&path)?),
        Way::Callback => Output::callback(|piece| count += piece.len() as u64),
        Way::Pipe => Output::File(pipe_to_cat(&mut reader)?),
    };
    let template = template(writer)?;
    let options = Options::new().scratch(places.scratch()).runtime(Runtime::new(runtime)).stdout(output);
    let start = Instant::now();
    let report = runner::run(&places.base, &places.layers[..1], &template, options)?;
    if let Some(mut reader) = reader {
        reader.wait()?;
    }
    let time = start.elapsed();
    ensure!(report.status.success() && report.output_error.is_none(), "{report:?}");
    report.upper.close()?;
    let written = if matches!(way, Way::File) { path.metadata()?.len() } else { count };
    ensure!(writer.len() == 1 || matches!(way, Way::Pipe) || written == BYTES, "{written} of {BYTES} bytes arrived");
    Ok(time)
}

fn by_bare(places: &Places, runtime: &str, way: Way, writer: &[&str]) -> Result<Duration> {
    let dir = places.new_dir()?;
    let mut reader = None;
    let output = match way {
        Way::File => File::create(dir.path().join("log"))?,
        Way::Callback => return Ok(Duration::ZERO),
        Way::Pipe => pipe_to_cat(&mut reader)?,
    };
    let bare = Bare::prepare(places, runtime, &template(writer)?, Configuration::Same)?;
    let time = privately(runtime, || {
        let start = Instant::now();
        // This statement also drops the command, which closes its end of the pipe.
        run(bare.command().stdout(output))?;
        if let Some(mut reader) = reader {
            reader.wait()?;
        }
        Ok(start.elapsed())
    })?;
    bare.close()?;
    Ok(time)
}

fn pipe_to_cat(reader: &mut Option<Child>) -> Result<File> {
    let mut child = quiet("cat").stdin(Stdio::piped()).spawn()?;
    let pipe = child.stdin.take().context("a pipe")?;
    *reader = Some(child);
    Ok(File::from(std::os::fd::OwnedFd::from(pipe)))
}
