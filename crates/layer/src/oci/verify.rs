//! Compares layers with what was recorded of them. Changes nothing.

use std::fmt;

use super::digest::Digest;
use super::error::{Error, Result};
use super::record::Record;
use super::tree_digest::{self, Recorded};
use crate::error::Chain;
use crate::layer::Layer;
use crate::stack::overlayfs::XattrNamespace;

/// The result of [`verify`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Verified {
    /// The tree is the one whose digest was recorded.
    Intact(Digest),
    /// No digest was recorded. Everything that can be checked without one is as it should be.
    NotRecorded,
    /// The layer is damaged.
    Damaged(Damage),
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
    let found = tree_digest::compute(layer, xattrs).map_err(Damage::Entry)?;
    match found == recorded.tree {
        true => Ok(Verified::Intact(found)),
        false => Err(Damage::OtherTree { expected: recorded.tree, found }),
    }
}
