//! Checks whether the layers and the base belong to users without a number in this process's user
//! namespace, which limits what a command can do over them.
//!
//! [`access`](super::access) checks who can enter them.

use std::path::{Path, PathBuf};

use container::UserNamespace;
use layer::{Base, Layer};
use os_display::Quotable;

use super::access::layers;
use super::check::Check;

const MEANS: &str = "a command can make, remove and replace files over them, but it cannot write into one of their \
                     files, and cannot change its mode or owner; their last use is not recorded";

/// Checks the layers in `store` and the base that the environment names. Returns `None` if all
/// their owners have a number in this process's user namespace.
pub(super) fn check(store: Option<&Path>, base: Option<&Path>) -> Option<Check> {
    let layers = store.and_then(|store| layers(store).ok()).unwrap_or_default();
    let trees = layers.into_iter().map(|layer| Layer::at(layer.path).fs());
    let base = base.map(|base| Base::at(base).fs());
    judge(trees.chain(base).filter(|tree| UserNamespace::is_path_of_others(tree)).collect())
}

fn judge(of_others: Vec<PathBuf>) -> Option<Check> {
    let first = of_others.first()?;
    let found = match of_others.len() {
        1 => format!("{} belongs to another user", first.maybe_quote()),
        count => format!("{count} trees belong to other users, e.g. {}", first.maybe_quote()),
    };
    let advice = "if a command fails because of that, make a base of your own, for example with layered import";
    Some(Check::warning("owners", found).means(MEANS).advice(advice))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Verdict;

    #[test]
    fn trees_of_others_are_a_warning() {
        assert_eq!(judge(vec![]), None);
        for (trees, found) in [(1, "/0/fs belongs to another user"), (3, "3 trees belong to other users, e.g. /0/fs")] {
            let check = judge((0..trees).map(|number| format!("/{number}/fs").into()).collect()).unwrap();
            let text = serde_json::to_string(&check).unwrap();
            assert!(check.verdict == Verdict::Warning && text.contains(found), "{text}");
        }
    }
}
