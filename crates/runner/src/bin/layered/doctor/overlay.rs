use std::path::Path;

use layer::Rung;
use runner::{Phase, probe};

use super::check::Check;

/// What came of a rung: what was seen there, or why it is of no use.
type Tried = (Rung, Result<Seen, String>);

/// What is of interest in a [`runner::Probe`].
#[derive(Debug, Clone, Copy)]
struct Seen {
    volatile: bool,
    private: bool,
    deletions: bool,
}

/// What overlays on each rung of the ladder can do in `scratch`, if there is one, and whether any works.
pub(super) fn checks(scratch: Option<&Path>) -> (Vec<Check>, bool) {
    let Some(scratch) = scratch else {
        return (vec![Check::skipped("overlays", "not tried without root and a scratch directory")], false);
    };
    let mut unwritable = None;
    let tried = Rung::LADDER.map(|rung| match probe(scratch, rung) {
        Ok(probe) => {
            let (volatile, private, deletions) = (probe.volatile, probe.private, probe.deletions);
            (rung, Ok(Seen { volatile, private, deletions }))
        }
        Err(error) => {
            let in_scratch = error.phase() == Some(Phase::Scratch);
            let error = format!("{:#}", anyhow::Error::from(error));
            if in_scratch {
                unwritable = Some(error.clone());
            }
            (rung, Err(error))
        }
    });
    if let Some(error) = unwritable {
        let failed = Check::failed("scratch", error).means("a run cannot make its directory");
        return (vec![failed.advice("mend that, or give --scratch another directory")], false);
    }
    (judge(&tried), tried.iter().any(|(_, result)| result.is_ok()))
}

fn judge(tried: &[Tried]) -> Vec<Check> {
    let mut checks: Vec<_> = tried.iter().map(|(rung, result)| one(*rung, result, tried)).collect();
    // The best rung that works is the one that runs take.
    if let Some(Seen { volatile, private, deletions }) = tried.iter().find_map(|(_, result)| result.as_ref().ok()) {
        checks.push(match deletions {
            true => Check::ok("deletions", "a whiteout and an opaque directory were made in the scratch"),
            false => {
                Check::failed("deletions", "the scratch's file system keeps no whiteouts or no trusted attributes")
                    .means("what a command deletes would come back in its layer")
                    .advice("give --scratch a directory on ext4, xfs, btrfs or tmpfs")
            }
        });
        checks.push(match volatile {
            true => Check::ok("volatile", "overlays are volatile").means("nothing is flushed when a run ends"),
            false => Check::warning("volatile", "this kernel has no volatile overlays (Linux 5.10)")
                .means("the whole file system of the scratch is flushed when a run ends")
                .advice("take a newer kernel, or keep the scratch on a file system of its own"),
        });
        checks.push(match private {
            true => Check::ok("private mounts", "the overlay was not in the host's mount table")
                .means("a run that is killed leaves no mount"),
            false => Check::warning("private mounts", "the overlay was seen in the host's mount table")
                .means("a run that is killed leaves its mount")
                .advice("tell the makers of layered of this machine"),
        });
    }
    checks
}

fn one(rung: Rung, result: &Result<Seen, String>, all: &[Tried]) -> Check {
    let name = match rung {
        Rung::MountPaths => "mount-paths",
        Rung::MountNames => "mount-names",
        _ => "lowerdir+",
    };
    let holds = match rung {
        Rung::MountPaths => "as many layers as their paths fit into a page",
        Rung::MountNames => "some 500 layers, whatever their paths",
        _ => "up to 500 directories are stacked, whatever their paths",
    };
    match result {
        Ok(_) => Check::ok(name, "an overlay was mounted, written to and unmounted").means(holds),
        Err(error) if all.iter().all(|(_, result)| result.is_err()) => Check::failed(name, error)
            .means("a run cannot have its root file system on this rung, nor on another")
            .advice("see what the message says; the kernel needs overlayfs (modprobe overlay)"),
        Err(error) => Check::warning(name, error)
            .means("runs take another rung, and large stacks may have to be merged")
            .advice(match rung {
                Rung::LowerdirPlus => "take Linux 6.7 or later for stacks of hundreds of layers",
                _ => "none, unless runs ask for this rung",
            }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Verdict::{self, Failed, Ok as Good, Warning};

    fn verdicts(tried: [Result<Seen, String>; 3]) -> Vec<Verdict> {
        let tried: Vec<_> = Rung::LADDER.into_iter().zip(tried).collect();
        judge(&tried).iter().map(|check| check.verdict).collect()
    }

    #[test]
    fn one_rung_is_enough() {
        let old = || Err("unknown parameter".to_string());
        assert_eq!(verdicts([old(), old(), old()]), [Failed; 3]);
        let whole = Seen { volatile: true, private: true, deletions: true };
        assert_eq!(verdicts([Ok(whole), Ok(whole), Ok(whole)]), [Good; 6]);
        assert_eq!(verdicts([old(), Ok(whole), Ok(whole)]), [Warning, Good, Good, Good, Good, Good]);
        let poor = Seen { volatile: false, private: false, deletions: false };
        assert_eq!(verdicts([Ok(poor), Ok(whole), Ok(whole)]), [Good, Good, Good, Failed, Warning, Warning]);
    }
}
