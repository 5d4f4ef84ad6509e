use std::path::Path;

use crate::error::{Cause, Error, Result};
use crate::{Phase, Timings};

/// What the sequence asks of the machine it runs on, one call a step.
pub(crate) trait Host: Send + Sized {
    /// The run's directory.
    type Scratch: Sync;
    /// The guard of the mount.
    type Mounted;
    /// What the runtime is pointed at.
    type Bundle;
    /// What is known when the command has ended.
    type Outcome: Send;
    /// What stays of the scratch directory.
    type Upper;

    fn inputs(&mut self) -> Result<(), Cause>;
    fn scratch(&mut self) -> Result<Self::Scratch, Cause>;
    fn touch(&mut self);
    fn plan(&mut self, scratch: &Self::Scratch) -> Result<(), Cause>;
    fn merge(&mut self, scratch: &Self::Scratch) -> Result<(), Cause>;
    /// Whether nobody waits for the command any more.
    fn is_cancelled(&self) -> bool;
    /// What is to be told of a command that was cancelled before it began.
    fn never_begun(&mut self, scratch: &Self::Scratch) -> Self::Outcome;
    fn prep_upper(&mut self, scratch: &Self::Scratch) -> Result<(), Cause>;
    /// Calls `work` where its mounts are seen by nobody else.
    fn privately<T: Send>(&mut self, work: impl FnOnce(&mut Self) -> T + Send) -> Result<T, Cause>;
    fn mount(&mut self, scratch: &Self::Scratch) -> Result<Self::Mounted, Cause>;
    fn config(&mut self, scratch: &Self::Scratch, mounted: &Self::Mounted) -> Result<Self::Bundle, Cause>;
    fn runtime(&mut self, bundle: Self::Bundle) -> Result<Self::Outcome, Cause>;
    fn unmount(&mut self, mounted: Self::Mounted) -> Result<(), Cause>;
    /// Removes all of the run's directory but the upper.
    fn cleanup(&mut self, scratch: Self::Scratch) -> Result<Self::Upper, Cause>;
    /// Removes all of it.
    fn discard(&mut self, scratch: Self::Scratch) -> Result<(), Cause>;
    /// Leaves all of it.
    fn leave(&mut self, scratch: Self::Scratch);
    /// Where it is.
    fn dir(scratch: &Self::Scratch) -> &Path;
}

/// The whole run. Whatever fails, what was done before is undone; where undoing fails, nothing more is done.
pub(crate) fn sequence<H: Host>(mut host: H, clock: &mut Timings) -> Result<(H::Outcome, H::Upper)> {
    host.inputs().map_err(in_phase(Phase::Inputs))?;
    let scratch = host.scratch().map_err(in_phase(Phase::Scratch))?;
    let dir = H::dir(&scratch).to_path_buf();
    match phases(&mut host, &scratch, clock) {
        Ok(outcome) => match clock.time(Phase::Cleanup, || host.cleanup(scratch)) {
            Ok(upper) => Ok((outcome, upper)),
            Err(cause) => Err(Error::new(Phase::Cleanup, cause).leaving(&dir)),
        },
        Err(Failure::Undone(error)) => match host.discard(scratch) {
            Ok(()) => Err(error),
            Err(cause) => Err(error.leaving_for(&dir, &Error::new(Phase::Cleanup, cause))),
        },
        Err(Failure::StillMounted(error)) => {
            host.leave(scratch);
            Err(error)
        }
    }
}

enum Failure {
    /// Nothing but the scratch directory is left to undo.
    Undone(Error),
    /// Deleting through a live mount would turn the upper into whiteouts: the error says what is left.
    StillMounted(Error),
}

fn phases<H: Host>(host: &mut H, scratch: &H::Scratch, clock: &mut Timings) -> Result<H::Outcome, Failure> {
    clock.time(Phase::Touch, || host.touch());
    step(clock, Phase::Plan, || host.plan(scratch))?;
    step(clock, Phase::Merge, || host.merge(scratch))?;
    if host.is_cancelled() {
        return Ok(host.never_begun(scratch));
    }
    step(clock, Phase::PrepUpper, || host.prep_upper(scratch))?;
    let outcome = host.privately(|host| {
        let mounted = step(clock, Phase::OverlayMount, || host.mount(scratch))?;
        let outcome = step(clock, Phase::Config, || host.config(scratch, &mounted))
            .and_then(|bundle| step(clock, Phase::RuncRun, || host.runtime(bundle)));
        match (outcome, step(clock, Phase::OverlayUmount, || host.unmount(mounted))) {
            (outcome, Ok(())) => outcome.map_err(Failure::Undone),
            (Ok(_), Err(error)) => Err(Failure::StillMounted(error.leaving(H::dir(scratch)))),
            (Err(first), Err(second)) => Err(Failure::StillMounted(first.leaving_for(H::dir(scratch), &second))),
        }
    });
    outcome.map_err(in_phase(Phase::OverlayMount))?
}

fn step<T>(clock: &mut Timings, phase: Phase, work: impl FnOnce() -> Result<T, Cause>) -> Result<T> {
    clock.time(phase, work).map_err(in_phase(phase))
}

pub(crate) fn in_phase(phase: Phase) -> impl FnOnce(Cause) -> Error {
    move |cause| Error::new(phase, cause)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Undone(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Writes down what it is asked for and fails where it is told to.
    #[derive(Clone, Default)]
    struct Fake {
        calls: Arc<Mutex<Vec<&'static str>>>,
        failing: Vec<&'static str>,
        cancelled: bool,
    }

    impl Fake {
        fn call<T>(&self, name: &'static str, value: T) -> Result<T, Cause> {
            self.calls.lock().unwrap().push(name);
            match self.failing.contains(&name) {
                true => Err(Cause::NotKept { path: name.into() }),
                false => Ok(value),
            }
        }
    }

    struct Dir;

    impl Host for Fake {
        type Scratch = Dir;
        type Mounted = &'static str;
        type Bundle = &'static str;
        type Outcome = &'static str;
        type Upper = &'static str;

        fn inputs(&mut self) -> Result<(), Cause> {
            self.call("inputs", ())
        }
        fn scratch(&mut self) -> Result<Dir, Cause> {
            self.call("scratch", Dir)
        }
        fn touch(&mut self) {
            self.call("touch", ()).unwrap();
        }
        fn plan(&mut self, _: &Dir) -> Result<(), Cause> {
            self.call("plan", ())
        }
        fn merge(&mut self, _: &Dir) -> Result<(), Cause> {
            self.call("merge", ())
        }
        fn is_cancelled(&self) -> bool {
            self.cancelled
        }
        fn never_begun(&mut self, _: &Dir) -> &'static str {
            "never begun"
        }
        fn prep_upper(&mut self, _: &Dir) -> Result<(), Cause> {
            self.call("prep_upper", ())
        }
        fn privately<T: Send>(&mut self, work: impl FnOnce(&mut Self) -> T + Send) -> Result<T, Cause> {
            self.call("privately", ())?;
            Ok(work(self))
        }
        fn mount(&mut self, _: &Dir) -> Result<&'static str, Cause> {
            self.call("mount", "mounted")
        }
        fn config(&mut self, _: &Dir, mounted: &&'static str) -> Result<&'static str, Cause> {
            assert_eq!(*mounted, "mounted");
            self.call("config", "bundle")
        }
        fn runtime(&mut self, bundle: &'static str) -> Result<&'static str, Cause> {
            assert_eq!(bundle, "bundle");
            self.call("runtime", "outcome")
        }
        fn unmount(&mut self, mounted: &'static str) -> Result<(), Cause> {
            assert_eq!(mounted, "mounted");
            self.call("unmount", ())
        }
        fn cleanup(&mut self, _: Dir) -> Result<&'static str, Cause> {
            self.call("cleanup", "upper")
        }
        fn discard(&mut self, _: Dir) -> Result<(), Cause> {
            self.call("discard", ())
        }
        fn leave(&mut self, _: Dir) {
            self.call("leave", ()).unwrap();
        }
        fn dir(_: &Dir) -> &Path {
            Path::new("/scratch/run")
        }
    }

    /// What was asked for, and what came of it.
    fn play(failing: &[&'static str]) -> (String, Result<(&'static str, &'static str)>) {
        let fake = Fake { failing: failing.to_vec(), ..Fake::default() };
        let calls = Arc::clone(&fake.calls);
        let result = sequence(fake, &mut Timings::new());
        let calls = calls.lock().unwrap().join(" ");
        (calls, result)
    }

    const MOUNTED: &str = "inputs scratch touch plan merge prep_upper privately mount";

    #[test]
    fn all_goes_well() {
        let (calls, result) = play(&[]);
        assert_eq!(calls, format!("{MOUNTED} config runtime unmount cleanup"));
        assert_eq!(result.unwrap(), ("outcome", "upper"));
    }

    #[test]
    fn a_cancel_before_the_command_is_a_result_too() {
        let fake = Fake { cancelled: true, ..Fake::default() };
        let calls = Arc::clone(&fake.calls);
        assert_eq!(sequence(fake, &mut Timings::new()).unwrap(), ("never begun", "upper"));
        assert_eq!(calls.lock().unwrap().join(" "), "inputs scratch touch plan merge cleanup");
    }

    #[test]
    fn what_fails_is_told_and_what_was_done_before_is_undone() {
        let path = Some(Path::new("/scratch/run"));
        // (what fails, what was asked for, the phase that is told, what is left)
        let table: [(&[&str], String, Phase, Option<&Path>); 14] = [
            (&["inputs"], "inputs".into(), Phase::Inputs, None),
            (&["scratch"], "inputs scratch".into(), Phase::Scratch, None),
            (&["plan"], "inputs scratch touch plan discard".into(), Phase::Plan, None),
            (&["merge"], "inputs scratch touch plan merge discard".into(), Phase::Merge, None),
            (&["prep_upper"], "inputs scratch touch plan merge prep_upper discard".into(), Phase::PrepUpper, None),
            (
                &["privately"],
                "inputs scratch touch plan merge prep_upper privately discard".into(),
                Phase::OverlayMount,
                None,
            ),
            (&["mount"], format!("{MOUNTED} discard"), Phase::OverlayMount, None),
            (&["config"], format!("{MOUNTED} config unmount discard"), Phase::Config, None),
            (&["runtime"], format!("{MOUNTED} config runtime unmount discard"), Phase::RuncRun, None),
            // From here on something is left.
            (&["unmount"], format!("{MOUNTED} config runtime unmount leave"), Phase::OverlayUmount, path),
            (&["runtime", "unmount"], format!("{MOUNTED} config runtime unmount leave"), Phase::RuncRun, path),
            (&["config", "unmount"], format!("{MOUNTED} config unmount leave"), Phase::Config, path),
            (&["cleanup"], format!("{MOUNTED} config runtime unmount cleanup"), Phase::Cleanup, path),
            (&["runtime", "discard"], format!("{MOUNTED} config runtime unmount discard"), Phase::RuncRun, path),
        ];
        for (failing, expected, phase, left) in table {
            let (calls, result) = play(failing);
            let error = result.unwrap_err();
            assert_eq!(calls, expected, "{failing:?}");
            assert_eq!((error.phase(), error.left()), (phase, left), "{failing:?}");
            assert!(error.to_string().contains(failing[0]), "{error}");
        }
    }
}
