//! Registries for tests: Debian's `docker-registry`, a server that answers as a test tells it, and
//! a relay that breaks a connection at a chosen byte.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tempfile::TempDir;

use crate::find;

/// A `docker-registry` on a free port of this machine. It ends when it is dropped.
#[derive(Debug)]
pub struct DockerRegistry {
    server: Child,
    address: SocketAddr,
    dir: TempDir,
    extra: String,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl DockerRegistry {
    /// Starts a registry without TLS and logins.
    ///
    /// # Panics
    /// If it is not installed, or does not start.
    pub fn start() -> Self {
        Self::with("", "")
    }

    /// Starts a registry. `http` is added to the part `http` of its configuration, in one line, and
    /// `extra` to the whole.
    ///
    /// # Panics
    /// If it is not installed, or does not start.
    pub fn with(http: &str, extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let extra = format!("http: {{addr: ADDRESS, secret: test{http}}}\n{extra}\n");
        Self::start_in(dir, extra, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    fn start_in(dir: TempDir, extra: String, address: SocketAddr) -> Self {
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info, formatter: json}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n{}",
            dir.path().join("data").display(),
            extra.replace("ADDRESS", &address.to_string())
        );
        fs::write(&config, text).unwrap();
        let mut server = Command::new(find("docker-registry"))
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The registry writes the requests to one stream and all else to the other.
        let mut log = BufReader::new(server.stderr.take().unwrap());
        let mut begun = String::new();
        let address = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "docker-registry does not start:\n{begun}");
            begun.push_str(&line);
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split([',', '"']).next().unwrap().trim().parse().unwrap();
            }
        };
        std::thread::spawn(move || io::copy(&mut log, &mut io::sink()));
        let requests = BufReader::new(server.stdout.take().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in requests.lines().map_while(Result::ok) {
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Self { server, address, dir, extra, log, reader: Some(reader) }
    }

    /// Returns the address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns a repository as the command line names it.
    pub fn repository(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.address)
    }

    /// Returns the directory in which the registry keeps everything.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the content that the registry has at a path, such as `/v2/NAME/manifests/TAG`.
    ///
    /// # Panics
    /// If it has none.
    pub fn get(&self, path: &str) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let accept = "application/vnd.oci.image.manifest.v1+json";
        write!(stream, "GET {path} HTTP/1.0\r\nHost: registry\r\nAccept: {accept}\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("an answer has a head");
        let status = String::from_utf8_lossy(&answer[..head]).into_owned();
        assert!(status.contains(" 200 "), "{path}: {status}");
        answer.split_off(head + 4)
    }

    /// Ends the registry, and returns the requests that it has answered: lines of an access log,
    /// each with `"METHOD PATH HTTP/1.1" STATUS`.
    ///
    /// # Panics
    /// If it cannot be ended.
    pub fn requests(mut self) -> Vec<String> {
        self.stop();
        std::mem::take(&mut *self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Kills the registry.
    ///
    /// # Panics
    /// If it cannot be killed.
    pub fn stop(&mut self) {
        // It may have ended by itself.
        let _ = self.server.kill();
        self.server.wait().unwrap();
        // The log ends with the process.
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
    }

    /// Kills the registry, and starts it again at the same address. Forgets its log.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&mut self) {
        self.stop();
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
        *self = Self::start_in(dir, self.extra.clone(), self.address);
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A request to a [`Server`].
#[derive(Debug, Clone)]
pub struct Request {
    /// The method: `GET`.
    pub method: String,
    /// The path with the query.
    pub path: String,
    /// The headers, with names in lower case.
    pub headers: HashMap<String, String>,
    /// The content.
    pub body: Vec<u8>,
}

impl Request {
    /// Returns a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// The answer of a [`Server`].
#[derive(Debug, Clone)]
pub enum Answer {
    /// A status, headers and a content.
    Full(u16, Vec<(String, String)>, Vec<u8>),
    /// These bytes, as they are, before the connection is closed.
    Raw(Vec<u8>),
    /// A content without an end.
    Endless,
    /// The connection is reset.
    Reset,
    /// Nothing, until the client gives up.
    Silent,
}

impl Answer {
    /// Returns an answer with a content.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::Full(status, Vec::new(), body.into())
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl fmt::Display) -> Self {
        if let Self::Full(_, headers, _) = &mut self {
            headers.push((name.into(), value.to_string()));
        }
        self
    }
}

/// A server that answers each request by a function of the test. It ends with the process.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Starts a server on a free port of this machine. `answer` gets each request and the number of
    /// those before it.
    ///
    /// # Panics
    /// If no port is free.
    pub fn start(answer: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (log, answer) = (Arc::clone(&requests), Arc::new(answer));
        // The thread lives as long as the process: nothing else connects to its port.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                std::thread::spawn(move || {
                    // A client that goes away is a part of the tests.
                    let _ = serve(stream, &log, &*answer);
                });
            }
        });
        Self { address, requests }
    }

    /// Returns the address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns a repository as the command line names it.
    pub fn repository(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.address)
    }

    /// Returns the requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Answers one request of a connection, and closes it.
fn serve(
    stream: TcpStream,
    log: &Mutex<Vec<Request>>,
    answer: &(dyn Fn(&Request, usize) -> Answer + Send + Sync),
) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(String::from);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(()) };
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim().split_once(':') {
            Some((name, value)) => drop(headers.insert(name.to_ascii_lowercase(), value.trim().to_string())),
            None => break,
        }
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let is_head = method == "HEAD";
    let request = Request { method, path, headers, body };
    let number = {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push(request.clone());
        log.len() - 1
    };
    let mut out = &stream;
    match answer(&request, number) {
        Answer::Full(status, headers, body) => {
            let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let length = body.len();
            write!(out, "HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n")?;
            if !is_head {
                out.write_all(&body)?;
            }
        }
        Answer::Raw(bytes) => out.write_all(&bytes)?,
        Answer::Endless => {
            write!(out, "HTTP/1.1 200 x\r\nConnection: close\r\n\r\n")?;
            while out.write_all(&[b' '; 65536]).is_ok() {}
        }
        Answer::Reset => reset(&stream),
        Answer::Silent => drop(reader.read(&mut [0])?),
    }
    Ok(())
}

/// Makes the kernel send a reset instead of an end when the connection is closed.
fn reset(stream: &TcpStream) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
}

/// The event of a [`Relay`] at its limit of bytes.
pub type AtLimit = Box<dyn Fn() + Send + Sync>;

/// Passes connections on to a registry, and counts the bytes in both directions.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    passed: Arc<AtomicU64>,
}

impl Relay {
    /// Starts a relay to `registry`. Once `limit` bytes have passed, it calls `at_limit`, and
    /// closes the connection by which the last ones came with a reset. Then it passes all on again.
    ///
    /// # Panics
    /// If no port is free.
    pub fn start(registry: SocketAddr, limit: u64, at_limit: impl Fn() + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let passed = Arc::new(AtomicU64::new(0));
        let (count, at_limit): (_, Arc<dyn Fn() + Send + Sync>) = (Arc::clone(&passed), Arc::new(at_limit));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(registry) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                    let (count, at_limit) = (Arc::clone(&count), Arc::clone(&at_limit));
                    std::thread::spawn(move || pass(&from, &to, &count, limit, &*at_limit));
                }
            }
        });
        Self { address, passed }
    }

    /// Returns the address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns a repository as the command line names it.
    pub fn repository(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.address)
    }

    /// Returns the number of bytes that have passed.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::SeqCst)
    }
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, count: &AtomicU64, limit: u64, at_limit: &dyn Fn()) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let before = count.fetch_add(read as u64, Ordering::SeqCst);
        if before < limit && before + read as u64 >= limit {
            at_limit();
            for stream in [from, to] {
                reset(stream);
                let _ = stream.shutdown(Shutdown::Both);
            }
            return;
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
