//! A mount as a configuration states it. `mount` is one that a caller gives to the builder.

use std::path::Path;

use serde_json::Value;

/// A mount of a [`Template`](crate::Template): one of the defaults, or one of the caller's.
#[derive(Debug, Clone, Copy)]
pub struct MountEntry<'a> {
    pub(super) json: &'a Value,
}

impl<'a> MountEntry<'a> {
    /// Returns the path in the container: an absolute path without `..`.
    pub fn destination(&self) -> &'a Path {
        Path::new(self.json["destination"].as_str().unwrap_or_default())
    }

    /// Returns the path on the host, for a bind mount. For other mounts, only the kernel interprets
    /// it.
    pub fn source(&self) -> Option<&'a Path> {
        self.json["source"].as_str().map(Path::new)
    }

    /// Returns the type of the file system, such as `tmpfs` or `proc`. A bind mount may have none.
    pub fn file_system(&self) -> Option<&'a str> {
        self.json["type"].as_str()
    }

    /// Returns the mode of a tmpfs, if its options have one.
    pub(crate) fn mode(&self) -> Option<u32> {
        let mode = |option: &Value| u32::from_str_radix(option.as_str()?.strip_prefix("mode=")?, 8).ok();
        self.json["options"].as_array()?.iter().rev().find_map(mode)
    }

    /// Returns whether a bind mount includes the mounts below its source.
    pub(crate) fn is_recursive(&self) -> bool {
        self.has_option("rbind")
    }

    /// Returns whether a bind mount and the mounts below its source are read-only.
    pub(crate) fn is_recursively_read_only(&self) -> bool {
        self.has_option("rro")
    }

    /// Returns whether the runtime copies the covered directory into the tmpfs. `tmpcopyup` is an
    /// option of runc and crun, not of the kernel.
    pub(crate) fn copies_covered_directory(&self) -> bool {
        self.file_system() == Some("tmpfs") && self.has_option("tmpcopyup")
    }

    fn has_option(&self, name: &str) -> bool {
        self.json["options"].as_array().is_some_and(|all| all.iter().any(|option| option == name))
    }

    /// Returns whether it is a bind mount.
    pub(crate) fn is_bind(&self) -> bool {
        // The options decide, and the type is "a dummy, often none" (config.md, "Mounts"). runc
        // also accepts the type.
        self.file_system() == Some("bind") || self.has_option("bind") || self.has_option("rbind")
    }
}
