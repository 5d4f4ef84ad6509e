//! The contents of `/etc/hosts` and `/etc/resolv.conf` in a container.
//!
//! `configure` decides whether the run creates these files.

use std::path::Path;

use container::advanced::resolv_conf_of_private_network;
use container::{Network, Template};

/// A file that a run puts into the upper.
pub(crate) struct EtcFile {
    pub(crate) path: &'static Path,
    pub(crate) contents: Vec<u8>,
}

/// Returns `/etc/hosts` and `/etc/resolv.conf` for this container.
///
/// Without a network, the container cannot reach a name server, so it needs only `/etc/hosts`:
/// libraries look up `localhost` and the container's own name in it.
///
/// With the host's network, or with a network namespace that another program has set up, both files
/// are copies of the host's. In the host's network, the container can reach the host's loopback
/// name server (127.0.0.53). With a private network, the container has its own `/etc/hosts`, and
/// the host's name servers, with a substitute for those on the host's loopback interface.
pub(crate) fn files(template: &Template) -> Vec<EtcFile> {
    let host = |path: &'static str| match std::fs::read(path) {
        Ok(contents) => Some(contents),
        Err(error) => {
            log::debug!("the host's {path} cannot be read ({error})");
            None
        }
    };
    let network = template.network();
    let hosts = match network {
        Network::None | Network::Private => None,
        _ => host("/etc/hosts"),
    };
    let resolv = match network {
        Network::None => None,
        Network::Private => {
            let of_host = host("/etc/resolv.conf").unwrap_or_default();
            Some(resolv_conf_of_private_network(&String::from_utf8_lossy(&of_host)).into_bytes())
        }
        _ => host("/etc/resolv.conf"),
    };
    // A container without its own hostname shows the host's.
    let uname = rustix::system::uname();
    let hostname = template.hostname().or_else(|| uname.nodename().to_str().ok());
    let hosts = EtcFile { path: Path::new("/etc/hosts"), contents: with_name(hosts, hostname) };
    let resolv = resolv.map(|contents| EtcFile { path: Path::new("/etc/resolv.conf"), contents });
    [hosts].into_iter().chain(resolv).collect()
}

/// Returns `hosts`, or a default hosts(5) file, with an entry for the container's own name.
fn with_name(hosts: Option<Vec<u8>>, hostname: Option<&str>) -> Vec<u8> {
    let mut hosts =
        hosts.unwrap_or_else(|| b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_vec());
    let Some(hostname) = hostname else { return hosts };
    let text = String::from_utf8_lossy(&hosts).into_owned();
    let known = text.lines().any(|line| {
        let entry = line.split('#').next().unwrap_or_default();
        entry.split_whitespace().skip(1).any(|name| name == hostname)
    });
    if !known {
        if !hosts.is_empty() && !hosts.ends_with(b"\n") {
            hosts.push(b'\n');
        }
        hosts.extend(format!("127.0.0.1\t{hostname}\n").as_bytes());
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_own_name_is_added_once() {
        let own = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
        let table = [
            (None, None, own.to_string()),
            (None, Some("box"), format!("{own}127.0.0.1\tbox\n")),
            (None, Some("localhost"), own.to_string()),
            (Some("10.0.0.1 box mirror"), Some("box"), "10.0.0.1 box mirror".to_string()),
            (Some("10.0.0.1 mirror # box"), Some("box"), "10.0.0.1 mirror # box\n127.0.0.1\tbox\n".to_string()),
            (Some(""), Some("box"), "127.0.0.1\tbox\n".to_string()),
        ];
        for (hosts, hostname, expected) in table {
            let made = with_name(hosts.map(|hosts| hosts.as_bytes().to_vec()), hostname);
            assert_eq!(String::from_utf8(made).unwrap(), expected, "{hosts:?} {hostname:?}");
        }
    }
}
