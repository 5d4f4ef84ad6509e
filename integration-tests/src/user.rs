//! An ordinary user of the machine, for tests of runs without root.

use std::fs;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::unistd;
use walkdir::WalkDir;

use crate::{Fixture, copy_program, find, layered};

/// The name of the user that `scripts/install-deps test` creates, with subordinate IDs.
const NAME: &str = "layered-test";

/// The values of `--ids` with which everything must work.
pub const ALL_IDS: [&str; 2] = ["single", "ranges"];

/// A [`Fixture`] whose base, store and scratch directory belong to an ordinary user.
///
/// Commands of the user have an environment of their own. They run as the user, without
/// supplementary groups.
#[derive(Debug)]
pub struct UserFixture {
    fixture: Fixture,
    ids: &'static str,
    uid: u32,
    gid: u32,
    program: PathBuf,
}

impl UserFixture {
    /// Makes the fixture. `ids` is the value of `--ids` for the user's commands.
    ///
    /// # Panics
    /// As [`Fixture::new`], or if the user or newuidmap is missing.
    pub fn new(ids: &'static str) -> Self {
        let fixture = Fixture::new();
        let user = unistd::User::from_name(NAME).unwrap();
        let user = user.unwrap_or_else(|| panic!("there is no user {NAME}: scripts/install-deps test creates it"));
        find("newuidmap");
        // The user may not be able to reach the directory of the build.
        let (built, program) = (PathBuf::from(layered().get_program()), fixture.path().join("layered"));
        if fs::hard_link(&built, &program).is_err() {
            copy_program(&built, &program);
        }
        let made = Self { ids, uid: user.uid.as_raw(), gid: user.gid.as_raw(), fixture, program };
        for dir in [made.path().join("base"), made.fixture.store(), made.fixture.scratch()] {
            made.give(&dir);
        }
        lchown(made.path(), Some(made.uid), Some(made.gid)).unwrap();
        made
    }

    /// The fixture's own directory, which belongs to the user.
    pub fn path(&self) -> &Path {
        self.fixture.path()
    }

    /// The directory of the layers.
    pub fn store(&self) -> PathBuf {
        self.fixture.store()
    }

    /// The root's view of the same directories, and of what runs leave behind.
    pub fn of_root(&self) -> &Fixture {
        &self.fixture
    }

    /// The numbers of the user and its group on the machine.
    pub fn owner(&self) -> (u32, u32) {
        (self.uid, self.gid)
    }

    /// The value of `--ids` of the user's commands.
    pub fn ids(&self) -> &'static str {
        self.ids
    }

    /// Gives a directory and everything in it to the user.
    ///
    /// # Panics
    /// If that fails.
    pub fn give(&self, dir: &Path) {
        for entry in WalkDir::new(dir) {
            lchown(entry.unwrap().path(), Some(self.uid), Some(self.gid)).unwrap();
        }
    }

    /// Makes `count` layers of the user's. Layer n has the files `/deps/<n>` and `/top`, and both
    /// contain n.
    ///
    /// # Panics
    /// If that fails.
    pub fn numbered_layers(&self, count: usize) -> Vec<PathBuf> {
        let make = |n: usize| {
            let layer = self.store().join(format!("numbered-{n:04}"));
            fs::create_dir_all(layer.join("fs/deps")).unwrap();
            fs::write(layer.join("fs/deps").join(n.to_string()), format!("{n}\n")).unwrap();
            fs::write(layer.join("fs/top"), format!("{n}\n")).unwrap();
            self.give(&layer);
            layer
        };
        (0..count).map(make).collect()
    }

    /// Returns a program as a command of the user's, with `setpriv` and its `options` before it.
    pub fn command_with(&self, options: &[&str], program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(find("setpriv"));
        command
            .arg(format!("--reuid={}", self.uid))
            .arg(format!("--regid={}", self.gid))
            .args(["--clear-groups", "--inh-caps=-all"])
            .args(options)
            .arg(program.as_ref())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path())
            .env("LAYERED_IDS", self.ids)
            .env("LAYERED_SCRATCH", self.fixture.scratch())
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }

    /// Returns a program as a command of the user's.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        self.command_with(&[], program)
    }

    /// Returns `layered` as a command of the user's.
    pub fn layered(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&self.program);
        command.args(arguments);
        command
    }

    /// The path of `layered`, which the user can execute.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Returns `layered run` for a shell script over the base and `layers`, with further options.
    pub fn run(&self, options: &[&str], layers: &[PathBuf], script: &str) -> Command {
        let mut command = self.layered(&["run", "--base"]);
        command.arg(self.path().join("base")).args(options);
        for layer in layers {
            command.arg("--layer").arg(layer);
        }
        command.args(["--", "sh", "-c", script]);
        command
    }
}

/// Returns a program as a command without CAP_SYS_ADMIN that may not create user namespaces.
pub fn powerless(program: impl AsRef<Path>) -> Command {
    // The sysctl of a namespace limits only the namespaces in it.
    let script =
        "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c", script]).arg(program.as_ref());
    command
}

/// Returns `outer` with `inner` after its arguments, in the environment and the directory of
/// `inner`.
pub fn around(mut outer: Command, inner: &Command) -> Command {
    outer.arg(inner.get_program()).args(inner.get_args()).env_clear();
    outer.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(dir) = inner.get_current_dir() {
        outer.current_dir(dir);
    }
    outer
}

/// Runs a command. Returns its standard output.
///
/// # Panics
/// If it fails, or prints something on standard error.
pub fn quietly(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success() && stderr.is_empty(), "{command:?}: {}: {stdout}{stderr}", output.status);
    stdout
}

/// Runs a command that fails with `status`. Returns its standard error.
///
/// # Panics
/// If it ends in another way.
pub fn failure(status: i32, command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(status), "{command:?}: {stdout}{stderr}");
    stderr
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}
