//! The type of the nodes in the merged tree. `tree/walk/node.rs` has what a node is; `directory.rs`
//! fills and finishes them.

use std::sync::Mutex;

use crate::tree::attributes::Attributes;
use crate::tree::walk::Node;

/// A directory of the merged tree.
pub(super) type DirNode = Node<NodeState>;

/// The attributes that a directory gets when everything below it is done.
pub(super) type NodeState = Mutex<Option<Attributes>>;
