use std::fmt;
use std::time::{Duration, Instant};

use serde::ser::{Serialize, SerializeMap, Serializer};

/// A step of a run, in the order in which they are taken.
///
/// Shown as the names that timings and `layer.json` have: `touch`, `plan`, `merge`, …
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Phase {
    /// The base, the layers and the template are looked at. Nothing is made or changed. Not timed on its own.
    Inputs,
    /// The scratch directory is made. Not timed on its own.
    Scratch,
    /// Every layer is marked as used.
    Touch,
    /// What is stacked and what merged is decided.
    Plan,
    /// The layers that do not fit are merged.
    Merge,
    /// The upper gets its root's attributes and whatever the caller puts into it.
    PrepUpper,
    /// The overlay is mounted.
    OverlayMount,
    /// The template is filled in, `config.json` written, `/etc/hosts` and the like put into the upper.
    Config,
    /// The runtime runs the command.
    RuncRun,
    /// The overlay is unmounted.
    OverlayUmount,
    /// Everything but the upper is removed.
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

    /// The name in timings and messages.
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

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// How long each phase of a run took, and the whole.
///
/// The names and their order never change: `touch`, `plan`, `merge`, `prep_upper`, `overlay_mount`, `config`, `runc_run`,
/// `overlay_umount`, `cleanup`, `total`. A phase that had nothing to do has taken next to nothing. The total holds more than
/// the sum: the look at the inputs, the scratch directory, the thread.
///
/// As JSON: an object of seconds in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timings {
    phases: [Duration; Phase::TIMED.len()],
    total: Duration,
}

impl Timings {
    pub(crate) fn new() -> Self {
        Self { phases: [Duration::ZERO; Phase::TIMED.len()], total: Duration::ZERO }
    }

    /// Runs one phase and adds what it takes.
    pub(crate) fn time<T>(&mut self, phase: Phase, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        if let Some(index) = Phase::TIMED.iter().position(|timed| *timed == phase) {
            self.phases[index] += start.elapsed();
        }
        result
    }

    pub(crate) fn set_total(&mut self, total: Duration) {
        self.total = total;
    }

    /// What one phase took; zero for one that is not timed.
    pub fn phase(&self, phase: Phase) -> Duration {
        let index = Phase::TIMED.iter().position(|timed| *timed == phase);
        index.map(|index| self.phases[index]).unwrap_or_default()
    }

    /// From the call to the return.
    pub fn total(&self) -> Duration {
        self.total
    }

    /// Names and times, in order, `total` last.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Duration)> + '_ {
        let phases = Phase::TIMED.iter().zip(self.phases).map(|(phase, time)| (phase.name(), time));
        phases.chain([("total", self.total)])
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
    /// For `layer.json`: seconds by phase.
    fn from(timings: &Timings) -> Self {
        timings.iter().map(|(name, time)| (name, time.as_secs_f64())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_order_never_change() {
        let mut timings = Timings::new();
        assert_eq!(timings.time(Phase::Cleanup, || 7), 7);
        timings.phases[2] = Duration::from_millis(1500);
        timings.phases[8] = Duration::ZERO;
        timings.set_total(Duration::from_secs(2));
        assert_eq!(
            serde_json::to_string(&timings).unwrap(),
            concat!(
                r#"{"touch":0.0,"plan":0.0,"merge":1.5,"prep_upper":0.0,"overlay_mount":0.0,"config":0.0,"#,
                r#""runc_run":0.0,"overlay_umount":0.0,"cleanup":0.0,"total":2.0}"#
            )
        );
        assert_eq!(timings.phase(Phase::Merge), Duration::from_millis(1500));
        assert_eq!(layer::Timing::from(&timings).seconds("merge"), Some(1.5));
    }
}
