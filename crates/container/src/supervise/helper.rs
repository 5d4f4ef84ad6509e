//! The helper program, embedded in this crate: the keeper outside the container and the init inside
//! it. Its source is in `helper/`, beside `src/`.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};

use rustix::fd::OwnedFd;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

use super::streams::above;

/// The format of the helper's report, and the descriptors it uses. The helper compiles the same
/// file.
#[path = "../../helper/record.rs"]
pub(super) mod record;

static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/helper"));

/// The path by which the runtime executes the helper inside the container: the descriptor that the
/// runtime passes on. So the helper needs no file in the container, and no process there can
/// replace it.
pub(crate) const PATH_INSIDE: &str = "/proc/self/fd/4";

/// Returns the helper in a sealed file in memory, which no process can write to.
///
/// Each run has its own file: root in a container can change the mode of the file of `/proc/1/exe`,
/// and then another run could not execute it.
pub(super) fn program() -> io::Result<OwnedFd> {
    sealed_memfd(c"layered", PROGRAM)
}

/// Creates an executable file in memory with this content and seals it, so that no process can
/// change it.
pub(super) fn sealed_memfd(name: &CStr, content: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Linux 6.3 added MFD_EXEC, which marks the file as executable, and the sysctl
    // `vm.memfd_noexec`, which can require that flag: see memfd_create(2).
    let file = match memfd_create(name, flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => memfd_create(name, flags)?,
        result => result?,
    };
    let mut file = File::from(file);
    file.write_all(content)?;
    // A caller may have closed its standard streams. The file must not take their descriptor
    // numbers.
    let file = above(file.into())?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::sync::OnceLock;

    use rustix::process::{Pid, Signal, kill_process};
    use tempfile::TempDir;

    use super::*;
    use crate::supervise::report::{Facts, NotExecuted, facts_of};

    /// Returns the path of the helper in a file that another process has written. The kernel
    /// executes no file that a process has open for writing, and a child of another test may
    /// briefly inherit this process's descriptors.
    fn helper() -> &'static Path {
        static FILE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
        let (_, path) = FILE.get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            let [source, path] = ["source", "helper"].map(|name| dir.path().join(name));
            fs::write(&source, PROGRAM).unwrap();
            fs::set_permissions(&source, Permissions::from_mode(0o755)).unwrap();
            assert!(Command::new("cp").arg(&source).arg(&path).status().unwrap().success());
            (dir, path)
        });
        path
    }

    /// Returns a command that runs the helper, with its report on the pipe that is standard output.
    /// The command's output goes to standard error.
    fn started(words: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "exec 3>&1 1>&2; exec \"$@\"", "sh"]).arg(helper()).args(words);
        command.stdin(Stdio::null()).env("PATH", "/usr/sbin:/usr/bin:/bin");
        command
    }

    /// Returns the helper's exit status and its report.
    fn run(words: &[&str]) -> (Option<i32>, Facts) {
        let output = started(words).output().unwrap();
        (output.status.code(), facts_of(&output.stdout))
    }

    #[test]
    fn an_init_reports_how_the_command_ended() {
        let table = [
            ("exit 0", 0, 0),
            ("exit 7", 7 << 8, 7),
            ("exit 137", 137 << 8, 137),
            ("kill -TERM $$", 15, 143),
            ("kill -KILL $$", 9, 137),
            // The init resets the signals. This process ignores SIGPIPE, as Rust programs do.
            ("kill -PIPE $$", 13, 141),
            // The init must not take the status of an orphan for the command's.
            ("sh -c 'exit 3 & exit 4 &' & wait; exit 5", 5 << 8, 5),
        ];
        for (script, status, code) in table {
            let expected = Facts { is_ready: true, command: Some(status), has_nothing_left: true, ..Facts::default() };
            assert_eq!(run(&["init", "", "sh", "-c", script]), (Some(code), expected), "{script}");
        }
        // The command has replaced the init, so no process reports its end.
        let expected = Facts { is_ready: true, ..Facts::default() };
        assert_eq!(run(&["exec", "", "sh", "-c", "exit 7"]), (Some(7), expected));
    }

    #[test]
    fn a_command_that_cannot_be_executed_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        for (name, mode, content) in [("script", 0o755, "#!/no/sh\n"), ("denied", 0o644, "text"), ("empty", 0o755, "")]
        {
            fs::write(path(name), content).unwrap();
            fs::set_permissions(path(name), Permissions::from_mode(mode)).unwrap();
        }
        let long = format!("/{}", "x/".repeat(5000));
        let table = [
            ("/no/such".to_owned(), Errno::NOENT, "/no/such".to_owned(), ""),
            ("no-such".to_owned(), Errno::NOENT, "no-such".to_owned(), ""),
            (String::new(), Errno::NOENT, String::new(), ""),
            (path("script"), Errno::NOENT, path("script"), "#!/no/sh\n"),
            (path("empty"), Errno::NOEXEC, path("empty"), ""),
            (path("denied"), Errno::ACCESS, path("denied"), "text"),
            (path("script/below"), Errno::NOTDIR, path("script/below"), ""),
            (long.clone(), Errno::NAMETOOLONG, long[..record::PATH_BYTES].to_owned(), ""),
        ];
        for (command, errno, path, head) in table {
            let not_executed = Some(NotExecuted { errno: errno.raw_os_error(), path: path.into(), head: head.into() });
            for (mode, ended) in [("init", Some(127 << 8)), ("exec", None)] {
                let expected = Facts {
                    is_ready: true,
                    not_executed: not_executed.clone(),
                    command: ended,
                    has_nothing_left: ended.is_some(),
                    ..Facts::default()
                };
                assert_eq!(run(&[mode, "", &command]), (Some(127), expected), "{mode} {command}");
            }
        }
    }

    #[test]
    fn an_init_forwards_signals() {
        for (signal, number) in [(Signal::HUP, 1), (Signal::USR1, 10), (Signal::TERM, 15)] {
            let script = format!("trap 'exit 7' {number}; echo begun; while :; do sleep 0.01; done");
            let mut command = started(&["init", "", "sh", "-c", &script]);
            let mut init = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            BufReader::new(init.stderr.take().unwrap()).read_line(&mut String::new()).unwrap();
            kill_process(Pid::from_child(&init), signal).unwrap();
            let output = init.wait_with_output().unwrap();
            let expected = Facts { is_ready: true, command: Some(7 << 8), has_nothing_left: true, ..Facts::default() };
            assert_eq!((output.status.code(), facts_of(&output.stdout)), (Some(7), expected), "{signal:?}");
        }
    }

    #[test]
    fn an_init_keeps_to_a_mask_of_processors() {
        let allowed = |mask: &str| {
            let output = started(&["init", mask, "grep", "Cpus_allowed_list:", "/proc/self/status"]).output().unwrap();
            assert!(output.status.success(), "{mask}: {output:?}");
            String::from_utf8(output.stderr).unwrap()
        };
        let all = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
        let first = (0..128_u32).find(|processor| all.is_set(*processor as usize).unwrap()).unwrap();
        assert_eq!(allowed(&format!("{:x}", 1_u128 << first)), format!("Cpus_allowed_list:\t{first}\n"));
        // Masks with no processor of this machine, invalid masks, and too long ones change nothing.
        for mask in ["0", "x", &format!("1{}", "0".repeat(3000))] {
            assert_eq!(allowed(mask), allowed(""), "{mask}");
        }
    }

    #[test]
    fn a_keeper_reports_the_runtime() {
        let dir = tempfile::tempdir().unwrap();
        let [pid_file, ended] = ["pid", "ended"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
        let runtime = |status: i32| Facts { runtime: Some(status), ..Facts::default() };
        let enoent = Some(Errno::NOENT.raw_os_error());
        let not_executed = Facts { runtime_not_executed: enoent, runtime: Some(1 << 8), ..Facts::default() };
        // (content of the PID file, the runtime's script, the report)
        let table = [
            (None, "exit 0", runtime(0)),
            (Some(""), "exit 0", runtime(0)),
            (Some("1"), "exit 0", runtime(0)),
            (Some("-7"), "exit 0", runtime(0)),
            (Some("99999999999"), "exit 0", runtime(0)),
            // The PID of a process that is not a child of the keeper, and a PID without a process.
            (Some("2"), "exit 0", runtime(0)),
            (Some("4194304"), "exit 0", runtime(0)),
            (Some("2"), "exit 3", runtime(3 << 8)),
            (Some("2"), "kill -9 $$", runtime(9)),
        ];
        for (content, script, expected) in table {
            let _none = fs::remove_file(&pid_file);
            if let Some(content) = content {
                fs::write(&pid_file, content).unwrap();
            }
            let last = ["", "/bin/sh", "sh", "-c", "echo > \"$0\"", &ended];
            let words = [&["keeper", &pid_file, "/bin/sh", "sh", "-c", script][..], &last].concat();
            assert_eq!(run(&words), (Some(0), expected), "{content:?} {script}");
            fs::remove_file(&ended).expect("the second program has run");
        }
        assert_eq!(run(&["keeper", &pid_file, "/no/such", "such"]), (Some(0), not_executed));
    }

    #[test]
    fn a_keeper_connects_the_network_before_it_starts_the_runtime() {
        let dir = tempfile::tempdir().unwrap();
        let [pid_file, order] = ["pid", "order"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
        let script = |script: &str| ["/bin/sh".to_owned(), "sh".into(), "-c".into(), script.into(), order.clone()];
        let run = |last: &[String], network: &[String]| {
            let _none = fs::remove_file(&order);
            let start = script("echo start >> \"$0\"");
            let none = [String::new()];
            let words = [&["keeper".to_owned(), pid_file.clone()][..], &start, &none, last, &none, network].concat();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let output = started(&words).current_dir(dir.path()).output().unwrap();
            assert!(output.stderr.is_empty(), "{output:?}");
            (facts_of(&output.stdout), fs::read_to_string(&order).unwrap_or_default())
        };
        let network = script(
            "echo to the log; echo as well >&2; (echo network; for n in 3 4 5; do test ! -e /proc/self/fd/$n || echo $n; done) >> \"$0\"",
        );
        let end = script("echo end >> \"$0\"");
        let ended = |status| Facts { runtime: Some(status), ..Facts::default() };
        // It has no descriptor of the run.
        let expected = "network\nstart\n";
        assert_eq!(run(&[], &network), (ended(0), expected.into()));
        assert_eq!(run(&end, &network), (ended(0), format!("{expected}end\n")));
        assert_eq!(fs::read_to_string(dir.path().join("network.log")).unwrap(), "to the log\nas well\n".repeat(2));
        assert_eq!(run(&end, &[]), (ended(0), "start\nend\n".into()));

        // Without the network, nothing starts.
        let failed = Facts { network_failed: Some(3 << 8), ..Facts::default() };
        assert_eq!(run(&end, &script("exit 3")), (failed, String::new()));
        let network_not_executed = Some(Errno::NOENT.raw_os_error());
        let missing = Facts { network_not_executed, network_failed: Some(1 << 8), ..Facts::default() };
        assert_eq!(run(&end, &["/no/such".into(), "such".into()]), (missing, String::new()));
    }

    #[test]
    fn unknown_or_missing_arguments_are_refused() {
        let table: [&[&str]; 7] =
            [&[], &["other"], &["init"], &["init", ""], &["exec"], &["keeper"], &["keeper", "/pid"]];
        for words in table {
            let output = started(words).output().unwrap();
            assert_eq!((output.status.code(), &*output.stdout), (Some(125), &b""[..]), "{words:?}");
            assert_eq!(output.status.signal(), None);
        }
    }
}
