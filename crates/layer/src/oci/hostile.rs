//! Hostile and damaged images: each is refused by an error that names the entry or the part,
//! touches nothing outside, and leaves nothing behind.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::testing::{Layout, Spec, Tar, descriptor, spec};
use super::{Digest, Import, Platform, Privileges, Source};
use crate::store::Store;

/// A directory with a store, and one beside it that nothing may change.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["store", "outside", "image"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("outside/victim"), "safe").unwrap();
        fs::set_permissions(dir.path().join("outside"), fs::Permissions::from_mode(0o750)).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Imports as one tree and as layers. Returns both messages, or the trees.
    fn import(&self, source: &str, platform: Option<&str>, max_bytes: Option<u64>) -> [Result<PathBuf, String>; 2] {
        let source: Source = match source.split_once(':') {
            Some((transport, name)) => format!("{transport}:{}", self.path(name).display()).parse().unwrap(),
            None => panic!("{source}"),
        };
        let mut import = Import::new(&source).privileges(Privileges::AsAvailable);
        import = import.xattrs(crate::XattrNamespace::User);
        import = import.platform(platform.map(|platform| platform.parse::<Platform>().unwrap()));
        if let Some(max_bytes) = max_bytes {
            import = import.max_bytes(max_bytes);
        }
        let store = Store::open(self.path("store")).unwrap();
        let tree = |imported: super::Result<super::Imported>| {
            imported.map(|imported| imported.layers[0].layer.fs()).map_err(|error| format!("{error:?}"))
        };
        [tree(import.into_base(self.path("base"))), tree(import.into_layers(&store))]
    }

    /// Checks that nothing outside was touched and nothing was left. Lower layers of an image that
    /// is refused later may stay in the store.
    fn check(&self, what: &str) {
        let outside = self.path("outside");
        assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "safe", "{what}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{what}");
        let metadata = fs::metadata(&outside).unwrap();
        assert_eq!(
            (metadata.mode() & 0o777, fs::metadata(outside.join("victim")).unwrap().nlink()),
            (0o750, 1),
            "{what}"
        );
        for new in [".layered/new", "store/.layered/new"] {
            assert_eq!(fs::read_dir(self.path(new)).map_or(0, Iterator::count), 0, "{what}: {new}");
        }
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| !["store", "outside", "image", ".layered", "base"].contains(&&**name));
        assert!(names.is_empty(), "{what}: {names:?}");
    }
}

fn file(path: &str) -> Spec<'_> {
    spec(b'0', path).content(b"x")
}

fn tar<'a>(specs: impl IntoIterator<Item = Spec<'a>>) -> Vec<u8> {
    specs.into_iter().fold(Tar::new(), Tar::add).end()
}

/// The name of a case, the archives of its layers, and parts of the message.
type Refusal = (&'static str, Vec<Vec<u8>>, Vec<String>);

/// Returns archives that are refused. `out` is the directory outside.
fn refused(out: &str) -> Vec<Refusal> {
    let victim = format!("{out}/victim");
    let up = format!("../../../../../../../../../..{victim}");
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let one = |archive| vec![archive];
    let long = "n".repeat(300);
    let deep = "d/".repeat(2100) + "f";
    let big = vec![b'a'; (1 << 20) + 1];
    let mut pieces = PaxPieces::default();
    (0..10_001).for_each(|number| pieces.add(number));
    let many_pieces = pieces.archive();
    let mut spoiled = tar([file("f")]);
    spoiled[0] = b'g';
    let headers = (0..20).fold(Tar::new(), |tar, _| tar.raw(b'L', b"l", b"", b"name\0", 0o644, (0, 0), None));
    let names = (0..2).fold(Tar::new(), |tar, _| tar.raw(b'L', b"l", b"", b"name\0", 0o644, (0, 0), None));
    vec![
        ("dotdot", one(tar([file("../evil")])), words(&["../evil", "could lead out"])),
        ("dotdot-mid", one(tar([file("a/../../evil")])), words(&["a/../../evil", "could lead out"])),
        ("dotdot-end", one(tar([spec(b'5', "a/..")])), words(&["a/..", "could lead out"])),
        ("hardlink-up", one(tar([spec(b'1', "h").target(&up)])), words(&["h of", "could lead out"])),
        ("hardlink-absolute", one(tar([spec(b'1', "h").target(&victim)])), words(&["h of", "is not in the image"])),
        (
            "hardlink-through-symlink",
            one(tar([spec(b'2', "d").target(out), spec(b'1', "h").target("d/victim")])),
            words(&["h of", "is not in the image"]),
        ),
        ("hardlink-missing", one(tar([spec(b'1', "h").target("nothing")])), words(&["h of", "nothing, which is not"])),
        (
            "hardlink-of-directory",
            one(tar([spec(b'5', "d"), spec(b'1', "h").target("d")])),
            words(&["h of", "cannot be linked"]),
        ),
        ("hardlink-of-root", one(tar([spec(b'1', "h").target("/")])), words(&["h of", "cannot be linked"])),
        (
            "hardlink-below-file",
            one(tar([file("f"), spec(b'1', "h").target("f/g")])),
            words(&["h of", "is not in the image"]),
        ),
        (
            "hardlink-loop",
            one(tar([spec(b'2', "a").target("b"), spec(b'2', "b").target("a"), spec(b'1', "h").target("a/c")])),
            words(&["h of", "is not in the image"]),
        ),
        ("hardlink-nowhere", one(tar([spec(b'1', "h")])), words(&["h of", "without a target"])),
        ("symlink-nowhere", one(tar([spec(b'2', "s")])), words(&["s of", "without a target"])),
        ("whiteout-dotdot", one(tar([spec(b'0', ".wh...")])), words(&[".wh...", "whiteout of nothing"])),
        ("whiteout-empty", one(tar([spec(b'0', "a/.wh.")])), words(&["a/.wh.", "whiteout of nothing"])),
        ("whiteout-directory", one(tar([spec(b'5', ".wh.a")])), words(&[".wh.a", "is not a file"])),
        (
            "opaque-symlink",
            one(tar([spec(b'2', ".wh..wh..opq").target("a")])),
            words(&[".wh..wh..opq", "is not a file"]),
        ),
        ("below-whiteout", one(tar([file(".wh.a/b")])), words(&[".wh.a/b", "name of a whiteout"])),
        (
            "below-loop",
            one(tar([spec(b'2', "a").target("b"), spec(b'2', "b").target("a"), file("a/f")])),
            words(&["a/f", "not a directory"]),
        ),
        ("below-dangling", one(tar([spec(b'2', "a").target("b"), file("a/f")])), words(&["a/f", "not a directory"])),
        ("device-0-0", one(tar([spec(b'3', "dev/null")])), words(&["dev/null", "character device 0:0"])),
        ("unknown-type", one(tar([spec(b'Z', "f")])), words(&["f of", "unknown type 'Z'"])),
        ("root-is-file", one(tar([file(".")])), words(&[". of", "not a directory"])),
        ("root-is-symlink", one(tar([spec(b'2', "./").target("/")])), words(&["./ of", "not a directory"])),
        ("long-name", one(tar([file(&long)])), words(&["nnnn", "File name too long"])),
        ("long-path", one(tar([file(&deep)])), words(&["path exceeds limit"])),
        ("file-as-directory", one(tar([file("f"), file("f/g")])), words(&["f/g", "not a directory"])),
        ("directory-content", one(tar([spec(b'5', "d").content(b"x")])), words(&["d of", "has content"])),
        ("fifo-content", one(tar([spec(b'6', "p").content(b"x")])), words(&["p of", "has content"])),
        ("truncated-header", one(tar([file("f")])[..700].to_vec()), words(&["the archive ends in the middle"])),
        (
            "truncated-content",
            one(tar([spec(b'0', "f").content(&[b'x'; 100_000])])[..5000].to_vec()),
            words(&["f of", "ends in the middle"]),
        ),
        ("no-end", one(Tar::new().add(file("f")).cut()), words(&["without its end mark"])),
        ("checksum", one(spoiled), words(&["checksum"])),
        ("not-an-archive", one([b'a'; 2048].to_vec()), words(&["invalid octal"])),
        ("pax-uid-negative", one(tar([file("f").pax("uid", b"-1")])), words(&["f of", "\"uid\"", "\"-1\""])),
        (
            "pax-uid-huge",
            one(tar([file("f").pax("uid", b"4294967296")])),
            words(&["f of", "4294967296 does not exist"]),
        ),
        (
            "pax-gid-none",
            one(tar([file("f").pax("gid", b"4294967295")])),
            words(&["f of", "4294967295 does not exist"]),
        ),
        (
            "pax-size-huge",
            one(tar([file("f").pax("size", b"99999999999999999999")])),
            words(&["f of", "\"size\"", "which is not valid"]),
        ),
        ("pax-mtime", one(tar([file("f").pax("mtime", b"yesterday")])), words(&["f of", "\"mtime\"", "yesterday"])),
        ("pax-path-nul", one(tar([file("f").pax("path", b"a\0b")])), words(&["NUL"])),
        ("pax-path-up", one(tar([file("f").pax("path", b"../evil")])), words(&["../evil", "could lead out"])),
        (
            "pax-malformed",
            one(Tar::new().raw(b'x', b"p", b"", b"99 a=b\n", 0o644, (0, 0), None).add(file("f")).end()),
            words(&["PAX"]),
        ),
        (
            "pax-rest",
            one(Tar::new().raw(b'x', b"p", b"", b"6 a=b\nrest", 0o644, (0, 0), None).add(file("f")).end()),
            words(&["f of", "pax records are malformed"]),
        ),
        (
            "pax-large",
            one(Tar::new().raw(b'x', b"p", b"", &big, 0o644, (0, 0), None).add(file("f")).end()),
            words(&["metadata exceeds limit"]),
        ),
        (
            "pax-global",
            one(Tar::new().raw(b'g', b"g", b"", b"16 path=../evil\n", 0o644, (0, 0), None).add(file("f")).end()),
            words(&["global pax header", "\"path\""]),
        ),
        (
            "pax-alone",
            one(Tar::new().raw(b'x', b"p", b"", b"6 a=b\n", 0o644, (0, 0), None).end()),
            words(&["metadata"]),
        ),
        ("many-names", one(headers.add(file("f")).end()), words(&["duplicate GNU long name"])),
        ("two-names", one(names.add(file("f")).end()), words(&["duplicate GNU long name"])),
        ("sparse-many", one(many_pieces), words(&["too many sparse entries"])),
        (
            "sparse-overlap",
            one(tar([file("f").pax("GNU.sparse.realsize", b"9").pax("GNU.sparse.map", b"0,5,4,1")])),
            words(&["f of", "pieces"]),
        ),
        ("xattr-name-nul", one(tar([file("f").pax("SCHILY.xattr.user.a\0b", b"x")])), words(&["f of", "NUL"])),
        (
            "upper-layer",
            vec![tar([file("a")]), tar([file("b/../../evil")])],
            words(&["b/../../evil", "could lead out"]),
        ),
    ]
}

/// The records of a sparse file in the oldest of GNU tar's forms.
#[derive(Default)]
struct PaxPieces(Vec<(&'static str, String)>);

impl PaxPieces {
    fn add(&mut self, number: u64) {
        self.0.push(("GNU.sparse.offset", (2 * number).to_string()));
        self.0.push(("GNU.sparse.numbytes", "1".into()));
    }

    fn archive(&self) -> Vec<u8> {
        let mut spec = file("f");
        spec.pax = self.0.iter().map(|(key, value)| (*key, value.as_bytes())).collect();
        tar([spec])
    }
}

#[test]
fn a_hostile_archive_is_refused_by_name_and_leaves_nothing() {
    let out = Place::new().path("outside").display().to_string();
    assert!(refused(&out).len() >= 45);
    for (what, ..) in refused(&out) {
        let place = Place::new();
        let out = place.path("outside").display().to_string();
        let (_, archives, parts) = refused(&out).into_iter().find(|(name, ..)| *name == what).unwrap();
        // An archive without its end is refused only where no digest vouches for it.
        let source = match archives.as_slice() {
            [archive] => {
                fs::write(place.path("image/tar"), archive).unwrap();
                "tar:image/tar"
            }
            archives => {
                Layout::new(&place.path("image"), archives).write(&place.path("image"));
                "oci:image"
            }
        };
        for imported in place.import(source, None, None) {
            let message = imported.unwrap_err();
            for part in &parts {
                assert!(message.contains(part), "{what}: {part:?} is not in {message}");
            }
        }
        assert!(!place.path("base").exists(), "{what}");
        place.check(what);
    }
}

#[test]
fn an_odd_archive_stays_inside_of_the_new_tree() {
    let place = Place::new();
    let out = place.path("outside").display().to_string();
    let victim = format!("{out}/victim");
    let up = format!("../../../../../../../../../../../..{out}");
    let [inside, through] = [&out[1..], &up[36..]].map(|path| path.trim_start_matches('/').to_string());
    let evil = format!("{inside}/evil");
    assert_eq!(inside, through);
    // Archives, each with the files of the tree and what is in them.
    type Case<'a> = (&'a str, Vec<Vec<u8>>, Vec<(&'a str, &'a str)>);
    let parents = |path: &str| {
        let names: Vec<_> = path.split('/').collect();
        (1..=names.len()).map(|count| names[..count].join("/")).collect::<Vec<_>>()
    };
    let directories = parents(&inside);
    let with_directories = |specs: Vec<Spec<'_>>| {
        let made = directories.iter().map(|path| spec(b'5', path)).collect::<Vec<_>>();
        made.into_iter().chain(specs).fold(Tar::new(), Tar::add).end()
    };
    let cases: Vec<Case<'_>> = vec![
        ("absolute", vec![tar([file("/abs/file")])], vec![("abs/file", "x")]),
        (
            "symlink-absolute",
            vec![with_directories(vec![spec(b'2', "l").target(&out), file("l/evil")])],
            vec![(&evil, "x")],
        ),
        ("symlink-up", vec![with_directories(vec![spec(b'2', "l").target(&up), file("l/evil")])], vec![(&evil, "x")]),
        ("symlink-then-file", vec![tar([spec(b'2', "v").target(&victim), file("v")])], vec![("v", "x")]),
        (
            "symlink-then-directory",
            vec![tar([spec(b'2', "v").target(&out), spec(b'5', "v"), file("v/f")])],
            vec![("v/f", "x")],
        ),
        (
            "link-then-file",
            vec![tar([file("a"), spec(b'1', "h").target("a"), spec(b'0', "h").content(b"y")])],
            vec![("a", "x"), ("h", "y")],
        ),
        ("link-of-itself", vec![tar([file("a"), spec(b'1', "a").target("./a")])], vec![("a", "x")]),
        (
            "whiteout-through-symlink",
            vec![tar([spec(b'2', "d").target(&out)]), tar([spec(b'0', "d/.wh.victim"), file("f")])],
            vec![("f", "x")],
        ),
        (
            "opaque-through-symlink",
            vec![with_directories(vec![spec(b'2', "d").target(&out)]), tar([spec(b'0', "d/.wh..wh..opq"), file("f")])],
            vec![("f", "x")],
        ),
        (
            "newline-in-value",
            vec![tar([file("f").pax("SCHILY.xattr.user.a", b"1\n18 path=../evil\n")])],
            vec![("f", "x")],
        ),
        (
            "overlay-xattr",
            vec![tar([spec(b'5', "d").pax("SCHILY.xattr.user.overlay.opaque", b"y"), file("d/f")])],
            vec![("d/f", "x")],
        ),
        ("junk-behind-the-end", vec![[tar([file("f")]), vec![b'j'; 3000]].concat()], vec![("f", "x")]),
        ("aufs", vec![tar([file(".wh..wh.aufs"), file(".wh..wh.plnk/1.2"), file("f")])], vec![("f", "x")]),
    ];
    for (what, archives, files) in cases {
        fs::remove_dir_all(place.path("image")).unwrap();
        fs::remove_dir_all(place.path("store")).unwrap();
        for name in ["image", "store"] {
            fs::create_dir(place.path(name)).unwrap();
        }
        Layout::new(&place.path("image"), &archives).write(&place.path("image"));
        for tree in place.import("oci:image", None, None) {
            let tree = tree.unwrap_or_else(|message| panic!("{what}: {message}"));
            for (name, content) in &files {
                assert_eq!(fs::read_to_string(tree.join(name)).unwrap(), *content, "{what}: {name}");
            }
            for directory in ["d", "v"].map(|name| tree.join(name)).iter().filter(|path| path.is_dir()) {
                let mut value = [0; 8];
                let opaque = rustix::fs::lgetxattr(directory, "user.overlay.opaque", &mut value);
                assert!(opaque.is_err() || what != "overlay-xattr", "{what}");
            }
        }
        crate::remove_tree(place.path("base")).unwrap();
        place.check(what);
    }
}

#[test]
fn a_damaged_layout_is_refused_by_the_name_of_its_part() {
    let archive = tar([file("f")]);
    type Spoil = fn(&mut Layout, &Path);
    let cases: Vec<(&str, Spoil, &[&str])> = vec![
        ("wrong diff ID", |layout, _| layout.config["rootfs"]["diff_ids"][0] = json!(Digest::of(b"")), &["diff ID"]),
        (
            "fewer diff IDs",
            |layout, _| layout.config["rootfs"]["diff_ids"] = json!([]),
            &["different numbers of layers"],
        ),
        (
            "no layers",
            |layout, _| {
                layout.config["rootfs"]["diff_ids"] = json!([]);
                layout.layers.clear();
            },
            &["it has no layers"],
        ),
        (
            "wrong digest",
            |layout, dir| {
                let other = Digest::of(b"other");
                let old = layout.layers[0]["digest"].as_str().unwrap()[7..].to_string();
                fs::rename(dir.join("blobs/sha256").join(old), dir.join("blobs/sha256").join(other.hex())).unwrap();
                layout.layers[0]["digest"] = json!(other);
            },
            &["has the digest", "damaged"],
        ),
        ("size too small", |layout, _| layout.layers[0]["size"] = json!(5), &["bytes instead of 5"]),
        ("size too large", |layout, _| layout.layers[0]["size"] = json!(99_999), &["bytes instead of 99999"]),
        (
            "digest with a path",
            |layout, _| layout.layers[0]["digest"] = json!("sha256:../../../etc/passwd"),
            &["image manifest"],
        ),
        (
            "another digest",
            |layout, _| {
                layout.layers[0]["digest"] = json!(format!("sha512:{}", "0".repeat(128)));
            },
            &["the digest sha512", "SHA-256 alone"],
        ),
        (
            "unknown media type",
            |layout, _| layout.layers[0]["mediaType"] = json!("application/x-foo"),
            &["application/x-foo"],
        ),
        (
            "encrypted",
            |layout, _| {
                layout.layers[0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
            },
            &["encrypted; decrypt"],
        ),
        (
            "artifact",
            |layout, dir| {
                layout.manifest["config"] = descriptor(dir, "application/vnd.oci.empty.v1+json", b"{}");
            },
            &["is an artifact"],
        ),
        (
            "missing blob",
            |layout, _| layout.layers[0]["digest"] = json!(Digest::of(b"none")),
            &["blobs/sha256/", "No such file"],
        ),
        (
            "manifest over 4 MiB",
            |layout, _| {
                layout.manifest["annotations"] = json!({"a": "x".repeat(4 << 20)});
            },
            &["has more than 4194304 bytes"],
        ),
        (
            "schema 1",
            |layout, _| {
                layout.manifest = json!({"schemaVersion": 1, "fsLayers": [], "config": {}});
            },
            &["not an image manifest"],
        ),
        (
            "indexes in a circle",
            |layout, dir| {
                let mut inner = json!({"schemaVersion": 2, "manifests": []});
                for _ in 0..6 {
                    let media_type = "application/vnd.oci.image.index.v1+json";
                    let outer = descriptor(dir, media_type, inner.to_string().as_bytes());
                    inner = json!({"schemaVersion": 2, "manifests": [outer]});
                }
                layout.index = inner;
            },
            &["its indexes name each other"],
        ),
        ("empty index", |layout, _| layout.index["manifests"] = json!([]), &["has no image"]),
        ("another system", |layout, _| layout.config["os"] = json!("windows"), &["windows/"]),
        ("index is a symlink", |_, _| {}, &["index.json is not a regular file"]),
        ("index is a FIFO", |_, _| {}, &["index.json is not a regular file"]),
        ("duplicate keys", |_, _| {}, &["not an image index", "duplicate field"]),
        (
            "another version",
            |_, dir| {
                fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
            },
            &["layout version 2.0.0"],
        ),
        ("no layout", |_, dir| fs::remove_file(dir.join("oci-layout")).unwrap(), &["oci-layout", "No such file"]),
        ("not JSON", |_, dir| fs::write(dir.join("oci-layout"), "{").unwrap(), &["oci-layout is not"]),
        (
            "a blob is a symlink",
            |layout, dir| {
                let blob = dir.join("blobs/sha256").join(&layout.layers[0]["digest"].as_str().unwrap()[7..]);
                fs::rename(&blob, dir.join("elsewhere")).unwrap();
                symlink(dir.join("elsewhere"), &blob).unwrap();
            },
            &["is not a regular file"],
        ),
    ];
    for (what, spoil, parts) in cases {
        let place = Place::new();
        let dir = place.path("image");
        let mut layout = Layout::new(&dir, std::slice::from_ref(&archive));
        spoil(&mut layout, &dir);
        layout.write(&dir);
        let index = dir.join("index.json");
        match what {
            "index is a symlink" => {
                fs::rename(&index, dir.join("real")).unwrap();
                symlink("real", &index).unwrap();
            }
            "index is a FIFO" => {
                fs::remove_file(&index).unwrap();
                nix::unistd::mkfifo(&index, nix::sys::stat::Mode::S_IRWXU).unwrap();
            }
            "duplicate keys" => fs::write(&index, r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#).unwrap(),
            _ => {}
        }
        for imported in place.import("oci:image", None, None) {
            let message = imported.unwrap_err();
            for part in parts {
                assert!(message.contains(part), "{what}: {part:?} is not in {message}");
            }
        }
        place.check(what);
    }
}

#[test]
fn a_damaged_compression_is_refused() {
    let archive = tar([file("f")]);
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, &archive).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = zstd::encode_all(&*archive, 3).unwrap();
    for (what, bytes) in [
        ("gzip, cut", gzip[..gzip.len() - 9].to_vec()),
        ("gzip, with garbage", [&*gzip, b"garbage"].concat()),
        ("gzip, damaged", [&gzip[..20], &[0xff; 30], &gzip[50..]].concat()),
        ("zstd, cut", zstd[..zstd.len() - 3].to_vec()),
        ("zstd, with garbage", [&*zstd, b"garbage"].concat()),
    ] {
        let place = Place::new();
        fs::write(place.path("image/tar"), bytes).unwrap();
        for imported in place.import("tar:image/tar", None, None) {
            let message = imported.unwrap_err();
            assert!(message.contains("damaged or cut off"), "{what}: {message}");
        }
        place.check(what);
    }
    let place = Place::new();
    fs::write(place.path("image/tar"), b"\xfd7zXZ\0rest").unwrap();
    assert!(place.import("tar:image/tar", None, None)[0].as_ref().unwrap_err().contains("xz -dc"));
}

#[test]
fn a_bomb_ends_at_the_limit() {
    let place = Place::new();
    let bomb = zstd::encode_all(&*tar([spec(b'0', "f").content(&vec![0; 64 << 20])]), 3).unwrap();
    assert!(bomb.len() < 16 << 10);
    fs::write(place.path("image/tar"), bomb).unwrap();
    for imported in place.import("tar:image/tar", None, Some(16 << 20)) {
        assert!(imported.unwrap_err().contains("more than 16777216 bytes"));
    }
    place.check("bomb");
}

#[test]
fn directories_without_an_entry_count_towards_the_limit() {
    let paths: Vec<_> = (0..3).map(|number| format!("{number}/{}f", "a/".repeat(1000))).collect();
    let archive = tar(paths.iter().map(|path| file(path)));
    assert!(archive.len() < 32 << 10);
    let place = Place::new();
    fs::write(place.path("image/tar"), archive).unwrap();
    for imported in place.import("tar:image/tar", None, Some(2 << 20)) {
        let message = imported.unwrap_err();
        assert!(message.contains("the files of the image take more than 2097152 bytes"), "{message}");
    }
    place.check("directories");
    for imported in place.import("tar:image/tar", None, Some(16 << 20)) {
        assert!(imported.unwrap().join(&paths[2]).is_file());
    }
    crate::remove_tree(place.path("base")).unwrap();
}

#[test]
fn the_holes_of_sparse_files_count_towards_the_limit() {
    // The content is one byte, in the old form `0,1` of a map.
    let sparse = |path, size| file(path).pax("GNU.sparse.realsize", size).pax("GNU.sparse.map", b"0,1");
    let place = Place::new();
    for (what, archives) in [
        ("one file", vec![tar([sparse("f", b"42949672960")])]),
        ("one archive", vec![tar([sparse("f", b"900000"), sparse("g", b"900000"), sparse("h", b"900000")])]),
        ("two layers", vec![tar([sparse("f", b"1200000")]), tar([sparse("g", b"1200000")])]),
    ] {
        fs::remove_dir_all(place.path("image")).unwrap();
        fs::create_dir(place.path("image")).unwrap();
        Layout::new(&place.path("image"), &archives).write(&place.path("image"));
        for imported in place.import("oci:image", None, Some(2 << 20)) {
            let message = imported.unwrap_err();
            assert!(message.contains("the files of the image take more than 2097152 bytes"), "{what}: {message}");
        }
        place.check(what);
    }
}

#[test]
fn the_platform_of_an_image_must_fit() {
    let place = Place::new();
    Layout::new(&place.path("image"), &[tar([file("f")])]).write(&place.path("image"));
    for imported in place.import("oci:image", Some("linux/s390x"), None) {
        let message = imported.unwrap_err();
        assert!(message.contains("for linux/s390x") && message.contains(&Platform::host().to_string()), "{message}");
    }
    place.check("platform");
}
