//! Checks the cgroup hierarchies and the controllers that options of `layered run` need.
//! [`limits`](super::limits) checks the limits of the system.

use container::{Cgroup, CgroupLayout, Error, UserNamespace};

use super::check::Check;

/// The controllers that options of `layered run` need.
const LIMITS: [(&str, &str); 4] =
    [("memory", "--memory"), ("pids", "--pids"), ("cpuset", "--cpuset-cpus"), ("cpu", "--cpus")];

pub(super) fn checks() -> Vec<Check> {
    let layout = match Cgroup::layout() {
        Ok(layout) => layout,
        Err(error) => return vec![Check::failed("cgroups", format!("{:#}", anyhow::Error::from(error)))],
    };
    let refusal = |limit: (&'static str, &'static str)| Some((limit, Cgroup::require([limit.0]).err()?));
    let (missing, refusals): (Vec<_>, Vec<_>) = LIMITS.into_iter().filter_map(refusal).unzip();
    let remedy = remedy(&refusals);
    match UserNamespace::is_here() {
        true => vec![delegation(layout, &missing, remedy)],
        false => vec![hierarchies(layout), controllers(&missing, remedy)],
    }
}

/// Returns the advice for the first of these refusals.
fn remedy(refusals: &[Error]) -> &'static str {
    match refusals.first() {
        // The memory controller is the first one that is looked for.
        Some(Error::NoController { controller }) if controller == "memory" => {
            "mount or enable them as root (memory may need cgroup_enable=memory on the kernel command line), or omit these options"
        }
        Some(Error::NoController { .. }) => "mount or enable them as root, or omit these options",
        Some(Error::NotPassedOn { .. }) => {
            "as root, write [Service] and Delegate=cpu cpuset io memory pids with systemctl edit user@.service, and log in \
             again; or omit these options"
        }
        _ => {
            "on a machine with cgroup v2 alone, run systemd-run --user --scope -p Delegate=yes -- layered …, or omit these options"
        }
    }
}

/// Checks which limits an ordinary user can set.
fn delegation(layout: CgroupLayout, missing: &[(&str, &str)], remedy: &str) -> Check {
    let list = |of: &mut dyn Iterator<Item = &str>| of.collect::<Vec<_>>().join(", ");
    let found = |controllers: &str| format!("{layout}; {controllers}");
    match missing {
        [] => Check::ok("delegation", found(&list(&mut LIMITS.iter().map(|(controller, _)| *controller)))),
        missing => {
            let controllers = list(&mut missing.iter().map(|(controller, _)| *controller));
            let options = list(&mut missing.iter().map(|(_, option)| *option));
            Check::warning("delegation", found(&format!("you may not use {controllers}")))
                .means(format!("layered refuses runs with {options}"))
                .advice(remedy)
        }
    }
}

fn hierarchies(layout: CgroupLayout) -> Check {
    match layout {
        CgroupLayout::Missing => Check::warning("cgroups", "no hierarchy is mounted")
            .means("runs have no limits, report no usage, and fail with most runtimes")
            .advice("run mount -t cgroup2 none /sys/fs/cgroup"),
        CgroupLayout::Legacy | CgroupLayout::Unified | CgroupLayout::Hybrid => {
            Check::ok("cgroups", layout.to_string()).means("each run gets a separate cgroup, and removes it at its end")
        }
    }
}

/// Checks which controllers the machine has.
fn controllers(missing: &[(&str, &str)], remedy: &str) -> Check {
    let names = |of: &[(&str, &str)]| of.iter().map(|(controller, _)| *controller).collect::<Vec<_>>().join(", ");
    match missing {
        [] => Check::ok("controllers", names(&LIMITS)),
        missing => {
            let options: Vec<_> = missing.iter().map(|(_, option)| *option).collect();
            Check::warning("controllers", format!("{} missing", names(missing)))
                .means(format!("layered refuses runs with {}", options.join(", ")))
                .advice(remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Verdict;

    #[test]
    fn only_a_missing_hierarchy_is_a_warning() {
        let table = [
            (CgroupLayout::Missing, Verdict::Warning),
            (CgroupLayout::Legacy, Verdict::Ok),
            (CgroupLayout::Unified, Verdict::Ok),
            (CgroupLayout::Hybrid, Verdict::Ok),
        ];
        for (layout, verdict) in table {
            assert_eq!(hierarchies(layout).verdict, verdict, "{layout}");
        }
    }

    #[test]
    fn limits_that_a_user_may_not_set_are_a_warning_with_the_remedy() {
        assert_eq!(delegation(CgroupLayout::Unified, &[], "").verdict, Verdict::Ok);
        let (controller, source) =
            (|| String::from("memory"), std::io::Error::from(std::io::ErrorKind::PermissionDenied));
        let table = [
            (Error::NotDelegated { controller: controller(), source }, "systemd-run --user --scope -p Delegate=yes"),
            (Error::NotPassedOn { controller: controller(), group: "/x".into() }, "Delegate=cpu cpuset io memory pids"),
            (Error::NoController { controller: controller() }, "as root (memory may need cgroup_enable=memory"),
            (Error::NoController { controller: "cpu".into() }, "mount or enable them as root, or omit"),
        ];
        for (refusal, remedy) in table {
            let check = delegation(CgroupLayout::Hybrid, &LIMITS[..2], super::remedy(&[refusal]));
            let json = serde_json::to_string(&check).unwrap();
            for part in ["you may not use memory, pids", "with --memory, --pids", remedy] {
                assert!(json.contains(part), "{json}");
            }
        }
    }

    #[test]
    fn a_missing_controller_is_a_warning_that_names_its_options() {
        assert_eq!(controllers(&[], ""), Check::ok("controllers", "memory, pids, cpuset, cpu"));
        let json = serde_json::to_string(&controllers(&LIMITS[..2], "")).unwrap();
        assert!(json.contains("memory, pids missing") && json.contains("refuses runs with --memory, --pids"), "{json}");
    }
}
