//! A registry and Slurm with some nodes on this machine, as `scripts/cluster` starts them, and the
//! pipes by which a test follows the commands that run there.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::processes::Running;
use crate::{FOR_EVER, find, layered};

/// The time between two questions. Slurm has no event that a program could wait for: `sbatch
/// --wait` and `strigger` ask the controller every few seconds, too.
const AGAIN: Duration = Duration::from_millis(200);

/// A cluster. Its processes end when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    /// Dropped before the script, which ends with its input.
    commands: ChildStdin,
    script: Script,
    environment: Vec<(String, String)>,
}

/// The running `scripts/cluster`. It is waited for when it is dropped.
#[derive(Debug)]
struct Script(Running);

/// A job, as `squeue` describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The number.
    pub id: u32,
    /// The layer: the name of the job without `layer-`.
    pub layer: String,
    /// `PENDING`, `RUNNING`, `COMPLETED` or another state of squeue(1).
    pub state: String,
    /// How often it was put back into the queue.
    pub restarts: u32,
    /// The node on which it runs or has ended. Empty if there is none.
    pub node: String,
}

impl Cluster {
    /// Starts a cluster in `dir`.
    ///
    /// # Panics
    /// If Slurm or the registry is missing or does not start: a test that cannot run fails.
    pub fn start(dir: &Path, nodes: u32) -> Self {
        for program in ["slurmctld", "slurmd", "sbatch", "munged", "docker-registry"] {
            find(program);
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/cluster");
        let mut command = Command::new(script);
        command.arg(dir).arg(nodes.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = Script(Running::start(&mut command));
        let commands = script.0.input();
        assert_eq!(script.0.line(), "ready", "the cluster does not start; its logs are in {}", dir.display());
        let environment = fs::read_to_string(dir.join("env")).unwrap();
        let variables = environment.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        let mut environment: Vec<_> = variables.map(|(name, value)| (name.into(), value.into())).collect();
        let programs = Path::new(layered().get_program()).parent().unwrap().to_path_buf();
        environment.push(("PATH".into(), format!("{}:{}", programs.display(), std::env::var("PATH").unwrap())));
        Self { dir: dir.into(), script, commands, environment }
    }

    /// Adds a variable to the environment of [commands](Self::command) and so of jobs.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.environment.push((name.into(), value.to_string()));
    }

    /// Returns a variable of the environment of jobs.
    ///
    /// # Panics
    /// If it is not there.
    pub fn get(&self, name: &str) -> &str {
        &self.environment.iter().rfind(|(known, _)| known == name).expect("a known variable").1
    }

    /// Returns the disk of a node.
    pub fn disk(&self, node: &str) -> PathBuf {
        self.dir.join("nodes").join(node).join("disk")
    }

    /// Kills a node with all its processes, or the registry.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self, name: &str) {
        self.tell("kill", "killed", name);
    }

    /// Starts a node or the registry again, and waits until it is up.
    ///
    /// # Panics
    /// If it runs already, or does not start.
    pub fn restart(&mut self, name: &str) {
        self.tell("start", "started", name);
    }

    fn tell(&mut self, verb: &str, done: &str, name: &str) {
        writeln!(self.commands, "{verb} {name}").unwrap();
        assert_eq!(self.script.0.line(), format!("{done} {name}"));
    }

    /// Returns a command with the environment of jobs.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.envs(self.environment.iter().cloned());
        command
    }

    /// Runs a command with the environment of jobs. Returns its standard output.
    ///
    /// # Panics
    /// If it fails.
    pub fn output(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a shell script on a node, and returns its standard output.
    ///
    /// # Panics
    /// If it fails.
    pub fn on(&self, node: &str, script: &str) -> String {
        self.output("srun", &["--quiet", "--nodelist", node, "bash", "-euc", script])
    }

    /// Submits a plan by `docs/cluster/submit`, with options of `layered run`. Returns the numbers
    /// of the jobs.
    ///
    /// # Panics
    /// If a job is refused.
    pub fn submit(&self, plan: &str, options: &[&str]) -> Vec<String> {
        let file = self.dir.join("plan");
        fs::write(&file, plan).unwrap();
        let submit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cluster/submit");
        let mut arguments = vec![file.to_str().unwrap()];
        arguments.extend(options);
        let submitted = self.output(submit.to_str().unwrap(), &arguments);
        submitted.lines().map(|line| line.split_once(' ').expect("a number and a name").0.into()).collect()
    }

    /// Returns all jobs.
    ///
    /// # Panics
    /// If the controller does not answer.
    pub fn jobs(&self) -> Vec<Job> {
        let format = "JobID:|,Name:|,State:|,RestartCnt:|,NodeList:|";
        let listed = self.output("squeue", &["--noheader", "--states=all", "--Format", format]);
        let job = |line: &str| {
            let mut words = line.split('|').map(|word| word.trim().to_string());
            let mut word = || words.next().expect("five columns");
            let (id, name, state, restarts, node) = (word(), word(), word(), word(), word());
            let layer = name.trim_start_matches("layer-").into();
            Job { id: id.parse().unwrap(), layer, state, restarts: restarts.parse().unwrap(), node }
        };
        listed.lines().map(job).collect()
    }

    /// Waits until the jobs are as `is_so` wants them. Returns them.
    ///
    /// # Panics
    /// If that never happens.
    pub fn until(&self, what: &str, is_so: impl Fn(&[Job]) -> bool) -> Vec<Job> {
        let deadline = Instant::now() + FOR_EVER / 2;
        loop {
            let jobs = self.jobs();
            if is_so(&jobs) {
                return jobs;
            }
            assert!(Instant::now() < deadline, "never {what}: {jobs:#?}\n{}", self.logs());
            std::thread::sleep(AGAIN);
        }
    }

    /// Waits until all jobs have ended. Returns them.
    ///
    /// # Panics
    /// If one never ends.
    pub fn until_all_ended(&self) -> Vec<Job> {
        self.until("an end", |jobs| jobs.iter().all(Job::has_ended))
    }

    /// Returns the logs of all jobs.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn logs(&self) -> String {
        let mut logs = String::new();
        for entry in fs::read_dir(self.get("FARM_LOGS")).unwrap() {
            let path = entry.unwrap().path();
            logs += &format!("{}:\n{}\n", path.display(), String::from_utf8_lossy(&fs::read(&path).unwrap()));
        }
        logs
    }
}

impl Job {
    /// Whether the job has ended for good.
    pub fn has_ended(&self) -> bool {
        ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY"].contains(&&*self.state)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let status = self.0.end();
            assert!(status.success(), "{status}");
        }
    }
}

/// A FIFO by which commands tell the test that they have begun, or by which the test lets them go
/// on.
#[derive(Debug)]
pub struct Fifo {
    file: File,
    lines: VecDeque<String>,
    rest: Vec<u8>,
}

impl Fifo {
    /// Makes a FIFO. It is open for reading and for writing, so no command waits for the other end.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn make(path: &Path) -> Self {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let file = File::options().read(true).write(true).custom_flags(nix::libc::O_CLOEXEC).open(path).unwrap();
        Self { file, lines: VecDeque::new(), rest: Vec::new() }
    }

    /// Lets one command go on that reads a line of the FIFO.
    ///
    /// # Panics
    /// If the FIFO is full.
    pub fn open_for_one(&mut self) {
        self.file.write_all(b"go\n").unwrap();
    }

    /// Lets all commands go on that read a line of the FIFO, now or later.
    ///
    /// # Panics
    /// If the FIFO is full.
    pub fn open_for_all(&mut self) {
        self.file.write_all(&b"go\n".repeat(100)).unwrap();
    }

    /// Waits for the next line that a command writes.
    ///
    /// # Panics
    /// If none comes.
    pub fn line(&mut self) -> String {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return line;
            }
            assert!(self.read(FOR_EVER / 2), "no command has written a line");
        }
    }

    /// Returns the lines that commands have written until now.
    pub fn lines(&mut self) -> Vec<String> {
        while self.read(Duration::ZERO) {}
        self.lines.drain(..).collect()
    }

    /// Reads what is there. Returns whether there was anything.
    fn read(&mut self, patience: Duration) -> bool {
        let patience = Timespec::try_from(patience).unwrap();
        if poll(&mut [PollFd::new(&self.file, PollFlags::IN)], Some(&patience)).unwrap() == 0 {
            return false;
        }
        let mut bytes = [0; 4096];
        let length = self.file.read(&mut bytes).unwrap();
        self.rest.extend(&bytes[..length]);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            self.lines.push_back(String::from_utf8(line[..end].into()).unwrap());
        }
        true
    }
}
