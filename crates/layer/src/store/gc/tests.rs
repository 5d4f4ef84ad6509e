//! Tests of the collector as a whole; the modules beside it have tests of their own.

use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;
use crate::layer::meta::Meta;
use crate::store::draft::Draft;
use crate::store::hold::Hold;
use crate::tree::locked_dir::LockedDir;

/// Makes a store of layers that were last used at 1, 2, … and have 10 bytes each.
fn store(names: &[&str]) -> tempfile::TempDir {
    let store = tempfile::tempdir().unwrap();
    names.iter().zip(1..).for_each(|(name, used)| layer(store.path(), name, used));
    store
}

fn layer(store: &Path, name: &str, used: u64) {
    let layer = Layer::at(store.join(name));
    fs::create_dir_all(layer.fs()).unwrap();
    layer.write_meta(&Meta { disk_usage: 10, ..Meta::new("base", SystemTime::UNIX_EPOCH) }).unwrap();
    layer.touch().unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(used);
    File::open(layer.last_used_path()).unwrap().set_modified(time).unwrap();
}

fn there(store: &Path) -> Vec<OsString> {
    let mut names: Vec<_> =
        crate::store::scan::scan(store).unwrap().map(|layer| layer.unwrap().name().into()).collect();
    names.sort();
    names
}

fn names(collected: &Collected) -> Vec<&str> {
    collected.layers.iter().map(|layer| layer.name.to_str().unwrap()).collect()
}

/// Returns the number of files and directories in the store's own directory, without its parts.
fn in_store_dir(store: &Path) -> usize {
    let store_dir = store.join(".layered");
    let entries = walkdir::WalkDir::new(&store_dir).min_depth(1).into_iter().map(|entry| entry.unwrap().into_path());
    entries.filter(|path| ["holds", "new"].iter().all(|part| *path != store_dir.join(part))).count()
}

#[test]
fn the_least_recently_used_layers_are_removed_as_a_dry_run_predicts() {
    let day = Duration::from_secs(24 * 3600);
    let none = Collector::new();
    // On a file system without a fixed number of inodes, none are ever lacking.
    let has_inodes = statvfs(std::env::temp_dir()).unwrap().f_files > 0;
    let (gone_for_inodes, has_enough) = if has_inodes { (&["a", "b", "d"][..], false) } else { (&[][..], true) };
    let table = [
        (none.clone(), &[][..], true),
        (none.clone().max_bytes(40), &[], true),
        (none.clone().max_bytes(39), &["a"], true),
        (none.clone().max_bytes(10), &["a", "b", "d"], true),
        (none.clone().max_bytes(9), &["a", "b", "d"], false),
        // Each of the four layers has four entries: its directory, `fs`, `layer.json` and
        // `last_used`.
        (none.clone().max_entries(16), &[], true),
        (none.clone().max_entries(11), &["a", "b"], true),
        (none.clone().max_age(day), &["a", "b", "d"], true),
        (none.clone().min_free_bytes(u64::MAX), &["a", "b", "d"], false),
        (none.clone().min_free_bytes(1).min_free_entries(1), &[], true),
        (none.clone().min_free_entries(u64::MAX), gone_for_inodes, has_enough),
    ];
    for (collector, gone, within_budget) in table {
        let store = store(&["a", "b", "c", "d"]);
        let _hold = Hold::of([store.path().join("c")]).unwrap();
        let dry = collector.dry_run(&store).unwrap();
        assert_eq!(there(store.path()), ["a", "b", "c", "d"]);
        let seen = Mutex::new(None);
        let report = |progress| *seen.lock().unwrap() = Some(progress);
        let done = collector.clone().progress(&report).collect(&store).unwrap();
        assert_eq!(names(&done), gone, "{collector:?}");
        assert_eq!((dry.layers, dry.held, dry.within_budget), (done.layers, done.held, done.within_budget));
        assert_eq!(done.within_budget, within_budget, "{collector:?}");
        assert_eq!(collector.is_within_budget(&store).unwrap(), within_budget, "{collector:?}");
        assert!(done.failed.is_empty() && dry.failed.is_empty());
        assert_eq!(there(store.path()).len(), 4 - gone.len());
        assert_eq!(in_store_dir(store.path()), 1, "the hold");
        let last = match gone.len() {
            0 => Progress::Looked { layers: 4 },
            layers => Progress::Removed { layers, of: layers },
        };
        assert_eq!(seen.into_inner().unwrap(), Some(last));
    }
}

#[test]
fn a_check_of_free_space_alone_looks_at_no_layer() {
    let store = store(&["a"]);
    let looks = Mutex::new(0);
    let report = |_: Progress| *looks.lock().unwrap() += 1;
    let collector = Collector::new().progress(&report);
    let table = [
        (collector.clone().min_free_bytes(1).min_free_entries(1), true, 0),
        (collector.clone().min_free_bytes(u64::MAX), false, 0),
        (collector.clone().min_free_bytes(u64::MAX).max_bytes(10), false, 0),
        (collector.clone().min_free_bytes(1).max_bytes(10), true, 1),
        (collector.clone().max_bytes(9), false, 1),
        (collector.clone().max_entries(3), false, 1),
    ];
    for (collector, is_within, looked) in table {
        *looks.lock().unwrap() = 0;
        assert_eq!(collector.is_within_budget(&store).unwrap(), is_within, "{collector:?}");
        assert_eq!(*looks.lock().unwrap(), looked, "{collector:?}");
    }
    let missing = collector.min_free_bytes(1).is_within_budget(store.path().join("missing"));
    assert!(matches!(missing, Err(Error::NotADirectory { .. })), "{missing:?}");
}

#[test]
fn the_base_of_other_layers_stays() {
    let store = store(&["base", "a"]);
    let collected = Collector::new().max_bytes(0).collect(&store).unwrap();
    assert_eq!(
        (names(&collected), &collected.bases, collected.within_budget),
        (vec!["a"], &vec!["base".into()], false)
    );
    // No layer needs the base any more.
    let collected = Collector::new().max_bytes(0).collect(&store).unwrap();
    assert_eq!((names(&collected), collected.within_budget), (vec!["base"], true));
}

#[test]
fn a_base_is_spared_by_its_whole_hash_and_not_by_its_own() {
    let digest = "0123456789abcdef0123456789abcdef";
    let store = store(&["0123456789ab", "012", "a"]);
    let base = |name: &str, hash: &str| {
        let layer = Layer::at(store.path().join(name));
        layer.write_meta(&Meta { disk_usage: 10, ..Meta::new(hash, SystemTime::UNIX_EPOCH) }).unwrap();
    };
    base("0123456789ab", digest);
    let collect = || Collector::new().max_bytes(0).collect(&store).unwrap();
    base("a", digest);
    let collected = collect();
    assert_eq!((names(&collected), &collected.bases), (vec!["012", "a"], &vec!["0123456789ab".into()]));
    assert_eq!(names(&collect()), ["0123456789ab"]);
}

#[test]
fn one_wrong_size_does_not_empty_a_store() {
    for number in [u64::MAX, 10_u64.pow(13), 3 << 20] {
        let store = store(&["a", "b", "c", "d"]);
        // With this file, the smallest of the wrong numbers is possible.
        fs::write(store.path().join("file"), vec![1; 4 << 20]).unwrap();
        let wrong = Layer::at(store.path().join("c"));
        let meta = wrong.meta().unwrap().unwrap();
        wrong.write_meta(&Meta { disk_usage: number, ..meta }).unwrap();
        let collector = Collector::new().max_bytes(2 << 20);
        for collected in [collector.dry_run(&store), collector.collect(&store)] {
            let collected = collected.unwrap();
            assert_eq!((names(&collected), collected.within_budget), (vec![], true), "{number}");
        }
    }
}

#[test]
fn changes_between_the_look_and_the_removal_count() {
    let store = store(&["used", "held", "vanished", "made-again", "a", "b"]);
    let path = |name: &str| store.path().join(name);
    let hold = Mutex::new(None);
    let disturb = |progress| {
        if progress == (Progress::Looked { layers: 6 }) {
            Layer::at(path("used")).touch().unwrap();
            *hold.lock().unwrap() = Some(Hold::of([path("held")]).unwrap());
            for name in ["vanished", "made-again"] {
                fs::remove_dir_all(path(name)).unwrap();
            }
            layer(store.path(), "made-again", 9);
        }
    };
    // Three layers must be removed. Another process has removed one of them.
    let collected = Collector::new().max_bytes(30).progress(&disturb).collect(&store).unwrap();
    assert_eq!((names(&collected), &collected.held[..]), (vec!["a", "b"], &["held".into()][..]));
    assert!(collected.within_budget && collected.failed.is_empty());
    assert_eq!(there(store.path()), ["held", "made-again", "used"]);
}

#[test]
fn orphans_are_removed_and_directories_with_an_owner_stay() {
    let store = store(&["a"]);
    let draft = Draft::begin(&store).unwrap();
    for orphan in ["trash-dead/fs/a", "trash/of-an-earlier-version/0/fs", "new/dead/layer/fs", "new/empty"] {
        fs::create_dir_all(store.path().join(".layered").join(orphan)).unwrap();
    }
    fs::create_dir(store.path().join(".layered/holds")).unwrap();
    fs::write(store.path().join(".layered/holds/dead"), "a\0").unwrap();
    assert_eq!(Collector::new().dry_run(&store).unwrap().orphans, 4);
    let collected = Collector::new().collect(&store).unwrap();
    assert_eq!((collected.orphans, collected.layers.len(), collected.failed.len()), (4, 0, 0));
    assert!(draft.layer().path().exists());
    assert_eq!(in_store_dir(store.path()), 2, "the draft and its layer");
}

#[test]
fn a_killed_capture_is_completed_or_tidied_up_and_no_tree_is_removed() {
    let store = store(&["a"]);
    let path = |path: &str| store.path().join(path);
    let meta = serde_json::to_vec(&Meta::new("base", SystemTime::UNIX_EPOCH)).unwrap();
    type Mark<'a> = Option<(&'a str, &'a [u8])>;
    // (name, whether there is a tree, the mark and its content)
    let dirs: [(&str, bool, Mark<'_>); 9] = [
        ("staged", false, Some((".capturing", b"{"))),
        ("staged-with-log", false, Some((".capturing", b""))),
        ("staged-in-place", true, Some((".capturing", &meta))),
        ("sealed", false, Some((".captured", &meta))),
        ("moved", true, Some((".captured", &meta))),
        ("moved-and-cut", true, Some((".captured", b"{"))),
        ("at-work", true, Some((".captured", &meta))),
        ("by-hand", true, None),
        ("empty-by-hand", false, None),
    ];
    for (name, tree, mark) in dirs {
        fs::create_dir_all(path(name).join(if tree { "fs/usr" } else { "" })).unwrap();
        if let Some((mark, content)) = mark {
            fs::write(path(name).join(mark), content).unwrap();
        }
    }
    fs::write(path("staged-with-log/layer.log"), "").unwrap();
    fs::create_dir(path("begun")).unwrap();
    fs::set_permissions(path("begun"), fs::Permissions::from_mode(0o1700)).unwrap();
    let at_work = File::open(path("at-work")).unwrap();
    rustix::fs::flock(&at_work, FlockOperation::LockExclusive).unwrap();

    assert_eq!(Collector::new().dry_run(&store).unwrap().orphans, 7);
    let collected = Collector::new().collect(&store).unwrap();
    assert_eq!((collected.orphans, collected.layers.len(), collected.failed.len()), (6, 0, 0));
    let mut left: Vec<_> = walkdir::WalkDir::new(store.path())
        .min_depth(2)
        .max_depth(2)
        .into_iter()
        .map(|entry| entry.unwrap().path().strip_prefix(store.path()).unwrap().display().to_string())
        .filter(|path| !path.starts_with("a/") && !path.starts_with(".layered/"))
        .collect();
    left.sort();
    let expected = [
        "at-work/.captured",
        "at-work/fs",
        "by-hand/fs",
        "moved-and-cut/fs",
        "moved/fs",
        "moved/layer.json",
        "staged-in-place/fs",
        "staged-with-log/layer.log",
    ];
    assert_eq!(left, expected);
    for (name, stays) in [("staged", false), ("sealed", false), ("begun", false), ("empty-by-hand", true)] {
        assert_eq!(path(name).exists(), stays, "{name}");
    }
    assert_eq!(Collector::new().dry_run(&store).unwrap().orphans, 0);
}

#[test]
fn a_layer_that_cannot_be_examined_is_reported_and_the_others_are_removed() {
    let store = store(&["a", "b"]);
    let unreadable = store.path().join("unreadable");
    fs::create_dir_all(unreadable.join("fs")).unwrap();
    // `layer.json` is a symbolic link to itself, not a file.
    std::os::unix::fs::symlink("layer.json", unreadable.join("layer.json")).unwrap();
    let collected = Collector::new().max_bytes(0).collect(&store).unwrap();
    assert_eq!(names(&collected), ["a", "b"]);
    assert!(
        matches!(&collected.failed[..], [Error::NotARegularFile { path }] if *path == unreadable.join("layer.json")),
        "{:?}",
        collected.failed
    );
}

/// Makes a draft and publishes it, unless the store already has a layer with this name.
fn make(store: &Path, name: &str) {
    let draft = Draft::begin(store).unwrap();
    fs::create_dir(draft.layer().fs()).unwrap();
    fs::write(draft.layer().fs().join("file"), name).unwrap();
    draft.layer().write_meta(&Meta { disk_usage: 1, ..Meta::new("base", SystemTime::now()) }).unwrap();
    let _made_once = draft.publish(name);
}

/// Holds two layers, checks that they are whole, and releases them. Returns whether both existed.
fn hold_and_look(layers: [Layer; 2]) -> bool {
    let hold = match Hold::of(layers.iter().map(Layer::path)) {
        Ok(hold) => hold,
        Err(Error::NotADirectory { path, .. }) => {
            assert!(layers.iter().any(|layer| layer.path() == path));
            return false;
        }
        Err(error) => panic!("{error}"),
    };
    for layer in &layers {
        assert_eq!(fs::read(layer.fs().join("file")).unwrap(), layer.name().as_encoded_bytes());
        assert!(layer.meta_path().exists());
    }
    hold.release().unwrap();
    true
}

#[test]
fn a_held_layer_stays_whole_while_collectors_and_makers_compete() {
    const LAYERS: usize = 12;
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path();
    let [is_over, was_missing] = [const { AtomicBool::new(false) }; 2];
    let until_over = |work: &dyn Fn()| {
        while !is_over.load(Ordering::Relaxed) {
            work();
        }
    };
    let collect = |bytes| Collector::new().max_bytes(bytes).collect(store).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| until_over(&|| (0..LAYERS).for_each(|number| make(store, &number.to_string()))));
        for _ in 0..2 {
            scope.spawn(|| until_over(&|| drop(collect(8))));
        }
        let user = |user: usize| {
            let layers = |turn| [turn % LAYERS, (turn * 5 + user) % LAYERS];
            let layer = |number: usize| Layer::at(store.join(number.to_string()));
            let (mut turn, mut looks) = (0, 0);
            // If no layer was ever missing, no collector has removed one, and the test proves
            // nothing.
            while looks < 100 || !was_missing.load(Ordering::Relaxed) {
                match hold_and_look(layers(turn).map(layer)) {
                    true => looks += 1,
                    false => was_missing.store(true, Ordering::Relaxed),
                }
                turn += 1;
            }
        };
        let users = [1, 2, 3].map(|number| scope.spawn(move || user(number)));
        let users = users.map(|user| user.join());
        is_over.store(true, Ordering::Relaxed);
        users.into_iter().for_each(|user| user.unwrap());
    });
    collect(0);
    assert_eq!((there(store).len(), in_store_dir(store)), (0, 0));
}

#[test]
fn a_layer_that_another_process_has_locked_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path();
    ["a", "b"].iter().for_each(|name| make(store, name));
    let lock = LockedDir::try_lock_shared(store.join("a")).unwrap().unwrap();
    let another = LockedDir::try_lock_shared(store.join("a")).unwrap().unwrap();
    let collector = Collector::new().max_bytes(0);
    let names = |layers: &[CollectedLayer]| layers.iter().map(|layer| layer.name.clone()).collect::<Vec<_>>();
    for collected in [collector.dry_run(store).unwrap(), collector.collect(store).unwrap()] {
        assert_eq!((names(&collected.layers), &*collected.held), (vec!["b".into()], &["a".into()][..]));
        assert!(collected.failed.is_empty() && !collected.within_budget, "{collected:?}");
    }
    let removed = crate::Store::open(store).unwrap().remove("a");
    assert!(matches!(removed, Err(Error::LayerHeld { by: crate::Holder::Locked, .. })), "{removed:?}");
    drop((lock, another));
    assert_eq!(names(&collector.collect(store).unwrap().layers), ["a"]);
}

#[test]
fn a_plan_takes_no_layer_from_another_plan_or_a_removal() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path();
    ["a", "b"].iter().for_each(|name| make(store, name));
    let (store_dir, is_over) = (StoreDir::make(store).unwrap(), AtomicBool::new(false));
    let plan = || {
        while !is_over.load(Ordering::Relaxed) {
            let planned = Collector::new().max_bytes(0).dry_run(store).unwrap();
            assert_eq!((planned.layers.len(), planned.held.len()), (2, 0));
        }
    };
    std::thread::scope(|scope| {
        let plans = [(); 2].map(|()| scope.spawn(plan));
        // The locks of a removal.
        let locked = (0..2000).try_for_each(|_| {
            let lock = store_dir.lock(FlockOperation::LockExclusive)?;
            lock.lock_layer("a".as_ref()).map(drop)
        });
        is_over.store(true, Ordering::Relaxed);
        plans.into_iter().for_each(|plan| plan.join().unwrap());
        locked.unwrap();
    });
}

#[test]
fn a_collection_as_json_has_the_form_of_gc() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let layer = |name: &[u8], last_use, entries| CollectedLayer {
        name: OsString::from_vec(name.into()),
        last_use,
        bytes: 10,
        entries,
    };
    let collected = Collected {
        layers: vec![layer(b"a", at(86_400), None), layer(b"\xff", at(1 << 40), Some(4))],
        held: vec!["b".into()],
        closed: vec!["c".into()],
        failed: vec![Error::NoTree { layer: "store/x".into() }, Error::NotAMode { text: String::new() }],
        orphans: 2,
        within_budget: true,
        ..Collected::default()
    };
    let expected = r#"{"layers":[{"name":"a","bytes":10,"inodes":null,"last_used":"1970-01-02T00:00:00Z"},{"name":[255],"bytes":10,"inodes":4,"last_used":"9999-12-31T23:59:59Z"}],"bytes":20,"held":["b"],"bases":[],"closed":["c"],"orphans":2,"failed":["store/x",null],"within_budget":true}"#;
    assert_eq!(serde_json::to_string(&collected).unwrap(), expected);
}
