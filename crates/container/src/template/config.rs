use std::path::Path;

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::TemplateError;

/// A [`Template`](crate::Template) with its root file system filled in: the content of one run's `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Config {
    value: Value,
}

impl Config {
    /// `value` is what a template checked, with the root's path put in.
    pub(super) fn new(value: Value) -> Config {
        Config { value }
    }

    /// The configuration in `oci-spec`'s types: a copy, and without the keys that they do not have.
    ///
    /// # Errors
    ///
    /// [`TemplateError::NotASpec`]; a configuration that came from a template deserializes.
    pub fn spec(&self) -> Result<Spec, TemplateError> {
        Spec::deserialize(&self.value).map_err(|source| TemplateError::NotASpec { source })
    }

    /// The path of the root file system that the container will see as `/`.
    pub fn rootfs(&self) -> Option<&Path> {
        self.value.pointer("/root/path").and_then(Value::as_str).map(Path::new)
    }

    /// The most memory that the container may have, in bytes; `None` for no limit.
    pub(crate) fn memory_limit_bytes(&self) -> Option<u64> {
        // -1 is no limit.
        self.value.pointer("/linux/resources/memory/limit").and_then(Value::as_u64)
    }

    /// Whether the command gets a terminal of its own.
    pub(crate) fn has_terminal(&self) -> bool {
        self.value.pointer("/process/terminal").and_then(Value::as_bool).unwrap_or_default()
    }

    /// The control group that the runtime is to put the container into, if one is named.
    ///
    /// See [`linux.cgroupsPath`]: absolute from the mount point of each hierarchy, or relative to where the runtime sees fit.
    ///
    /// [`linux.cgroupsPath`]: https://github.com/opencontainers/runtime-spec/blob/v1.1.0/config-linux.md#cgroups-path
    pub fn cgroups_path(&self) -> Option<&str> {
        // An empty string is how programs in Go write an absent one.
        self.value.pointer("/linux/cgroupsPath").and_then(Value::as_str).filter(|path| !path.is_empty())
    }

    /// Names the control group, in the place of one that the template may have named.
    pub fn set_cgroups_path(&mut self, path: impl Into<String>) {
        self.value["linux"]["cgroupsPath"] = Value::String(path.into());
    }

    /// Names the control group unless the template did.
    #[must_use]
    pub fn with_default_cgroups_path(mut self, path: impl Into<String>) -> Config {
        if self.cgroups_path().is_none() {
            self.set_cgroups_path(path);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_default_control_group_gives_way_to_one_that_is_named() {
        let table = [
            (json!({}), "/ours"),
            (json!({"linux": null}), "/ours"),
            (json!({"linux": {"cgroupsPath": ""}}), "/ours"),
            (json!({"linux": {"cgroupsPath": "/theirs"}}), "/theirs"),
        ];
        for (value, path) in table {
            let config = Config::new(value).with_default_cgroups_path("/ours");
            assert_eq!(config.cgroups_path(), Some(path));
        }
    }

    #[test]
    fn naming_a_control_group_changes_nothing_else() {
        let mut config = Config::new(json!({"x": 1, "linux": {"y": 2, "cgroupsPath": "/theirs"}}));
        config.set_cgroups_path("/ours");
        assert_eq!(serde_json::to_value(config).unwrap(), json!({"x": 1, "linux": {"y": 2, "cgroupsPath": "/ours"}}));
    }
}
