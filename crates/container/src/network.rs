//! The private network of a container: a network namespace that pasta(1) connects to the host's
//! network. The keeper (`supervise`) starts pasta, which ends with the run.

use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::{Error, Result};
use crate::supervise::{NETWORK_FILE, NETWORK_LOG, Program};
use crate::user_namespace::UserNamespace;

/// The path of the namespace for the runtime: the keeper, which is its process 1, has the namespace
/// as descriptor `NETWORK` (`helper/record.rs`).
pub(crate) const PATH: &str = "/proc/1/fd/6";

/// The path of the namespace for pasta, which gives up the privilege to look into other processes
/// and closes all descriptors that it inherits. It is that of [`NETWORK_FILE`] in the bundle.
const PATH_OF_PASTA: &str = "./network";

/// The program that connects the namespace. Its package is called passt.
const PASTA: &str = "pasta";

/// The device with which pasta exchanges packets with the namespace.
const TUN: &str = "/dev/net/tun";

/// The container's address, and that of its gateway and of the name server that stands for one on
/// the host's loopback interface. They are those of other networks in user mode (QEMU,
/// slirp4netns).
const ADDRESS: &str = "10.0.2.100";
const PREFIX: &str = "24";
const GATEWAY: &str = "10.0.2.2";

/// The host's name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// A new network namespace, and the program that will connect it.
#[derive(Debug)]
pub(crate) struct Unconnected {
    namespace: OwnedFd,
    program: Program,
}

impl Unconnected {
    /// Creates a namespace, which belongs to the user namespace of this process, and a file for its
    /// mount in the directory `bundle`.
    pub(crate) fn new(bundle: &Path) -> Result<Self> {
        let file = in_bundle(bundle, NETWORK_FILE);
        File::create(&file).map_err(Error::io("create", file))?;
        let host = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        let arguments = arguments(&NameServers::of(&host), UserNamespace::is_here());
        let program = Program::new(Path::new(PASTA), arguments.into_iter().map(Into::into)).map_err(unusable)?;
        let namespace = new_namespace().map_err(|source| Error::Namespace { source })?;
        Ok(Self { namespace, program })
    }

    pub(crate) fn program(&self) -> &Program {
        &self.program
    }
}

impl AsFd for Unconnected {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// Checks that a private network can be made.
pub(crate) fn require() -> Result<()> {
    Program::new(Path::new(PASTA), []).map_err(unusable)?;
    let opened = File::options().read(true).write(true).open(TUN);
    opened.map(drop).map_err(|source| Error::NoTun { source })
}

fn unusable(source: io::Error) -> Error {
    Error::NoPasta { source }
}

/// Returns the error for a program that could not be executed.
pub(crate) fn not_executed(errno: i32) -> Error {
    unusable(io::Error::from_raw_os_error(errno))
}

/// Returns the error for a program that has failed. `bundle` has its messages.
pub(crate) fn failed(bundle: &Path, ended: std::process::ExitStatus) -> Error {
    let log = fs::read(in_bundle(bundle, NETWORK_LOG)).unwrap_or_default();
    Error::Network { ended, message: message(&String::from_utf8_lossy(&log)) }
}

fn in_bundle(bundle: &Path, name: &CStr) -> PathBuf {
    bundle.join(OsStr::from_bytes(name.to_bytes()))
}

/// Returns the program's message about its failure, without its complaint about a missing system
/// log.
fn message(log: &str) -> String {
    let lines = log.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Failed to send "));
    lines.collect::<Vec<_>>().join("; ")
}

/// Creates a network namespace on a thread of its own: the calling thread stays where it is.
fn new_namespace() -> io::Result<OwnedFd> {
    let create = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
    };
    let thread = std::thread::Builder::new().name("network-namespace".into()).spawn(create)?;
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Returns the arguments of pasta.
fn arguments(servers: &NameServers<'_>, is_in_user_namespace: bool) -> Vec<String> {
    let mut arguments: Vec<&str> = vec!["--quiet", "--config-net", "--netns-only", "--netns", PATH_OF_PASTA];
    // No port of the host leads into the container, and none of the host's loopback interface can
    // be reached from it.
    arguments.extend(["--no-map-gw", "-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
    arguments.extend(["--ns-ifname", "eth0", "--address", ADDRESS, "--netmask", PREFIX, "--gateway", GATEWAY]);
    match servers.on_loopback {
        // pasta forwards to the first name server of the host's resolv.conf(5). With `--dns`, it
        // would forward to 127.0.0.1 instead.
        Some(_) => arguments.extend(["--dns-forward", GATEWAY]),
        None => arguments.extend(["--dns", "none"]),
    }
    // Otherwise it would become nobody, who may not enter a namespace of root's.
    if !is_in_user_namespace {
        arguments.extend(["--runas", "0"]);
    }
    arguments.into_iter().map(Into::into).collect()
}

/// The name servers of a resolv.conf(5).
#[derive(Debug, PartialEq, Eq)]
struct NameServers<'t> {
    /// The first one on the loopback interface of IPv4, such as that of systemd-resolved.
    on_loopback: Option<&'t str>,
}

impl<'t> NameServers<'t> {
    fn of(resolv_conf: &'t str) -> Self {
        Self { on_loopback: resolv_conf.lines().filter_map(server).find(|server| server.starts_with("127.")) }
    }
}

/// Returns the name server of a line.
fn server(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    (words.next() == Some("nameserver")).then(|| words.next()).flatten()
}

/// Returns the resolv.conf(5) of a container in a private network, from the host's. The container
/// cannot reach the host's loopback interface: pasta's gateway stands for the first name server
/// there. Other name servers there are left out.
pub(crate) fn resolv_conf(host: &str) -> String {
    let first = NameServers::of(host).on_loopback;
    let mut is_translated = false;
    let mut text = String::new();
    for line in host.lines() {
        let server = server(line);
        let is_loopback = server.is_some_and(|server| server.starts_with("127.") || server == "::1");
        let line = match (is_loopback, server == first && !is_translated) {
            (false, _) => line.to_owned(),
            (true, true) => {
                is_translated = true;
                format!("nameserver {GATEWAY}")
            }
            (true, false) => continue,
        };
        text.push_str(&line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_on_the_loopback_interface_are_replaced_by_the_gateway() {
        let table = [
            ("", None, ""),
            ("nameserver 192.0.2.1\noptions edns0", None, "nameserver 192.0.2.1\noptions edns0\n"),
            (
                "# stub\nnameserver 127.0.0.53\nsearch example.org\n",
                Some("127.0.0.53"),
                "# stub\nnameserver 10.0.2.2\nsearch example.org\n",
            ),
            (
                "nameserver ::1\nnameserver 127.0.0.1\nnameserver 127.0.0.2\nnameserver 2001:db8::1\nnameserver",
                Some("127.0.0.1"),
                "nameserver 10.0.2.2\nnameserver 2001:db8::1\nnameserver\n",
            ),
        ];
        for (host, first, expected) in table {
            assert_eq!(NameServers::of(host), NameServers { on_loopback: first }, "{host}");
            assert_eq!(resolv_conf(host), expected, "{host}");
        }
    }

    #[test]
    fn no_port_is_forwarded_and_only_root_of_the_machine_chooses_a_user() {
        let of = |host: &str, is_in_user_namespace| arguments(&NameServers::of(host), is_in_user_namespace).join(" ");
        let common = "--quiet --config-net --netns-only --netns ./network --no-map-gw -t none -u none -T none -U none \
                      --ns-ifname eth0 --address 10.0.2.100 --netmask 24 --gateway 10.0.2.2";
        assert_eq!(of("", true), format!("{common} --dns none"));
        let expected = format!("{common} --dns-forward 10.0.2.2 --runas 0");
        assert_eq!(of("nameserver 127.0.0.53", false), expected);
    }

    #[test]
    fn the_message_is_the_programs_own() {
        let log = "Failed to send 46 bytes to syslog\nNo external routable interface for IPv4\n\nExternal interface not usable\n";
        assert_eq!(message(log), "No external routable interface for IPv4; External interface not usable");
    }

    #[test]
    fn the_paths_are_those_of_the_keeper() {
        assert_eq!(PATH, format!("/proc/1/fd/{}", crate::supervise::NETWORK));
        assert_eq!(PATH_OF_PASTA, format!("./{}", NETWORK_FILE.to_str().unwrap()));
    }
}
