//! Decides whether the upper of a run becomes a layer, a kept run or a directory, or is deleted.
//!
//! The library makes layers and moves uppers; [`place`](crate::place) checks the name of a layer
//! before the run.

use std::path::{Path, PathBuf};

use anyhow::bail;
use container::Status;
use layer::display::quoted;
use layer::{Access, Base, Existing, Layer};
use runner::{PersistError, Report, Upper};
use serde_json::json;

use crate::complain;
use crate::kept::{self, Records};
use crate::place::Place;
use crate::progress::Progress;
use crate::stack::parent;

use super::OUTPUT;

/// The options that make a layer of the upper.
#[derive(Debug, clap::Args)]
pub(super) struct CommitArgs {
    /// Save what the command wrote as the layer STORE/NAME.
    ///
    /// For NAME alone, the store is the directory LAYERED_STORE. The layer appears only once it is
    /// complete. Its run.json records the command. If the command fails, or if --timeout or the
    /// signal INT or TERM to layered asks it to end, run creates no layer. If the layer cannot be
    /// created, layered keeps the run for `layered commit`. Without --scratch and LAYERED_SCRATCH,
    /// the temporary files of the run are in the store.
    #[arg(long, value_name = "STORE/NAME", conflicts_with = "upper", help_heading = OUTPUT)]
    commit: Option<PathBuf>,
    /// Create the layer even if the command fails.
    ///
    /// The layer records the exit status. If --timeout or a signal to layered asks the command to
    /// end, run still creates no layer.
    #[arg(long, requires = "commit", help_heading = OUTPUT)]
    commit_failed: bool,
    /// Replace an existing layer of this name if its command failed.
    ///
    /// The new layer takes the place of the old one in one step. Without --mode and --group, it has
    /// the mode and group of the old one. A layer is never replaced if its command succeeded, if
    /// another run uses it, or if it is the base of other layers.
    #[arg(long, requires = "commit", help_heading = OUTPUT)]
    replace: bool,
}

impl CommitArgs {
    /// Returns the place of the layer of a run over `layers` and `base`. Called before the run, so
    /// that a mistake costs no result.
    pub(super) fn place(&self, base: &Base, layers: &[Layer]) -> anyhow::Result<Option<Place>> {
        let Some(path) = &self.commit else { return Ok(None) };
        let place = Place::of_new(path)?;
        let new = place.check_new(self.existing())?;
        let mut trees = layers.iter().map(Layer::fs).chain([base.fs()]).filter_map(|tree| tree.canonicalize().ok());
        if new.fs().canonicalize().is_ok_and(|new| trees.any(|tree| tree == new)) {
            bail!(
                "cannot replace {}: this run stacks it; leave it out of the stack, or choose another name",
                quoted(new.path())
            );
        }
        // A store in which no layer can be made costs no result, either.
        drop(place.store.draft()?);
        Ok(Some(place))
    }

    fn existing(&self) -> Existing {
        if self.replace { Existing::ReplacedIfFailed } else { Existing::Refused }
    }

    /// Returns whether a run makes a layer.
    fn takes(&self, end: End) -> bool {
        end.is_own() && (end.status.success() || self.commit_failed)
    }
}

/// The end of a command.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) status: Status,
    /// The first signal to layered that asked the command to end, or 0. The command may have ended
    /// with any status then, because it can handle the signal.
    pub(super) signal: i32,
}

impl End {
    /// Returns whether the command ended by itself, so that its result can be complete.
    fn is_own(self) -> bool {
        self.signal == 0 && !matches!(self.status, Status::TimedOut | Status::Cancelled)
    }

    /// Returns whether the command ended by itself and succeeded.
    fn is_success(self) -> bool {
        self.is_own() && self.status.success()
    }
}

/// The options that decide about the upper.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) commit: &'a CommitArgs,
    /// The place of the layer to make.
    pub(super) place: Option<Place>,
    /// Where to move the upper.
    pub(super) upper: Option<&'a Path>,
    pub(super) keep_failed: bool,
    pub(super) access: Option<Access>,
    /// The first signal to layered that asked the command to end, or 0.
    pub(super) signal: i32,
}

/// The outcome of [`settle`].
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Where the upper is, if it is anywhere.
    pub(super) upper: Option<PathBuf>,
    /// The layer that it has become.
    pub(super) layer: Option<PathBuf>,
    /// Whether the caller did not get what it wanted. The upper is kept then.
    pub(super) is_failure: bool,
}

/// Saves or deletes the upper, and says so if that is not what the caller expects.
pub(super) fn settle(report: Report, wanted: Wanted<'_>) -> anyhow::Result<Settled> {
    let Wanted { commit, place, upper, keep_failed, access, signal } = wanted;
    let end = End { status: report.status, signal };
    match (place, upper) {
        (Some(place), _) if commit.takes(end) => Ok(publish(report, &place, commit.existing(), access)),
        _ if keep_failed && !end.is_success() => {
            let kept = keep(report);
            let dir = quoted(parent(&kept));
            complain(format_args!(
                "the run is kept: open it with `layered shell {dir}`, end it with `layered commit` or `layered discard`"
            ));
            Ok(Settled { upper: Some(kept), ..Settled::default() })
        }
        (None, Some(destination)) => {
            let (upper, moved) = persist(report.upper, destination, access);
            Ok(Settled { upper: Some(upper), is_failure: !moved, ..Settled::default() })
        }
        (place, _) => {
            report.upper.close()?;
            if let Some(place) = place {
                complain(format_args!("{}", not_made(&place.path(), end)));
            }
            Ok(Settled::default())
        }
    }
}

fn not_made(layer: &Path, end: End) -> String {
    let layer = quoted(layer);
    match end {
        end if end.is_own() => format!(
            "{layer} was not created: the command failed; pass --commit-failed to create it anyway, or --keep-failed to keep the run"
        ),
        End { status: Status::TimedOut | Status::Cancelled, .. } => {
            format!("{layer} was not created: the command did not end by itself; pass --keep-failed to keep such a run")
        }
        _ => format!(
            "{layer} was not created: a signal to layered asked the command to end; pass --keep-failed to keep such a run"
        ),
    }
}

/// Makes the upper a layer. Keeps the run if that fails.
fn publish(report: Report, place: &Place, existing: Existing, access: Option<Access>) -> Settled {
    let progress = Progress::begin("making the layer");
    let published = report.publish(&place.store, &place.name, |new| {
        new.existing = existing;
        new.access = access;
        Ok(())
    });
    drop(progress);
    match published {
        Ok(layer) => Settled { layer: Some(layer.path().into()), ..Settled::default() },
        Err(error) => {
            // This is the error with its sources.
            let why = format!("{error:?}");
            let kept = keep(error.report);
            let dir = quoted(parent(&kept));
            complain(format_args!(
                "{why}; the run is kept: end it with `layered commit {dir} STORE/NAME` or `layered discard {dir}`"
            ));
            Settled { upper: Some(kept), is_failure: true, ..Settled::default() }
        }
    }
}

/// Keeps the upper in the scratch directory with what `layered commit` needs. Returns its path.
fn keep(report: Report) -> PathBuf {
    let records = Records { capture: report.capture_record(), command: Some(report.command_record().clone()) };
    let status = json!(report.status);
    // Saves the result before anything is printed: a failed write must not lose it.
    let kept = report.upper.keep();
    kept::add_result(parent(&kept), status, records);
    kept
}

/// Moves the upper to `destination`. Keeps it where it is if that fails. Returns its path, and
/// whether it was moved.
fn persist(upper: Upper, destination: &Path, access: Option<Access>) -> (PathBuf, bool) {
    match upper.persist_with(destination, access) {
        Ok(path) => (path, true),
        Err(error) => {
            let PersistError { upper, destination, source } = *error;
            let kept = upper.keep();
            let (to, at) = (quoted(&destination), quoted(&kept));
            complain(format_args!("cannot move the upper to {to}: {source}; it is kept at {at}"));
            (kept, false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_command_that_ended_by_itself_makes_a_layer() {
        let failed = [Status::Exited(1), Status::Signaled(9), Status::OutOfMemory, Status::OutputLimit];
        let ended = [Status::TimedOut, Status::Cancelled];
        for commit_failed in [false, true] {
            let args = CommitArgs { commit: Some("store/new".into()), commit_failed, replace: false };
            let takes = |status, signal| args.takes(End { status, signal });
            assert!(takes(Status::Exited(0), 0));
            assert!(failed.iter().all(|status| takes(*status, 0) == commit_failed));
            assert!(!ended.iter().any(|status| takes(*status, 0)));
            // A command can handle a signal and end with any status.
            assert!(!failed.iter().chain(&ended).chain(&[Status::Exited(0)]).any(|status| takes(*status, 15)));
        }
    }
}
