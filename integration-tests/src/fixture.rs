use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use container::{CaptureLimit, Output, Runtime, Template, TemplateBuilder};
use layer::{Base, Layer};
use runner::{Options, Report};
use tempfile::TempDir;

use crate::Traces;

/// A base with busybox, a store for layers and a scratch directory, on a machine that has to be left as it was.
///
/// Tests that have one run one after the other, since a run that is under way leaves traces for others to see. When it goes, it
/// checks that its own are gone.
#[derive(Debug)]
pub struct Fixture {
    dir: TempDir,
    before: Traces,
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

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
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
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
        fs::copy(find("busybox"), root.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        for path in ["scratch", "store"] {
            fs::create_dir(dir.path().join(path)).unwrap();
        }
        Self { dir, before: Traces::now(), _alone: alone }
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

    /// A new layer whose tree `fill` makes.
    pub fn layer(&self, name: impl AsRef<Path>, fill: impl FnOnce(&Path)) -> Layer {
        let dir = self.store().join(name);
        fs::create_dir_all(dir.join("fs")).unwrap();
        fill(&dir.join("fs"));
        Layer::open(dir).unwrap()
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

    /// # Panics
    /// If a run has left anything: a mount, a container, a cgroup, a process or a file.
    pub fn assert_clean(&self) {
        assert_eq!(Traces::now(), self.before);
        let left: Vec<_> = fs::read_dir(self.scratch()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "left in the scratch directory: {left:?}");
    }
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
