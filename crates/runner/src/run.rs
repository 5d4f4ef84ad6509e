//! The whole run: which steps it takes, in which order, and what each step gets from the ones
//! before.
//!
//! The steps are in `stack` (hold, plan, merge), `scratch` (the directory and its end), `configure`
//! and `kernel` (mount, execute, unmount).

use std::path::PathBuf;
use std::thread;

use container::advanced::unstarted;
use container::{Cancel, Cgroup, Finished, Status, Template};
use layer::{Base, Layer, Made, Merged, Plan};

use crate::configure::configure;
use crate::error::{chain, in_phase, with_undone};
use crate::events::Event;
use crate::kernel::{Kernel, Linux};
use crate::report::Origin;
use crate::scratch::Scratch;
use crate::skeleton::Skeleton;
use crate::stack::{self, Stack};
use crate::timings::Clock;
use crate::{CommandRecord, Options, Phase, Report, Result, Upper, xattrs};

#[cfg(test)]
mod tests;

/// Runs the template's command in a root file system stacked from `layers`, topmost first, over
/// `base`. Returns the upper that the command wrote to, the command's status and the time of each
/// phase.
///
/// A run takes these steps:
/// 1. It [holds and checks](Phase::Inputs) the layers.
/// 2. It creates its own directory in the [scratch](Options::scratch) directory.
/// 3. It marks every layer as used. If there are many layers, it does this while it goes on.
/// 4. It plans the stack, and merges the layers that exceed the kernel's limits.
/// 5. It calls [`prep_upper`](Options::prep_upper).
/// 6. It mounts the overlay in a private mount namespace and fills in the template.
/// 7. It starts the container and waits for the command to end.
/// 8. It unmounts the overlay.
/// 9. It removes everything but the upper, before it returns or [after](crate::Cleanup::Behind).
///
/// A run starts no processes except the runtime and the helper that looks after the container. It
/// only reads the layers, except that it touches their `last_used`. It reads and writes no
/// `layer.json` and no sidecar. It [holds](layer::Hold) the layers until the overlay is unmounted,
/// and after that for as long as the [`Upper`] exists. Until then, no collector removes a layer. If
/// this process is killed, the hold ends with it.
///
/// # Errors
/// [`Error`](crate::Error) with the phase. The run has then undone the phases before it. Nothing is
/// left unless unmounting or removing failed. Then [`Error::left`](crate::Error::left) returns the
/// directory. A command that fails, or that a signal, the timeout or a [`Cancel`] ends, is not an
/// error.
pub fn run(base: &Base, layers: &[Layer], template: &Template, mut options: Options<'_>) -> Result<Report> {
    let clock = Clock::start(options.watch.take());
    // The kernel needs some time for this, and has it until the runtime starts.
    let _prepared = (Cgroup::prepare_moves(), options.runtime.prepare(template));
    run_on(&Linux, base, layers, template, options, clock)
}

/// Runs the command with the operations of `kernel`. After any failure, the run undoes its earlier
/// steps. If undoing fails, it does nothing more.
fn run_on<K: Kernel>(
    kernel: &K,
    base: &Base,
    layers: &[Layer],
    template: &Template,
    options: Options<'_>,
    mut clock: Clock<'_>,
) -> Result<Report> {
    let Options {
        scratch,
        skeletons,
        over,
        destination,
        runtime,
        limits,
        prep_upper,
        devices,
        xattrs,
        etc,
        cleanup,
        stacks,
        record_env,
        supervision,
        ..
    } = options;
    // This comes first, because the upper of an earlier run must survive any failure, and a panic
    // of the caller's watcher.
    let over = in_phase(Phase::Inputs, || over.map(Upper::into_kept).transpose())?;
    let watcher = &clock.watcher().clone();
    let supervision = match watcher.is_watching() {
        true => supervision.on_start(|| watcher.tell(Event::CommandStarted)),
        false => supervision,
    };
    let cancel = supervision.get_cancel().cloned();
    let is_cancelled = || cancel.as_ref().is_some_and(Cancel::is_cancelled);
    let namespace = xattrs::namespace(xattrs);

    let (hold, stack) = clock.step(Phase::Inputs, || {
        kernel.require(template)?;
        // Hold the layers before checking them: no collector can then remove a layer that exists.
        let hold = stack::hold(base, layers, &is_cancelled)?;
        let stack = Stack::resolve(base, layers)?;
        destination.map_or(Ok(()), |destination| stack.refuse_destination(&destination))?;
        Ok((hold, stack))
    })?;
    let scratch = clock.step(Phase::Scratch, || Scratch::open(over, &scratch, &stack))?.holding(hold, namespace);
    let ran = thread::scope(|scope| {
        clock.time(Phase::Touch, || stack.touch(scope));
        let (skeleton, (planned, shared)) = clock.step(Phase::Plan, || {
            let caches = [skeletons.as_deref(), scratch.dir().parent()];
            let skeleton = stack.skeleton(caches, namespace, &is_cancelled)?;
            let planned = match &skeleton {
                Some(skeleton) => (stack.plan(&limits, &scratch, Some(&skeleton.tree()))?, None),
                None => {
                    // A cancelled run may not hold its layers.
                    let stacks = stacks.filter(|_| !is_cancelled());
                    let part = stacks.and_then(|stacks| stacks.part_of(&stack, xattrs, limits.max_lowers, &scratch));
                    stack.plan_over(part, &limits, &scratch)?
                }
            };
            Ok((skeleton, planned))
        })?;
        let merge = || stack::merge(&planned, &scratch.lower(), skeleton.as_ref(), namespace, &is_cancelled);
        let merged = clock.step(Phase::Merge, merge)?;
        let lowers = planned.lowers(&scratch.lower());
        let rung = planned.rung;
        let tree = skeleton.as_ref().map(Skeleton::tree);
        let plan = stack::without(planned, tree.as_deref());
        if is_cancelled() {
            scratch.never_mounted(&plan);
            let finished = unstarted(Status::Cancelled);
            let user = template.user();
            return Ok(Ran { plan, skeleton: tree, shared: 0, merged, finished, made: Vec::new(), user });
        }
        clock.step(Phase::PrepUpper, || scratch.prepare_upper(&lowers, prep_upper))?;
        let own = lowers.len() - shared.as_ref().map_or(0, |part| part.lowers());
        let overlay = stack::overlay(rung, lowers[..own].to_vec(), &scratch).devices(devices).xattrs(xattrs);
        let mount = || match kernel.mount(&overlay, shared.as_deref(), &scratch) {
            Err(error) if shared.is_some() && !is_cancelled() => {
                log::warn!("the layers are stacked one by one, without a shared overlay: {}", chain(&error));
                let planned = stack.plan(&limits, &scratch, None)?;
                let merged = stack::merge(&planned, &scratch.lower(), None, namespace, &is_cancelled)?;
                if !planned.merged.is_empty() && merged.is_none() {
                    // The run was cancelled.
                    return Err(error);
                }
                let overlay = stack::overlay(planned.rung, planned.lowers(&scratch.lower()), &scratch);
                let mounted = kernel.mount(&overlay.devices(devices).xattrs(xattrs), None, &scratch)?;
                Ok((mounted, Some((planned, merged))))
            }
            mounted => Ok((mounted?, None)),
        };
        let executed = in_phase(Phase::OverlayMount, || {
            kernel.privately(|| {
                let (mounted, flat) = clock.step(Phase::OverlayMount, mount)?;
                let ended = clock
                    .step(Phase::Config, || configure(&scratch, mounted.as_ref(), template, etc, namespace))
                    .and_then(|prepared| {
                        let execute = || kernel.execute(&runtime, scratch.id(), &prepared, supervision);
                        Ok((clock.step(Phase::RuncRun, execute)?, prepared.made, prepared.user))
                    });
                let unmount = || kernel.unmount(mounted).inspect_err(|_| watcher.stop());
                let unmounted = clock.step(Phase::OverlayUmount, unmount);
                // If the overlay is still mounted, the error names the directory and nothing is
                // removed.
                let (finished, made, user) = with_undone(ended, unmounted, scratch.dir())?;
                Ok((finished, made, user, flat))
            })?
        });
        if let (Err(error), Some(skeleton)) = (&executed, skeleton) {
            if error.left().is_some() {
                skeleton.leave();
            }
        }
        let (finished, made, user, flat) = executed?;
        // The base is not a layer.
        let shared = shared.filter(|_| flat.is_none()).map_or(0, |part| part.lowers() - 1);
        let (plan, merged) = flat.unwrap_or((plan, merged));
        Ok(Ran { plan, skeleton: tree, shared, merged, finished, made, user })
    });
    let (ran, upper, removal) = clock.time(Phase::Cleanup, || scratch.settle(ran, cleanup))?;
    let origin = Origin::new(base, &ran.plan, ran.user, namespace);
    let Ran { plan, skeleton, shared, merged, finished, made, .. } = ran;
    let Finished { status, stdout, stderr, output_error, usage, .. } = finished;
    let command = CommandRecord::new(template, &runtime, record_env);
    let timings = clock.stop();
    Ok(Report {
        status,
        upper,
        timings,
        plan,
        skeleton,
        shared,
        merged,
        removal,
        made,
        origin,
        command,
        stdout,
        stderr,
        output_error,
        usage,
    })
}

/// The results of the steps up to the unmount.
struct Ran {
    plan: Plan,
    /// The lower with the directories of layers of others, if there are any.
    skeleton: Option<PathBuf>,
    /// The number of layers that were in a shared overlay.
    shared: usize,
    /// `None` if nothing had to be merged.
    merged: Option<Merged>,
    finished: Finished,
    /// The entries that the run created in the upper.
    made: Vec<Made>,
    /// The IDs of the command's user and group. If the template names the user, its IDs are known
    /// only once the overlay is mounted.
    user: (u32, u32),
}
