//! Measures the runs of an ordinary user against those of root, and against rootless Podman.
//! `scripts/install-deps test` creates the user. [`others`](crate::others) has other programs of root.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::{User, chown};
use walkdir::WalkDir;

use crate::Missing;
use crate::markdown::{cells, explained_table};
use crate::places::Places;
use crate::sample::Sample;
use crate::subjects::{RUNTIMES, is_installed, quiet, run};

/// The numbers of layers over the base. With the base, 500 is the most that the kernel stacks.
const LAYERS: [usize; 2] = [30, 499];

/// The user that `scripts/install-deps test` creates.
const USER: &str = "layered-test";

/// Explains the columns.
const EXPLANATION: &str = "\
The command is `/bin/true`, run by `layered run` as root and as an ordinary user, over the same layers of that user. \"Ranges\" and \
\"single\" are the values of `--ids`. CPU time is that of the command line and of all processes that were waited for. Podman runs as \
the same user over one directory, with `--rootfs DIR:O` and runc. Its monitor process is not among those that are waited for, so its CPU \
time is understated.

";

/// The subjects of every round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    Root,
    Ids(&'static str),
    Podman,
}

const SUBJECTS: [Subject; 4] = [Subject::Root, Subject::Ids("ranges"), Subject::Ids("single"), Subject::Podman];

/// The times of one subject.
#[derive(Default)]
struct Times {
    cpu: Sample,
    wall: Sample,
}

/// The user and the places.
struct Users<'p> {
    places: &'p Places,
    user: User,
    /// A directory of the user's, with the program.
    home: PathBuf,
    program: PathBuf,
}

pub(crate) fn measured(rounds: usize, missing: &mut Missing) -> Result<String> {
    let places = Places::new(LAYERS[LAYERS.len() - 1])?;
    let Some(user) = User::from_name(USER)? else {
        missing.add("an ordinary user", &format!("there is no user {USER}: scripts/install-deps test creates it"));
        return Ok(String::new());
    };
    let users = Users::new(&places, user)?;
    let head = [
        "runtime",
        "layers",
        "root, CPU",
        "ranges / root, CPU",
        "single / root, CPU",
        "Podman / ranges, CPU",
        "Podman / single, CPU",
        "root, wall",
        "ranges / root, wall",
        "single / root, wall",
        "Podman / ranges, wall",
        "Podman / single, wall",
    ];
    let mut rows = vec![cells(head)];
    // The first run sets up the storage of the user.
    let has_podman = match users.once(Subject::Podman, "runc", 0) {
        Ok(_) => true,
        Err(error) => {
            missing.add("Podman without root", &format!("{error:#}"));
            false
        }
    };
    for runtime in RUNTIMES {
        if !is_installed(runtime) {
            missing.add(&format!("{runtime} of an ordinary user"), "not installed");
            continue;
        }
        for layers in LAYERS {
            let mut samples: [Times; SUBJECTS.len()] = Default::default();
            for round in 0..rounds {
                for index in 0..SUBJECTS.len() {
                    let index = (round + index) % SUBJECTS.len();
                    if SUBJECTS[index] == Subject::Podman && !has_podman {
                        continue;
                    }
                    let (cpu, wall) = users.once(SUBJECTS[index], runtime, layers)?;
                    samples[index].cpu.push(cpu);
                    samples[index].wall.push(wall);
                }
            }
            rows.push(row(runtime, layers, &samples));
        }
    }
    users.end_podman();
    Ok(explained_table("Without root", EXPLANATION, &rows))
}

fn row(runtime: &str, layers: usize, [root, ranges, single, podman]: &[Times; SUBJECTS.len()]) -> Vec<String> {
    let mut row = vec![runtime.into(), layers.to_string()];
    for time in [|times: &Times| times.cpu.clone(), |times: &Times| times.wall.clone()] {
        let [root, ranges, single, podman] = [root, ranges, single, podman].map(time);
        row.extend([root.milliseconds(), ranges.ratio(&root), single.ratio(&root)]);
        let of_podman = |other: &Sample| if podman.0.is_empty() { "–".into() } else { podman.ratio(other) };
        row.extend([of_podman(&ranges), of_podman(&single)]);
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
        for dir in ["scratch", "run"] {
            fs::create_dir(home.join(dir))?;
        }
        let users = Self { places, home, program, user };
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

    /// Runs a subject once. Returns the processor time and the time that passed.
    fn once(&self, subject: Subject, runtime: &str, layers: usize) -> Result<(Duration, Duration)> {
        let mut command = match subject {
            Subject::Root => self.layered(runtime, layers, &self.places.scratch()),
            Subject::Ids(ids) => {
                let mut command = self.layered(runtime, layers, &self.home.join("scratch"));
                command.env("LAYERED_IDS", ids);
                self.as_user(command)
            }
            Subject::Podman => {
                self.podman(&["--runtime", "runc", "run", "--rm", "--quiet", "--network", "none", "--rootfs"])
            }
        };
        if subject == Subject::Podman {
            command.arg(format!("{}:O", self.places.root().display())).arg("/bin/true");
        }
        let before = cpu_time()?;
        let start = Instant::now();
        run(&mut command)?;
        let wall = start.elapsed();
        Ok((cpu_time()?.saturating_sub(before), wall))
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

    fn podman(&self, words: &[&str]) -> Command {
        let mut command = quiet("podman");
        command.args(["--cgroup-manager", "cgroupfs"]).args(words);
        self.as_user(command)
    }

    fn as_user(&self, mut command: Command) -> Command {
        command.uid(self.user.uid.as_raw()).gid(self.user.gid.as_raw()).current_dir(&self.home);
        command.env("HOME", &self.home).env("XDG_RUNTIME_DIR", self.home.join("run")).env_remove("XDG_DATA_HOME");
        command
    }

    /// Ends the process that keeps Podman's namespaces, and removes the files of other owners in its
    /// storage.
    fn end_podman(&self) {
        let _ = run(&mut self.podman(&["system", "migrate"]));
    }
}

/// Returns the processor time of all children that were waited for, and of theirs.
fn cpu_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let time = |time: nix::sys::time::TimeVal| {
        Duration::from_secs(time.tv_sec().unsigned_abs()) + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    Ok(time(usage.user_time()) + time(usage.system_time()))
}
