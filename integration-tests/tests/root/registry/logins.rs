//! Logins: Basic and Bearer, files of Podman and Docker, helper programs, TLS.

use integration_tests::registry::{Answer, DockerRegistry, Server};
use integration_tests::write_script;

use super::*;

/// The password `secret` of the user `u`, as bcrypt has it.
const HTPASSWD: &str = "u:$2b$05$9yCM6KYAu6cANa1XJZQhduakve8FanhuCkcKqqIvlRsvFhJJ7vGhO";

/// Returns a file with the login of `registry`.
fn auth_file(fixture: &Fixture, registry: &str, login: &str) -> PathBuf {
    let path = fixture.path().join("auth.json");
    fs::write(&path, json!({"auths": {registry: {"auth": login}}}).to_string()).unwrap();
    path
}

#[test]
fn the_logins_of_podman_docker_and_helper_programs_are_found() {
    let fixture = Fixture::new();
    let htpasswd = fixture.path().join("htpasswd");
    fs::write(&htpasswd, HTPASSWD).unwrap();
    let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}", htpasswd.display());
    let registry = DockerRegistry::with("", &auth);
    let address = registry.address().to_string();
    let layer = make(&fixture.path().join("store"), "gcc", &Dir::new());
    let repository = registry.repository("farm");
    let store = new_store(&fixture, "here");
    let home = new_store(&fixture, "home");
    let attempt = |status: i32, set: &dyn Fn(&mut Command)| {
        let mut texts = String::new();
        for mut command in [push(&[&layer], &repository), pull(&store, &repository, &["gcc"])] {
            for variable in ["REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG"] {
                command.env_remove(variable);
            }
            set(command.env("HOME", &home).env("XDG_RUNTIME_DIR", &home));
            texts.push_str(&ends(&mut command, status).1);
        }
        texts
    };
    let without = attempt(1, &|_| {});
    assert!(without.contains(&format!("refuses anonymous access; log in with `podman login {address}`")), "{without}");
    // `u:wrong`
    let wrong = auth_file(&fixture, &address, "dTp3cm9uZw==");
    let refused = attempt(1, &|command| {
        command.env("REGISTRY_AUTH_FILE", &wrong);
    });
    assert!(refused.contains("refuses the login of u") && !refused.contains("wrong"), "{refused}");
    assert_eq!(names(&store), [""; 0]);

    let again = || {
        ends(layered().arg("rm").arg(store.join("gcc")), 0);
    };
    let right = auth_file(&fixture, &address, "dTpzZWNyZXQ=");
    attempt(0, &|command| {
        command.env("REGISTRY_AUTH_FILE", &right);
    });
    again();
    for dir in ["containers", ".config/containers", ".docker"] {
        let file = if dir == ".docker" { "config.json" } else { "auth.json" };
        fs::create_dir_all(home.join(dir)).unwrap();
        fs::copy(&right, home.join(dir).join(file)).unwrap();
        attempt(0, &|_| {});
        again();
        fs::remove_file(home.join(dir).join(file)).unwrap();
    }
    // A helper program has the login instead of the file.
    let helper = home.join("docker-credential-test");
    write_script(&helper, "#!/bin/sh\nread -r server\nprintf '{\"Username\": \"u\", \"Secret\": \"secret\"}'");
    fs::write(home.join(".docker/config.json"), json!({"credHelpers": {&address: "test"}}).to_string()).unwrap();
    let path = format!("{}:{}", home.display(), std::env::var("PATH").unwrap());
    attempt(0, &|command| {
        command.env("PATH", &path);
    });
    again();
    write_script(&helper, "#!/bin/sh\nread -r server\necho it is locked >&2\nexit 1");
    let failed = attempt(1, &|command| {
        command.env("PATH", &path);
    });
    assert!(failed.contains("docker-credential-test has failed: it is locked"), "{failed}");
}

#[test]
fn a_token_is_made_for_the_repository_and_made_again_when_it_expires() {
    let fixture = Fixture::new();
    let tokens = Server::start(|request, number| match request.header("authorization") {
        Some("Basic dTpzZWNyZXQ=") => Answer::new(200, format!(r#"{{"token":"token-{number}","expires_in":1}}"#)),
        _ => Answer::new(401, r#"{"details":"who are you"}"#),
    });
    let realm = format!("http://{}/token", tokens.address());
    // Each token is good for three requests. The name is free.
    let used = std::sync::Mutex::new(std::collections::HashMap::<String, usize>::new());
    let server = Server::start(move |request, _| {
        let asks = || {
            let challenge = format!("Bearer realm=\"{realm}\",service=\"test\",scope=\"repository:farm:pull\"");
            Answer::new(401, "").header("WWW-Authenticate", challenge)
        };
        let Some(token) = request.header("authorization") else { return asks() };
        let mut used = used.lock().unwrap();
        let uses = used.entry(token.into()).or_default();
        *uses += 1;
        match (*uses, request.method.as_str()) {
            (4.., _) => asks(),
            (_, "POST") => Answer::new(202, "").header("Location", "/v2/farm/blobs/uploads/1?state=a%3D"),
            (_, "PUT") => Answer::new(201, ""),
            _ => Answer::new(404, ""),
        }
    });
    let address = server.address().to_string();
    let layer = make(&fixture.path().join("store"), "gcc", &Dir::new());
    let auth = auth_file(&fixture, &address, "dTpzZWNyZXQ=");
    json_of(push(&[&layer], &server.repository("farm")).env("REGISTRY_AUTH_FILE", &auth));
    let asked = tokens.requests();
    assert!(asked.len() >= 3, "{asked:?}");
    for request in &asked {
        assert!(
            request.path.contains("service=test") && request.path.contains("scope=repository%3Afarm%3A"),
            "{request:?}"
        );
    }
    assert!(asked.iter().any(|request| request.path.ends_with("pull%2Cpush&service=test")), "{asked:?}");
    // The password goes to the token server alone.
    let sent = server.requests();
    assert!(sent.iter().all(|request| !request.header("authorization").unwrap_or_default().starts_with("Basic")));
    let put = sent.iter().find(|request| request.method == "PUT").unwrap();
    assert!(put.path.starts_with("/v2/farm/blobs/uploads/1?state=a%3D&digest=sha256%3A"), "{}", put.path);

    let wrong = auth_file(&fixture, &address, "dTp3cm9uZw==");
    let mut command = push(&[&layer], &server.repository("farm"));
    let (_, error) = ends(command.env("REGISTRY_AUTH_FILE", &wrong), 1);
    assert!(error.contains("refuses the login of u (who are you)"), "{error}");
    // A token server that is away is temporary.
    let away = Server::start(|_, _| {
        Answer::new(401, "").header("WWW-Authenticate", "Bearer realm=\"http://127.0.0.1:1/token\"")
    });
    ends(push(&[&layer], &away.repository("farm")).args(["--retries", "0"]), 75);
    // A login goes nowhere else without TLS.
    let elsewhere = Server::start(|_, _| {
        Answer::new(401, "").header("WWW-Authenticate", "Bearer realm=\"http://token.invalid/token\"")
    });
    let auth = auth_file(&fixture, &elsewhere.address().to_string(), "dTpzZWNyZXQ=");
    let mut command = push(&[&layer], &elsewhere.repository("farm"));
    let (_, error) = ends(command.env("REGISTRY_AUTH_FILE", &auth), 1);
    assert!(error.contains("which has no TLS"), "{error}");
}

#[test]
fn tls_needs_a_certificate_that_the_system_trusts() {
    let fixture = Fixture::new();
    let [key, certificate] = ["key.pem", "certificate.pem"].map(|name| fixture.path().join(name));
    let make_certificate = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "30",
        "-subj",
        "/CN=test",
        "-addext",
        "subjectAltName=IP:127.0.0.1,DNS:localhost",
        // The server's own certificate must not be an authority.
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ];
    ends(
        Command::new(find("openssl")).args(make_certificate).arg("-keyout").arg(&key).arg("-out").arg(&certificate),
        0,
    );
    let tls = format!(", tls: {{certificate: {}, key: {}}}", certificate.display(), key.display());
    let registry = DockerRegistry::with(&tls, "");
    let layer = make(&fixture.path().join("store"), "gcc", &Dir::new().file("a", "b"));
    let (repository, store) = (registry.repository("farm"), new_store(&fixture, "here"));
    let mut trusted = push(&[&layer], &repository);
    json_of(trusted.arg("--plain-http=never").env("SSL_CERT_FILE", &certificate));
    let mut trusted = pull(&store, &repository, &["gcc"]);
    json_of(trusted.arg("--plain-http=never").env("SSL_CERT_FILE", &certificate));
    assert!(is_intact(&store.join("gcc")));
    let other = new_store(&fixture, "other");
    let (_, error) = ends(pull(&other, &repository, &["gcc"]).arg("--plain-http=never"), 1);
    assert!(error.contains("TLS failed"), "{error}");
    // The server speaks TLS alone.
    ends(pull(&other, &repository, &["gcc"]).args(["--plain-http", "--retries", "0"]), 1);
    assert_eq!(names(&other), [""; 0]);
}
