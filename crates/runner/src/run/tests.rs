//! Tests of what a run undoes when one of its steps fails. A fake kernel replaces the five
//! operations that need root. Everything else is real and works in a temporary directory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use container::{Cancel, ContainerId, Mount, Overlay, OverlayXattrs, Runtime, Supervision};
use layer::Rung;
use rustix::fs::XattrFlags;

use super::*;
use crate::configure::Prepared;
use crate::error::io_error;
use crate::paths::Paths;
use crate::stacks::Part;
use crate::{Cleanup, Error, EtcFiles};

/// A fake kernel. Its overlay is the upper alone, and its tmpfs is a directory that takes the place
/// of the covered one.
#[derive(Default)]
struct Played {
    failing: Vec<&'static str>,
    calls: Mutex<Vec<&'static str>>,
    /// The path that the tmpfs covers, and the path of the covered directory until the tmpfs is
    /// removed.
    covered: Mutex<Option<[PathBuf; 2]>>,
}

impl Played {
    fn call(&self, name: &'static str) -> Result<()> {
        self.calls.lock().unwrap().push(name);
        match self.failing.contains(&name) {
            true => Err(io_error(name, "it")(rustix::io::Errno::IO)),
            false => Ok(()),
        }
    }

    fn calls(&self) -> String {
        self.calls.lock().unwrap().join(" ")
    }
}

impl Kernel for Played {
    type Mounted = PathBuf;

    fn require(&self, _: &Template) -> Result<()> {
        self.call("require")
    }

    fn privately<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.call("privately")?;
        let result = work();
        if let Some([target, covered]) = self.covered.lock().unwrap().take() {
            fs::remove_dir_all(&target).unwrap();
            fs::rename(covered, target).unwrap();
        }
        Ok(result)
    }

    fn mount(&self, _: &Overlay, _: Option<&Part>, paths: &Paths) -> Result<PathBuf> {
        self.call("mount")?;
        let covered = [paths.bundle(), paths.dir().join("covered")];
        fs::rename(&covered[0], &covered[1]).unwrap();
        fs::create_dir(paths.bundle()).unwrap();
        *self.covered.lock().unwrap() = Some(covered);
        Ok(paths.upper())
    }

    fn execute(&self, _: &Runtime, _: &ContainerId, prepared: &Prepared, _: Supervision<'_>) -> Result<Finished> {
        self.call("execute")?;
        assert!(prepared.bundle.config_path().is_file());
        fs::write(prepared.bundle.path().with_file_name("upper").join("written"), "").unwrap();
        Ok(unstarted(Status::Exited(0)))
    }

    fn unmount(&self, upper: PathBuf) -> Result<()> {
        assert!(upper.is_dir());
        self.call("unmount")
    }
}

/// A base, a stack of three layers of which two must be merged, and a scratch directory.
struct Stacked {
    dir: tempfile::TempDir,
    base: Base,
    layers: Vec<Layer>,
}

impl Stacked {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["store/base", "store/a", "store/b", "store/c"] {
            fs::create_dir_all(dir.path().join(name).join("fs/dir")).unwrap();
            fs::write(dir.path().join(name).join("fs/file"), name).unwrap();
        }
        fs::create_dir(dir.path().join("scratch")).unwrap();
        let base = Base::open(dir.path().join("store/base")).unwrap();
        let layers = ["a", "b", "c"].map(|name| Layer::open(dir.path().join("store").join(name)).unwrap());
        Self { base, layers: layers.into(), dir }
    }

    fn scratch(&self) -> PathBuf {
        self.dir.path().join("scratch")
    }

    fn options<'a>(&self) -> Options<'a> {
        Options::new()
            .scratch(self.scratch())
            .rung(Rung::MountPaths)
            .max_lowers(3)
            .xattrs(OverlayXattrs::User)
            .etc_files(EtcFiles::FromLayers)
    }

    fn run(&self, kernel: &Played, template: &Template, mut options: Options<'_>) -> Result<Report> {
        let clock = Clock::start(options.watch.take());
        run_on(kernel, &self.base, &self.layers, template, options, clock)
    }

    /// Runs with all of these faults. Returns the calls of the kernel and the result.
    fn run_with(&self, faults: &[&'static str]) -> (String, Result<Report>) {
        let has = |fault| faults.contains(&fault);
        let mut options = self.options();
        let mut template = Template::builder(["true"]);
        if has("missing layer") {
            fs::remove_dir_all(self.layers[1].fs()).unwrap();
        }
        if has("missing scratch") {
            options = options.scratch(self.scratch().join("missing scratch"));
        }
        if has("redirect") {
            let redirected = self.layers[1].fs().join("dir");
            rustix::fs::setxattr(redirected, "user.overlay.redirect", b"/elsewhere", XattrFlags::empty()).unwrap();
        }
        if has("missing bind") {
            template = template.mount(Mount::bind(self.dir.path().join("missing bind"), "/mnt"));
        }
        let (fails, busy) = (has("prep_upper"), has("bundle"));
        options = options.prep_upper(move |upper, lowers| {
            assert_eq!(lowers.len(), 3);
            if busy {
                // The mount covers this file until the clean-up.
                fs::write(upper.with_file_name("bundle").join("precious"), "")?;
            }
            if fails { Err("prep_upper".into()) } else { Ok(fs::write(upper.join("prepared"), "")?) }
        });
        let kernel = Played { failing: faults.to_vec(), ..Played::default() };
        let result = self.run(&kernel, &template.build().unwrap(), options);
        (kernel.calls(), result)
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

const MOUNTED: &str = "require privately mount";

#[test]
fn a_run_returns_the_results_of_all_steps() {
    for cleanup in [Cleanup::Awaited, Cleanup::Behind] {
        let (stacked, kernel) = (Stacked::new(), Played::default());
        let template = Template::builder(["true"]).build().unwrap();
        let report = stacked.run(&kernel, &template, stacked.options().cleanup(cleanup)).unwrap();
        assert_eq!(kernel.calls(), format!("{MOUNTED} execute unmount"));
        assert_eq!((report.status, report.removal.is_some()), (Status::Exited(0), cleanup == Cleanup::Behind));
        assert_eq!((report.plan.separate.len(), report.plan.merged.len(), report.merged.is_some()), (1, 2, true));
        assert!(report.made.iter().any(|made| made.path() == Path::new("/proc")));
        assert!(report.timings.phase(Phase::Merge) > std::time::Duration::ZERO);
        assert!(report.upper.path().join("written").exists());
        assert_eq!(layer::held(stacked.dir.path().join("store")).unwrap().len(), 3);
        report.removal.map_or(Ok(()), crate::Removal::wait).unwrap();
        assert_eq!(names_in(report.upper.path().parent().unwrap()), ["upper"]);
        report.upper.close().unwrap();
        assert!(names_in(&stacked.scratch()).is_empty());
        assert!(layer::held(stacked.dir.path().join("store")).unwrap().is_empty());
    }
}

#[test]
fn a_cancel_before_the_command_starts_is_a_result() {
    let (stacked, kernel, cancel) = (Stacked::new(), Played::default(), Cancel::new().unwrap());
    cancel.cancel();
    let template = Template::builder(["true"]).build().unwrap();
    let report = stacked.run(&kernel, &template, stacked.options().cancel(cancel)).unwrap();
    assert_eq!((report.status, report.merged.is_some()), (Status::Cancelled, false));
    assert_eq!(kernel.calls(), "require");
    assert_eq!(names_in(report.upper.path().parent().unwrap()), ["upper"]);
}

#[test]
fn a_failure_is_reported_and_the_steps_before_it_are_undone() {
    // (the faults, the calls of the kernel, the reported phase, the entries left in the run's
    // directory)
    let table: [(&[&'static str], String, Phase, &[&str]); 14] = [
        (&["require"], "require".into(), Phase::Inputs, &[]),
        (&["missing layer"], "require".into(), Phase::Inputs, &[]),
        (&["missing scratch"], "require".into(), Phase::Scratch, &[]),
        (&["redirect"], "require".into(), Phase::Merge, &[]),
        (&["prep_upper"], "require".into(), Phase::PrepUpper, &[]),
        (&["privately"], "require privately".into(), Phase::OverlayMount, &[]),
        (&["mount"], MOUNTED.into(), Phase::OverlayMount, &[]),
        (&["missing bind"], format!("{MOUNTED} unmount"), Phase::Config, &[]),
        (&["execute"], format!("{MOUNTED} execute unmount"), Phase::RuncRun, &[]),
        // From here on, something is left.
        (&["unmount"], format!("{MOUNTED} execute unmount"), Phase::OverlayUmount, &ALL),
        (&["execute", "unmount"], format!("{MOUNTED} execute unmount"), Phase::RuncRun, &ALL),
        (&["missing bind", "unmount"], format!("{MOUNTED} unmount"), Phase::Config, &ALL),
        (&["bundle"], format!("{MOUNTED} execute unmount"), Phase::Cleanup, &ALL),
        (&["execute", "bundle"], format!("{MOUNTED} execute unmount"), Phase::RuncRun, &ALL),
    ];
    for (faults, calls, phase, left) in table {
        let stacked = Stacked::new();
        let (called, result) = stacked.run_with(faults);
        let error: Error = result.unwrap_err();
        assert_eq!((called, error.phase()), (calls, Some(phase)), "{faults:?}: {error}");
        let message = crate::error::chain(&error);
        let reasons = faults.iter().map(|fault| if *fault == "missing layer" { "store/b" } else { fault });
        assert!(reasons.clone().all(|reason| message.contains(reason)), "{message}");
        let runs = names_in(&stacked.scratch());
        let run = runs.first().map(|name| fs::canonicalize(stacked.scratch().join(name)).unwrap());
        assert_eq!(error.left(), run.as_deref(), "{faults:?}: {error}");
        assert_eq!(run.map(|run| names_in(&run)).unwrap_or_default(), left, "{faults:?}: {error}");
    }
}

const ALL: [&str; 4] = ["bundle", "lower", "upper", "work"];

#[test]
fn a_watcher_sees_each_phase_begin_and_end() {
    for (faults, last) in
        [(&[][..], Phase::Cleanup), (&["missing layer"], Phase::Inputs), (&["execute"], Phase::Cleanup)]
    {
        let (stacked, mut events) = (Stacked::new(), Vec::new());
        let kernel = Played { failing: faults.to_vec(), ..Played::default() };
        if faults.contains(&"missing layer") {
            fs::remove_dir_all(stacked.layers[1].fs()).unwrap();
        }
        let template = Template::builder(["true"]).build().unwrap();
        let options = stacked.options().watch(|event| events.push(*event));
        let timings = stacked.run(&kernel, &template, options).ok().map(|report| report.timings);
        let all = [Phase::Inputs, Phase::Scratch].into_iter().chain(Phase::TIMED);
        let phases: Vec<_> = all.take_while(|phase| *phase <= last).collect();
        assert_eq!(events.len(), 2 * phases.len(), "{events:?}");
        for (pair, phase) in events.chunks(2).zip(phases) {
            let [Event::Began(began), Event::Ended(ended, time)] = *pair else { panic!("{pair:?}") };
            assert_eq!((began, ended), (phase, phase));
            let timed = Phase::TIMED.contains(&phase);
            assert!(timings.as_ref().is_none_or(|timings| !timed || timings.phase(phase) == time), "{phase}");
        }
    }
}

#[test]
fn a_watcher_that_panics_leaves_nothing() {
    let all = || [Phase::Inputs, Phase::Scratch].into_iter().chain(Phase::TIMED);
    for (phase, begins) in all().flat_map(|phase| [(phase, true), (phase, false)]) {
        let (stacked, kernel) = (Stacked::new(), Played::default());
        let template = Template::builder(["true"]).build().unwrap();
        let options = stacked.options().watch(move |event| match event {
            Event::Began(began) if begins && *began == phase => panic!("seen enough"),
            Event::Ended(ended, _) if !begins && *ended == phase => panic!("seen enough"),
            _ => {}
        });
        let run = std::panic::AssertUnwindSafe(|| stacked.run(&kernel, &template, options).map(drop));
        assert!(std::panic::catch_unwind(run).is_err(), "{phase} {begins}");
        assert!(names_in(&stacked.scratch()).is_empty(), "{phase} {begins}");
        assert!(layer::held(stacked.dir.path().join("store")).unwrap().is_empty(), "{phase} {begins}");
    }
}

#[test]
fn a_watcher_that_panics_removes_nothing_from_an_upper_that_is_still_mounted() {
    let (stacked, kernel) = (Stacked::new(), Played { failing: vec!["unmount"], ..Played::default() });
    let template = Template::builder(["true"]).build().unwrap();
    let options = stacked.options().watch(|event| {
        let is_late = matches!(event, Event::Ended(Phase::OverlayUmount, _) | Event::Began(Phase::Cleanup));
        assert!(!is_late, "seen enough");
    });
    let error = stacked.run(&kernel, &template, options).unwrap_err();
    assert!(error.left().unwrap().join("upper/written").exists());
}

#[test]
fn nothing_is_removed_from_an_upper_that_is_still_mounted() {
    let stacked = Stacked::new();
    let error = stacked.run_with(&["unmount"]).1.unwrap_err();
    let upper = error.left().unwrap().join("upper");
    assert!(upper.join("prepared").exists() && upper.join("written").exists());
}

#[test]
fn a_kept_upper_survives_a_failed_run_over_it() {
    let stacked = Stacked::new();
    let kept = stacked.run_with(&[]).1.unwrap().upper.keep();
    let dir = kept.parent().unwrap();
    let template = Template::builder(["true"]).build().unwrap();
    for failing in ["require", "privately", "mount", "execute"] {
        let kernel = Played { failing: vec![failing], ..Played::default() };
        let options = stacked.options().over(Upper::reopen(dir).unwrap());
        stacked.run(&kernel, &template, options).unwrap_err();
        assert!(kept.join("written").exists(), "{failing}");
        assert_eq!(names_in(dir), ["upper"], "{failing}");
    }
    Upper::discard(dir).unwrap();
}

#[test]
fn an_upper_survives_a_watcher_that_panics_at_the_first_event() {
    let stacked = Stacked::new();
    let upper = stacked.run_with(&[]).1.unwrap().upper;
    let written = upper.path().join("written");
    let options = stacked.options().over(upper).watch(|_| panic!("the first event"));
    let template = Template::builder(["true"]).build().unwrap();
    let run = std::panic::AssertUnwindSafe(|| stacked.run(&Played::default(), &template, options).map(drop));
    std::panic::catch_unwind(run).unwrap_err();
    let kept = written.parent().unwrap().parent().unwrap();
    let kept = kept.with_file_name(kept.file_name().unwrap().to_str().unwrap().replacen("layered", "kept", 1));
    assert!(kept.join("upper/written").exists());
    Upper::discard(kept).unwrap();
}

#[test]
fn a_cancelled_run_over_a_kept_upper_leaves_its_root_alone() {
    let (stacked, cancel) = (Stacked::new(), Cancel::new().unwrap());
    cancel.cancel();
    let kept = stacked.run_with(&[]).1.unwrap().upper.keep();
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o711)).unwrap();
    let options = stacked.options().over(Upper::reopen(kept.parent().unwrap()).unwrap()).cancel(cancel);
    let template = Template::builder(["true"]).build().unwrap();
    let report = stacked.run(&Played::default(), &template, options).unwrap();
    assert_eq!(report.status, Status::Cancelled);
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o7777, 0o711);
}
