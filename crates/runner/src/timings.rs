//! The phases of a run, and how long each of them took.
//!
//! `run` has the order in which a run takes them.

use std::fmt;
use std::time::{Duration, Instant};

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::Result;
use crate::error::in_phase;
use crate::events::{Event, Watch, Watcher};

/// A phase of a run. The order of the variants is the order of the phases.
///
/// `Display` shows the names that timings and `layer.json` have: `touch`, `plan`, `merge`, …
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Phase {
    /// Checks the base, the layers and the template, and holds the layers. Counts only in the total
    /// time.
    Inputs,
    /// Creates the run's own directory. Counts only in the total time.
    Scratch,
    /// Marks every layer as used.
    Touch,
    /// Decides which layers are stacked and which are merged. Over layers of other users, also
    /// makes the skeleton, unless an earlier run left one. With [`Stacks`](crate::Stacks), also
    /// mounts the shared overlay if it does not exist yet.
    Plan,
    /// Merges the layers that do not fit.
    Merge,
    /// Sets the attributes of the upper's root, and calls the caller's `prep_upper`.
    PrepUpper,
    /// Mounts the overlay.
    OverlayMount,
    /// Fills in the template, writes `config.json`, and puts `/etc/hosts` and the like into the
    /// upper.
    Config,
    /// Runs the command.
    RuncRun,
    /// Unmounts the overlay.
    OverlayUmount,
    /// Removes everything but the upper.
    Cleanup,
}

impl Phase {
    /// The phases that are timed, in order.
    pub const TIMED: [Phase; 9] = [
        Phase::Touch,
        Phase::Plan,
        Phase::Merge,
        Phase::PrepUpper,
        Phase::OverlayMount,
        Phase::Config,
        Phase::RuncRun,
        Phase::OverlayUmount,
        Phase::Cleanup,
    ];

    /// Returns the phase's name in timings and messages.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Inputs => "inputs",
            Phase::Scratch => "scratch",
            Phase::Touch => "touch",
            Phase::Plan => "plan",
            Phase::Merge => "merge",
            Phase::PrepUpper => "prep_upper",
            Phase::OverlayMount => "overlay_mount",
            Phase::Config => "config",
            Phase::RuncRun => "runc_run",
            Phase::OverlayUmount => "overlay_umount",
            Phase::Cleanup => "cleanup",
        }
    }
}

impl Serialize for Phase {
    /// Writes the [name](Phase::name).
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// How long each phase of a run took, and the whole run.
///
/// The names and their order never change: `touch`, `plan`, `merge`, `prep_upper`, `overlay_mount`,
/// `config`, `runc_run`, `overlay_umount`, `cleanup`, `total`. A phase that has nothing to do takes
/// next to no time. With many layers, `touch` is only the time to start a thread. The total is more
/// than the sum: it also contains the time to check the inputs, to create the run's directory and
/// to start a thread.
///
/// As JSON, the timings are an object of seconds in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timings {
    phases: [Duration; Phase::TIMED.len()],
    total: Duration,
}

impl Timings {
    /// Returns how long one phase took, or zero if the phase is not timed.
    pub fn phase(&self, phase: Phase) -> Duration {
        let index = Phase::TIMED.iter().position(|timed| *timed == phase);
        index.map(|index| self.phases[index]).unwrap_or_default()
    }

    /// Returns the time from the call of `run` to its return.
    pub fn total(&self) -> Duration {
        self.total
    }

    /// Returns the names and times in order, `total` last.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Duration)> + '_ {
        let phases = Phase::TIMED.iter().zip(self.phases).map(|(phase, time)| (phase.name(), time));
        phases.chain([("total", self.total)])
    }
}

/// Times the phases of a run that is in progress, and passes events to the caller.
#[derive(Debug)]
pub(crate) struct Clock<'a> {
    started: Instant,
    phases: [Duration; Phase::TIMED.len()],
    watcher: Watcher<'a>,
}

impl<'a> Clock<'a> {
    pub(crate) fn start(watch: Option<Watch<'a>>) -> Self {
        let (started, watcher) = (Instant::now(), Watcher::new(watch));
        Self { started, phases: [Duration::ZERO; Phase::TIMED.len()], watcher }
    }

    pub(crate) fn watcher(&self) -> &Watcher<'a> {
        &self.watcher
    }

    /// Does the work of one phase and adds the elapsed time to it, unless the phase is not timed.
    pub(crate) fn time<T>(&mut self, phase: Phase, work: impl FnOnce() -> T) -> T {
        self.watcher.tell(Event::Began(phase));
        let start = Instant::now();
        let result = work();
        let time = start.elapsed();
        if let Some(index) = Phase::TIMED.iter().position(|timed| *timed == phase) {
            self.phases[index] += time;
        }
        self.watcher.tell(Event::Ended(phase, time));
        result
    }

    /// Does and times the work of one phase. An error names the phase.
    pub(crate) fn step<T>(&mut self, phase: Phase, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.time(phase, || in_phase(phase, work))
    }

    pub(crate) fn stop(self) -> Timings {
        Timings { phases: self.phases, total: self.started.elapsed() }
    }
}

impl Serialize for Timings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(Phase::TIMED.len() + 1))?;
        for (name, time) in self.iter() {
            map.serialize_entry(name, &time.as_secs_f64())?;
        }
        map.end()
    }
}

impl From<&Timings> for layer::Timing {
    /// Returns the seconds of each phase, for `layer.json`.
    fn from(timings: &Timings) -> Self {
        timings.iter().map(|(name, time)| (name, time.as_secs_f64())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cause;

    #[test]
    fn names_and_order_never_change() {
        let mut phases = [Duration::ZERO; Phase::TIMED.len()];
        phases[2] = Duration::from_millis(1500);
        let timings = Timings { phases, total: Duration::from_secs(2) };
        assert_eq!(
            serde_json::to_string(&timings).unwrap(),
            concat!(
                r#"{"touch":0.0,"plan":0.0,"merge":1.5,"prep_upper":0.0,"overlay_mount":0.0,"config":0.0,"#,
                r#""runc_run":0.0,"overlay_umount":0.0,"cleanup":0.0,"total":2.0}"#
            )
        );
        assert_eq!(serde_json::to_string(&Phase::PrepUpper).unwrap(), r#""prep_upper""#);
        assert_eq!(timings.phase(Phase::Merge), Duration::from_millis(1500));
        assert_eq!(layer::Timing::from(&timings).seconds("merge"), Some(1.5));
    }

    #[test]
    fn a_failed_step_names_its_phase() {
        let mut clock = Clock::start(None);
        let failed = clock.step(Phase::Merge, || Err::<(), _>(Cause::NotKept { path: "x".into() }.into()));
        assert_eq!(failed.unwrap_err().phase(), Some(Phase::Merge));
        assert_eq!(clock.time(Phase::Cleanup, || 7), 7);
    }
}
