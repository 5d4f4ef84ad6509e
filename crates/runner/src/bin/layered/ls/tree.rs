//! The layers of a store as a tree: each below the layers that it was made over.
//!
//! A `layer.json` names all layers of the stack, not only the next ones. So a parent that is also a
//! parent of another parent is left out: it is drawn above that one.

use std::collections::{HashMap, HashSet};

use layer::Layer;

/// A layer with its parents.
#[derive(Debug)]
pub(super) struct Node<'a> {
    /// The text by which other layers name it.
    pub(super) name: String,
    pub(super) parent_hashes: &'a [String],
}

/// A line of the drawing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// The branches before the name.
    pub(super) before: String,
    pub(super) index: usize,
    /// A mark if the children of the layer are drawn elsewhere, or else nothing.
    pub(super) after: &'static str,
}

/// The mark of a layer whose children are drawn at an earlier line.
const DRAWN: &str = " (*)";

/// Draws each layer below its parents. Siblings keep the order of `nodes`. Every layer has a line,
/// even if its parents are a circle.
pub(super) fn draw(nodes: &[Node<'_>]) -> Vec<Line> {
    let parents = next_parents(nodes);
    let mut children = vec![Vec::new(); nodes.len()];
    for (child, parents) in parents.iter().enumerate() {
        parents.iter().for_each(|parent| children[*parent].push(child));
    }
    let mut lines = Vec::new();
    let mut is_drawn = vec![false; nodes.len()];
    let roots = (0..nodes.len()).filter(|node| parents[*node].is_empty());
    // The layers of a circle are below no root.
    for root in roots.chain(0..nodes.len()) {
        if !is_drawn[root] {
            draw_from(root, &children, &mut is_drawn, &mut lines);
        }
    }
    lines
}

fn draw_from(root: usize, children: &[Vec<usize>], is_drawn: &mut [bool], lines: &mut Vec<Line>) {
    // The layers to draw, the next one last, each with the branches before it and before its
    // children. A store can be deeper than the stack of a thread.
    let mut waiting = vec![(root, String::new(), String::new())];
    while let Some((index, before, below)) = waiting.pop() {
        let is_repeated = std::mem::replace(&mut is_drawn[index], true);
        let after = if is_repeated && !children[index].is_empty() { DRAWN } else { "" };
        lines.push(Line { before, index, after });
        if is_repeated {
            continue;
        }
        for (place, child) in children[index].iter().rev().enumerate() {
            let (branch, space) = if place == 0 { ("└── ", "    ") } else { ("├── ", "│   ") };
            waiting.push((*child, format!("{below}{branch}"), format!("{below}{space}")));
        }
    }
}

/// Returns the parents of each layer that are in the store and not parents of another parent.
fn next_parents(nodes: &[Node<'_>]) -> Vec<Vec<usize>> {
    let by_name: HashMap<&str, usize> =
        nodes.iter().enumerate().map(|(index, node)| (node.name.as_str(), index)).collect();
    let all: Vec<Vec<usize>> = nodes
        .iter()
        .enumerate()
        .map(|(index, node)| {
            let found = node.parent_hashes.iter().filter_map(|hash| find(&by_name, hash));
            let mut parents: Vec<_> = found.filter(|parent| *parent != index).collect();
            parents.sort_unstable();
            parents.dedup();
            parents
        })
        .collect();
    all.iter()
        .map(|parents| {
            let above: HashSet<usize> = parents.iter().flat_map(|parent| &all[*parent]).copied().collect();
            let next: Vec<_> = parents.iter().copied().filter(|parent| !above.contains(parent)).collect();
            // If all are parents of each other, none is the next one.
            if next.is_empty() { parents.clone() } else { next }
        })
        .collect()
}

/// Returns the layer that a hash means: the name of its directory can be the beginning of the hash.
fn find(by_name: &HashMap<&str, usize>, hash: &str) -> Option<usize> {
    let lengths = std::iter::once(hash.len()).chain((1..hash.len()).rev());
    let mut known = lengths.filter_map(|length| by_name.get_key_value(hash.get(..length)?));
    known.find(|(name, _)| Layer::at(name).has_hash(hash)).map(|(_, index)| *index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(layers: &[(&str, &[&str])]) -> Vec<String> {
        let parents: Vec<Vec<String>> =
            layers.iter().map(|(_, parents)| parents.iter().map(ToString::to_string).collect()).collect();
        let nodes: Vec<_> = layers
            .iter()
            .zip(&parents)
            .map(|((name, _), parent_hashes)| Node { name: name.to_string(), parent_hashes })
            .collect();
        draw(&nodes).into_iter().map(|line| format!("{}{}{}", line.before, layers[line.index].0, line.after)).collect()
    }

    #[test]
    fn a_layer_is_below_the_last_of_its_parents_and_expanded_once() {
        assert_eq!(drawn(&[]), Vec::<String>::new());
        let layers: [(&str, &[&str]); 7] = [
            ("a", &[]),
            ("b", &["a"]),
            // The whole stack, as a run records it.
            ("c", &["b", "a"]),
            ("d", &["c", "e", "b", "a"]),
            ("e", &["gone"]),
            ("f", &["a"]),
            ("g", &["d", "c", "e", "b", "a"]),
        ];
        let expected = ["a", "├── b", "│   └── c", "│       └── d", "│           └── g", "└── f", "e", "└── d (*)"];
        assert_eq!(drawn(&layers), expected);
    }

    #[test]
    fn a_parent_is_found_by_its_whole_hash() {
        let hash = "0123456789abcdef0123456789abcdef";
        assert_eq!(drawn(&[("0123456789ab", &[]), ("x", &[hash])]), ["0123456789ab", "└── x"]);
        assert_eq!(drawn(&[("debian", &[]), ("x", &["debian-12"])]), ["debian", "x"]);
    }

    #[test]
    fn a_circle_and_a_deep_chain_are_drawn() {
        let circle = drawn(&[("a", &["b"]), ("b", &["a"]), ("own", &["own"])]);
        assert_eq!(circle, ["own", "a", "└── b", "    └── a (*)"]);
        let names: Vec<String> = (0..1000).map(|n| format!("layer{n}")).collect();
        let parents: Vec<Vec<String>> = (0..1000).map(|n| names[..n].last().cloned().into_iter().collect()).collect();
        let nodes: Vec<_> = names
            .iter()
            .zip(&parents)
            .map(|(name, parent_hashes)| Node { name: name.clone(), parent_hashes })
            .collect();
        let lines = draw(&nodes);
        assert_eq!((lines.len(), lines[999].index), (1000, 999));
    }
}
