//! The example `docs_browser` of the crate `layer`: the answers of a server that an ordinary user
//! runs over a read-only store, and the list of the layers that are in use.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use container::in_private_mount_namespace;
use integration_tests::processes::Running;
use integration_tests::{FOR_EVER, Fixture, copy_program};
use layer::{Hold, Layer, Meta};
use nix::mount::{MsFlags, mount};
use serde_json::json;

const NOBODY: u32 = 65534;

const TIME: SystemTime = SystemTime::UNIX_EPOCH;

/// The server, which runs until this is dropped.
struct Browser {
    _server: Running,
    address: String,
}

impl Browser {
    /// Starts the program as a user.
    fn start(fixture: &Fixture, user: u32) -> Self {
        // The user may have no access to the directory of the original.
        let program = fixture.path().join("docs-browser");
        if !program.exists() {
            copy_program(Path::new(env!("CARGO_BIN_EXE_docs-browser")), &program);
        }
        let mut command = Command::new(program);
        command.arg(fixture.store()).arg("127.0.0.1:0").uid(user).gid(user);
        let mut server = Running::start(command.stdin(Stdio::null()).stdout(Stdio::piped()));
        let line = server.line();
        let address = line.strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line:?}")).to_owned();
        Self { _server: server, address }
    }

    /// Sends `url` as it is. Returns the status, the type and the body of the answer.
    fn get(&self, url: &str) -> (u16, String, String) {
        let mut connection = TcpStream::connect(&self.address).unwrap();
        connection.set_read_timeout(Some(FOR_EVER)).unwrap();
        write!(connection, "GET {url} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{url}: {answer:?}"));
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let status = header("HTTP/1.0 ").split(' ').next().unwrap().parse().unwrap();
        (status, header("Content-Type: ").into(), body.into())
    }
}

/// Makes the layers `zlib`, `gcc`, `closed` (only for root) and `torn` (without a valid
/// `layer.json`).
fn store(fixture: &Fixture) -> Vec<Layer> {
    let layer = |name: &str, fill: fn(&Path)| {
        let layer = fixture.layer(name, |fs| {
            fs::create_dir(fs.join("doc")).unwrap();
            fill(fs);
        });
        layer.write_meta(&Meta { disk_usage: 4096, ..Meta::new("debian-12", TIME) }).unwrap();
        layer
    };
    let zlib = layer("zlib", |fs| {
        fs::write(fs.join("doc/index.html"), "<h1>zlib").unwrap();
        fs::write(fs.join("doc/a b%.html"), "odd").unwrap();
        fs::create_dir(fs.join("etc")).unwrap();
        symlink("/etc/passwd", fs.join("doc/passwd")).unwrap();
        symlink("/etc/shadow", fs.join("doc/absolute")).unwrap();
        symlink("../../../../../../../../../etc/shadow", fs.join("doc/relative")).unwrap();
        symlink("/doc/gcc.html", fs.join("doc/gcc")).unwrap();
        fs::write(fs.join("etc/passwd"), "the layer's own").unwrap();
    });
    zlib.write_sidecar("package", &json!({"name": "zlib"})).unwrap();
    let gcc = layer("gcc", |fs| {
        fs::write(fs.join("doc/index.html"), "<h1>gcc").unwrap();
        fs::write(fs.join("doc/gcc.html"), "of gcc").unwrap();
    });
    let closed = layer("closed", |_| {});
    fs::set_permissions(closed.path(), Permissions::from_mode(0o700)).unwrap();
    let torn = layer("torn", |_| {});
    fs::write(torn.meta_path(), "{").unwrap();
    for (layer, used) in [(&zlib, 20), (&gcc, 30)] {
        layer.touch().unwrap();
        File::open(layer.last_used_path()).unwrap().set_modified(TIME + Duration::from_secs(used)).unwrap();
    }
    vec![zlib, gcc, closed, torn]
}

const ZLIB: &str = r#"{"name":"zlib","held":false,"exit_status":0,"bytes":4096,"last_used":20,"sidecars":["package"]}"#;
const GCC: &str = r#"{"name":"gcc","held":false,"exit_status":0,"bytes":4096,"last_used":30,"sidecars":[]}"#;
const META: &str = r#"{"exit_status":0,"parent_hashes":[],"uid":0,"gid":0,"base_hash":"debian-12","disk_usage":4096,"timing":{},"created_at":"1970-01-01T00:00:00Z","failed_dep":null}"#;

#[test]
fn an_ordinary_user_browses_a_read_only_store_and_never_leaves_it() {
    let fixture = Fixture::new();
    store(&fixture);
    let dir = fixture.store();
    let path = |path: &str| dir.join(path).display().to_string();
    let closed = format!("cannot look at {}: Permission denied (os error 13)", path("closed/layer.json"));
    let torn = format!(
        "cannot parse {} (correct or remove it): EOF while parsing an object at line 1 column 1",
        path("torn/layer.json")
    );
    let bad = |name: &str, error: &str| json!({"name": name, "held": false, "error": error}).to_string();
    let not_found = |path: &str| format!("cannot find the stack's {path}: No such file or directory (os error 2)\n");
    let no_name =
        |name: &str| format!("{name} cannot name a layer; use a file name without `/` and without a leading dot\n");
    let missing = |path: &str| format!("{path} does not exist; pass the path of a layer's tree\n");
    let (html, text, json) = ("text/html; charset=utf-8", "text/plain; charset=utf-8", "application/json");
    let supplied = |layer| {
        format!(
            r#"{{"path":"/doc/index.html","layer":{layer},"origins":[{{"layer":0,"has":"file","role":"supplies","by":null}},{{"layer":1,"has":"file","role":"hidden","by":0}}],"obstacle":null}}"#
        )
    };
    let table: &[(&str, u16, &str, String)] = &[
        ("/", 200, json, format!("[{GCC},{ZLIB},{},{}]", bad("closed", &closed), bad("torn", &torn))),
        ("/?offset=1&limit=1", 200, json, format!("[{ZLIB}]")),
        ("/?offset=4", 200, json, "[]".into()),
        (
            "/layer/zlib",
            200,
            json,
            format!(r#"{{"meta":{META},"sidecars":{{"package":{{"name":"zlib"}}}},"last_used":20}}"#),
        ),
        ("/layer/torn", 500, text, format!("{torn}\n")),
        ("/layer/none", 404, text, "the store has no such layer\n".into()),
        ("/layer/.layered", 404, text, no_name(".layered")),
        ("/layer/..", 404, text, no_name("..")),
        ("/layer/%2e%2e", 404, text, no_name("..")),
        ("/layer/zlib%2F..%2Fgcc", 404, text, no_name("zlib/../gcc")),
        ("/which?layers=zlib,gcc&path=/doc/index.html", 200, json, supplied(0)),
        ("/which?path=doc%2Findex.html&layers=gcc,zlib", 200, json, supplied(0)),
        ("/which?path=/doc&layers=", 404, text, no_name("''")),
        ("/which?path=/doc&layers=zlib,../gcc", 404, text, no_name("../gcc")),
        ("/file/zlib/doc/index.html", 200, html, "<h1>zlib".into()),
        ("/file/gcc,zlib/doc/index.html", 200, html, "<h1>gcc".into()),
        ("/file/zlib,gcc/doc/gcc", 200, html, "of gcc".into()),
        ("/file/zlib/doc/gcc", 404, text, not_found("doc/gcc")),
        ("/file/zlib/doc/a%20b%25.html", 200, html, "odd".into()),
        ("/file/zlib/doc/passwd", 200, html, "the layer's own".into()),
        ("/file/zlib/../../../../etc/passwd", 200, html, "the layer's own".into()),
        ("/file/zlib/doc/absolute", 404, text, not_found("doc/absolute")),
        ("/file/zlib/doc/relative", 404, text, not_found("doc/relative")),
        ("/file/zlib/%2e%2e/%2e%2e/gcc/layer.json", 404, text, not_found("../../gcc/layer.json")),
        ("/file/../store/zlib/doc/index.html", 404, text, no_name("..")),
        ("/file/zlib/doc", 404, text, "cannot open the stack's doc: Is a directory (os error 21)\n".into()),
        ("/file/zlib/%00", 404, text, "cannot look up $'\\x00': Invalid argument (os error 22)\n".into()),
        ("/file/none/doc", 404, text, missing(&path("none/fs"))),
        (
            "/file/closed/doc",
            403,
            text,
            format!("cannot open {}: Permission denied (os error 13)\n", path("closed/fs")),
        ),
        ("/etc/shadow", 404, text, "there are /, /layer/NAME, /which and /file/LAYERS/PATH\n".into()),
    ];
    in_private_mount_namespace(|| {
        mount(Some(&dir), &dir, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, &dir, None::<&str>, read_only, None::<&str>).unwrap();
        let browser = Browser::start(&fixture, NOBODY);
        for (url, status, content_type, body) in table {
            assert_eq!(browser.get(url), (*status, (*content_type).into(), body.clone()), "{url}");
        }
    })
    .unwrap();
}

#[test]
fn the_list_shows_which_layers_are_in_use() {
    let fixture = Fixture::new();
    let hold = Hold::of(store(&fixture).iter().take(1).map(Layer::path)).unwrap();
    let browser = Browser::start(&fixture, 0);
    let held = ZLIB.replace(r#""held":false"#, r#""held":true"#);
    assert_eq!(browser.get("/?offset=1&limit=1").2, format!("[{held}]"));
    hold.release().unwrap();
    assert_eq!(browser.get("/?offset=1&limit=1").2, format!("[{ZLIB}]"));
}
