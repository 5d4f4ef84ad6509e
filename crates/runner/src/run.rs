use std::path::Path;
use std::time::Instant;

use container::{Cgroup, ContainerId, Template};
use layer::{Base, Layer, Plan};

use crate::error::{Cause, Error, Result, io_cause};
use crate::machine::Machine;
use crate::rundir::{self, PREFIX, scratch_dir};
use crate::scratch::Paths;
use crate::sequence::{in_phase, sequence};
use crate::stack::Stack;
use crate::{Options, Phase, Report, Timings};

/// Runs the template's command in a root file system stacked from `layers`, topmost first, over `base`, and returns what it
/// wrote with the result and the time of each phase.
///
/// The steps, in order: [the layers are held and looked at](Phase::Inputs) · a [scratch](Options::scratch) directory is made · every
/// layer is marked as used · what does not fit the kernel's limits is merged · [`prep_upper`](Options::prep_upper) is called ·
/// the overlay is mounted, in a mount namespace of the run's own · the template is filled in · the runtime runs · the overlay
/// is unmounted · everything but the upper is removed, [behind](crate::Cleanup::Behind) the caller's back where that is asked for.
///
/// The only processes are the runtime and the helper that looks after the container. The layers are only read, but for their `last_used`; no `layer.json` and no sidecar
/// is read or written. They are [held](layer::Hold) until the overlay is unmounted: no collector takes one meanwhile, and if
/// this process is killed nobody has to let go of them.
///
/// # Errors
/// [`Error`] with the phase. The phases before it are undone, and nothing is left unless unmounting or removing failed: then
/// [`Error::left`] says where. A command that fails, or is ended by a signal, the deadline or a [`Cancel`](container::Cancel),
/// is no error.
pub fn run(base: &Base, layers: &[Layer], template: &Template, options: Options<'_>) -> Result<Report> {
    let started = Instant::now();
    // Until the runtime starts there is time for that.
    let _prepared = Cgroup::prepare_moves();
    let mut timings = Timings::new();
    let (outcome, (upper, removal)) = sequence(Machine::new(base, layers, template, options), &mut timings)?;
    timings.set_total(started.elapsed());
    Ok(Report {
        status: outcome.finished.status,
        upper,
        timings,
        plan: outcome.plan,
        merged: outcome.merged,
        removal,
        made: outcome.made,
        origin: outcome.origin,
        stdout: outcome.finished.stdout,
        stderr: outcome.finished.stderr,
        output_error: outcome.finished.output_error,
        usage: outcome.finished.usage,
    })
}

/// The plan that [`run`] would make, without anything being made or marked as used.
///
/// # Errors
/// [`Error`] in [`Phase::Inputs`] for what is wrong with the base or a layer, in [`Phase::Plan`] if the kernel cannot be asked.
pub fn plan(base: &Base, layers: &[Layer], options: &Options<'_>) -> Result<Plan> {
    // The kernel tells nobody else which rungs it has.
    container::require_privilege().map_err(|error| Error::new(Phase::Inputs, error))?;
    let stack = Stack::resolve(base, layers).map_err(in_phase(Phase::Inputs))?;
    // Any run's will do: only the length of the names counts.
    let paths = ContainerId::random(PREFIX)
        .map_err(Cause::from)
        .and_then(|id| Ok(Paths::new(scratch_dir(&options.scratch)?.join(id.as_str()))));
    paths.and_then(|paths| stack.plan(options, &paths)).map_err(in_phase(Phase::Plan))
}

/// Sees that the upper of a run over these layers may be moved to `destination`: that this is in none of their trees. An upper that
/// is moved there would change a layer that is in use. Best called before the run.
///
/// # Errors
/// [`Cause::UpperInLayer`], [`Cause::InRunDirectory`]; [`Cause::Layer`] for what is wrong with the base or a layer; [`Cause::Io`] if the directory that
/// `destination` is to be made in cannot be looked at.
pub fn check_upper_destination(base: &Base, layers: &[Layer], destination: impl AsRef<Path>) -> Result<(), Cause> {
    let destination = destination.as_ref();
    let parent = match destination.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let parent = std::fs::canonicalize(parent).map_err(io_cause("look at", parent))?;
    if let Some(run) = rundir::around(&parent) {
        return Err(Cause::InRunDirectory { path: destination.into(), run });
    }
    Stack::resolve(base, layers)?.refuse_destination(&parent, destination)
}
