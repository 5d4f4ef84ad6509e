use std::fs;
use std::path::Path;

use oci_spec::runtime::{PosixRlimit, Spec};
use rustix::process::Resource;
use serde::Deserialize;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value, json};

use super::defaults::OPEN_FILES;
use super::error::TemplateError;
use super::rlimit::{self, Rlimit};
use super::{MountEntry, Template};

/// A [`Template`](crate::Template) with its root file system filled in: the content of one run's `config.json`.
///
/// It is the template and what differs from it: nothing is copied until it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    template: Template,
    rootfs: String,
    cgroups_path: Option<String>,
    has_filter: bool,
    makes_devices: bool,
    open_files: Option<Rlimit>,
    /// Where in `mounts` a file is mounted recursively read-only.
    binds_of_files: Vec<usize>,
}

/// The annotation under which crun takes a program in the place of the profile in `linux.seccomp`: crun(1), "seccomp".
const CRUN_FILTER: &str = "run.oci.seccomp_bpf_data";

/// A limit of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryLimit {
    pub(crate) bytes: u64,
    /// Whether it is one of memory and swap together, at which the kernel kills: what the builder makes.
    pub(crate) is_plain: bool,
}

impl Config {
    /// `template` has been checked.
    pub(super) fn new(template: Template, rootfs: impl Into<String>) -> Config {
        Config {
            template,
            rootfs: rootfs.into(),
            cgroups_path: None,
            has_filter: false,
            makes_devices: true,
            open_files: None,
            binds_of_files: Vec::new(),
        }
    }

    /// The configuration in `oci-spec`'s types: a copy, and without the keys that they do not have.
    ///
    /// # Errors
    ///
    /// [`TemplateError::NotASpec`]; a configuration that came from a template deserializes.
    pub fn spec(&self) -> Result<Spec, TemplateError> {
        let value = serde_json::to_value(self).map_err(|source| TemplateError::Serialize { source })?;
        Spec::deserialize(value).map_err(|source| TemplateError::NotASpec { source })
    }

    /// The path of the root file system that the container will see as `/`.
    pub fn rootfs(&self) -> &Path {
        Path::new(&self.rootfs)
    }

    /// The most memory that the container may have; `None` for no limit.
    pub(crate) fn memory_limit(&self) -> Option<MemoryLimit> {
        let memory = self.template.value.pointer("/linux/resources/memory")?;
        // -1 is no limit.
        let bytes = memory.get("limit").and_then(Value::as_u64)?;
        let with_swap = memory.get("swap").and_then(Value::as_u64) == Some(bytes);
        let kills = memory.get("disableOOMKiller").and_then(Value::as_bool) != Some(true);
        Some(MemoryLimit { bytes, is_plain: with_swap && kills })
    }

    /// Whether the command gets a terminal of its own.
    pub(crate) fn has_terminal(&self) -> bool {
        self.template.value.pointer("/process/terminal").and_then(Value::as_bool).unwrap_or_default()
    }

    /// The control group that the runtime is to put the container into, if one is named.
    ///
    /// See [`linux.cgroupsPath`]: absolute from the mount point of each hierarchy, or relative to where the runtime sees fit.
    ///
    /// [`linux.cgroupsPath`]: https://github.com/opencontainers/runtime-spec/blob/v1.1.0/config-linux.md#cgroups-path
    pub fn cgroups_path(&self) -> Option<&str> {
        let templates = self.template.value.pointer("/linux/cgroupsPath").and_then(Value::as_str);
        // An empty string is how programs in Go write an absent one.
        self.cgroups_path.as_deref().or(templates).filter(|path| !path.is_empty())
    }

    /// Names the control group, in the place of one that the template may have named.
    pub fn set_cgroups_path(&mut self, path: impl Into<String>) {
        self.cgroups_path = Some(path.into());
    }

    /// Hands crun its seccomp filter ready made, if it is known here what it comes to and the template has none.
    pub(crate) fn with_filter_for_crun(mut self) -> Config {
        let theirs = self.template.value.pointer("/annotations").and_then(|all| all.get(CRUN_FILTER));
        self.has_filter = self.template.filter.is_some() && theirs.is_none();
        self
    }

    /// Takes CAP_MKNOD away, if the template lets no device be opened but those that the runtime makes.
    pub(crate) fn without_device_nodes(mut self) -> Config {
        self.makes_devices = !self.template.denies_devices();
        self
    }

    /// Lowers the limit of open files to the hard limit of the calling process, if it is the builder's default and higher.
    pub(crate) fn with_limits_of_caller(self) -> Config {
        self.with_open_files_of(rlimit::of_caller(Resource::Nofile))
    }

    fn with_open_files_of(mut self, of_caller: u64) -> Config {
        if self.limits().any(|limit| limit == OPEN_FILES) {
            self.open_files = rlimit::lowered_open_files(of_caller);
        }
        if let Some(Rlimit { soft, hard, .. }) = self.open_files {
            log::debug!(
                "the command may have {soft} files open, and raise that to {hard}, the caller's own hard limit"
            );
        }
        self
    }

    /// Refuses limits that the calling process may not give to the container, but for the default that
    /// [`with_limits_of_caller`](Self::with_limits_of_caller) lowers.
    pub(crate) fn check_limits(&self) -> Result<(), TemplateError> {
        self.limits().filter(|limit| *limit != OPEN_FILES).try_for_each(|limit| rlimit::check_for_caller(&limit))
    }

    fn limits(&self) -> impl Iterator<Item = Rlimit> + '_ {
        let limits = self.template.array("/process/rlimits").filter_map(|limit| PosixRlimit::deserialize(limit).ok());
        limits.map(|limit| Rlimit { kind: limit.typ(), soft: limit.soft(), hard: limit.hard() })
    }

    /// Mounts files, sockets and FIFOs read-only without `rro`, which says the same of the mounts below: a file has none, and crun
    /// before 1.14.4 takes every source with a recursive option for a directory (sockets and FIFOs before 1.16).
    ///
    /// A source is looked at now, as it may have been made just before. One that cannot be found stays for the runtime to complain
    /// about.
    pub(crate) fn with_binds_of_files(mut self) -> Config {
        let is_file = |mount: &MountEntry<'_>| {
            let metadata = mount.source().filter(|_| mount.is_bind()).map(fs::metadata);
            metadata.is_some_and(|metadata| metadata.is_ok_and(|metadata| !metadata.is_dir()))
        };
        let mounts = self.template.mounts().enumerate();
        let binds = mounts.filter(|(_, mount)| mount.is_recursively_read_only() && is_file(mount));
        self.binds_of_files = binds.map(|(index, _)| index).collect();
        self
    }

    /// `process` as it differs from the template's.
    fn process(&self, process: &Value) -> Option<Value> {
        if self.makes_devices && self.open_files.is_none() {
            return None;
        }
        let mut process = process.clone();
        if !self.makes_devices {
            take_mknod(&mut process);
        }
        if let Some(Rlimit { soft, hard, .. }) = self.open_files {
            let limits = process.get_mut("rlimits").and_then(Value::as_array_mut).into_iter().flatten();
            for limit in limits.filter(|limit| limit["type"] == "RLIMIT_NOFILE") {
                (limit["soft"], limit["hard"]) = (soft.into(), hard.into());
            }
        }
        Some(process)
    }

    /// `mounts` as it differs from the template's.
    fn mounts(&self, mounts: &Value) -> Option<Value> {
        if self.binds_of_files.is_empty() {
            return None;
        }
        let mut mounts = mounts.clone();
        for index in &self.binds_of_files {
            if let Some(options) = mounts[*index]["options"].as_array_mut() {
                options.retain(|option| option != "ro" && option != "rro");
                options.push("ro".into());
            }
        }
        Some(mounts)
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

impl Serialize for Config {
    /// Straight from the template, with the values that differ in their places.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let none = Map::new();
        let template = self.template.value.as_object().unwrap_or(&none);
        let filter = self.has_filter.then(|| self.template.filter()).flatten();
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in template {
            let changed = match key.as_str() {
                "process" => self.process(value),
                "mounts" => self.mounts(value),
                _ => None,
            };
            match (key.as_str(), &self.cgroups_path) {
                _ if changed.is_some() => map.serialize_entry(key, &changed)?,
                ("root", _) => map.serialize_entry(key, &With { value, key: "path", text: &self.rootfs })?,
                ("annotations", _) if filter.is_some() => {
                    map.serialize_entry(key, &With { value, key: CRUN_FILTER, text: filter.unwrap_or_default() })?;
                }
                ("linux", Some(path)) => map.serialize_entry(key, &With { value, key: "cgroupsPath", text: path })?,
                _ => map.serialize_entry(key, value)?,
            }
        }
        if let (Some(path), false) = (&self.cgroups_path, template.contains_key("linux")) {
            map.serialize_entry("linux", &json!({"cgroupsPath": path}))?;
        }
        if let (Some(filter), false) = (filter, template.contains_key("annotations")) {
            map.serialize_entry("annotations", &json!({CRUN_FILTER: filter}))?;
        }
        map.end()
    }
}

/// Takes CAP_MKNOD out of every set of `process`.
fn take_mknod(process: &mut Value) {
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    for set in sets.into_iter().flat_map(Map::values_mut).filter_map(Value::as_array_mut) {
        set.retain(|capability| capability != "CAP_MKNOD");
    }
}

/// An object, or null, with one value in the place of its own, or at its end if it has none.
struct With<'a> {
    value: &'a Value,
    key: &'static str,
    text: &'a str,
}

impl Serialize for With<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let none = Map::new();
        let fields = self.value.as_object().unwrap_or(&none);
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in fields {
            match key == self.key {
                true => map.serialize_entry(key, self.text)?,
                false => map.serialize_entry(key, value)?,
            }
        }
        if !fields.contains_key(self.key) {
            map.serialize_entry(self.key, self.text)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn config(template: Value) -> Config {
        Config::new(Template { value: Arc::new(template), filter: None }, "/run/merged")
    }

    #[test]
    fn a_default_control_group_gives_way_to_one_that_is_named() {
        let table = [
            (json!({}), "/ours"),
            (json!({"linux": null}), "/ours"),
            (json!({"linux": {"cgroupsPath": ""}}), "/ours"),
            (json!({"linux": {"cgroupsPath": "/theirs"}}), "/theirs"),
        ];
        for (template, path) in table {
            let config = config(template).with_default_cgroups_path("/ours");
            assert_eq!(config.cgroups_path(), Some(path));
            let written = serde_json::to_value(&config).unwrap();
            assert_eq!(written.pointer("/linux/cgroupsPath"), Some(&json!(path)));
        }
    }

    #[test]
    fn device_nodes_are_made_only_where_the_template_has_rules_of_its_own() {
        let deny = json!({"allow": false, "access": "rwm"});
        let table = [
            (json!([deny]), false),
            (json!([{"allow": false, "type": "a", "major": -1, "minor": -1, "access": "rwm"}]), false),
            (json!([deny, {"allow": false, "type": "c", "major": 1, "minor": 3, "access": "r"}]), false),
            (json!([deny, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"}]), true),
            (json!([{"allow": false, "type": "c", "access": "rwm"}]), true),
            (json!([{"allow": false, "access": "r"}]), true),
            (json!([]), true),
            (Value::Null, true),
        ];
        for (rules, can) in table {
            let capabilities =
                json!({"bounding": ["CAP_CHOWN", "CAP_MKNOD"], "effective": ["CAP_MKNOD"], "ambient": []});
            let template = json!({"process": {"args": ["x"], "capabilities": capabilities}, "linux": {"resources": {"devices": rules}}});
            let mut expected = template.clone();
            if !can {
                expected["process"]["capabilities"] =
                    json!({"bounding": ["CAP_CHOWN"], "effective": [], "ambient": []});
            }
            let written = serde_json::to_value(config(template).without_device_nodes()).unwrap();
            assert_eq!(written, expected, "{rules}");
        }
        // Nothing to take away.
        let bare = json!({"process": {"args": ["x"]}, "linux": {"resources": {"devices": [deny]}}});
        assert_eq!(serde_json::to_value(config(bare.clone()).without_device_nodes()).unwrap(), bare);
    }

    #[test]
    fn only_a_default_limit_of_open_files_is_lowered() {
        let limits = |soft: u64, hard: u64| {
            json!({"process": {"args": ["x"], "rlimits": [
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
                {"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard, "x": 1}
            ]}})
        };
        let table = [
            (limits(1024, 524_288), 4096, limits(1024, 4096)),
            (limits(1024, 524_288), 256, limits(256, 256)),
            (limits(1024, 524_288), 524_288, limits(1024, 524_288)),
            (limits(1024, 8192), 256, limits(1024, 8192)),
            (json!({"process": {"args": ["x"]}}), 256, json!({"process": {"args": ["x"]}})),
        ];
        for (template, of_caller, expected) in table {
            let written = serde_json::to_value(config(template.clone()).with_open_files_of(of_caller)).unwrap();
            assert_eq!(written, expected, "{template} {of_caller}");
        }
    }

    #[test]
    fn read_only_binds_of_files_are_not_recursive() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("file"), "").unwrap();
        fs::create_dir(path("dir")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for (link, target) in [("to-a-file", "file"), ("to-a-dir", "dir"), ("to-nowhere", "missing")] {
            std::os::unix::fs::symlink(target, path(link)).unwrap();
        }
        let mount =
            |source: &str, options: &[&str]| json!({"destination": "/x", "source": path(source), "options": options});
        let read_only = ["nodev", "rbind", "ro", "rro"];
        let plain = ["nodev", "rbind", "ro"];
        let rows: [(&str, &[&str], &[&str]); 10] = [
            ("file", &read_only, &plain),
            ("to-a-file", &read_only, &plain),
            ("socket", &read_only, &plain),
            ("fifo", &["bind", "rro"], &["bind", "ro"]),
            ("file", &["bind", "ro"], &["bind", "ro"]),
            ("file", &["nodev", "rro"], &["nodev", "rro"]), // not a bind mount
            ("dir", &read_only, &read_only),
            ("to-a-dir", &read_only, &read_only),
            ("missing", &read_only, &read_only),
            ("to-nowhere", &read_only, &read_only),
        ];
        let mounts = |is_written: bool| -> Vec<Value> {
            rows.iter().map(|(source, before, after)| mount(source, if is_written { after } else { before })).collect()
        };
        let written = serde_json::to_value(config(json!({"mounts": mounts(false)})).with_binds_of_files()).unwrap();
        assert_eq!(written, json!({"mounts": mounts(true)}));
    }

    /// On other machines every runtime makes its own.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn crun_gets_its_filter_beside_the_profile_and_other_annotations() {
        let template = Template::builder(["true"]).annotation("a", "b").build().unwrap();
        let plain = template.instantiate(Path::new("/run/merged")).unwrap();
        let mut expected = serde_json::to_value(&plain).unwrap();
        let written = serde_json::to_value(plain.with_filter_for_crun()).unwrap();
        let filter = template.filter().unwrap();
        assert!(filter.len() > 1_000, "{filter}");
        expected["annotations"][CRUN_FILTER] = json!(filter);
        assert_eq!(written, expected);

        let theirs = Template::builder(["true"]).annotation(CRUN_FILTER, "AAAA").build().unwrap();
        let theirs = theirs.instantiate(Path::new("/run/merged")).unwrap();
        assert_eq!(theirs.clone().with_filter_for_crun(), theirs);

        let unknown = Template::from_value(serde_json::to_value(&template).unwrap()).unwrap();
        let unknown = unknown.instantiate(Path::new("/run/merged")).unwrap();
        assert_eq!(
            serde_json::to_value(unknown.clone().with_filter_for_crun()).unwrap(),
            serde_json::to_value(unknown).unwrap()
        );
    }

    #[test]
    fn naming_a_control_group_and_a_root_changes_nothing_else() {
        let root = |path: &str| json!({"readonly": true, "path": path, "z": 3});
        let mut config = config(json!({"x": 1, "linux": {"y": 2, "cgroupsPath": "/theirs"}, "root": root("<rootfs>")}));
        config.set_cgroups_path("/ours");
        assert_eq!(
            serde_json::to_value(config).unwrap(),
            json!({"x": 1, "linux": {"y": 2, "cgroupsPath": "/ours"}, "root": root("/run/merged")})
        );
    }
}
