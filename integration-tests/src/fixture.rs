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
/// When it is dropped, it checks that its runs have left nothing, and that its layers are as they were made. Runs of other
/// fixtures and of other programs may go on beside it: it looks at those runs only that have their directories in its own
/// directory. See [`watch`](Self::watch) for others.
#[derive(Debug)]
pub struct Fixture {
    dir: TempDir,
    /// The path of `dir` without symbolic links.
    real: PathBuf,
    runs: RunNames,
    layers: Mutex<BTreeMap<PathBuf, Snapshot>>,
}

/// The runtimes that everything is to work with.
pub const RUNTIMES: [&str; 2] = ["runc", "crun"];

/// Nothing that is waited for takes so long: whatever takes longer never happens.
pub const FOR_EVER: Duration = Duration::from_secs(600);

/// Prints the numbers of the user, the group and the supplementary groups, and `HOME`.
pub const WHO: &str = "echo $(id -u) $(id -g) $(sed -n 's/^Groups:.//p' /proc/self/status) $HOME";

/// What the base's `/bin` has.
const APPLETS: [&str; 32] = [
    "cat", "chmod", "cp", "dd", "echo", "env", "false", "find", "grep", "head", "hostname", "id", "kill", "ln", "ls",
    "mkdir", "mknod", "mount", "mv", "pwd", "rm", "sed", "seq", "setsid", "sh", "sleep", "stat", "stty", "touch",
    "true", "umount", "wc",
];

impl Fixture {
    /// # Panics
    /// If this is not root, or runc or a static busybox is missing: a test that cannot run fails.
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests mount overlays and run containers: run them as root");
        find("runc");
        let dir = tempfile::tempdir().unwrap();
        // The run's own directories are private; the layers are as they are elsewhere.
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
        // A run over an upper of its own has its directory beside it.
        runs.watch(dir.path());
        for path in ["scratch", "store"] {
            fs::create_dir(dir.path().join(path)).unwrap();
            runs.watch(&dir.path().join(path));
        }
        Self { real: fs::canonicalize(dir.path()).unwrap(), dir, runs, layers: Mutex::default() }
    }

    /// Finds the cgroups of runs, too, that have their directories in `dir`, as the calling thread sees it. Needed for any
    /// scratch directory other than the fixture's own directory, [`scratch`](Self::scratch) and [`store`](Self::store): mounts
    /// and processes are found by their paths, but cgroups by the names of the runs.
    ///
    /// # Panics
    /// If `dir` is not a directory.
    pub fn watch(&self, dir: &Path) {
        self.runs.watch(dir);
    }

    /// Finds the cgroups of a container that has no run's directory.
    pub fn add_run(&self, name: &str) {
        self.runs.add(name);
    }

    /// The traces of its runs.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn traces(&self) -> Traces {
        Traces::of(&self.real, &self.runs.until_now())
    }

    /// Puts `/bin/probe` into the base, which makes any system call: `probe NUMBER ARGUMENTS…`, with the error as its status.
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

    /// A directory of the test's own.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where layers are made.
    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Where runs have their directories.
    pub fn scratch(&self) -> PathBuf {
        self.dir.path().join("scratch")
    }

    /// The base.
    pub fn base(&self) -> Base {
        Base::open(self.dir.path().join("base")).unwrap()
    }

    /// A new layer whose tree `fill` makes. Nobody is to change it from then on.
    pub fn layer(&self, name: impl AsRef<Path>, fill: impl FnOnce(&Path)) -> Layer {
        let dir = self.store().join(name);
        fs::create_dir_all(dir.join("fs")).unwrap();
        fill(&dir.join("fs"));
        let layer = Layer::open(&dir).unwrap();
        self.made_layers().insert(dir.join("fs"), Snapshot::of_path(&layer.fs()).unwrap());
        layer
    }

    /// A layer with the users `root` and `opam` (1000:1001), and the groups `opam`, `staff` (50) and `wheel` (10), of which the last
    /// two list opam.
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

    /// So many layers; the n-th has the file `/deps/<n>`, which says n, and the file `/top`, which says so too.
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

    /// Runs in the fixture's scratch directory with runc.
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
    /// If the run comes to no result.
    pub fn run(&self, layers: &[Layer], script: &str) -> Report {
        self.run_with(layers, script, self.options())
    }

    /// Runs a shell script over `layers`.
    ///
    /// # Panics
    /// If the run comes to no result.
    pub fn run_with(&self, layers: &[Layer], script: &str, options: Options<'_>) -> Report {
        runner::run(&self.base(), layers, &shell(script).build().unwrap(), options).unwrap()
    }

    /// `layered run` over the base, with the scratch directory.
    pub fn layered_run(&self) -> Command {
        let mut command = layered();
        command.args(["run", "--base"]).arg(self.base().path()).arg("--scratch").arg(self.scratch());
        command
    }

    /// `layered run` of a shell script over the base, with further options.
    pub fn layered_script(&self, options: &[&str], script: &str) -> Command {
        let mut command = self.layered_run();
        command.args(options).args(["--", "sh", "-c", script]);
        command
    }

    /// What `layered sweep` says of the scratch directory.
    ///
    /// # Panics
    /// If it fails.
    pub fn sweep(&self) -> String {
        let output = layered().arg("sweep").arg(self.scratch()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What is in the scratch directory.
    pub fn left(&self) -> Vec<PathBuf> {
        fs::read_dir(self.scratch()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// What a run has left, a mount, a container, a cgroup, a process or a file, or has changed in a layer: empty if nothing.
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

    /// # Panics
    /// If there is a [difference](Self::difference).
    pub fn assert_clean(&self) {
        let difference = self.difference();
        assert!(difference.is_empty(), "{difference}");
    }

    /// Waits until every process of its runs has ended and nothing of them is mounted.
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
            // A mount that no process has for itself is the machine's, and stays.
            assert!(traces.lives() && Instant::now() < deadline, "{traces:?}");
            traces.processes().for_each(|pid| until_it_ends(pid, deadline));
        }
    }
}

/// Waits until a process has ended, whose child it is does not matter, or `deadline` is over.
fn until_it_ends(pid: i32, deadline: Instant) {
    // One that has ended, or is a thread of another process.
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

/// The command's standard output as text.
///
/// # Panics
/// If it was not captured.
pub fn stdout(report: &Report) -> String {
    report.stdout.as_ref().expect("standard output is captured").to_string()
}

/// The command's standard error as text.
///
/// # Panics
/// If it was not captured.
pub fn stderr(report: &Report) -> String {
    report.stderr.as_ref().expect("standard error is captured").to_string()
}

/// Returns when a thread of this process waits for a time to pass, as one does that has found a mount busy.
///
/// # Panics
/// If there is no such thread.
pub fn until_it_waits(thread: rustix::thread::Pid) {
    let path = format!("/proc/self/task/{}/syscall", thread.as_raw_nonzero());
    // The number of the call, or `running`.
    while !fs::read_to_string(&path).unwrap().starts_with(&format!("{} ", nix::libc::SYS_clock_nanosleep)) {
        std::thread::yield_now();
    }
}

/// Copies a program.
///
/// `cp` does it, so that this process never has the copy open for writing. A child that another thread starts at that moment
/// would have the descriptor, too, until it executes its own program, and the kernel executes no file that any process may write
/// to (ETXTBSY).
///
/// # Panics
/// If it cannot be copied.
pub fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success(), "cannot copy {}", from.display());
}

/// Writes a script that can be executed, as [`copy_program`] does.
///
/// # Panics
/// If it cannot be written.
pub fn write_script(path: &Path, text: &str) {
    let write = "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\"";
    let status = Command::new("sh").args(["-c", write]).arg(path).arg(text).status().unwrap();
    assert!(status.success(), "cannot write {}", path.display());
}

/// The path of a program.
///
/// # Panics
/// If it is not in `PATH`.
pub fn find(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{program} is not installed: scripts/install-deps installs what the tests need"))
}

/// The `layered` command of this very source tree.
///
/// # Panics
/// If it does not build.
pub fn layered() -> Command {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let binary = BUILT.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
        let build =
            ["build", "--profile", profile, "--quiet", "--package", "runner", "--features", "cli", "--bin", "layered"];
        let status = Command::new(cargo).args(build).current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
        assert!(status.success(), "layered does not build");
        // Beside the directory in which cargo puts test programs.
        let test = std::env::current_exe().unwrap();
        let binary = test.ancestors().nth(2).unwrap().join("layered");
        assert!(binary.is_file(), "{} is not there", binary.display());
        binary
    });
    Command::new(binary)
}
