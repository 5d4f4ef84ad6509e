//! Stores that root and an ordinary user share.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use integration_tests::user::{ALL_IDS, UserFixture, quietly};

use super::of_root;

/// A build that deletes in a directory of a lower layer, and replaces another directory.
const BUILD: &str = "rm /deps/0; rm -r /etc; mkdir /etc; touch /etc/new; mkdir /own; touch /own/x";

/// What a stack of the build's layer and the lower layer shows.
const SHOWS: &str = "ls /deps; ls /etc; ls /own";

#[test]
fn a_layer_that_root_captures_is_right_in_a_users_mount() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        let layers = fixture.numbered_layers(1);
        let layer = fixture.store().join("of-root");
        let arguments =
            ["run", "--base", "base", "--layer", "store/numbered-0000", "--upper", "up", "--json", "r.json"];
        quietly(of_root(&fixture, &arguments).args(["--", "sh", "-c", BUILD]));
        quietly(&mut of_root(&fixture, &["commit", "up", "store/of-root", "--run", "r.json"]));
        fixture.give(&layer);
        let stack = [layer, layers[0].clone()];
        assert_eq!(quietly(&mut fixture.run(&[], &stack, SHOWS)), "hosts\nnew\nx\n", "{ids}");
        // Alone, the directory with the whiteout has no layer below it.
        assert_eq!(quietly(&mut fixture.run(&[], &stack[..1], "ls /deps")), "", "{ids}");
    }
}

#[test]
fn a_layer_that_a_user_captures_is_right_in_roots_mount() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        let layers = fixture.numbered_layers(1);
        let layer = fixture.store().join("of-user");
        let options = ["--upper", "up", "--json", "r.json"];
        quietly(&mut fixture.run(&options, &layers, BUILD));
        quietly(fixture.layered(&["commit", "up"]).arg(&layer).args(["--run", "r.json"]));
        let arguments = ["run", "--base", "base", "--layer", "store/of-user", "--layer", "store/numbered-0000", "--"];
        assert_eq!(quietly(of_root(&fixture, &arguments).args(["sh", "-c", SHOWS])), "hosts\nnew\nx\n", "{ids}");
    }
}

#[test]
fn the_deletions_of_a_users_upper_are_roots_too() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        let layers = fixture.numbered_layers(1);
        quietly(&mut fixture.run(&["--upper", "up"], &layers, BUILD));
        let below = ["--base", "base", "--layer", "store/numbered-0000"];
        let diff = quietly(of_root(&fixture, &["diff", "up"]).args(below));
        for (change, path) in [("D ", " /deps/0"), ("R ", " /etc/")] {
            assert!(diff.lines().any(|line| line.starts_with(change) && line.ends_with(path)), "{ids}: {diff}");
        }
        quietly(of_root(&fixture, &["commit", "up", "layer"]).args(below));
        let arguments = ["run", "--layer", "layer"];
        assert_eq!(
            quietly(of_root(&fixture, &arguments).args(below).args(["--", "sh", "-c", SHOWS])),
            "hosts\nnew\nx\n",
            "{ids}"
        );
    }
}

#[test]
fn a_layer_of_root_in_a_users_store_is_left_out() {
    let fixture = UserFixture::new("single");
    fixture.numbered_layers(1);
    let meta = layer::Meta::new("base", std::time::SystemTime::UNIX_EPOCH);
    for name in ["numbered-0000", "of-root"] {
        let layer = layer::Layer::at(fixture.store().join(name));
        fs::create_dir_all(layer.fs()).unwrap();
        layer.write_meta(&meta).unwrap();
    }
    fixture.give(&fixture.store().join("numbered-0000"));
    fs::set_permissions(fixture.store().join("of-root"), fs::Permissions::from_mode(0o700)).unwrap();
    for (arguments, shown) in
        [(&["ls"][..], "numbered-0000"), (&["gc", "--max-bytes", "1t", "--dry-run"], "0 layers would be removed")]
    {
        let output = fixture.layered(arguments).arg(fixture.store()).output().unwrap();
        let [stdout, stderr] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
        assert!(output.status.success() && stdout.contains(shown) && !stdout.contains("of-root"), "{stdout}{stderr}");
        assert!(stderr.starts_with("layered: warn: left out 1 layer in ") && stderr.lines().count() == 1, "{stderr}");
    }
}

#[test]
fn what_root_makes_in_a_users_store_belongs_to_the_user() {
    let fixture = UserFixture::new("single");
    let layers = fixture.numbered_layers(1);
    let run = ["run", "--base", "base", "--layer", "store/numbered-0000", "--", "true"];
    quietly(&mut of_root(&fixture, &run));
    for made in ["store/.layered", "store/.layered/holds", "store/numbered-0000/last_used"] {
        let metadata = fs::symlink_metadata(fixture.path().join(made)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), fixture.owner(), "{made}");
    }
    // Without a warning, the user can hold and stamp the layer.
    quietly(&mut fixture.run(&[], &layers, "true"));
}

#[test]
fn root_gives_a_user_nothing_in_a_directory_of_root() {
    let fixture = UserFixture::new("single");
    fixture.numbered_layers(1);
    let victim = tempfile::tempdir().unwrap();
    fs::create_dir(victim.path().join("fs")).unwrap();
    std::os::unix::fs::symlink(victim.path(), fixture.store().join("link")).unwrap();
    let run = |layer| of_root(&fixture, &["run", "--base", "base", "--layer", layer, "--", "true"]);
    quietly(&mut run("store/link"));
    let used = fs::symlink_metadata(victim.path().join("last_used")).unwrap();
    assert_eq!((used.uid(), used.gid()), (0, 0));

    let elsewhere = tempfile::tempdir().unwrap();
    let holds = fixture.store().join(".layered/holds");
    fs::create_dir_all(fixture.store().join(".layered")).unwrap();
    fixture.give(&fixture.store().join(".layered"));
    let _was_made_or_not = fs::remove_dir(&holds);
    std::os::unix::fs::symlink(elsewhere.path(), &holds).unwrap();
    let output = run("store/numbered-0000").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("cannot open store/.layered/holds"), "{stderr}");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}

#[test]
fn root_makes_and_removes_no_layer_in_a_users_store() {
    let fixture = UserFixture::new("single");
    fixture.numbered_layers(1);
    let meta = layer::Meta::new("base", std::time::SystemTime::UNIX_EPOCH);
    layer::Layer::at(fixture.store().join("numbered-0000")).write_meta(&meta).unwrap();
    let refusal = format!("it belongs to user {}; run this as that user", fixture.owner().0);
    for arguments in [
        &["run", "--base", "base", "--commit", "store/new", "--", "touch", "/ran"][..],
        &["gc", "store", "--max-bytes", "0"],
        &["gc", "store", "--max-bytes", "0", "--dry-run"],
        &["rm", "store/numbered-0000"],
    ] {
        let output = of_root(&fixture, arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(&refusal), "{arguments:?}: {stderr}");
    }
    assert_eq!(
        fs::read_dir(fixture.store())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name() != ".layered")
            .count(),
        1
    );
    assert!(fixture.store().join("numbered-0000/fs/deps").is_dir());
    quietly(fixture.layered(&["gc", "store", "--max-bytes", "0"]).current_dir(fixture.path()));
    assert!(!fixture.store().join("numbered-0000").exists());
}

#[test]
fn a_user_does_not_trust_a_store_directory_of_an_owner_without_a_number() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        let layers = fixture.numbered_layers(1);
        let store_dir = fixture.store().join(".layered");
        fs::create_dir(&store_dir).unwrap();
        // Both have no number in the user's namespace, but they are two people.
        std::os::unix::fs::chown(&store_dir, Some(4_000_000), Some(4_000_000)).unwrap();
        std::os::unix::fs::chown(fixture.store(), Some(4_000_001), Some(4_000_001)).unwrap();
        let output = fixture.run(&[], &layers, "echo ran").output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.stdout, b"ran\n", "{ids}: {stderr}");
        assert!(stderr.contains("it belongs neither to root nor to the owner of the store"), "{ids}: {stderr}");
        fixture.give(&fixture.store());
    }
}

#[test]
fn a_merge_copies_files_of_others_and_root_of_the_namespace_owns_the_copies() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        let of_root = fixture.store().join("of-root");
        fs::create_dir_all(of_root.join("fs/dir")).unwrap();
        fs::write(of_root.join("fs/dir/file"), "theirs\n").unwrap();
        let own = fixture.numbered_layers(1);
        let merged = fixture.path().join("merged");
        // The kernel lets a user link only own files (fs.protected_hardlinks).
        let output = fixture.layered(&["merge"]).arg(&merged).arg(&of_root).args(&own).output().unwrap();
        let (printed, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(printed.contains("2 files linked, 1 copied"), "{ids}: {printed}{stderr}");
        for path in ["dir", "dir/file"] {
            assert_eq!(fs::metadata(merged.join(path)).unwrap().uid(), fixture.owner().0, "{ids} {path}");
        }
    }
}

#[test]
fn an_export_of_files_of_others_makes_them_roots_and_says_so() {
    for ids in ALL_IDS {
        let fixture = UserFixture::new(ids);
        let layer = fixture.store().join("of-root");
        fs::create_dir_all(layer.join("fs/bin")).unwrap();
        fs::write(layer.join("fs/bin/su"), "theirs\n").unwrap();
        fs::set_permissions(layer.join("fs/bin/su"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::hard_link(layer.join("fs/bin/su"), layer.join("fs/bin/su2")).unwrap();
        let image = fixture.path().join("image");
        let mut export = fixture.layered(&["export", "oci:image:x", "--zip", "none", "--json", "--layer"]);
        let output = export.arg(&layer).output().unwrap();
        let (printed, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        // The root of the tree, `bin` and the file, which has two names.
        assert!(stderr.contains("3 files became root's") && stderr.lines().count() == 1, "{ids}: {stderr}");
        let exported: serde_json::Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(exported["owners_as_root"], 3, "{ids}: {exported}");
        let digest = exported["blobs"][0]["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let mut list = Command::new("tar");
        list.args(["--numeric-owner", "-tvf"]).arg(image.join("blobs/sha256").join(digest));
        let list = quietly(&mut list);
        assert!(list.lines().all(|line| line.contains(" 0/0 ")), "{ids}: {list}");
        assert!(list.contains("-rwsr-xr-x") && list.lines().count() == 4, "{ids}: {list}");
    }
}

#[test]
fn a_digest_of_other_ids_is_not_damage() {
    let fixture = UserFixture::new("ranges");
    let archive = fixture.path().join("base.tar");
    quietly(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(fixture.path().join("base/fs")).arg("."));
    quietly(&mut fixture.layered(&["import", "tar:base.tar", "imported"]));
    let verify = |ids: &str| quietly(&mut fixture.layered(&["--ids", ids, "verify", "imported"]));
    let by_root = || quietly(&mut of_root(&fixture, &["verify", "imported", "--json"]));
    assert!(verify("ranges").starts_with("imported: intact, sha256:"));
    let printed = verify("single");
    assert!(printed.starts_with("imported: not comparable here: ") && printed.contains("the same --ids"), "{printed}");
    let printed: serde_json::Value = serde_json::from_str(&by_root()).unwrap();
    assert_eq!((&printed["state"], &printed["tree"]), (&"not comparable".into(), &serde_json::Value::Null));

    // A digest that root records is one for root.
    let record = fixture.path().join("imported/digest.json");
    fs::remove_file(&record).unwrap();
    quietly(&mut of_root(&fixture, &["export", "oci:image:x", "--layer", "imported"]));
    assert!(by_root().contains("\"intact\""), "{}", by_root());
    let printed = verify("ranges");
    assert!(printed.contains("not comparable here: ") && printed.contains("as root"), "{printed}");
    // With the same IDs, it is still found.
    fs::write(fixture.path().join("imported/fs/new"), "").unwrap();
    let error = of_root(&fixture, &["verify", "imported"]).output().unwrap();
    assert_eq!(error.status.code(), Some(1), "{error:?}");
}
