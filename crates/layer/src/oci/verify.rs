//! Compares layers with what was recorded of them. Changes nothing.

use std::fmt;
use std::io;

use super::digest::Digest;
use super::error::{Error, Problem, Result};
use super::record::Record;
use super::tree_digest::{self, Recorded};
use crate::error::Chain;
use crate::layer::Layer;
use crate::stack::overlayfs::XattrNamespace;
use crate::tree::owner::IdMaps;

/// The result of [`verify`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Verified {
    /// The tree is the one whose digest was recorded.
    Intact(Digest),
    /// No digest was recorded. Everything that can be checked without one is as it should be.
    NotRecorded,
    /// The digest was recorded with other users and groups than this process has, so the owners of
    /// the files have other numbers here. Whether the tree is damaged is not known.
    OtherIds(OtherIds),
    /// The tree cannot be compared, although nothing is wrong with it. The error says why.
    NotComparable(Error),
    /// The layer is damaged.
    Damaged(Damage),
}

/// The users and groups with which a digest was recorded, and those of this process.
///
/// Its text says who can compare the layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherIds {
    recorded: IdMaps,
    here: IdMaps,
}

impl fmt::Display for OtherIds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { recorded, here } = self;
        let remedy = if recorded.are_identity() {
            "verify it as root, outside of a user namespace"
        } else {
            "verify it as the user who made it, with the same --ids"
        };
        write!(
            formatter,
            "its digest was recorded with other IDs ({recorded}) than this process has ({here}); {remedy}"
        )
    }
}

/// A kind of damage to a layer.
#[derive(Debug)]
#[non_exhaustive]
pub enum Damage {
    /// The layer has no `layer.json`: it is being made, or its maker was killed.
    NoMeta,
    /// The `layer.json`, or the sidecar `oci.json` or `digest.json`, cannot be read.
    Unreadable(Error),
    /// The layer has no directory `fs`.
    NoTree(Error),
    /// A part of the tree cannot be read, or cannot be in a layer.
    Entry(Error),
    /// The tree is not the one whose digest was recorded.
    OtherTree {
        /// The digest that was recorded.
        expected: Digest,
        /// The digest of the tree.
        found: Digest,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMeta => formatter.write_str("it has no layer.json: it is being made, or its maker was killed"),
            Self::Unreadable(error) | Self::NoTree(error) | Self::Entry(error) => {
                write!(formatter, "{}", Chain(error))
            }
            Self::OtherTree { expected, found } => {
                write!(formatter, "its tree has the digest {found} instead of {expected}: a file was changed")
            }
        }
    }
}

/// Compares a layer with what was recorded of it.
///
/// The digest covers names, types, modes, owners, times of modification, extended attributes, hard
/// links, whiteouts, opaque directories and contents. It does not cover sockets.
pub fn verify(layer: &Layer, xattrs: XattrNamespace) -> Verified {
    match look(layer, xattrs) {
        Ok(verified) => verified,
        Err(damage) => Verified::Damaged(damage),
    }
}

fn look(layer: &Layer, xattrs: XattrNamespace) -> Result<Verified, Damage> {
    let tree = Layer::open(layer.path());
    // Without either, it is not a layer at all.
    let meta = layer.meta().map_err(|error| Damage::Unreadable(error.into()))?;
    tree.map_err(|error| Damage::NoTree(error.into()))?;
    if meta.is_none() {
        return Err(Damage::NoMeta);
    }
    Record::of(layer).map_err(Damage::Unreadable)?;
    let Some(recorded) = Recorded::of(layer).map_err(Damage::Unreadable)? else { return Ok(Verified::NotRecorded) };
    let here = IdMaps::of_process();
    match tree_digest::compute(layer, xattrs) {
        Ok(found) => compare(recorded, found, here),
        Err(error) => without_digest(error, recorded, here),
    }
}

/// Judges a layer whose digest cannot be computed in a process with the IDs `here`.
fn without_digest(error: Error, recorded: Recorded, here: IdMaps) -> Result<Verified, Damage> {
    match error {
        Error::Entry { problem: Problem::TooManyLinks { .. }, .. } => Ok(Verified::NotComparable(error)),
        // The owner, whom this process does not have, lets nobody else read the file.
        error if recorded.ids != here && is_denied(&error) => {
            Ok(Verified::OtherIds(OtherIds { recorded: recorded.ids, here }))
        }
        error => Err(Damage::Entry(error)),
    }
}

fn is_denied(error: &Error) -> bool {
    let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    let chain = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    chain.filter_map(|error| error.downcast_ref()).any(denied)
}

/// Compares a record with the digest that was found in a process with the IDs `here`.
fn compare(recorded: Recorded, found: Digest, here: IdMaps) -> Result<Verified, Damage> {
    let Recorded { tree: expected, ids: recorded } = recorded;
    match (found == expected, recorded == here) {
        (true, _) => Ok(Verified::Intact(found)),
        (false, true) => Err(Damage::OtherTree { expected, found }),
        (false, false) => Ok(Verified::OtherIds(OtherIds { recorded, here })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_with_too_many_links_is_not_called_damaged() {
        let tree = Digest::of(b"tree");
        for (problem, is_damage) in [(Problem::TooManyLinks { max_bytes: 1 }, false), (Problem::Changed, true)] {
            let error = Error::Entry { operation: "pack", archive: "fs".into(), entry: "a".into(), problem };
            let recorded = serde_json::from_str(&format!(r#"{{"tree":"{tree}"}}"#)).unwrap();
            match without_digest(error, recorded, IdMaps::default()) {
                Ok(Verified::NotComparable(error)) => assert!(!is_damage, "{error}"),
                Err(Damage::Entry(error)) => assert!(is_damage, "{error}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn only_a_tree_that_was_read_with_the_same_ids_is_called_damaged() {
        let recorded = |json: &str| serde_json::from_str::<Recorded>(json).unwrap();
        let maps = |json: &str| serde_json::from_str::<IdMaps>(json).unwrap();
        let (tree, other) = (Digest::of(b"tree"), Digest::of(b"other"));
        let single = r#"{"uids":"0 1000 1","gids":"0 1000 1"}"#;
        let of_user = format!(r#"{{"tree":"{tree}","ids":{single}}}"#);
        // As root records it, and as earlier versions did.
        let of_root = format!(r#"{{"tree":"{tree}"}}"#);
        for (record, here, is_same) in [
            (&of_root, IdMaps::default(), true),
            (&of_root, maps(single), false),
            (&of_user, maps(single), true),
            (&of_user, IdMaps::default(), false),
        ] {
            let compared = compare(recorded(record), tree, here.clone());
            assert!(matches!(compared, Ok(Verified::Intact(found)) if found == tree), "{record} {here}");
            match compare(recorded(record), other, here.clone()) {
                Err(Damage::OtherTree { .. }) => assert!(is_same, "{record} {here}"),
                Ok(Verified::OtherIds(ids)) => {
                    assert!(!is_same, "{record} {here}");
                    let remedy = if *record == of_root { "verify it as root" } else { "the same --ids" };
                    assert!(ids.to_string().contains(remedy), "{ids}");
                }
                result => panic!("{result:?}"),
            }
        }
    }
}
