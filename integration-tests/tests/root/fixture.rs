//! The fixture itself finds whatever its own runs leave behind, and ignores the runs of other
//! fixtures.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use container::{Input, Output, Overlay, in_private_mount_namespace};
use integration_tests::Fixture;
use nix::mount::{MsFlags, mount};
use rustix::pipe::{PipeFlags, pipe_with};

/// The name of a run and of its directory. Each test uses another number.
fn run_name(number: u64) -> String {
    format!("layered-{:016x}", (u64::from(std::process::id()) << 32) + number)
}

/// Creates and removes a run's directory, so that only its name remains.
fn begin_and_end_a_run(scratch: &Path, name: &str) {
    fs::create_dir(scratch.join(name)).unwrap();
    fs::remove_dir(scratch.join(name)).unwrap();
}

/// A process that waits and ends with the test.
struct Waiting(Child);

impl Waiting {
    /// Starts `program`, which reads its standard input to the end.
    fn start(program: &mut Command) -> Self {
        Self(program.stdin(Stdio::piped()).spawn().unwrap())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// A cgroup that is removed when the value is dropped.
struct Group(PathBuf);

impl Group {
    fn make(name: &str) -> Self {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        // In these hierarchies, a process can be moved into a new cgroup without further settings.
        let hierarchy =
            table.lines().find(|line| line.contains(" - cgroup2 ") || line.contains(" - cgroup cgroup rw,pids"));
        let path = Path::new(hierarchy.unwrap().split(' ').nth(4).unwrap()).join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn add(&self, process: &Waiting) {
        fs::write(self.0.join("cgroup.procs"), process.0.id().to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).unwrap();
    }
}

/// Checks that `own` finds `words`, and that `other` finds nothing.
fn assert_found(own: &Fixture, other: &Fixture, words: &str) {
    let difference = own.difference();
    assert!(difference.contains(words), "{words:?} is not in {difference:?}");
    assert_eq!(other.difference(), "");
}

#[test]
fn a_mount_is_found() {
    let (own, other) = (Fixture::new(), Fixture::new());
    let run = own.scratch().join(run_name(1));
    let bundle = run.join("bundle");
    fs::create_dir_all(&bundle).unwrap();
    let process = in_private_mount_namespace(|| {
        mount(Some("tmpfs"), &bundle, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        // The namespace exists as long as this process lives.
        Waiting::start(&mut Command::new("cat"))
    })
    .unwrap();
    assert!(own.traces().mounts() && own.traces().lives());
    assert_found(&own, &other, &format!("{} rw", bundle.display()));
    assert_eq!(own.traces().processes().collect::<Vec<_>>(), [process.0.id() as i32]);
    drop(process);
    assert!(own.traces().is_empty());
    fs::remove_dir_all(run).unwrap();
}

#[test]
fn a_mount_elsewhere_is_found_by_its_upper() {
    let (own, other) = (Fixture::new(), Fixture::new());
    let run = own.scratch().join(run_name(2));
    let [upper, work] = ["upper", "work"].map(|name| run.join(name));
    [&upper, &work].iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
    let target = other.path().join("elsewhere");
    fs::create_dir(&target).unwrap();
    let process = in_private_mount_namespace(|| {
        // The mount ends with its namespace.
        std::mem::forget(Overlay::new([own.base().fs()]).writable(&upper, &work).mount(&target).unwrap());
        Waiting::start(&mut Command::new("cat"))
    })
    .unwrap();
    assert_found(&own, &other, &format!("upperdir={}", upper.display()));
    drop(process);
    assert!(own.traces().is_empty());
    fs::remove_dir_all(run).unwrap();
}

#[test]
fn a_cgroup_is_found_after_its_run_was_removed() {
    let (own, other) = (Fixture::new(), Fixture::new());
    let name = run_name(3);
    begin_and_end_a_run(&own.scratch(), &name);
    let group = Group::make(&name);
    assert_found(&own, &other, group.0.to_str().unwrap());
    drop(group);
    assert_eq!(own.difference(), "");
}

#[test]
fn a_cgroup_is_found_if_the_fixture_watches_its_run() {
    let (own, other) = (Fixture::new(), Fixture::new());
    let [unknown, watched, given] = [4, 5, 6].map(run_name);
    let elsewhere = own.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    begin_and_end_a_run(&elsewhere, &unknown);
    own.watch(&elsewhere);
    begin_and_end_a_run(&elsewhere, &watched);
    own.add_run(&given);
    let groups = [&unknown, &watched, &given].map(|name| Group::make(name));
    for group in &groups[1..] {
        assert_found(&own, &other, group.0.to_str().unwrap());
    }
    assert!(!own.difference().contains(&unknown));
}

#[test]
fn a_process_in_a_cgroup_is_found() {
    let (own, other) = (Fixture::new(), Fixture::new());
    let name = run_name(7);
    begin_and_end_a_run(&own.scratch(), &name);
    let group = Group::make(&name);
    let process = Waiting::start(&mut Command::new("cat"));
    assert!(!own.traces().lives());
    group.add(&process);
    assert_found(&own, &other, &format!("processes: {{{}}}", process.0.id()));
    drop(process);
    assert!(!own.traces().lives());
}

#[test]
fn a_runtime_is_found_by_its_bundle() {
    let (own, other) = (Fixture::new(), Fixture::new());
    let bundle = own.scratch().join(run_name(8)).join("bundle");
    let start = |bundle: &Path| {
        let mut command = Command::new("sh");
        // The process prints a line once it has these arguments.
        command.args(["-c", "echo; read line", "runc", "run", "--bundle"]).arg(bundle).stdout(Stdio::piped());
        let mut process = Waiting::start(&mut command);
        std::io::Read::read_exact(process.0.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        process
    };
    let process = start(&bundle);
    assert_found(&own, &other, &format!("processes: {{{}}}", process.0.id()));
    drop(process);
    // The path of this bundle only begins like the fixture's path.
    let _another = start(Path::new(&format!("{}-other/scratch/{}/bundle", own.path().display(), run_name(8))));
    assert_eq!(own.difference(), "");
}

#[test]
fn a_file_in_the_scratch_directory_is_found() {
    let (own, other) = (Fixture::new(), Fixture::new());
    let file = own.scratch().join("file");
    fs::write(&file, "").unwrap();
    assert_found(&own, &other, &format!("left in the scratch directory: {}", file.display()));
    fs::remove_file(file).unwrap();
}

#[test]
fn a_changed_layer_is_found() {
    let (own, other) = (Fixture::new(), Fixture::new());
    let layers = own.numbered_layers(2);
    other.numbered_layers(2);
    let file = layers[1].fs().join("top");
    fs::write(&file, "another\n").unwrap();
    assert_found(&own, &other, &format!("{} has changed:\n  /top\n", layers[1].fs().display()));
    // Dropping the fixture would fail this test otherwise.
    let undone = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(own)));
    assert!(undone.is_err());
}

#[test]
fn a_live_run_is_found_only_by_its_own_fixture() {
    let fixtures = Arc::new((Fixture::new(), Fixture::new()));
    let (sender, receiver) = std::sync::mpsc::channel();
    // The command runs until the writer is closed.
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let mut waiting = Some((writer, Arc::clone(&fixtures)));
    let look = move |_: &[u8]| {
        if let Some((_writer, fixtures)) = waiting.take() {
            let (own, other) = &*fixtures;
            sender.send((own.traces(), own.difference(), other.difference())).unwrap();
        }
    };
    let (own, other) = &*fixtures;
    let options = own.options().stdin(Input::File(reader.into())).stdout(Output::Callback(Box::new(look)));
    assert!(own.run_with(&[], "echo begun; read line; true", options).status.success());
    let (traces, difference, others) = receiver.try_recv().unwrap();
    assert!(traces.mounts() && traces.lives(), "{traces:?}");
    for words in ["upperdir=", "/sys/fs/cgroup/", "left in the scratch directory"] {
        assert!(difference.contains(words), "{words:?} is not in {difference}");
    }
    assert_eq!((&*others, &*own.difference(), &*other.difference()), ("", "", ""));
}

#[test]
fn a_leak_fails_the_test_that_made_it() {
    let fixture = Fixture::new();
    fs::write(fixture.scratch().join("file"), "").unwrap();
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(fixture)));
    let message = dropped.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("left in the scratch directory"), "{message}");
}
