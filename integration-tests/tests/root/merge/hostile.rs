//! Layers that want to lead elsewhere: nothing outside the target is read, linked, changed or removed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use integration_tests::stack::{Dir, Item};
use integration_tests::tree::Snapshot;
use layer::Merge;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{Stack, meanwhile};

/// A directory beside the layers that must stay as it is.
fn outside(stack: &Stack) -> PathBuf {
    let path = stack.dir.path().join("outside");
    Dir::new().file("secret", "secret").with("b", Dir::new().file("inner", "secret")).make(&path).unwrap();
    path
}

/// Layers of which one has a symbolic link `a` to `target` and another a directory `a`, either on top.
fn a_link_against_a_directory(target: &str) {
    let directory = || Dir::new().with("a", Dir::new().file("b", "mine").file("secret", "mine").whiteout("inner"));
    let link = |target: &str| Dir::new().with("a", Item::symlink(target));
    for link_on_top in [true, false] {
        let stack = Stack::new(&[], &[], &Dir::new().with("a", Dir::new().file("base", "")));
        let outside = outside(&stack);
        let before = Snapshot::of_path(&outside).unwrap();
        let target = target.replace("OUTSIDE", outside.to_str().unwrap());
        let mut layers = vec![link(&target), directory(), directory()];
        if !link_on_top {
            layers.rotate_left(1);
        }
        let made = Stack::new(&[], &layers, &Dir::new().with("a", Dir::new().file("base", "")));
        made.compare(&Merge::new()).unwrap();
        layer::remove_tree(made.merged()).unwrap();
        assert!(!made.merged().exists());
        assert_eq!(before.diff(&Snapshot::of_path(&outside).unwrap()), "");
    }
}

#[test]
fn an_absolute_link_leads_nowhere() {
    a_link_against_a_directory("OUTSIDE");
}

#[test]
fn a_link_upwards_leads_nowhere() {
    a_link_against_a_directory("../../../../../../../../../../OUTSIDE");
    a_link_against_a_directory("..");
    a_link_against_a_directory("../outside");
}

#[test]
fn a_link_to_itself_or_to_the_root_leads_nowhere() {
    a_link_against_a_directory("a");
    a_link_against_a_directory(".");
    a_link_against_a_directory("/");
}

/// A link to outside, to be exchanged with a directory of a layer.
fn link_to_outside(stack: &Stack) -> PathBuf {
    let link = stack.dir.path().join("link");
    symlink(stack.dir.path().join("outside"), &link).unwrap();
    link
}

#[test]
fn a_link_that_is_swapped_in_while_the_merge_runs_leads_nowhere() {
    let dir = || Dir::new().with("b", Dir::new().file("inner", "mine").with("deep", Dir::new().file("mine", "mine")));
    let stack = Stack::new(&[], &[Dir::new().with("a", dir()), Dir::new().with("a", dir())], &Dir::new());
    let outside = outside(&stack);
    let before = Snapshot::of_path(&outside).unwrap();
    let mut seen = [0; 2];
    let (link, dir) = (link_to_outside(&stack), stack.sources[0].join("a"));
    let swap = || renameat_with(CWD, &link, CWD, &dir, RenameFlags::EXCHANGE).unwrap();
    meanwhile(swap, || {
        for _ in 0..500 {
            let target = stack.merged();
            match layer::merge(&stack.sources, &target) {
                Ok(_) => {
                    seen[0] += 1;
                    for (path, entry) in Snapshot::of_path(&target).unwrap().entries {
                        assert!(!format!("{entry:?}").contains("secret"), "{}: {entry:?}", path.display());
                    }
                    layer::remove_tree(&target).unwrap();
                }
                Err(error) => {
                    seen[1] += 1;
                    assert!(error.path().unwrap().starts_with(stack.dir.path()), "{error}");
                }
            }
            assert!(!target.exists());
        }
    });
    // Both have been met, or the link was never there at the right moment.
    assert!(seen[0] > 0, "{seen:?}");
    assert_eq!(before.diff(&Snapshot::of_path(&outside).unwrap()), "");
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
}

#[test]
fn a_link_that_is_swapped_in_while_a_tree_is_removed_leads_nowhere() {
    for _ in 0..100 {
        let dir =
            || Dir::new().with("b", Dir::new().file("inner", "mine").with("deep", Dir::new().file("mine", "mine")));
        let stack = Stack::new(&[], &[Dir::new().with("a", dir().with("c", dir()))], &Dir::new());
        let outside = outside(&stack);
        let before = Snapshot::of_path(&outside).unwrap();
        let (link, dir) = (link_to_outside(&stack), stack.sources[0].join("a"));
        let swap = || {
            let _until_one_has_been_removed = renameat_with(CWD, &link, CWD, &dir, RenameFlags::EXCHANGE);
        };
        meanwhile(swap, || {
            // A name may have been swapped into a directory that was read before; that is for the caller to try again.
            let _not_empty = layer::remove_tree(&stack.sources[0]);
        });
        assert_eq!(before.diff(&Snapshot::of_path(&outside).unwrap()), "");
    }
}
