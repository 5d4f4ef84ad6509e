//! The fixture of every test: a base, a store and a scratch directory, and the check that the runs
//! left nothing behind. `traces` finds mounts, cgroups and processes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use container::{CaptureLimit, Output, Runtime, Template, TemplateBuilder};
use layer::{Base, Layer};
use runner::{Options, Report};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tempfile::TempDir;

use crate::Traces;
use crate::run_names::RunNames;
use crate::tree::Snapshot;

/// A base with busybox, a store for layers and a scratch directory, all in one temporary directory.
///
/// When the fixture is dropped, it checks that its runs have left nothing and that its layers are
/// unchanged. It considers only runs whose directories are in its own directory; see
/// [`watch`](Self::watch) for other directories. So runs of other fixtures and of other programs do
/// not disturb it.
#[derive(Debug)]
pub struct Fixture {
    dir: TempDir,
    /// The path of `dir` without symbolic links.
    real: PathBuf,
    runs: RunNames,
    layers: Mutex<BTreeMap<PathBuf, Snapshot>>,
}

/// The runtimes with which every feature must work.
pub const RUNTIMES: [&str; 2] = ["runc", "crun"];

/// A limit for waiting. Every expected event happens much sooner, so a test that reaches the limit
/// has failed.
pub const FOR_EVER: Duration = Duration::from_secs(600);

/// Prints the numbers of the user, the group and the supplementary groups, and `HOME`.
pub const WHO: &str = "echo $(id -u) $(id -g) $(sed -n 's/^Groups:.//p' /proc/self/status) $HOME";

/// Prints a line and waits for signals. The shell runs its traps between two `wait`s.
pub const WAITS: &str = "echo begun; sleep 1000 & while :; do wait; done";

/// The applets in the base's `/bin`.
const APPLETS: [&str; 32] = [
    "cat", "chmod", "cp", "dd", "echo", "env", "false", "find", "grep", "head", "hostname", "id", "kill", "ln", "ls",
    "mkdir", "mknod", "mount", "mv", "pwd", "rm", "sed", "seq", "setsid", "sh", "sleep", "stat", "stty", "touch",
    "true", "umount", "wc",
];

impl Fixture {
    /// Makes the base, the store and the scratch directory.
    ///
    /// # Panics
    /// If the process is not root, or if runc or a static busybox is missing: a test that cannot
    /// run fails.
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests mount overlays and run containers: run them as root");
        find("runc");
        let dir = tempfile::tempdir().unwrap();
        // Only the run's own directories are private; layers are usually readable by others.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let root = dir.path().join("base/fs");
        for (path, mode) in [("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777)] {
            fs::create_dir_all(root.join(path)).unwrap();
            fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        copy_program(&find("busybox"), &root.join("bin/busybox"));
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let runs = RunNames::default();
        // The directory of a run with an `--upper` is beside that upper.
        runs.watch(dir.path());
        for path in ["scratch", "store"] {
            fs::create_dir(dir.path().join(path)).unwrap();
            runs.watch(&dir.path().join(path));
        }
        Self { real: fs::canonicalize(dir.path()).unwrap(), dir, runs, layers: Mutex::default() }
    }

    /// Also finds the cgroups of runs whose directories are in `dir`, as the calling thread sees
    /// that path. A test needs this for any scratch directory other than the fixture's own
    /// directory, [`scratch`](Self::scratch) and [`store`](Self::store). Mounts and processes are
    /// found by their paths, but cgroups are found by the names of the runs.
    ///
    /// # Panics
    /// If `dir` is not a directory.
    pub fn watch(&self, dir: &Path) {
        self.runs.watch(dir);
    }

    /// Also finds the cgroups of a container that has no run's directory.
    pub fn add_run(&self, name: &str) {
        self.runs.add(name);
    }

    /// Returns the traces of the fixture's runs.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn traces(&self) -> Traces {
        Traces::of(&self.real, &self.runs.until_now())
    }

    /// Puts `/bin/probe` into the base. `probe NUMBER ARGUMENTS…` makes any system call, and its
    /// exit status is the error.
    ///
    /// # Panics
    /// If there is no C compiler.
    pub fn add_probe(&self) {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/probe.c");
        let options =
            ["-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-O1", "-Wall", "-Werror", "-o"];
        let compiled = Command::new(find("cc"))
            .args(options)
            .arg(self.base().fs().join("bin/probe"))
            .arg(source)
            .output()
            .unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    }

    /// Makes a runtime that starts a container only when a line was written into a FIFO. Returns
    /// the paths of the runtime and of the FIFO.
    ///
    /// # Panics
    /// If the runtime is not installed.
    pub fn runtime_that_waits(&self, runtime: &str) -> (PathBuf, PathBuf) {
        let [waiting, fifo] = ["that-waits", "fifo"].map(|name| self.path().join(format!("{runtime}-{name}")));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let wait = format!("case \" $* \" in *' run '*) read line < {} ;; esac", fifo.display());
        write_script(&waiting, &format!("#!/bin/sh\n{wait}\nexec {} \"$@\"\n", find(runtime).display()));
        (waiting, fifo)
    }

    /// The fixture's own directory, for whatever the test needs.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The directory of the layers.
    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// The scratch directory, in which runs create their directories.
    pub fn scratch(&self) -> PathBuf {
        self.dir.path().join("scratch")
    }

    /// Opens the base.
    pub fn base(&self) -> Base {
        Base::open(self.dir.path().join("base")).unwrap()
    }

    /// Makes a layer whose tree `fill` creates. No test may change the tree afterwards.
    pub fn layer(&self, name: impl AsRef<Path>, fill: impl FnOnce(&Path)) -> Layer {
        let dir = self.store().join(name);
        fs::create_dir_all(dir.join("fs")).unwrap();
        fill(&dir.join("fs"));
        let layer = Layer::open(&dir).unwrap();
        self.made_layers().insert(dir.join("fs"), Snapshot::of_path(&layer.fs()).unwrap());
        layer
    }

    /// Makes a layer with the users `root` and `opam` (1000:1001) and the groups `opam`, `staff`
    /// (50) and `wheel` (10). `opam` is a member of `staff` and `wheel`.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn layer_with_users(&self) -> Layer {
        let passwd = "root:x:0:0::/root:/bin/sh\nopam:x:1000:1001::/home/opam:/bin/sh\n";
        let group = "opam:x:1001:\nstaff:x:50:root,opam\nwheel:x:10:opam\n";
        self.layer("users", |fs| {
            fs::create_dir(fs.join("etc")).unwrap();
            fs::write(fs.join("etc/passwd"), passwd).unwrap();
            fs::write(fs.join("etc/group"), group).unwrap();
        })
    }

    fn made_layers(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Snapshot>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `count` layers. Layer n has the files `/deps/<n>` and `/top`, and both contain n.
    pub fn numbered_layers(&self, count: usize) -> Vec<Layer> {
        let fill = |n: usize| {
            move |fs: &Path| {
                fs::create_dir(fs.join("deps")).unwrap();
                fs::write(fs.join("deps").join(n.to_string()), format!("{n}\n")).unwrap();
                fs::write(fs.join("top"), format!("{n}\n")).unwrap();
            }
        };
        (0..count).map(|n| self.layer(format!("numbered-{n:04}"), fill(n))).collect()
    }

    /// Options for a run in the fixture's scratch directory with runc. Both outputs are captured.
    pub fn options(&self) -> Options<'static> {
        Options::new()
            .scratch(self.scratch())
            .runtime(Runtime::default())
            .stdout(Output::Capture(CaptureLimit::default()))
            .stderr(Output::Capture(CaptureLimit::default()))
    }

    /// Runs a shell script over `layers` with the fixture's options.
    ///
    /// # Panics
    /// If the run returns an error.
    pub fn run(&self, layers: &[Layer], script: &str) -> Report {
        self.run_with(layers, script, self.options())
    }

    /// Runs a shell script over `layers`.
    ///
    /// # Panics
    /// If the run returns an error.
    pub fn run_with(&self, layers: &[Layer], script: &str, options: Options<'_>) -> Report {
        runner::run(&self.base(), layers, &shell(script).build().unwrap(), options).unwrap()
    }

    /// Returns the command `layered run` with the fixture's base and scratch directory.
    pub fn layered_run(&self) -> Command {
        let mut command = layered();
        command.args(["run", "--base"]).arg(self.base().path()).arg("--scratch").arg(self.scratch());
        command
    }

    /// Returns the command `layered run` for a shell script over the base, with further options.
    pub fn layered_script(&self, options: &[&str], script: &str) -> Command {
        let mut command = self.layered_run();
        command.args(options).args(["--", "sh", "-c", script]);
        command
    }

    /// Runs `layered sweep` on the scratch directory. Returns its output.
    ///
    /// # Panics
    /// If it fails.
    pub fn sweep(&self) -> String {
        let output = layered().arg("sweep").arg(self.scratch()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Lists the scratch directory.
    pub fn left(&self) -> Vec<PathBuf> {
        fs::read_dir(self.scratch()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// Describes what a run has left behind: a mount, a container, a cgroup, a process, a file, or
    /// a change in a layer. Empty if there is nothing.
    pub fn difference(&self) -> String {
        let mut difference = String::new();
        let traces = self.traces();
        if !traces.is_empty() {
            difference += &format!("traces: {traces:?}\n");
        }
        for left in self.left() {
            difference += &format!("left in the scratch directory: {}\n", left.display());
        }
        for (tree, made) in self.made_layers().iter() {
            match made.diff(&Snapshot::of_path(tree).unwrap()) {
                same if same.is_empty() => {}
                changed => difference += &format!("{} has changed:\n{changed}", tree.display()),
            }
        }
        difference
    }

    /// Checks that the runs have left nothing.
    ///
    /// # Panics
    /// If there is a [difference](Self::difference).
    pub fn assert_clean(&self) {
        let difference = self.difference();
        assert!(difference.is_empty(), "{difference}");
    }

    /// Waits until every process of the fixture's runs has ended and all their mounts are gone.
    ///
    /// # Panics
    /// If that never happens.
    pub fn assert_nothing_lives(&self) {
        let deadline = Instant::now() + FOR_EVER;
        loop {
            let traces = self.traces();
            if !(traces.lives() || traces.mounts()) {
                return;
            }
            // If no process is left, the mount is in the machine's own namespace and never goes
            // away.
            assert!(traces.lives() && Instant::now() < deadline, "{traces:?}");
            traces.processes().for_each(|pid| until_it_ends(pid, deadline));
        }
    }
}

/// Waits until a process has ended or `deadline` has passed. The process need not be a child.
fn until_it_ends(pid: i32, deadline: Instant) {
    // This fails if the process has ended, and if it is a thread of another process.
    let Ok(pidfd) = pidfd_open(Pid::from_raw(pid).expect("a PID"), PidfdFlags::empty()) else { return };
    let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).unwrap();
    let _interrupted = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left));
}

impl Default for Fixture {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.assert_clean();
        }
    }
}

/// A template that runs a shell script.
pub fn shell(script: &str) -> TemplateBuilder {
    Template::builder(["/bin/sh", "-c", script])
}

/// Returns the command's standard output as text.
///
/// # Panics
/// If it was not captured.
pub fn stdout(report: &Report) -> String {
    report.stdout.as_ref().expect("standard output is captured").to_string()
}

/// Returns the command's standard error as text.
///
/// # Panics
/// If it was not captured.
pub fn stderr(report: &Report) -> String {
    report.stderr.as_ref().expect("standard error is captured").to_string()
}

/// Waits until a thread of this process sleeps, as a thread does that has found a mount busy.
///
/// # Panics
/// If the thread does not exist.
pub fn until_it_waits(thread: rustix::thread::Pid) {
    let path = format!("/proc/self/task/{}/syscall", thread.as_raw_nonzero());
    // The file contains the number of the system call, or `running`.
    while !fs::read_to_string(&path).unwrap().starts_with(&format!("{} ", nix::libc::SYS_clock_nanosleep)) {
        std::thread::yield_now();
    }
}

/// Copies a program.
///
/// `cp` writes the copy, so this process never has it open for writing. Otherwise a child that
/// another thread starts at that moment would inherit the descriptor and keep it until it executes
/// its own program. The kernel refuses to execute a file that any process has open for writing
/// (ETXTBSY).
///
/// # Panics
/// If it cannot be copied.
pub fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success(), "cannot copy {}", from.display());
}

/// Writes an executable script. A shell writes it, for the reason given at [`copy_program`].
///
/// # Panics
/// If it cannot be written.
pub fn write_script(path: &Path, text: &str) {
    let write = "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\"";
    let status = Command::new("sh").args(["-c", write]).arg(path).arg(text).status().unwrap();
    assert!(status.success(), "cannot write {}", path.display());
}

/// Returns the path of a program.
///
/// # Panics
/// If it is not in `PATH`.
pub fn find(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{program} is not installed: scripts/install-deps installs what the tests need"))
}

/// Returns the `layered` command, built from this source tree. `LAYERED_BINARY` names one that is
/// already built, for users and machines that cannot build it.
///
/// # Panics
/// If it does not build.
pub fn layered() -> Command {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let binary = BUILT.get_or_init(|| {
        if let Some(built) = std::env::var_os("LAYERED_BINARY") {
            let built = PathBuf::from(built);
            assert!(built.is_absolute(), "LAYERED_BINARY is {}; give an absolute path", built.display());
            return built;
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
        let build = [
            "build",
            "--profile",
            profile,
            "--quiet",
            "--package",
            "runner",
            "--features",
            "registry",
            "--bin",
            "layered",
        ];
        let status = Command::new(cargo).args(build).current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
        assert!(status.success(), "layered does not build");
        // The binary is beside the directory in which cargo puts test programs.
        let test = std::env::current_exe().unwrap();
        let binary = test.ancestors().nth(2).unwrap().join("layered");
        assert!(binary.is_file(), "{} is not there", binary.display());
        binary
    });
    Command::new(binary)
}
