//! Writes an index of a store of layers as one HTML file, as a documentation browser would show it.
//!
//! ```console
//! $ cargo run -p layer --example store_index /var/cache/layers index.html
//! ```
//!
//! The program needs only the crate `layer`: no runtime, no mounts, and no root if the store is
//! readable. It holds one layer at a time in memory. The text in a layer may be hostile: the
//! program escapes all of it, and the page runs no script but its own.

use std::error::Error;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

mod entry;
mod html;

use html::{escape, relative_url};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

fn main() -> ExitCode {
    match run(&std::env::args_os().skip(1).map(PathBuf::from).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("store_index: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[PathBuf]) -> Result<()> {
    let [store, out] = args else { return Err("usage: store_index STORE OUT.html".into()) };
    let dir = match out.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let real = |path: &Path| {
        fs::canonicalize(path).map_err(|error| format!("cannot find {}: {error}", layer::display::quoted(path)))
    };
    let links = relative_url(&real(dir)?, &real(store)?);
    // Readers see the former page until the new one is complete.
    let permissions = fs::Permissions::from_mode(0o644);
    let mut file = tempfile::Builder::new().permissions(permissions).tempfile_in(dir)?;
    write_index(store, &links, SystemTime::now(), &mut file)?;
    file.persist(out)?;
    Ok(())
}

/// Writes the page. `links` is the URL of the store, relative to the directory of the page.
fn write_index(store: &Path, links: &str, now: SystemTime, out: impl Write) -> Result<()> {
    // The summary is above the layers, but its numbers are known only after the last layer.
    let mut rows = tempfile::tempfile()?;
    let mut totals = entry::Totals::default();
    let mut writer = BufWriter::new(&mut rows);
    for found in layer::Store::open(store)?.scan()?.with_meta() {
        match found {
            Ok((layer, meta)) => entry::write(&layer, meta, links, &mut totals, &mut writer)?,
            Err(error) => entry::write_unreadable("?", &error, &mut totals, &mut writer)?,
        }
    }
    writer.flush()?;
    drop(writer);
    rows.rewind()?;
    write_page(&store.to_string_lossy(), &totals.sentence(now), rows, BufWriter::new(out))
}

fn write_page(store: &str, summary: &str, mut rows: File, mut out: impl Write) -> Result<()> {
    // The makers of the layers cannot know this nonce. None of their scripts would run even if the
    // escaping failed.
    let nonce = format!("{:016x}", RandomState::new().build_hasher().finish());
    let store = escape(store);
    write!(
        out,
        r#"<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'">
<title>Layers of {store}</title>
<style>
{STYLE}</style>
<header>
<h1>Layers of <bdi>{store}</bdi></h1>
<p>{summary}</p>
<label class="scripted" hidden>Filter <input type="search" autocomplete="off"></label>
</header>
<table>
<thead>
<tr><th scope="col" class="text">Layer<th scope="col" class="text">Status<th scope="col">Size<th scope="col">Last used<th scope="col">Made
</thead>
"#
    )?;
    io::copy(&mut rows, &mut out)?;
    write!(out, "</table>\n<script nonce=\"{nonce}\">\n{SCRIPT}</script>\n</html>\n")?;
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer::{Layer, Meta};
    use serde_json::json;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::time::Duration;

    fn made(store: &Path, name: &[u8], change: impl FnOnce(&mut Meta)) -> Layer {
        let layer = Layer::at(store.join(OsStr::from_bytes(name)));
        fs::create_dir_all(layer.fs()).unwrap();
        let mut meta = Meta::new("debian-12", SystemTime::UNIX_EPOCH + Duration::from_secs(1_769_903_999));
        change(&mut meta);
        layer.write_meta(&meta).unwrap();
        layer
    }

    fn page(store: &Path) -> String {
        let mut out = Vec::new();
        write_index(store, "../store", SystemTime::UNIX_EPOCH, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn hostile_text_in_a_layer_is_escaped() {
        let store = tempfile::tempdir().unwrap();
        let attack = "</pre></details></table><script>alert(1)</script><img src=x onerror='alert(1)'>\"&amp;";
        let layer = made(store.path(), b"<script>alert(1)<", |meta| {
            meta.base_hash = attack.into();
            meta.failed_dep = Some(attack.into());
        });
        layer.write_sidecar("<b>&\"", &json!({ attack: attack })).unwrap();
        layer.write_sidecar("zbroken", &1).unwrap();
        fs::write(layer.sidecar_path("zbroken").unwrap(), "<i>").unwrap();

        let page = page(store.path());
        // The page has its own elements and no others.
        for (tag, count) in
            [("<script", 1), ("</script", 1), ("<img", 0), ("<b>", 0), ("<i>", 0), ("</table", 1), ("<pre", 2)]
        {
            assert_eq!(page.matches(tag).count(), count, "{tag}: {page}");
        }
        assert!(page.contains("&lt;script&gt;alert(1)&lt;"), "{page}");
        assert!(page.contains("&lt;b&gt;&amp;&quot;.json"), "{page}");
        assert!(page.contains("../store/%3Cscript%3Ealert%281%29%3C/zbroken.json"), "{page}");
    }

    #[test]
    fn logs_of_layers_with_any_name_are_linked() {
        let store = tempfile::tempdir().unwrap();
        for (name, url) in [
            (&b"a b?c#d%e"[..], "href=\"../store/a%20b%3Fc%23d%25e/layer.log\""),
            (b"javascript:x", "href=\"../store/javascript%3Ax/layer.log\""),
            (b"\xff\"", "href=\"../store/%FF%22/layer.log\""),
        ] {
            let layer = made(store.path(), name, |_| {});
            assert!(!page(store.path()).contains(url), "the log does not exist yet");
            fs::write(layer.log_path(), "").unwrap();
            assert!(page(store.path()).contains(url), "{url}: {}", page(store.path()));
        }
        let layer = made(store.path(), b"linked", |_| {});
        std::os::unix::fs::symlink("/etc/passwd", layer.log_path()).unwrap();
        assert!(!page(store.path()).contains("linked/layer.log"));
    }

    #[test]
    fn the_summary_counts_and_a_broken_layer_hides_no_other() {
        let store = tempfile::tempdir().unwrap();
        made(store.path(), b"good", |meta| meta.disk_usage = 3 << 20).touch().unwrap();
        made(store.path(), b"bad", |meta| meta.exit_status = 2);
        made(store.path(), b"sad", |meta| {
            meta.exit_status = 1;
            meta.failed_dep = Some("bad".into());
        });
        let broken = made(store.path(), b"broken", |_| {});
        fs::write(broken.meta_path(), "{").unwrap();

        let page = page(store.path());
        let summary = "4 layers, 3.0 MiB: 1 ok, 2 failed, 1 unreadable; 2 never used. Written 1970-01-01 00:00 UTC.";
        assert!(page.contains(summary), "{page}");
        for text in ["✓ ok", "✗ exit 2", "✗ failed by <bdi>bad</bdi>", "(correct or remove it)", "2026-01-31 23:59"]
        {
            assert!(page.contains(text), "{text}: {page}");
        }
    }
}
