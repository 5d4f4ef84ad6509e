//! Layers that try to lead out of the target: a merge reads, links, changes and removes nothing
//! outside.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use integration_tests::stack::{Dir, Item, new_merge};
use integration_tests::tree::Snapshot;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{Stack, while_disturbed};

/// Makes a directory beside the layers that must not change.
fn outside(stack: &Stack) -> PathBuf {
    let path = stack.dir.path().join("outside");
    Dir::new().file("secret", "secret").with("b", Dir::new().file("inner", "secret")).make(&path).unwrap();
    path
}

/// Merges a layer with a symbolic link `a` to `target` and layers with a directory `a`, with either
/// on top.
fn merge_link_with_directory(target: &str) {
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
        made.compare(&new_merge()).unwrap();
        layer::remove_tree(made.merged()).unwrap();
        assert!(!made.merged().exists());
        assert_eq!(before.diff(&Snapshot::of_path(&outside).unwrap()), "");
    }
}

#[test]
fn an_absolute_link_leads_nowhere() {
    merge_link_with_directory("OUTSIDE");
}

#[test]
fn a_link_upwards_leads_nowhere() {
    merge_link_with_directory("../../../../../../../../../../OUTSIDE");
    merge_link_with_directory("..");
    merge_link_with_directory("../outside");
}

#[test]
fn a_link_to_itself_or_to_the_root_leads_nowhere() {
    merge_link_with_directory("a");
    merge_link_with_directory(".");
    merge_link_with_directory("/");
}

/// Makes a link to the outside directory, which the tests exchange with a directory of a layer.
fn link_to_outside(stack: &Stack) -> PathBuf {
    let link = stack.dir.path().join("link");
    symlink(stack.dir.path().join("outside"), &link).unwrap();
    link
}

#[test]
fn a_link_swapped_in_during_a_merge_leads_nowhere() {
    let dir = || Dir::new().with("b", Dir::new().file("inner", "mine").with("deep", Dir::new().file("mine", "mine")));
    let stack = Stack::new(&[], &[Dir::new().with("a", dir()), Dir::new().with("a", dir())], &Dir::new());
    let outside = outside(&stack);
    let before = Snapshot::of_path(&outside).unwrap();
    let mut seen = [0; 2];
    let (link, dir) = (link_to_outside(&stack), stack.sources[0].join("a"));
    let swap = || renameat_with(CWD, &link, CWD, &dir, RenameFlags::EXCHANGE).unwrap();
    while_disturbed(swap, || {
        for _ in 0..500 {
            let target = stack.merged();
            match new_merge().run(&stack.sources, &target) {
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
    // At least one merge succeeds. A merge fails only if the link is there at the right moment,
    // which need not happen.
    assert!(seen[0] > 0, "{seen:?}");
    assert_eq!(before.diff(&Snapshot::of_path(&outside).unwrap()), "");
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
}

#[test]
fn a_link_swapped_in_during_a_removal_leads_nowhere() {
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
        while_disturbed(swap, || {
            // A name may have been swapped into a directory that was read before. The caller would
            // have to try again.
            let _not_empty = layer::remove_tree(&stack.sources[0]);
        });
        assert_eq!(before.diff(&Snapshot::of_path(&outside).unwrap()), "");
    }
}
