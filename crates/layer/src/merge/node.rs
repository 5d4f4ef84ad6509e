//! The type of the nodes in the merged tree. `tree/walk/node.rs` defines a node; `directory.rs`
//! fills and finishes the nodes.

use std::sync::Mutex;

use crate::tree::attributes::Attributes;
use crate::tree::walk::Node;

/// A directory of the merged tree.
pub(super) type DirNode = Node<NodeState>;

/// The attributes that a directory gets when everything below it is done.
pub(super) type NodeState = Mutex<Option<Attributes>>;
