//! Serves a store of layers over HTTP, as the server of a documentation browser would.
//!
//! ```console
//! $ cargo run -p layer --example docs_browser /var/cache/layers 127.0.0.1:8080
//! listening on http://127.0.0.1:8080
//! ```
//!
//! | `GET` | Answer |
//! |---|---|
//! | `/?offset=0&limit=50` | the layers, the most recently used first |
//! | `/layer/gcc` | the `layer.json` of a layer, its sidecars, and its last use |
//! | `/which?layers=gcc,debian-12&path=/usr/bin/cc` | which layer supplies a path; see [`layer::Lookup`] |
//! | `/file/gcc,debian-12/usr/share/doc/gcc/README` | a file as the stack of the layers shows it |
//!
//! A list of layers is topmost first. All answers but files are JSON, with times in seconds since
//! 1970. The program needs no root if it may read the store. Names in a URL and files in a layer
//! may be hostile: neither a name nor a symbolic link leads out of the layers.

// A program prints.
#![allow(clippy::print_stdout)]

use std::cmp::Reverse;
use std::ffi::OsString;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::SystemTime;

use layer::{Error, Layer, Stack, Store, XattrNamespace, json_path};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};
use tiny_http::{Header, Method, Response, ResponseBox, Server};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [store, address] = &*args else { return Err("usage: docs_browser STORE ADDRESS:PORT".into()) };
    let (store, server) = (Store::open(store)?, Server::http(address).map_err(|error| error.to_string())?);
    println!("listening on http://{}", server.server_addr());
    let serve = || {
        for request in server.incoming_requests() {
            let answer = match request.method() {
                Method::Get | Method::Head => answer(&store, request.url()).unwrap_or_else(|error| failure(&error)),
                _ => text(405, "only GET has an answer"),
            };
            let _ = request.respond(answer); // the client may have gone
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(serve))));
    Ok(())
}

fn answer(store: &Store, url: &str) -> layer::Result<ResponseBox> {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let parameter = |key| query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    let number = |key, default| parameter(key).and_then(|number| number.parse().ok()).unwrap_or(default);
    match *path.splitn(4, '/').collect::<Vec<_>>() {
        ["", ""] => list(store, number("offset", 0), number("limit", 50)),
        ["", "layer", name] => one(&store.layer(decoded(name))?),
        ["", "which"] => {
            let trees = trees(store, parameter("layers").unwrap_or_default())?;
            let path = decoded(parameter("path").unwrap_or_default());
            Ok(json(&json!(layer::lookup(&trees, path, XattrNamespace::Trusted)?)))
        }
        ["", "file", layers, path] => {
            let stack = Stack::new(&trees(store, layers)?, XattrNamespace::Trusted)?;
            Ok(typed(Response::from_file(stack.open(decoded(path))?), "text/html; charset=utf-8"))
        }
        _ => Ok(text(404, "there are /, /layer/NAME, /which and /file/LAYERS/PATH")),
    }
}

fn list(store: &Store, offset: usize, limit: usize) -> layer::Result<ResponseBox> {
    let held = store.held()?;
    let mut found = store.scan()?.with_meta().collect::<layer::Result<Vec<_>>>()?;
    found.sort_by_cached_key(|(layer, _)| (Reverse(last_used(layer)), layer.name().to_owned()));
    let rows = found.into_iter().skip(offset).take(limit).map(|(layer, meta)| {
        let (name, held) = (json_path::to_value(layer.name()), held.contains(layer.name()));
        match meta.and_then(|meta| Ok((meta, layer.sidecars()?))) {
            Ok((meta, sidecars)) => json!({"name": name, "held": held, "exit_status": meta.exit_status,
                "bytes": meta.disk_usage, "last_used": last_used(&layer), "sidecars": sidecars}),
            Err(error) => json!({"name": name, "held": held, "error": format!("{error:?}")}),
        }
    });
    Ok(json(&rows.collect()))
}

fn one(layer: &Layer) -> layer::Result<ResponseBox> {
    let Some(meta) = layer.meta()? else { return Ok(text(404, "the store has no such layer")) };
    let mut sidecars = Map::new();
    for name in layer.sidecars()? {
        let value = layer.read_sidecar(&name)?;
        sidecars.insert(name, value.unwrap_or_default());
    }
    Ok(json(&json!({"meta": meta, "sidecars": sidecars, "last_used": last_used(layer)})))
}

/// Returns the time of the last use in seconds since 1970. Returns `None` if the layer was never
/// used or if the time cannot be read.
fn last_used(layer: &Layer) -> Option<u64> {
    let time = layer.last_used().ok()??;
    Some(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs())
}

/// Returns the trees of the layers that a URL names.
fn trees(store: &Store, names: &str) -> layer::Result<Vec<PathBuf>> {
    names.split(',').map(|name| Ok(store.layer(decoded(name))?.fs())).collect()
}

fn decoded(text: &str) -> OsString {
    OsString::from_vec(percent_decode_str(text).collect())
}

fn failure(error: &Error) -> ResponseBox {
    let kind = match error {
        Error::LayerName { .. } | Error::NotADirectory { .. } => ErrorKind::NotFound,
        Error::Io { source, .. } => source.kind(),
        _ => ErrorKind::Other,
    };
    let status = match kind {
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::InvalidInput => 404,
        ErrorKind::PermissionDenied => 403,
        _ => 500,
    };
    text(status, &format!("{error:?}")) // with the source
}

fn text(status: u16, text: &str) -> ResponseBox {
    typed(Response::from_string(format!("{text}\n")).with_status_code(status), "text/plain; charset=utf-8")
}

fn json(value: &Value) -> ResponseBox {
    typed(Response::from_string(value.to_string()), "application/json")
}

fn typed<R: Read + Send + 'static>(response: Response<R>, content_type: &str) -> ResponseBox {
    let header = |name, value: &str| Header::from_bytes(name, value).expect("both are ASCII");
    let response = response.with_header(header("Content-Type", content_type));
    response.with_header(header("Content-Security-Policy", "sandbox")).boxed() // no script of a layer runs
}
