//! Hostile names and files, left by a command, a layer or a user of the host. Every command of
//! `layered` ends, does not panic, and prints nothing that drives a terminal.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use integration_tests::{Fixture, find, layered};
use layer::{Layer, Meta};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::{Value, json};

/// Ends a command that hangs. None of these commands needs a second.
const DEADLINE_SECONDS: &str = "120";

/// Runs `layered` with these arguments in the directory `dir` and checks its exit status and
/// output.
fn run(dir: &Path, arguments: &[&OsStr]) -> Output {
    let mut command = Command::new(find("timeout"));
    command.args(["-k", "1", DEADLINE_SECONDS]).arg(layered().get_program()).args(arguments);
    let output = command.current_dir(dir).stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let status = output.status.code();
    assert!(
        !matches!(status, None | Some(101 | 124 | 137)) && !stderr.contains("panicked"),
        "{arguments:?}: {output:?}"
    );
    assert_eq!(printable(&output.stdout), Ok(()), "{arguments:?}");
    assert_eq!(printable(&output.stderr), Ok(()), "{arguments:?}");
    // clap prints several lines.
    if status == Some(125) && !stderr.starts_with("error: ") {
        assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
    }
    output
}

/// Checks that a terminal would only display the text, as characters and newlines.
fn printable(bytes: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("{error}: {}", bytes.escape_ascii()))?;
    let drives = |character: &char| match character {
        '\n' => false,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        character => character.is_control(),
    };
    match text.chars().find(drives) {
        Some(character) => Err(format!("{character:?} in {text:?}")),
        None if text.lines().any(|line| line.starts_with("forged")) => Err(format!("a forged line in {text:?}")),
        None => Ok(()),
    }
}

/// Escape sequences, a newline, DEL, C1 controls, direction marks alone and in pairs, invalid
/// UTF-8, quotes.
const NAMES: [&[u8]; 10] = [
    b"e\x1b]0;x\x07\x1b[2J",
    b"n\nforged  ok  1 B  never",
    b"d\x7fx\tt",
    b"c\xc2\x9b2J",
    b"r\xe2\x80\xaetxt",
    b"p\xe2\x80\xaetxt\xe2\x80\xac",
    b"m\xe2\x80\x8f\xd8\x9c",
    b"s\xe2\x80\xa8forged",
    b"i\xff\x1b[2J",
    b"q'\"\x1b\\",
];

/// Returns the words of a command, with `%` replaced by the name.
fn words(line: &str, name: &[u8]) -> Vec<OsString> {
    let words = line.split(' ').map(|word| {
        let parts: Vec<_> = word.as_bytes().split(|byte| *byte == b'%').collect();
        OsString::from_vec(parts.join(name))
    });
    words.collect()
}

fn run_line(dir: &Path, line: &str, name: &[u8]) -> Output {
    let words = words(line, name);
    run(dir, &words.iter().map(OsString::as_os_str).collect::<Vec<_>>())
}

/// Makes a store in which layers, files and metadata have the name.
fn hostile_store(dir: &Path, name: &[u8]) {
    let os = OsStr::from_bytes(name);
    let text = String::from_utf8_lossy(name).into_owned();
    let [store, two] = ["store", "two"].map(|prefix| OsString::from_vec([prefix.as_bytes(), name].concat()));
    for layer in [os, &two] {
        let layer = Layer::at(dir.join(&store).join(layer));
        fs::create_dir_all(layer.fs()).unwrap();
        fs::write(layer.fs().join(os), layer.path().as_os_str().as_bytes()).unwrap();
        let mut meta = Meta::new(text.as_str(), std::time::SystemTime::now());
        meta.parent_hashes = vec![text.clone(); 3];
        meta.timing = [(text.as_str(), 1.5)].into_iter().collect();
        meta.failed_dep = Some(text.clone());
        meta.extra.insert(text.clone(), json!({ text.as_str(): [text.as_str()] }));
        layer.write_meta(&meta).unwrap();
        fs::write(layer.path().join(OsString::from_vec([name, b".json"].concat())), json!(text).to_string()).unwrap();
    }
    symlink(os, dir.join(&store).join(os).join("fs/link")).unwrap();
}

#[test]
fn names_are_escaped_in_all_output() {
    let commands = [
        ("ls store%", 0),
        ("ls --json store%", 0),
        ("page store%", 0),
        ("page store% --output page% --du", 0),
        ("show store%/%", 0),
        ("show --json store%/%", 0),
        ("show --file /% --layer store%/% --layer store%/two%", 0),
        ("show --json --file /% --layer store%/%", 0),
        ("show --file /link/% --layer store%/%", 1),
        ("show --file /%/% --layer store%/%", 1),
        ("show --file /link/% --no-follow --layer store%/%", 1),
        ("diff store%/%", 0),
        ("diff --json store%/%", 0),
        ("diff --du store%/%", 0),
        ("diff none%", 125),
        ("show --conflicts --layer store%/% --layer store%/two%", 1),
        ("show --conflicts --json --layer store%/% --layer store%/two%", 1),
        ("gc store% --max-bytes 0 --dry-run", 0),
        ("gc store% --max-bytes 0 --dry-run --json", 0),
        ("gc store% --min-free 1000t --dry-run", 0),
        ("plan --base store%/% --layer store%/two%", 0),
        ("plan --json --base store%/% --layer store%/two%", 0),
        ("merge merged% store%/% store%/two%", 0),
        ("merge merged% store%/% store%/two%", 125),
        ("show none%", 125),
        ("ls none%", 125),
        ("page none%", 125),
        ("page store% --output none%/%", 125),
        ("sweep none%", 125),
        ("shell kept%", 125),
        ("discard kept%", 125),
        ("commit kept% new% --run none%", 125),
        ("run --base none% -- true", 125),
        ("run --base store%/% --layer none% -- true", 125),
        ("run --base store%/% --layers-from none% -- true", 125),
        ("run --base store%/% --scratch none% -- true", 125),
        ("run --base store%/% --json none%/% -- true", 125),
        ("run --base store%/% --spec none%", 125),
        ("run --base store%/% --upper store% -- true", 125),
        ("run --base store%/% --cwd % -- true", 125),
        ("run --base store%/% --mount % -- true", 125),
        ("run --base store%/% --memory % -- true", 125),
        ("run --base store%/% --network % -- true", 125),
        ("%", 125),
        ("--%", 125),
    ];
    for name in NAMES {
        let dir = tempfile::tempdir().unwrap();
        hostile_store(dir.path(), name);
        for (line, status) in commands {
            let output = run_line(dir.path(), line, name);
            assert_eq!(output.status.code(), Some(status), "{line} with {}: {output:?}", name.escape_ascii());
            if line.contains("--json") && status != 125 {
                let json = String::from_utf8(output.stdout.clone()).unwrap();
                assert!(json.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{json}");
            }
            if line == "ls store%" {
                assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 3);
            }
        }
        let layer = OsString::from_vec([b"store", name, b"/", name].concat());
        let text = String::from_utf8_lossy(name);
        for broken in [json!({"exit_status": text}), json!({ text.as_ref(): 1 }), json!([text]), json!(text)] {
            fs::write(dir.path().join(&layer).join("layer.json"), broken.to_string()).unwrap();
            for (line, status) in [
                ("ls store%", 125),
                ("page store%", 0),
                ("show store%/%", 125),
                ("gc store% --max-age 1d --dry-run", 0),
            ] {
                assert_eq!(run_line(dir.path(), line, name).status.code(), Some(status), "{line} of {broken}");
            }
        }
    }
}

#[test]
fn names_are_escaped_in_the_output_of_runs() {
    let fixture = Fixture::new();
    for name in NAMES {
        let os = OsStr::from_bytes(name);
        let plain = fixture.path().join("plain");
        fs::create_dir_all(plain.join("fs")).unwrap();
        fs::write(plain.join("fs").join(os), "").unwrap();
        for runtime in ["runc", "crun"] {
            for (command, status) in [("/none%", 127), ("/%", 126)] {
                // A path with invalid UTF-8 cannot be in a configuration.
                let status = if std::str::from_utf8(name).is_ok() { status } else { 125 };
                let line = format!(
                    "run --base base --layer plain --scratch scratch --runtime {runtime} --output out --json report -- {command}"
                );
                let output = run_line(fixture.path(), &line, name);
                assert_eq!(output.status.code(), Some(status), "{line} with {}: {output:?}", name.escape_ascii());
            }
        }
        let mut arguments = words("run --base base --scratch scratch --upper up% --json report% -- sh -c", name);
        arguments.push("echo > /x".into());
        let output = run(fixture.path(), &arguments.iter().map(OsString::as_os_str).collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let report = OsString::from_vec([b"report", name].concat());
        assert_eq!(printable(&fs::read(fixture.path().join(report)).unwrap()), Ok(()));
        let output = run_line(fixture.path(), "commit up% store/% --run report%", name);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        fs::remove_dir_all(&plain).unwrap();
    }
}

/// All kinds of file.
const KINDS: [&str; 12] = [
    "fifo",
    "socket",
    "zero",
    "no-driver",
    "block",
    "directory",
    "dangling",
    "loop",
    "link-to-zero",
    "huge",
    "empty",
    "noise",
];

fn plant(kind: &str, path: &Path) {
    let device = |kind, major, minor| mknodat(CWD, path, kind, Mode::RUSR, makedev(major, minor)).unwrap();
    if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        fs::remove_dir_all(path).unwrap();
    } else if path.symlink_metadata().is_ok() {
        fs::remove_file(path).unwrap();
    }
    match kind {
        "fifo" => device(FileType::Fifo, 0, 0),
        "socket" => drop(UnixListener::bind(path).unwrap()),
        "zero" => device(FileType::CharacterDevice, 1, 5),
        "no-driver" => device(FileType::CharacterDevice, 240, 77),
        "block" => device(FileType::BlockDevice, 240, 77),
        "directory" => fs::create_dir(path).unwrap(),
        "dangling" => symlink("nowhere", path).unwrap(),
        "loop" => symlink(path.file_name().unwrap(), path).unwrap(),
        "link-to-zero" => symlink("/dev/zero", path).unwrap(),
        "huge" => File::create(path).unwrap().set_len(1 << 40).unwrap(),
        "empty" => fs::write(path, "").unwrap(),
        "noise" => {
            fs::write(path, (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<_>>())
                .unwrap()
        }
        other => panic!("{other}"),
    }
}

#[test]
fn no_kind_of_file_in_a_store_or_scratch_directory_stops_a_command() {
    let commands = [
        "ls store",
        "page store",
        "show store/a",
        "show --conflicts --layer store/a --layer store/b",
        "gc store --max-bytes 1 --dry-run",
        "gc store --max-bytes 1g --measure",
        "plan --base base --layer store/a",
        "merge merged store/a store/b",
        "sweep scratch",
        "shell scratch/kept-0123456789abcdef -- true",
        "commit scratch/kept-0123456789abcdef store/new",
        "discard scratch/kept-0123456789abcdef",
        "commit upper store/new --run report.json",
        "gc store --max-bytes 1",
    ];
    let places = [
        "store/a/layer.json",
        "store/a/run.json",
        "store/a/last_used",
        "store/a/.capturing",
        "store/a/fs",
        "store/.layered",
        "store/.layered/holds/x",
        "store/.layered/trash/x",
        "store/.layered/new/x",
        "scratch/layered-0123456789abcdef",
        "scratch/kept-0123456789abcdef",
        "scratch/kept-0123456789abcdef/run.json",
        "scratch/kept-0123456789abcdef/upper",
        "report.json",
        "upper",
    ];
    for kind in KINDS {
        for place in places {
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name);
            for name in ["base/fs", "store/a/fs", "store/b/fs", "upper", "scratch/kept-0123456789abcdef/upper"] {
                fs::create_dir_all(path(name)).unwrap();
            }
            for name in ["holds", "trash", "new"] {
                fs::create_dir_all(path("store/.layered").join(name)).unwrap();
            }
            fs::set_permissions(path("store/.layered"), fs::Permissions::from_mode(0o700)).unwrap();
            for name in ["store/a", "store/b"] {
                let layer = Layer::at(path(name));
                fs::write(layer.fs().join("x"), name).unwrap();
                layer.write_meta(&Meta::new("base", std::time::SystemTime::now())).unwrap();
            }
            plant(kind, &path(place));
            for line in commands {
                run_line(dir.path(), line, b"");
            }
        }
    }
}

#[test]
fn an_endless_file_is_refused() {
    let fixture = Fixture::new();
    for line in [
        "plan --base base --layers-from /dev/zero",
        "run --base base --scratch scratch --spec /dev/zero",
        "commit scratch store/new --base base --meta /dev/zero",
    ] {
        assert_eq!(run_line(fixture.path(), line, b"").status.code(), Some(125), "{line}");
    }
}

#[test]
fn values_of_any_size_are_shown_whole() {
    let fixture = Fixture::new();
    let mut list = String::new();
    for number in 0..1100 {
        let layer = fixture.layer(format!("{number:064}"), |fs| fs::write(fs.join("x"), number.to_string()).unwrap());
        list += &format!("{}\n", layer.path().display());
    }
    fs::write(fixture.path().join("list"), list).unwrap();
    let layer = fixture.layer("last", |_| {});
    let parents: Vec<_> = (0..1100).map(|number| format!("{number:064}")).collect();
    let mut meta = Meta { parent_hashes: parents.clone(), ..Meta::new("base", std::time::SystemTime::now()) };
    meta.extra.insert("long".into(), "y".repeat(70_000).into());
    meta.failed_dep = Some("z".repeat(70_000));
    layer.write_meta(&meta).unwrap();

    let text = |line| String::from_utf8(run_line(fixture.path(), line, b"").stdout).unwrap();
    let shown = text("show store/last");
    assert!(parents.iter().all(|parent| shown.contains(parent)));
    assert!(shown.contains(&"y".repeat(70_000)) && shown.contains(&"z".repeat(70_000)));
    assert!(text("ls store").contains(&"z".repeat(70_000)));
    let conflicts = text("show --conflicts --layers-from list");
    assert!(parents.iter().all(|parent| conflicts.contains(parent)));
}

/// Counts the calls of close(2) in a log.
fn closes(log: &Path) -> usize {
    fs::read_to_string(log).unwrap().lines().filter(|line| line.contains("close(")).count()
}

#[test]
fn a_failing_close_stops_no_command() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let prepare = || {
        for name in ["store", "merged", "scratch"] {
            let _ = fs::remove_dir_all(dir.path().join(name));
        }
        for name in ["a", "b"] {
            let layer = Layer::at(dir.path().join("store").join(name));
            fs::create_dir_all(layer.fs().join("d/e")).unwrap();
            fs::write(layer.fs().join("d/x"), name).unwrap();
            layer.write_meta(&Meta::new("base", std::time::SystemTime::now())).unwrap();
            layer.write_sidecar("doc", &1).unwrap();
        }
        fs::create_dir_all(dir.path().join("scratch/layered-0123456789abcdef/upper")).unwrap();
    };
    for (line, status) in [
        ("ls store", 0),
        ("show store/a", 0),
        ("show --file /d/x --layer store/a --layer store/b", 0),
        ("show --conflicts --layer store/a --layer store/b", 1),
        ("plan --base store/a --layer store/b", 0),
        ("merge merged store/a store/b", 0),
        ("gc store --max-bytes 1g --measure", 0),
        ("gc store --max-bytes 0", 0),
        ("sweep scratch", 0),
    ] {
        let traced = |options: &[&str]| {
            prepare();
            let mut command = Command::new(find("strace"));
            command.args(["-f", "-e", "trace=close", "-o"]).arg(&log).args(options).arg(layered().get_program());
            command.args(line.split(' ')).current_dir(dir.path()).stdin(Stdio::null()).output().unwrap()
        };
        assert_eq!(traced(&[]).status.code(), Some(status), "{line}");
        let count = closes(&log);
        assert!(count > 3, "{line}: {count}");
        for nth in 1..=count {
            let output = traced(&["-e", &format!("inject=close:error=EIO:when={nth}")]);
            let stderr = String::from_utf8_lossy(&output.stderr);
            // The failed call may have been the dynamic linker's.
            let code = output.status.code();
            let expected = code == Some(status) || matches!(code, Some(125 | 127)) && stderr.lines().count() == 1;
            assert!(expected && !stderr.contains("panicked"), "{line}, close {nth} of {count}: {output:?}");
        }
    }
}

#[test]
fn an_exceeded_file_size_limit_is_a_one_line_error() {
    let fixture = Fixture::new();
    fixture.layer("a", |_| {});
    // `sh` counts the limit in units of 512 bytes.
    let limited = |blocks: u32, line: &str, script: Option<&str>| {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "ulimit -f $0; exec \"$@\"", &blocks.to_string()]).arg(layered().get_program());
        shell.args(line.split(' ')).args(script).current_dir(fixture.path()).stdin(Stdio::null()).output().unwrap()
    };
    let run = "run --base base --layer store/a --scratch scratch";
    for (blocks, line) in [
        (0, format!("{run} -- true")),
        (1, format!("{run} -- true")),
        (16, format!("{run} --upper upper -- true")),
        (16, format!("{run} --keep-failed -- false")),
        (16, format!("{run} --json report.json -- true")),
        (0, "merge merged store/a store/a".into()),
    ] {
        let output = limited(blocks, &line, None);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(125), 1), "{blocks} {line}: {output:?}");
        assert!(stderr.contains("File too large"), "{stderr}");
        fixture.assert_clean();
    }
    for line in ["ls store", "gc store --max-bytes 1g"] {
        assert_eq!(limited(0, line, None).status.code(), Some(0), "{line}");
    }
    // The command gets the default action for SIGXFSZ, as without layered. The limit leaves room
    // for the copy that runc makes of its own program.
    let script = "dd if=/dev/zero of=/x bs=1M seek=64 count=1; echo $?";
    let output = limited(100_000, &format!("{run} --output out -- sh -c"), Some(script));
    let out = fs::read_to_string(fixture.path().join("out")).unwrap();
    // The shell's own message on standard error may come before or after.
    assert!(output.status.success() && out.lines().any(|line| line == "153"), "{output:?}: {out}");
}
