//! Measures the memory of runs, its growth over many runs, and the effect of the caller's memory on
//! the time of a run. [`costs`](crate::costs) measures the other times.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use runner::Cleanup;

use crate::LAYERS;
use crate::bare::{Bare, Configuration, privately};
use crate::markdown::{cells, explained_table, table};
use crate::places::Places;
use crate::sample::Sample;
use crate::subjects::{RUNTIMES, command, in_process, is_installed, template};

/// The numbers of runs after which the resources of the process are measured.
const RUNS: [usize; 2] = [100, 2_000];

/// The resources of a process, from proc(5).
struct Resources {
    threads: usize,
    descriptors: usize,
    resident_kilobytes: usize,
}

/// The number of concurrent runs when their average memory is measured.
const SEVERAL: usize = 10;

/// The command: it prints a line, and then waits for the end of its input.
const WAITS: [&str; 3] = ["/bin/sh", "-c", "echo; read line"];

const EXPLANATION: &str = "\
The figures are those of all processes of a run but the command, while the command waits. RSS is resident memory (`VmRSS`). PSS \
(`Pss`) divides a page by the number of processes that map it. Ten concurrent runs share the pages of a program's file, which are in \
the page cache. The anonymous part (`Anonymous`) is what each run adds to the memory of the machine. Programs such as top(1) show RSS. \
`layered run` executes crun from a sealed copy of half a megabyte. No figure includes that copy.

";

/// Measures the resident memory of `layered run` and of the bare runtime while a command runs.
pub(crate) fn in_flight(places: &Places) -> Result<String> {
    let mut rows =
        vec![cells(["", "layers", "processes", "RSS", "PSS", "anonymous", "RSS of each of ten", "PSS of each of ten"])];
    let mut peak = 0;
    for runtime in RUNTIMES.into_iter().filter(|runtime| is_installed(runtime)) {
        for layers in [30, LAYERS[LAYERS.len() - 1]] {
            let commands = (0..SEVERAL).map(|_| command(places, runtime, layers, &WAITS));
            let resident = Resident::of_one_and_of_several(commands)?;
            peak = peak.max(resident.peak);
            rows.push(resident.row(&format!("`layered run`, {runtime}"), &layers.to_string()));
        }
        let bundles = (0..SEVERAL).map(|_| Bare::prepare(places, runtime, &template(&WAITS)?, Configuration::Same));
        let bundles = bundles.collect::<Result<Vec<_>>>()?;
        let resident = privately(runtime, || Resident::of_one_and_of_several(bundles.iter().map(Bare::command)))?;
        bundles.into_iter().try_for_each(Bare::close)?;
        rows.push(resident.row(&format!("bare {runtime}"), "–"));
    }
    let text = explained_table("Memory", EXPLANATION, &rows);
    Ok(format!("{text}\nPeak resident memory of the process `layered run`: {peak} kB\n"))
}

/// The memory of a run.
struct Resident {
    processes: Vec<String>,
    one: Kilobytes,
    /// The average of several concurrent runs.
    of_several: Kilobytes,
    peak: usize,
}

#[derive(Debug, Default, Clone, Copy)]
struct Kilobytes {
    resident: usize,
    proportional: usize,
    anonymous: usize,
}

impl Resident {
    /// Starts the first of `commands` and measures it, then starts the others and measures all.
    fn of_one_and_of_several(commands: impl Iterator<Item = Command>) -> Result<Self> {
        let (mut running, mut first) = (Vec::new(), None);
        for mut command in commands {
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            BufReader::new(child.stdout.take().context("a pipe")?).read_line(&mut String::new())?;
            running.push(child);
            if first.is_none() {
                // The processes that start the container can run for a moment longer.
                std::thread::sleep(Duration::from_millis(500));
                first = Some(resident(&running[0])?);
            }
        }
        std::thread::sleep(Duration::from_millis(500));
        let all = running.iter().map(|child| Ok(resident(child)?.1)).collect::<Result<Vec<_>>>()?;
        for mut child in running {
            drop(child.stdin.take());
            // `read` fails at the end of its input.
            let code = child.wait()?.code();
            ensure!(code == Some(1), "the command ended with {code:?} instead of 1");
        }
        let (processes, one, peak) = first.context("the list of commands is empty")?;
        let mean = |of: fn(&Kilobytes) -> usize| all.iter().map(of).sum::<usize>() / all.len();
        let of_several = Kilobytes {
            resident: mean(|kb| kb.resident),
            proportional: mean(|kb| kb.proportional),
            anonymous: mean(|kb| kb.anonymous),
        };
        Ok(Self { processes, one, of_several, peak })
    }

    fn row(&self, name: &str, layers: &str) -> Vec<String> {
        let Self { one, of_several, .. } = self;
        let figures = [one.resident, one.proportional, one.anonymous, of_several.resident, of_several.proportional];
        let mut row = vec![name.into(), layers.into(), self.processes.join(", ")];
        row.extend(figures.map(|kilobytes| format!("{:.2} MB", kilobytes as f64 / 1024.0)));
        row
    }
}

/// Returns the names and the memory of a process and its descendants, and the peak of the process.
/// The command, which is `sh`, does not count.
fn resident(child: &Child) -> Result<(Vec<String>, Kilobytes, usize)> {
    let (mut processes, mut sum, mut peak) = (Vec::new(), Kilobytes::default(), 0);
    let mut family = vec![child.id()];
    while let Some(pid) = family.pop() {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let name = status
            .lines()
            .next()
            .and_then(|line| line.split('\t').nth(1))
            .context("cannot find the name of a process")?;
        if name == "sh" {
            continue;
        }
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        sum.resident += number(&status, "VmRSS:")?;
        sum.proportional += number(&rollup, "Pss:")?;
        sum.anonymous += number(&rollup, "Anonymous:")?;
        if pid == child.id() {
            peak = number(&status, "VmHWM:")?;
        }
        processes.push(format!("{name} {:.2}", number(&status, "VmRSS:")? as f64 / 1024.0));
        family.extend(children(pid)?);
    }
    Ok((processes, sum, peak))
}

/// Returns the children of a process. Some kernels have no list of them in `/proc/PID/task`.
fn children(parent: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that has ended since does not count.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if number(&status, "PPid:").is_ok_and(|ppid| ppid == parent as usize) {
            children.push(pid);
        }
    }
    Ok(children)
}

/// Returns the number after `name` in a file of proc(5).
fn number(text: &str, name: &str) -> Result<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("cannot find {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Measures the resources of this process after some runs and after many. They must not grow.
pub(crate) fn steady(places: &Places, runtime: &str) -> Result<String> {
    let template = template(&["/bin/true"])?;
    let mut rows = vec![cells(["runs", "threads", "descriptors", "resident memory"])];
    let mut done = 0;
    for runs in RUNS {
        for _ in done..runs {
            in_process(places, runtime, 30, &template, Cleanup::Behind)?.upper.close()?;
        }
        done = runs;
        // The kernel lists a joined thread for a moment longer.
        let mut resources = Resources::now()?;
        for _ in 0..100 {
            resources.threads = resources.threads.min(Resources::now()?.threads);
        }
        rows.push(vec![
            runs.to_string(),
            resources.threads.to_string(),
            resources.descriptors.to_string(),
            format!("{} kB", resources.resident_kilobytes),
        ]);
    }
    Ok(table(&format!("Many runs in one process, {runtime}, 30 layers"), &rows))
}

impl Resources {
    fn now() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let descriptors = fs::read_dir("/proc/self/fd")?.count();
        Ok(Self { threads: number(&status, "Threads:")?, descriptors, resident_kilobytes: number(&status, "VmRSS:")? })
    }
}

/// Compares runs from a caller with and without 1 GiB of resident memory.
pub(crate) fn large_caller(places: &Places, runtime: &str, rounds: usize) -> Result<String> {
    let template = template(&["/bin/true"])?;
    let [mut small, mut large] = [Sample::default(), Sample::default()];
    let once = || in_process(places, runtime, 30, &template, Cleanup::Awaited);
    for _ in 0..rounds {
        // As in `costs`, the first process after a pause waits. Filling the memory is such a pause.
        drop(once()?);
        drop(small.time(once)?);
        let memory = std::hint::black_box(vec![1_u8; 1 << 30]);
        drop(once()?);
        drop(large.time(once)?);
        drop(memory);
    }
    let head = cells(["small caller", "caller with 1 GiB resident", "ratio"]);
    let rows = [head, vec![small.milliseconds(), large.milliseconds(), large.ratio(&small)]];
    Ok(table(&format!("A large caller, {runtime}, 30 layers"), &rows))
}
