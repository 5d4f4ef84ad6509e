//! Makes one HTML file of a [`Model`], the styles and the scripts in `assets`.
//!
//! The text in a layer is not trusted. maud escapes what is in the markup. The model is JSON in an
//! element that no browser executes, and the scripts show its strings only as text. A content
//! security policy lets the browser run nothing else, and load nothing.

use std::hash::{BuildHasher, Hasher, RandomState};

use maud::{DOCTYPE, PreEscaped, html};

use super::model::Model;

const STYLE: &str = include_str!("assets/page.css");

/// The scripts in the order in which they run. The first ones define what the later ones use.
const SCRIPT: &str = concat!(
    "/*\nd3-hierarchy\n\n",
    include_str!("assets/d3-hierarchy/LICENSE"),
    "*/\n",
    include_str!("assets/d3-hierarchy/d3-hierarchy.min.js"),
    "\n\"use strict\";\n",
    include_str!("assets/store.js"),
    include_str!("assets/chart.js"),
    include_str!("assets/details.js"),
    include_str!("assets/index.js"),
    include_str!("assets/timeline.js"),
    include_str!("assets/tree.js"),
    include_str!("assets/sizes.js"),
);

/// Returns the page.
///
/// # Errors
/// The error of serde if the model cannot be written as JSON.
pub(super) fn page(model: &Model) -> serde_json::Result<String> {
    // The makers of the layers cannot know this nonce. None of their scripts would run even if the
    // escaping failed.
    let nonce = format!("{:016x}", RandomState::new().build_hasher().finish());
    let policy = format!("default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'");
    let data = embedded(model)?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content=(policy);
                title { "Layers of " (model.store()) }
                style nonce=(nonce) { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "Layers of " bdi { (model.store()) } }
                    p #summary { (model.summary()) }
                    nav aria-label="Parts of this page" {
                        a href="#index" { "Index" } " "
                        a href="#timeline" { "Timeline" } " "
                        a href="#tree" { "Tree" } " "
                        a href="#sizes" { "Sizes" }
                    }
                    noscript { p { "This page needs JavaScript. " code { "layered ls" } " lists the same layers in a terminal." } }
                }
                main {
                    section #index aria-labelledby="index-title" { h2 #index-title { "Index" } }
                    section #timeline aria-labelledby="timeline-title" { h2 #timeline-title { "Timeline" } }
                    section #tree aria-labelledby="tree-title" { h2 #tree-title { "Tree" } }
                    section #sizes aria-labelledby="sizes-title" { h2 #sizes-title { "Sizes" } }
                }
                script #store type="application/json" { (PreEscaped(data)) }
                script nonce=(nonce) { (PreEscaped(SCRIPT)) }
            }
        }
    };
    Ok(page.into_string())
}

/// Returns the model as JSON that can stand in a `script` element: without `<`, no text can end the
/// element or begin a comment.
fn embedded(model: &Model) -> serde_json::Result<String> {
    Ok(serde_json::to_string(model)?.replace('<', "\\u003c"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_script_or_style_ends_its_element() {
        for text in [SCRIPT, STYLE] {
            assert!(!text.contains("</") && !text.contains("<!--"));
        }
        assert!(SCRIPT.contains("Mike Bostock") && SCRIPT.contains("permission notice"));
    }
}
