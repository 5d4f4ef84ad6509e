//! Measures the runs of an ordinary user against those of root, and against rootless Podman.
//! `scripts/install-deps test` creates the user. [`others`](crate::others) has other programs of
//! root.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result};
use nix::unistd::{Uid, User, chown};
use walkdir::WalkDir;

use crate::Missing;
use crate::children::{Usage, usage_of};
use crate::markdown::{cells, explained_table};
use crate::places::Places;
use crate::sample::Sample;
use crate::subjects::{RUNTIMES, is_installed, quiet, run};

/// The numbers of layers over the base. With the base, 500 is the most that the kernel stacks.
const LAYERS: [usize; 2] = [30, 499];

/// The user that `scripts/install-deps test` creates.
const USER: &str = "layered-test";

/// The image that Podman runs.
const IMAGE: &str = "localhost/layered-bench";

/// Explains the columns.
const EXPLANATION: &str = "\
The command is `/bin/true`, run by `layered run` as root and as an ordinary user, over the same layers of that user. \"Ranges\" and \
\"single\" are the values of `--ids`. Podman runs as the same user with the same runtime, in ranges of subordinate IDs and without a \
network, over one directory instead of the layers (`--rootfs DIR:O`), and over an image of that directory in its native overlay storage. \
Before the first measurement, Podman has filled its storage and started the process that keeps its namespaces. It runs in the \
foreground, as `layered run` does: both return when the command has ended, with its exit status. The CPU time is that of all processes, \
including those that a command leaves behind: Podman's monitor conmon, and the process that removes the container. The wall time ends \
when the last of them has ended.

";

/// The subjects of every round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    Root,
    Ids(&'static str),
    /// Podman over a directory.
    Directory,
    /// Podman over an image.
    Image,
}

const SUBJECTS: [Subject; 5] =
    [Subject::Root, Subject::Ids("ranges"), Subject::Ids("single"), Subject::Directory, Subject::Image];

/// The times of one subject.
#[derive(Default)]
struct Times {
    cpu: Sample,
    wall: Sample,
}

/// The user and the places.
struct Users<'p> {
    places: &'p Places,
    root: User,
    user: User,
    /// A directory of the user's, with the program.
    home: PathBuf,
    program: PathBuf,
}

pub(crate) fn measured(rounds: usize, missing: &mut Missing) -> Result<String> {
    let Some(user) = User::from_name(USER)? else {
        missing.add("an ordinary user", &format!("there is no user {USER}: scripts/install-deps test creates it"));
        return Ok(String::new());
    };
    let places = Places::new(LAYERS[LAYERS.len() - 1])?;
    let users = Users::new(&places, user)?;
    let head = [
        "runtime",
        "layers",
        "root, CPU",
        "ranges / root, CPU",
        "single / root, CPU",
        "Podman, directory / ranges, CPU",
        "Podman, image / ranges, CPU",
        "root, wall",
        "ranges / root, wall",
        "single / root, wall",
        "Podman, directory / ranges, wall",
        "Podman, image / ranges, wall",
    ];
    let mut rows = vec![cells(head)];
    let prepared = users.prepare_podman().map_err(|error| format!("{error:#}"));
    let podman_works = |runtime| match &prepared {
        Ok(()) => users.once(Subject::Directory, runtime, 0).map(drop).map_err(|error| format!("{error:#}")),
        Err(why) => Err(why.clone()),
    };
    for runtime in RUNTIMES {
        if !is_installed(runtime) {
            missing.add(&format!("{runtime} of an ordinary user"), "not installed");
            continue;
        }
        let mut subjects = &SUBJECTS[..];
        if let Err(why) = podman_works(runtime) {
            missing.add(&format!("Podman with {runtime} without root"), &why);
            subjects = &SUBJECTS[..SUBJECTS.len() - 2];
        }
        for layers in LAYERS {
            let mut samples: [Times; SUBJECTS.len()] = Default::default();
            for round in 0..rounds {
                for index in 0..subjects.len() {
                    let index = (round + index) % subjects.len();
                    let used = users.once(subjects[index], runtime, layers)?;
                    samples[index].cpu.push(used.processor);
                    samples[index].wall.push(used.elapsed);
                }
            }
            rows.push(row(runtime, layers, &samples));
        }
    }
    users.end_podman();
    Ok(explained_table("Without root", EXPLANATION, &rows))
}

fn row(runtime: &str, layers: usize, times: &[Times; SUBJECTS.len()]) -> Vec<String> {
    let mut row = vec![runtime.into(), layers.to_string()];
    for time in [|times: &Times| times.cpu.clone(), |times: &Times| times.wall.clone()] {
        let [root, ranges, single, podman @ ..] = times.each_ref().map(time);
        row.extend([root.milliseconds(), ranges.ratio(&root), single.ratio(&root)]);
        row.extend(podman.map(|podman| if podman.0.is_empty() { "–".into() } else { podman.ratio(&ranges) }));
    }
    row
}

impl<'p> Users<'p> {
    /// Gives the layers and a directory to the user.
    fn new(places: &'p Places, user: User) -> Result<Self> {
        let home = places.root().with_file_name("home");
        fs::create_dir(&home)?;
        // The user may not be able to reach the directory of the build.
        let program = home.join("layered");
        fs::copy(env!("CARGO_BIN_EXE_layered"), &program)?;
        for dir in ["scratch", "run", ".config/containers"] {
            fs::create_dir_all(home.join(dir))?;
        }
        // Otherwise Podman copies whole directories, unless fuse-overlayfs is installed.
        fs::write(home.join(".config/containers/storage.conf"), "[storage]\ndriver = \"overlay\"\n")?;
        let root = User::from_uid(Uid::from_raw(0))?.context("there is no user 0")?;
        let users = Self { places, home, program, root, user };
        let base = users.places.base.path();
        let layers = base.with_file_name("layers");
        for dir in [base, &layers, &users.home, &users.places.root()] {
            users.give(dir)?;
        }
        Ok(users)
    }

    fn give(&self, dir: &Path) -> Result<()> {
        for entry in WalkDir::new(dir) {
            let entry = entry?;
            if !entry.path_is_symlink() {
                chown(entry.path(), Some(self.user.uid), Some(self.user.gid))
                    .with_context(|| format!("cannot give {} to {USER}", entry.path().display()))?;
            }
        }
        Ok(())
    }

    /// Runs a subject once.
    fn once(&self, subject: Subject, runtime: &str, layers: usize) -> Result<Usage> {
        match subject {
            Subject::Root => {
                let mut command = self.layered(runtime, layers, &self.places.scratch());
                usage_of(self.of_user(&mut command), &self.root)
            }
            Subject::Ids(ids) => {
                let mut command = self.layered(runtime, layers, &self.home.join("scratch"));
                usage_of(self.of_user(&mut command).env("LAYERED_IDS", ids), &self.user)
            }
            Subject::Directory | Subject::Image => {
                let mut command = quiet("podman");
                command.args(["--cgroup-manager", "cgroupfs", "--runtime", runtime]);
                command.args(["run", "--rm", "--quiet", "--network", "none"]);
                match subject {
                    Subject::Directory => command.arg("--rootfs").arg(format!("{}:O", self.places.root().display())),
                    _ => command.arg(IMAGE),
                };
                usage_of(self.of_user(&mut command).arg("/bin/true"), &self.user)
            }
        }
    }

    fn layered(&self, runtime: &str, layers: usize, scratch: &Path) -> Command {
        let mut command = quiet(&self.program);
        command.args(["run", "--runtime", runtime, "--scratch"]).arg(scratch);
        command.arg("--base").arg(self.places.base.path());
        for layer in &self.places.layers[..layers] {
            command.arg("--layer").arg(layer.path());
        }
        command.args(["--", "/bin/true"]);
        command
    }

    /// Sets the environment and the directory of the user's commands.
    fn of_user<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let run = self.home.join("run");
        command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default()).env("HOME", &self.home);
        command.env("XDG_RUNTIME_DIR", &run).env("TMPDIR", run).current_dir(&self.home)
    }

    /// Fills the storage of Podman, and starts the process that keeps its namespaces. This process
    /// goes on until [`end_podman`](Self::end_podman).
    fn prepare_podman(&self) -> Result<()> {
        // Podman's crun starts nothing on a machine with both cgroup versions. All later commands
        // enter the mount namespace of the first one, which has only version 1 there.
        let script = "umount /sys/fs/cgroup/unified 2>/dev/null || true; mount --make-rshared /; \
                      tar -C \"$0\" -c . | setpriv --reuid=\"$1\" --regid=\"$2\" --clear-groups podman import --quiet - \"$3\"";
        let ids = [self.user.uid.as_raw(), self.user.gid.as_raw()].map(|id| OsString::from(id.to_string()));
        let mut command = quiet("unshare");
        command.args(["--mount", "sh", "-ec", script]).arg(self.places.root()).args(ids).arg(IMAGE);
        run(self.of_user(&mut command))
    }

    /// Ends the process that keeps Podman's namespaces, and removes the files of other owners in
    /// its storage.
    fn end_podman(&self) {
        for words in [&["rmi", "--force", IMAGE][..], &["system", "migrate"]] {
            let mut command = quiet("setpriv");
            command.arg(format!("--reuid={}", self.user.uid)).arg(format!("--regid={}", self.user.gid));
            let _ = run(self.of_user(command.args(["--clear-groups", "podman"]).args(words)));
        }
    }
}
