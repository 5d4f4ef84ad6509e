//! Private networks, of root and of ordinary users. Each test makes a host with a network of its
//! own: a network namespace with an interface that leads nowhere, a server and a name server. No
//! packet leaves this machine.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use integration_tests::processes::{Running, descendants, name};
use integration_tests::user::{ALL_IDS, UserFixture, around, failure, quietly};
use integration_tests::{Done, FOR_EVER, RUNTIMES, find};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The host's own address, with a server that greets.
const SERVER: &str = "192.0.2.10:8080";
/// A server that only the host itself may reach.
const LOOPBACK: &str = "127.0.0.1:8081";
const NAME_SERVER: &str = "127.0.0.53:53";
/// The address of every name, as the name server has it.
const ANSWER: [u8; 4] = [203, 0, 113, 9];

/// Prints the greeting of the server.
const GET: &str = "exec 3>&1; busybox nc -w 5 192.0.2.10 8080 -e sh -c 'read -r line; echo $line >&3'";

/// Makes the host's network.
const CONNECT: &str = "busybox ip link set lo up && busybox tunctl -t uplink >&2 && \
                       busybox ip address add 192.0.2.10/24 dev uplink && busybox ip link set uplink up && \
                       busybox ip route add default via 192.0.2.1";

/// Calls `work` on a thread in a new network namespace. Its sockets and processes belong there.
fn in_network(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            work();
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Calls `work` on a host with servers.
fn on_a_host(work: impl FnOnce() + Send) {
    in_network(|| {
        let connected = Command::new("sh").args(["-c", CONNECT]).output().unwrap();
        assert!(connected.status.success(), "{}", String::from_utf8_lossy(&connected.stderr));
        let (server, names) = (TcpListener::bind(SERVER).unwrap(), UdpSocket::bind(NAME_SERVER).unwrap());
        let loopback = TcpListener::bind(LOOPBACK).unwrap();
        loopback.set_nonblocking(true).unwrap();
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| greet(&server, &is_done));
            scope.spawn(|| answer(&names, &is_done));
            let _stopped = (Done(&is_done), Woken);
            work();
        });
        assert!(loopback.accept().is_err(), "the loopback interface of the host was reached");
    });
}

/// Wakes both servers when it is dropped, so that they see that the test is done.
struct Woken;

impl Drop for Woken {
    fn drop(&mut self) {
        let _ = TcpStream::connect(SERVER);
        let _ = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.send_to(b"", NAME_SERVER));
    }
}

fn greet(server: &TcpListener, is_done: &AtomicBool) {
    // Early versions of pasta lose the end of a connection that the server closes immediately.
    let mut open = Vec::new();
    for stream in server.incoming() {
        let mut stream = stream.unwrap();
        if is_done.load(Ordering::Relaxed) {
            return;
        }
        stream.write_all(b"hello\n").unwrap();
        open.push(stream);
    }
}

/// Answers queries for IPv4 addresses with [`ANSWER`], and says that there are no others.
fn answer(names: &UdpSocket, is_done: &AtomicBool) {
    let mut buffer = [0; 512];
    loop {
        let (length, client) = names.recv_from(&mut buffer).unwrap();
        if is_done.load(Ordering::Relaxed) {
            return;
        }
        // The header has 12 bytes, and a question ends with its type and its class.
        let query = &buffer[..length];
        let end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
        let is_ipv4 = query[end - 3] == 1;
        let mut reply = [&query[..2], &[0x81, 0x80, 0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0], &query[12..end]].concat();
        if is_ipv4 {
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4].into_iter().chain(ANSWER));
        }
        names.send_to(&reply, client).unwrap();
    }
}

/// The kinds of users that make a private network.
const WHO: [&str; 3] = ["root", ALL_IDS[0], ALL_IDS[1]];

/// A fixture for runs of root or of an ordinary user.
struct Runs {
    who: &'static str,
    fixture: UserFixture,
    device: PathBuf,
}

impl Runs {
    fn new(who: &'static str) -> Self {
        let fixture = UserFixture::new(if who == "root" { "auto" } else { who });
        let device = fixture.path().join("tun");
        // Some machines let only root use their own.
        mknod(&device, SFlag::S_IFCHR, Mode::empty(), makedev(10, 200)).unwrap();
        fs::set_permissions(&device, fs::Permissions::from_mode(0o666)).unwrap();
        fs::write(fixture.path().join("resolv.conf"), "nameserver 127.0.0.53\nsearch example.org\n").unwrap();
        Self { who, fixture, device }
    }

    /// Returns `layered` with the host's name server and device.
    fn layered(&self, arguments: &[&OsStr]) -> Command {
        let mut layered = match self.who {
            "root" => {
                let mut command = Command::new(self.fixture.program());
                command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).stdin(Stdio::null());
                command.env("LAYERED_SCRATCH", self.fixture.of_root().scratch()).current_dir(self.fixture.path());
                command
            }
            _ => self.fixture.layered(&[]),
        };
        layered.args(arguments);
        let script = "mount --bind resolv.conf /etc/resolv.conf && mount --bind tun /dev/net/tun && exec \"$@\"";
        let mut inside = Command::new(find("unshare"));
        inside.args(["--mount", "sh", "-c", script, "sh"]);
        let mut command = around(inside, &layered);
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, options: &[&str], script: &str) -> Command {
        let words = [&["run", "--network", "private"], options, &["base", "sh", "-c", script]].concat();
        self.layered(&words.into_iter().map(OsStr::new).collect::<Vec<_>>())
    }
}

#[test]
fn a_command_reaches_other_hosts_and_names_but_not_the_hosts_loopback() {
    let script = "busybox ip -o -4 address | busybox awk '{ print $2, $4 }'; \
                  cat /etc/resolv.conf /proc/sys/net/ipv4/ip_unprivileged_port_start; \
                  GET; \
                  busybox nslookup host.example.org | grep 203.0.113; \
                  busybox nc -w 1 10.0.2.2 8081 < /dev/null 2> /dev/null || echo no gateway; \
                  busybox nc -w 1 127.0.0.1 8081 < /dev/null 2> /dev/null || echo no loopback; \
                  grep -c . /etc/hosts";
    let script = script.replace("GET", GET);
    let expected = "lo 127.0.0.1/8\neth0 10.0.2.100/24\nnameserver 10.0.2.2\nsearch example.org\n0\nhello\n\
                    Address: 203.0.113.9\nno gateway\nno loopback\n3\n";
    for who in WHO {
        on_a_host(|| {
            let runs = Runs::new(who);
            for runtime in RUNTIMES {
                let printed = quietly(&mut runs.run(&["--runtime", runtime], &script));
                assert_eq!(printed, expected, "{who} {runtime}");
            }
        });
    }
}

#[test]
fn a_kept_run_has_its_network_again() {
    on_a_host(|| {
        let runs = Runs::new("single");
        failure(3, &mut runs.run(&["--keep-failed"], "exit 3"));
        let [kept] = &runs.fixture.of_root().left()[..] else { panic!("one run is kept") };
        let words = ["--", "sh", "-c", GET].map(OsStr::new);
        let words = [&[OsStr::new("shell"), kept.as_os_str()][..], &words].concat();
        assert_eq!(quietly(&mut runs.layered(&words)), "hello\n");
        quietly(&mut runs.layered(&[OsStr::new("discard"), kept.as_os_str()]));
    });
}

#[test]
fn pasta_ends_with_the_run_however_that_ends() {
    for who in WHO {
        in_network(|| {
            assert!(Command::new("sh").args(["-c", CONNECT]).status().unwrap().success());
            let runs = Runs::new(who);
            for (runtime, end) in RUNTIMES
                .into_iter()
                .flat_map(|runtime| ["exit", "kill -9", "kill -TERM", "timeout"].map(|end| (runtime, end)))
            {
                let options: &[&str] = match end {
                    "timeout" => &["--runtime", runtime, "--timeout", "1s", "--grace", "0s"],
                    _ => &["--runtime", runtime],
                };
                let script = if end == "exit" { "echo begun; read -r line" } else { "echo begun; sleep 1000" };
                let mut command = runs.run(options, script);
                let mut run = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
                run.line();
                let processes = descendants(run.pid());
                // It executes the variant for this processor.
                let pasta = processes.iter().filter(|pid| name(**pid).starts_with("pas")).count();
                // A run that ends by itself may have ended before it was looked at.
                assert!(
                    pasta == 1 || end == "timeout",
                    "{who} {runtime}: {:?}",
                    processes.iter().map(|pid| name(*pid)).collect::<Vec<_>>()
                );
                let ends: Vec<_> = processes
                    .iter()
                    .filter_map(|pid| pidfd_open(Pid::from_raw(*pid as i32)?, PidfdFlags::empty()).ok())
                    .collect();
                match end {
                    "exit" => run.input().write_all(b"\n").unwrap(),
                    "kill -9" => run.send(Signal::SIGKILL),
                    "kill -TERM" => run.send(Signal::SIGTERM),
                    _ => {}
                }
                let limit = Timespec { tv_sec: FOR_EVER.as_secs() as i64, tv_nsec: 0 };
                for process in &ends {
                    let mut fds = [PollFd::new(process, PollFlags::IN)];
                    assert_eq!(poll(&mut fds, Some(&limit)), Ok(1), "{who} {runtime} {end}: a process goes on");
                }
                run.end();
            }
            let mut sweep = runs.layered(&["sweep"].map(OsStr::new));
            assert!(sweep.output().unwrap().status.success());
            runs.fixture.of_root().assert_clean();
        });
    }
}

#[test]
fn what_keeps_a_private_network_from_working_is_named() {
    for who in WHO {
        in_network(|| {
            let runs = Runs::new(who);
            let options = ["--upper", "upper"];
            // The host has no network itself.
            for runtime in RUNTIMES {
                let error = failure(125, &mut runs.run(&["--runtime", runtime, "--upper", "upper"], "true"));
                let parts = ["runc_run: pasta could not connect", "routable interface", "a host with a default route"];
                assert!(parts.iter().all(|part| error.contains(part)), "{who}: {error}");
                assert!(error.lines().count() == 1 && !error.contains("syslog"), "{who}: {error}");
            }

            let programs = runs.fixture.path().join("programs");
            fs::create_dir(&programs).unwrap();
            for program in ["runc", "sh", "mount", "setpriv", "newuidmap", "newgidmap"] {
                symlink(find(program), programs.join(program)).unwrap();
            }
            let error = failure(125, runs.run(&options, "true").env("PATH", &programs));
            let parts = ["inputs: a private network needs the program pasta", "install the package passt"];
            assert!(parts.iter().all(|part| error.contains(part)), "{who}: {error}");

            if who != "root" {
                fs::set_permissions(&runs.device, fs::Permissions::from_mode(0o600)).unwrap();
                let error = failure(125, &mut runs.run(&options, "true"));
                let parts = ["inputs: a private network needs /dev/net/tun", "chmod 666 /dev/net/tun"];
                assert!(parts.iter().all(|part| error.contains(part)), "{who}: {error}");
            }
            assert!(!runs.fixture.path().join("upper").exists(), "{who}");
        });
    }
}
