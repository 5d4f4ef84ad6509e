//! Checks whether the machine has what `--network private` needs. [`trial`](super::trial) runs a
//! container without it.

use std::fs;

use container::Error;
use container::advanced::require_private_network;

use super::check::Check;

const NAME: &str = "private network";
const MEANS: &str = "layered refuses runs with --network private; --network none and host work";

pub(super) fn check() -> Check {
    match require_private_network() {
        Ok(()) => {
            let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
            of_routes(has_default_route(&read("/proc/net/route"), &read("/proc/net/ipv6_route")))
        }
        Err(error) => of_failure(&error),
    }
}

fn of_failure(error: &Error) -> Check {
    match error {
        Error::NoPasta { .. } => Check::warning(NAME, "pasta is not installed or cannot be executed")
            .means(MEANS)
            .advice("install the package passt if you need a private network"),
        Error::NoTun { source } => Check::warning(NAME, format!("cannot open /dev/net/tun: {source}"))
            .means(MEANS)
            .advice("as root, run modprobe tun and chmod 666 /dev/net/tun; in a container, let it use that device"),
        error => Check::warning(NAME, error.to_string()).means(MEANS),
    }
}

fn of_routes(has_default: bool) -> Check {
    match has_default {
        true => Check::ok(NAME, "pasta and /dev/net/tun"),
        false => Check::warning(NAME, "the host has no default route")
            .means("pasta fails in runs with --network private; --network none and host work")
            .advice("connect the host to a network if you need a private network"),
    }
}

/// Returns whether one of the two routing tables of proc(5) has a default route. In that of IPv4,
/// the second field is the destination. In that of IPv6, the first two are the destination and the
/// length of its prefix, and the last one is the interface.
fn has_default_route(ipv4: &str, ipv6: &str) -> bool {
    let is_zero = |field: &str| !field.is_empty() && field.bytes().all(|byte| byte == b'0');
    let of_ipv4 = |line: &str| line.split_whitespace().nth(1).is_some_and(is_zero);
    let of_ipv6 = |line: &str| {
        let mut fields = line.split_whitespace();
        let is_default = fields.next().is_some_and(is_zero) && fields.next().is_some_and(is_zero);
        // The kernel has a route of that kind that refuses packets.
        is_default && fields.last() != Some("lo")
    };
    ipv4.lines().skip(1).any(of_ipv4) || ipv6.lines().any(of_ipv6)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::doctor::check::Verdict;

    #[test]
    fn each_failure_has_its_remedy_and_runs_still_work() {
        let source = || io::Error::from(io::ErrorKind::PermissionDenied);
        let table = [
            (of_failure(&Error::NoPasta { source: source() }), "install the package passt"),
            (of_failure(&Error::NoTun { source: source() }), "chmod 666 /dev/net/tun"),
            (of_routes(false), "connect the host"),
        ];
        for (check, part) in table {
            assert_eq!(check.verdict, Verdict::Warning);
            let json = serde_json::to_string(&check).unwrap();
            assert!(json.contains(part) && json.contains("--network private"), "{json}");
        }
        assert_eq!(of_routes(true).verdict, Verdict::Ok);
    }

    #[test]
    fn a_default_route_is_found_in_either_table() {
        let head = "Iface\tDestination\tGateway\n";
        let (local, default) = ("eth0\t000200C0\t00000000\n", "eth0\t00000000\t010200C0\n");
        let zeros = "0".repeat(32);
        let refusing = format!("{zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200       lo\n");
        let ipv6 = format!("{zeros} 00 {zeros} 00 {zeros} 00000400 00000001 00000000 00000003     eth0\n");
        let table = [
            (String::new(), String::new(), false),
            (format!("{head}{local}"), refusing.clone(), false),
            (format!("{head}{local}{default}"), String::new(), true),
            (head.to_owned(), format!("{refusing}{ipv6}"), true),
        ];
        for (v4, v6, expected) in table {
            assert_eq!(has_default_route(&v4, &v6), expected, "{v4}{v6}");
        }
    }
}
