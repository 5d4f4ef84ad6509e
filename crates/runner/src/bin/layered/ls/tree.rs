//! The layers of a store as a tree: each below the layers that it was made over.
//!
//! A `layer.json` names all layers of the stack, not only the next ones. So a parent that is also a
//! parent of another parent is left out: it is drawn above that one. [`ancestry`] decides that.

use layer::Layer;

use crate::ancestry;

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

/// Draws each layer below its parents. Siblings keep the order of `layers`. Every layer has a line,
/// even if its parents are a circle.
pub(super) fn draw(layers: &[Layer], parent_hashes: &[&[String]]) -> Vec<Line> {
    let parents = ancestry::direct(&ancestry::below(layers, parent_hashes));
    let mut children = vec![Vec::new(); layers.len()];
    for (child, parents) in parents.iter().enumerate() {
        parents.iter().for_each(|parent| children[*parent].push(child));
    }
    let mut lines = Vec::new();
    let mut is_drawn = vec![false; layers.len()];
    let roots = (0..layers.len()).filter(|layer| parents[*layer].is_empty());
    // The layers of a circle are below no root.
    for root in roots.chain(0..layers.len()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(layers: &[(&str, &[&str])]) -> Vec<String> {
        let parents: Vec<Vec<String>> =
            layers.iter().map(|(_, parents)| parents.iter().map(ToString::to_string).collect()).collect();
        let parents: Vec<&[String]> = parents.iter().map(Vec::as_slice).collect();
        let dirs: Vec<Layer> = layers.iter().map(|(name, _)| Layer::at(name)).collect();
        let line = |line: Line| format!("{}{}{}", line.before, layers[line.index].0, line.after);
        draw(&dirs, &parents).into_iter().map(line).collect()
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
        let layers: Vec<Layer> = (0..1000).map(|n| Layer::at(format!("layer{n}"))).collect();
        let below: Vec<Vec<String>> =
            (0..1000).map(|n| layers[..n].last().map(Layer::hash).into_iter().collect()).collect();
        let below: Vec<&[String]> = below.iter().map(Vec::as_slice).collect();
        let lines = draw(&layers, &below);
        assert_eq!((lines.len(), lines[999].index), (1000, 999));
    }

    #[test]
    fn a_parent_hash_of_any_length_is_looked_up_once() {
        let long = "f".repeat(400_000);
        assert_eq!(drawn(&[("0123456789ab", &[]), ("x", &[&long])]), ["0123456789ab", "x"]);
    }
}
