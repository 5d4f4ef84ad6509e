//! A registry that fails, lies or never ends: each answer has its exit status, and leaves nothing.

use std::sync::Arc;

use integration_tests::processes::Running;
use integration_tests::registry::{Answer, DockerRegistry, Request, Server};
use layer::oci::Digest;
use nix::sys::signal::Signal;

use super::*;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The parts of a layer in a registry.
#[derive(Clone)]
struct Parts {
    manifest: Vec<u8>,
    config: Vec<u8>,
    blob: Vec<u8>,
}

impl Parts {
    /// Returns those of a good layer, which a real registry had.
    fn of_a_layer(fixture: &Fixture) -> Self {
        let registry = DockerRegistry::start();
        let layer = make_large(&fixture.path().join("store"), "gcc", 200_000);
        json_of(&mut push(&[&layer], &registry.repository("farm")));
        let manifest = registry.get("/v2/farm/manifests/gcc");
        let json: Value = serde_json::from_slice(&manifest).unwrap();
        let read =
            |descriptor: &Value| registry.get(&format!("/v2/farm/blobs/{}", descriptor["digest"].as_str().unwrap()));
        Self { config: read(&json["config"]), blob: read(&json["layers"][0]), manifest }
    }

    /// Returns the answer of an honest registry.
    fn answer(&self, request: &Request) -> Answer {
        let path = &request.path;
        let is = |kind: &str, bytes: &[u8]| path.ends_with(&format!("/{kind}/{}", Digest::of(bytes)));
        if path.ends_with("/manifests/gcc") || is("manifests", &self.manifest) {
            Answer::new(200, &*self.manifest).header("Content-Type", MANIFEST)
        } else if is("blobs", &self.config) {
            Answer::new(200, &*self.config)
        } else if is("blobs", &self.blob) {
            Answer::new(200, &*self.blob)
        } else {
            Answer::new(404, "")
        }
    }

    fn with_manifest(&self, change: impl FnOnce(&mut Value)) -> Self {
        let mut json = serde_json::from_slice(&self.manifest).unwrap();
        change(&mut json);
        Self { manifest: json.to_string().into_bytes(), ..self.clone() }
    }
}

fn is_blob(request: &Request, parts: &Parts) -> bool {
    request.path.ends_with(&Digest::of(&parts.blob).to_string())
}

/// Pulls from a server, which must end with a status and a message, and leave nothing.
fn refused(fixture: &Fixture, server: &Server, what: &str, status: i32, part: &str) {
    let store = tempfile::tempdir_in(fixture.path()).unwrap();
    let mut command = pull(store.path(), &server.repository("farm"), &["gcc"]);
    let (_, error) = ends(command.args(["--retries", "0", "--timeout", "1s"]), status);
    assert!(error.contains(part) && error.lines().count() == 1, "{what}: {error:?} has no {part:?}");
    assert_eq!(names(store.path()), [""; 0], "{what}");
}

#[test]
fn every_failure_has_its_exit_status_and_leaves_nothing() {
    let fixture = Fixture::new();
    let status = |status: u16| Answer::new(status, r#"{"errors":[{"code":"X","message":"some \u001b[31m reason"}]}"#);
    let raw = |text: &str| Answer::Raw(text.as_bytes().to_vec());
    let cases: [(&str, Answer, i32, &str); 19] = [
        ("500", status(500), 75, "answers 500 (X: some"),
        ("502", status(502), 75, "answers 502"),
        ("503", status(503), 75, "answers 503"),
        ("429", status(429), 75, "answers 429"),
        ("408", status(408), 75, "answers 408"),
        ("400", status(400), 1, "answers 400"),
        ("401", status(401), 1, "log in with"),
        ("403", status(403), 1, "log in with"),
        ("404", status(404), 1, "is not in"),
        ("418", status(418), 1, "answers 418"),
        ("a reset", Answer::Reset, 75, "connection failed"),
        ("silence", Answer::Silent, 75, "does not answer"),
        ("an end", raw(""), 75, "connection failed"),
        ("no HTTP", raw("SSH-2.0-x\r\n\r\n"), 1, "not valid"),
        ("half a header", raw("HTTP/1.1 200 OK\r\nContent-"), 75, "connection failed"),
        ("no end", Answer::Endless, 1, "more than 4194304 bytes"),
        ("no JSON", Answer::new(200, "<html>"), 1, "not a manifest"),
        ("an empty answer", Answer::new(200, ""), 1, "not a manifest"),
        ("a redirect to nothing", status(302), 1, "no Location"),
    ];
    for (what, answer, status, part) in cases {
        let server = Server::start(move |_, _| answer.clone());
        refused(&fixture, &server, what, status, part);
    }
    let server = Server::start(|request, _| Answer::new(302, "").header("Location", &request.path));
    refused(&fixture, &server, "a loop", 1, "too many other redirects");
    for (location, part) in [
        ("file:///etc/passwd", "which is not an address"),
        ("http://u@127.0.0.1/", "has a user"),
        // The caller did not ask for connections to other machines without TLS.
        ("http://192.0.2.1/", "which has no TLS"),
    ] {
        let server = Server::start(move |_, _| Answer::new(302, "").header("Location", location));
        refused(&fixture, &server, location, 1, part);
    }
    // Nobody listens at a port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let store = new_store(&fixture, "here");
    let names_of_none = |status: i32, part: &str, command: &mut Command| {
        let (_, error) = ends(command.args(["--retries", "1"]), status);
        assert!(error.contains(part), "{error}");
    };
    let refused = format!("docker://{free}/farm");
    names_of_none(75, "Connection refused", &mut pull(&store, &refused, &["gcc", "make"]));
    let layer = make(&fixture.path().join("store"), "gcc", &Dir::new());
    names_of_none(75, "Connection refused", &mut push(&[&layer], &refused));
    names_of_none(1, "host is not known", &mut pull(&store, "docker://nothing.invalid/farm", &["gcc"]));
}

#[test]
fn a_layer_that_is_not_what_its_digests_say_is_refused() {
    let fixture = Fixture::new();
    let good = Parts::of_a_layer(&fixture);
    let honest = good.clone();
    let server = Server::start(move |request, _| honest.answer(request));
    let store = new_store(&fixture, "good");
    json_of(&mut pull(&store, &server.repository("farm"), &["gcc"]));
    assert!(is_intact(&store.join("gcc")));
    // The manifest need not have the configuration in itself.
    let parts = good.with_manifest(|json| drop(json["config"].as_object_mut().unwrap().remove("data").unwrap()));
    let server = Server::start(move |request, _| parts.answer(request));
    let store = new_store(&fixture, "without");
    json_of(&mut pull(&store, &server.repository("farm"), &["gcc"]));
    assert!(is_intact(&store.join("gcc")) && server.requests().len() == 3);

    let size = good.blob.len();
    let other = {
        let mut other = good.blob.clone();
        other[size / 2] ^= 1;
        other
    };
    type Lie = Box<dyn Fn(&Request) -> Option<Answer> + Send + Sync>;
    let blob = |answer: Answer| -> Lie {
        let good = good.clone();
        Box::new(move |request| is_blob(request, &good).then(|| answer.clone()))
    };
    let longer = [&*good.blob, &[0; 100_000]].concat();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").into_bytes();
    let lies: [(&str, Lie, i32, &str); 7] = [
        ("other bytes", blob(Answer::new(200, other)), 1, "damaged"),
        ("more bytes", blob(Answer::new(200, longer)), 1, "instead of"),
        ("no end", blob(Answer::Endless), 1, "damaged"),
        ("fewer bytes", blob(Answer::new(200, &good.blob[..size / 2])), 1, "instead of"),
        (
            "a connection that ends",
            blob(Answer::Raw([head, good.blob[..1000].to_vec()].concat())),
            75,
            "connection failed",
        ),
        ("a part", blob(Answer::new(206, &*good.blob).header("Content-Range", "bytes 5-9/10")), 1, "another part"),
        ("no blob", blob(Answer::new(404, "")), 1, "answers 404"),
    ];
    for (what, lie, status, part) in lies {
        let good = good.clone();
        let server = Server::start(move |request, _| lie(request).unwrap_or_else(|| good.answer(request)));
        refused(&fixture, &server, what, status, part);
    }

    let none = Digest::of(b"").to_string();
    for (what, parts, part) in [
        ("another size", good.with_manifest(|json| json["layers"][0]["size"] = json!(10)), "instead of 10"),
        ("other data", good.with_manifest(|json| json["config"]["data"] = json!("e30=")), "data is not the blob"),
        ("no data", good.with_manifest(|json| json["config"]["data"] = json!("-")), "not valid"),
        (
            "a huge configuration",
            good.with_manifest(|json| {
                json["config"] = json!({"mediaType": json["config"]["mediaType"], "digest": none, "size": 1u64 << 40})
            }),
            "more than",
        ),
        (
            "another configuration",
            good.with_manifest(|json| {
                json["config"] = json!({"mediaType": json["config"]["mediaType"], "digest": none, "size": 2})
            }),
            "answers 404",
        ),
        (
            "two blobs",
            good.with_manifest(|json| json["layers"] = json!([json["layers"][0], json["layers"][0]])),
            "2 blobs",
        ),
        ("no metadata", good.with_manifest(|json| json["annotations"] = json!({})), "layer.json"),
        (
            "a bad sidecar",
            good.with_manifest(|json| json["annotations"]["layered.sidecar.a/b"] = json!("1")),
            "no layer can have",
        ),
        ("no artifact", good.with_manifest(|json| json["annotations"] = json!({"layered.files": none})), "not there"),
        ("an artifact", good.with_manifest(|json| json["config"]["mediaType"] = json!("application/x")), "artifact"),
    ] {
        let server = Server::start(move |request, _| parts.answer(request));
        refused(&fixture, &server, what, 1, part);
    }
    // A pin is not satisfied by what the registry calls it.
    let (honest, pin) = (good.clone(), Digest::of(b"pinned"));
    let server = Server::start(move |request, _| match request.path.contains("/manifests/") {
        true => Answer::new(200, &*honest.manifest).header("Docker-Content-Digest", pin),
        false => honest.answer(request),
    });
    let (_, error) = ends(&mut pull(&store, &server.repository("farm"), &[&format!("make@{pin}")]), 1);
    assert!(error.contains("has the digest"), "{error}");
}

#[test]
fn a_blob_is_continued_where_it_broke_off() {
    let fixture = Fixture::new();
    let good = Parts::of_a_layer(&fixture);
    let (size, parts) = (good.blob.len(), good.clone());
    // Once without and then with parts.
    let server = Server::start(move |request, _| {
        if !is_blob(request, &parts) {
            return parts.answer(request);
        }
        let head = |status: &str, length: usize, range: &str| {
            format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\n{range}\r\n").into_bytes()
        };
        let offset = request.header("range").map_or(0, |range| {
            range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')).unwrap().parse::<usize>().unwrap()
        });
        match offset {
            0 => Answer::Raw([head("200", size, ""), parts.blob[..size / 4].to_vec()].concat()),
            _ if offset < size / 2 => {
                let range = format!("Content-Range: bytes {offset}-{}/{size}\r\n", size - 1);
                Answer::Raw([head("206", size - offset, &range), parts.blob[offset..size * 3 / 4].to_vec()].concat())
            }
            _ => Answer::new(200, &*parts.blob),
        }
    });
    let store = new_store(&fixture, "here");
    json_of(&mut pull(&store, &server.repository("farm"), &["gcc"]));
    assert!(is_intact(&store.join("gcc")));
    let requests = server.requests();
    assert_eq!(requests.iter().filter(|request| is_blob(request, &good)).count(), 3);
}

/// A connection that breaks after the last byte, before the end of the answer.
#[test]
fn a_blob_whose_bytes_are_all_there_is_not_asked_for_again() {
    let fixture = Fixture::new();
    let good = Parts::of_a_layer(&fixture);
    let parts = good.clone();
    let server = Server::start(move |request, _| match is_blob(request, &parts) {
        true => {
            let head = format!("HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", parts.blob.len());
            Answer::Raw([head.as_bytes(), &parts.blob, b"\r\n"].concat())
        }
        false => parts.answer(request),
    });
    let store = new_store(&fixture, "here");
    json_of(&mut pull(&store, &server.repository("farm"), &["gcc"]));
    assert!(is_intact(&store.join("gcc")));
    assert_eq!(server.requests().iter().filter(|request| is_blob(request, &good)).count(), 1);
}

#[test]
fn a_busy_registry_is_asked_again_when_it_says() {
    let fixture = Fixture::new();
    let good = Parts::of_a_layer(&fixture);
    let server = Server::start(move |request, number| match number {
        0 => Answer::new(503, ""),
        1 => Answer::Reset,
        2 => Answer::new(429, "").header("Retry-After", "1"),
        3 => Answer::new(500, ""),
        _ => good.answer(request),
    });
    let store = new_store(&fixture, "here");
    json_of(&mut pull(&store, &server.repository("farm"), &["gcc"]));
    assert_eq!(server.requests().len(), 6);
    // After an error that lasts, the other layers are not even begun.
    let server = Server::start(|_, _| Answer::new(503, ""));
    let mut command = pull(&store, &server.repository("farm"), &["a", "b", "c"]);
    let (text, _) = ends(command.args(["--retries", "1", "--jobs", "1", "--json"]), 75);
    let failed = &serde_json::from_str::<Value>(&text).unwrap()["failed"];
    assert!((0..3).all(|number| failed[number]["temporary"] == true), "{text}");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_name_that_no_registry_has_is_refused_before_any_request() {
    let fixture = Fixture::new();
    let server = Server::start(|_, _| Answer::new(500, ""));
    let repository = server.repository("farm");
    let store = new_store(&fixture, "here");
    for name in ["../a", "a/b", "a:b", ".a", "a b", "a%2fb", "", "a?b", "a#b", "é", "a.meta", "a@sha256:0", "a\n"] {
        ends(&mut pull(&store, &repository, &[name]), 125);
    }
    for bad in ["farm:tag", "../farm", "a//b", "A", "a?b"] {
        ends(&mut pull(&store, &server.repository(bad), &["gcc"]), 125);
        ends(&mut push(&[&Layer::at(&store)], &server.repository(bad)), 125);
    }
    for name in ["a b", "é", "-a", "a+b"] {
        let layer = make(&store, name, &Dir::new());
        ends(&mut push(&[&layer], &repository), 1);
        fs::remove_dir_all(layer.path()).unwrap();
    }
    assert!(server.requests().is_empty() && names(&store).is_empty());
}

#[test]
fn a_signal_ends_a_pull_and_a_push_that_wait() {
    let fixture = Fixture::new();
    let good = Parts::of_a_layer(&fixture);
    let (begun, wait) = std::sync::mpsc::channel();
    let begun = Arc::new(std::sync::Mutex::new(begun));
    let server = Server::start(move |request, _| {
        let head = format!("HTTP/1.1 200 x\r\nContent-Length: {}\r\n\r\n", good.blob.len());
        match (is_blob(request, &good), request.method.as_str()) {
            (false, "GET") => good.answer(request),
            _ => {
                begun.lock().unwrap().send(()).unwrap();
                if request.method == "GET" {
                    Answer::Raw([head.as_bytes(), &good.blob[..9]].concat())
                } else {
                    Answer::Silent
                }
            }
        }
    });
    let store = new_store(&fixture, "here");
    let layer = Layer::at(fixture.path().join("store/gcc"));
    fs::remove_file(layer.path().join("oci.json")).unwrap();
    let repository = server.repository("farm");
    // The pull waits between two attempts, and the push for an answer.
    for (mut command, signal, status) in [
        (pull(&store, &repository, &["gcc"]), Signal::SIGTERM, 143),
        (pull(&store, &repository, &["gcc"]), Signal::SIGINT, 130),
        (push(&[&layer], &repository), Signal::SIGTERM, 143),
        (push(&[&layer], &repository), Signal::SIGHUP, 129),
    ] {
        let mut child = Running::start(command.args(["--retries", "1000000"]).stderr(Stdio::null()));
        wait.recv().unwrap();
        child.send(signal);
        assert_eq!(child.end().code(), Some(status), "{command:?}");
        while wait.try_recv().is_ok() {}
        assert_eq!(names(&store), [""; 0]);
    }
}

#[test]
fn a_redirect_takes_no_login_with_it() {
    let fixture = Fixture::new();
    let good = Parts::of_a_layer(&fixture);
    let parts = good.clone();
    let storage = Arc::new(Server::start(move |request, _| parts.answer(request)));
    let (parts, elsewhere) = (good.clone(), storage.address());
    let server = Server::start(move |request, _| match request.header("authorization") {
        None => Answer::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\""),
        Some(_) if is_blob(request, &parts) => {
            Answer::new(307, "").header("Location", format!("http://{elsewhere}{}", request.path))
        }
        Some(_) => parts.answer(request),
    });
    let auth = fixture.path().join("auth.json");
    fs::write(&auth, format!(r#"{{"auths":{{"{}":{{"auth":"dTpzZWNyZXQ="}}}}}}"#, server.address())).unwrap();
    let store = new_store(&fixture, "here");
    let mut command = pull(&store, &server.repository("farm"), &["gcc"]);
    json_of(command.env("REGISTRY_AUTH_FILE", &auth));
    let sent = storage.requests();
    assert_eq!(sent.len(), 1);
    assert!(sent.iter().all(|request| request.header("authorization").is_none()), "{sent:?}");
    assert!(
        server.requests().iter().skip(1).all(|request| request.header("authorization") == Some("Basic dTpzZWNyZXQ="))
    );
}

#[test]
fn an_image_index_is_followed_to_the_platform() {
    let fixture = Fixture::new();
    let good = Parts::of_a_layer(&fixture);
    let digest = Digest::of(&good.manifest);
    let describe = |digest: Digest, size: usize, architecture: &str| json!({"mediaType": MANIFEST, "digest": digest, "size": size, "platform": {"os": "linux", "architecture": architecture}});
    let ours = layer::oci::Platform::host().architecture;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [describe(Digest::of(b""), 9, "other"), describe(digest, good.manifest.len(), &ours)],
    });
    let index = index.to_string().into_bytes();
    let server = Server::start(move |request, _| {
        let is_index =
            request.path.ends_with("/manifests/1") || request.path.ends_with(&Digest::of(&index).to_string());
        if is_index { Answer::new(200, &*index) } else { good.answer(request) }
    });
    let image = server.repository("farm:1");
    ends(layered().args(["import", &image]).arg(fixture.path().join("one")), 0);
    let platform = format!("linux/{ours}");
    ends(layered().args(["import", &image, "--platform", &platform]).arg(fixture.path().join("other")), 0);
    let (_, error) =
        ends(layered().args(["import", &image, "--platform", "linux/none"]).arg(fixture.path().join("no")), 1);
    assert!(error.contains("it has: linux/other"), "{error}");
    assert!(!fixture.path().join("no").exists());
}
