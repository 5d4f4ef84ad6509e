//! A mount as a configuration states it. `mount` is one that a caller gives to the builder.

use std::path::Path;

use serde_json::Value;

/// A mount of a [`Template`](crate::Template), by default or given by the caller.
#[derive(Debug, Clone, Copy)]
pub struct MountEntry<'a> {
    pub(super) json: &'a Value,
}

impl<'a> MountEntry<'a> {
    /// Where it appears in the container: an absolute path without `..`.
    pub fn destination(&self) -> &'a Path {
        Path::new(self.json["destination"].as_str().unwrap_or_default())
    }

    /// What is mounted: the path on the host for a bind mount, otherwise a name that means something only to the kernel.
    pub fn source(&self) -> Option<&'a Path> {
        self.json["source"].as_str().map(Path::new)
    }

    /// The type of the file system: `tmpfs`, `proc`; bind mounts need not have one.
    pub fn file_system(&self) -> Option<&'a str> {
        self.json["type"].as_str()
    }

    /// The mode that a tmpfs is to have, if it has the option for it.
    pub fn mode(&self) -> Option<u32> {
        let mode = |option: &Value| u32::from_str_radix(option.as_str()?.strip_prefix("mode=")?, 8).ok();
        self.json["options"].as_array()?.iter().rev().find_map(mode)
    }

    /// Whether a bind mount shows the mounts below its source, too.
    pub(crate) fn is_recursive(&self) -> bool {
        self.has_option("rbind")
    }

    /// Whether a bind mount is read-only with the mounts below its source.
    pub(crate) fn is_recursively_read_only(&self) -> bool {
        self.has_option("rro")
    }

    /// Whether a tmpfs is filled with what it covers, as runc and crun do with an option of their own.
    pub(crate) fn copies_what_it_covers(&self) -> bool {
        self.file_system() == Some("tmpfs") && self.has_option("tmpcopyup")
    }

    fn has_option(&self, name: &str) -> bool {
        self.json["options"].as_array().is_some_and(|all| all.iter().any(|option| option == name))
    }

    /// Whether it shows a file or directory of the host.
    pub fn is_bind(&self) -> bool {
        // The options decide and the type is "a dummy, often none" (config.md, "Mounts"); runc takes the type as well.
        self.file_system() == Some("bind") || self.has_option("bind") || self.has_option("rbind")
    }
}
