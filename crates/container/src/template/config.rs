//! The content of one run's `config.json`: a template, and the values that differ from it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use oci_spec::runtime::PosixRlimit;
use rustix::termios::Winsize;
use serde::Deserialize;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value, json};

use super::caller_limits::{self, hard_limit_of_caller};
use super::defaults::OPEN_FILES;
use super::error::TemplateError;
use super::mount_entry::MountEntry;
use super::rlimit::{Rlimit, RlimitKind};
use super::user_namespace::{OwnGroup, Surroundings, without_user_namespace};
use super::{HOME, Network, Template};
use crate::error::Result;
use crate::init::Init;
use crate::rootfs::Rootfs;
use crate::supervise::PATH_INSIDE;
use crate::user::{NOBODY, User};
use crate::user_namespace::UserNamespace;

/// A [`Template`](crate::Template) with its root file system filled in: the content of one run's
/// `config.json`.
///
/// It shares the template and stores only the values that differ. Nothing is copied until it is
/// written.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    template: Template,
    rootfs: String,
    cgroups_path: Option<String>,
    has_filter: bool,
    /// Whether the command keeps the supplementary groups of the caller.
    keeps_groups: bool,
    makes_devices: bool,
    user: Option<User>,
    start: Option<Start>,
    open_files: Option<Rlimit>,
    /// The indexes in `mounts` of files that are mounted recursively read-only.
    binds_of_files: Vec<usize>,
    /// `None` in the machine's first user namespace.
    surroundings: Option<Surroundings>,
}

/// How the helper starts the command.
#[derive(Debug, Clone, PartialEq)]
struct Start {
    init: Init,
    /// The mask of the processors that the command may run on.
    affinity: String,
    /// The columns and the rows of its terminal.
    size: Option<(u16, u16)>,
}

/// The annotation with a BPF program that crun uses instead of the profile in `linux.seccomp`:
/// crun(1), "seccomp".
const CRUN_FILTER: &str = "run.oci.seccomp_bpf_data";

/// The annotation with which crun leaves the supplementary groups of its caller as they are:
/// crun(1), "run.oci.keep_original_groups".
const CRUN_GROUPS: &str = "run.oci.keep_original_groups";

impl Template {
    /// Returns the configuration of a run with the root file system `rootfs`. Only `root.path`
    /// differs from the template.
    ///
    /// A relative `rootfs` is relative to the bundle's directory, as the specification says.
    ///
    /// # Errors
    /// [`TemplateError::NotUtf8`] if `rootfs` cannot be written as JSON.
    pub fn instantiate(&self, rootfs: &Path) -> Result<Config> {
        let rootfs = rootfs.to_str().ok_or_else(|| TemplateError::NotUtf8 {
            field: "root.path",
            path: rootfs.to_owned(),
            remedy: "choose another scratch directory",
        })?;
        Ok(Config::new(self.clone(), rootfs))
    }
}

impl Config {
    /// Creates the configuration. `template` has been checked.
    pub(super) fn new(template: Template, rootfs: impl Into<String>) -> Config {
        Config {
            template,
            rootfs: rootfs.into(),
            cgroups_path: None,
            has_filter: false,
            keeps_groups: false,
            makes_devices: true,
            open_files: None,
            binds_of_files: Vec::new(),
            surroundings: None,
            user: None,
            start: None,
        }
    }

    #[cfg(test)]
    pub(crate) fn spec(&self) -> oci_spec::runtime::Spec {
        Deserialize::deserialize(serde_json::to_value(self).unwrap()).unwrap()
    }

    /// Returns the path of the root file system that the container will see as `/`.
    pub fn rootfs(&self) -> &Path {
        Path::new(&self.rootfs)
    }

    /// Replaces the template's user by the IDs of `user`. Also sets `HOME` to the user's home
    /// directory, unless the template sets `HOME`.
    #[must_use]
    pub fn with_user(mut self, user: User) -> Config {
        self.user = Some(user);
        self
    }

    /// Looks up the template's user in the root file system, unless [`with_user`](Self::with_user)
    /// has set one. A relative root file system is relative to the directory `bundle`.
    ///
    /// # Errors
    /// As from [`Rootfs::open`] and [`Rootfs::find_user`].
    pub fn resolve_user(self, bundle: impl AsRef<Path>) -> Result<Config> {
        if self.user.is_some() {
            return Ok(self);
        }
        let user = Rootfs::open(bundle.as_ref().join(self.rootfs()))?.find_user(&self.template)?;
        Ok(self.with_user(user))
    }

    /// Returns the container's network.
    pub(crate) fn network(&self) -> Network {
        self.template.network()
    }

    /// Returns whether the command gets a terminal.
    pub(crate) fn has_terminal(&self) -> bool {
        self.template.value.pointer("/process/terminal").and_then(Value::as_bool).unwrap_or_default()
    }

    /// Returns the control group of the container, if one is named.
    ///
    /// See [`linux.cgroupsPath`]: an absolute path starts at the mount point of each hierarchy, and
    /// the runtime chooses where a relative one starts.
    ///
    /// [`linux.cgroupsPath`]: https://github.com/opencontainers/runtime-spec/blob/v1.1.0/config-linux.md#cgroups-path
    pub fn cgroups_path(&self) -> Option<&str> {
        let templates = self.template.value.pointer("/linux/cgroupsPath").and_then(Value::as_str);
        // Programs written in Go write an absent string as an empty one.
        self.cgroups_path.as_deref().or(templates).filter(|path| !path.is_empty())
    }

    /// Returns the controllers that the limits need: [`Template::controllers`].
    pub(crate) fn controllers(&self) -> BTreeSet<String> {
        self.template.controllers()
    }

    /// Sets the control group, even if the template names one.
    fn set_cgroups_path(&mut self, path: impl Into<String>) {
        self.cgroups_path = Some(path.into());
    }

    /// Adds the compiled seccomp filter for crun, if this crate compiles the profile and the
    /// template does not have the annotation.
    pub(crate) fn with_filter_for_crun(mut self) -> Config {
        let theirs = self.template.value.pointer("/annotations").and_then(|all| all.get(CRUN_FILTER));
        self.has_filter = self.template.filter.is_some() && theirs.is_none();
        self
    }

    /// Lets crun keep the supplementary groups of the caller, if the command is root and has no
    /// groups of its own. Another user of the container is another person, who is not a member.
    pub(crate) fn with_groups_of_caller(mut self) -> Config {
        let (uid, has_groups) = match &self.user {
            Some(user) => (user.uid, !user.additional_gids.is_empty()),
            None => (self.template.user().0, self.template.additional_gids().next().is_some()),
        };
        let theirs = self.template.value.pointer("/annotations").and_then(|all| all.get(CRUN_GROUPS));
        self.keeps_groups = uid == 0 && !has_groups && theirs.is_none();
        self
    }

    /// Makes the helper start the command, either as its child or in its own place.
    pub(crate) fn started_by_helper(mut self, init: Init, affinity: String, size: Option<Winsize>) -> Config {
        let size = size.filter(|_| self.has_terminal()).map(|size| (size.ws_col, size.ws_row));
        self.start = Some(Start { init, affinity, size });
        self
    }

    /// Returns whether the container has a proc file system on `/proc`, which the helper needs.
    pub(crate) fn mounts_proc(&self) -> bool {
        let at_proc = self.template.mounts().filter(|mount| mount.destination() == Path::new("/proc"));
        // The content of a bind mount is unknown here.
        at_proc.last().is_some_and(|mount| mount.is_bind() || mount.file_system() == Some("proc"))
    }

    /// Removes CAP_MKNOD if the template allows no devices but those that the runtime creates.
    pub(crate) fn without_device_nodes(mut self) -> Config {
        self.makes_devices = !self.template.denies_devices();
        self
    }

    /// Lowers the limit of open files to the hard limit of the calling process, if the limit is the
    /// builder's default and higher.
    pub(crate) fn with_limits_of_caller(self) -> Config {
        self.with_open_files_of(hard_limit_of_caller(RlimitKind::Nofile))
    }

    fn with_open_files_of(mut self, of_caller: u64) -> Config {
        if self.limits().any(|limit| limit == OPEN_FILES) {
            self.open_files = caller_limits::lowered_open_files(of_caller);
        }
        if let Some(Rlimit { soft, hard, .. }) = self.open_files {
            log::debug!(
                "the command may have {soft} files open, and raise that to {hard}, the caller's own hard limit"
            );
        }
        self
    }

    /// Refuses limits that the calling process may not give to the container. Ignores the default
    /// limit of open files, which [`with_limits_of_caller`](Self::with_limits_of_caller) lowers.
    pub(crate) fn check_limits(&self) -> Result<(), TemplateError> {
        self.limits().filter(|limit| *limit != OPEN_FILES).try_for_each(|limit| caller_limits::check_for_caller(&limit))
    }

    fn limits(&self) -> impl Iterator<Item = Rlimit> + '_ {
        let limits = self.template.array("/process/rlimits").filter_map(|limit| PosixRlimit::deserialize(limit).ok());
        limits.map(|limit| Rlimit { kind: RlimitKind::of_spec(limit.typ()), soft: limit.soft(), hard: limit.hard() })
    }

    /// Removes `rro` from read-only bind mounts of files, sockets and FIFOs. `rro` extends `ro` to
    /// the mounts below, and a file has none. crun before 1.14.4 treats every source with a
    /// recursive option as a directory (for sockets and FIFOs, before 1.16).
    ///
    /// Inspects the sources during this call, because the caller may have created them just before.
    /// If a source is missing, the runtime reports it.
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

    /// Adapts the container to the user namespace of this process, if there is one. Removes the
    /// mounts that the kernel would refuse, or replaces them by bind mounts of the host's. Removes
    /// a user namespace of the template's, because this process is in one already.
    pub(crate) fn in_user_namespace(mut self, namespace: Option<UserNamespace>) -> Config {
        let network = self.template.network();
        self.surroundings = namespace.map(|namespace| Surroundings { namespace, network });
        self
    }

    /// Returns `process` if it differs from the template's.
    fn process(&self, process: &Value) -> Option<Value> {
        let mut process = Cow::Borrowed(process);
        if !self.makes_devices {
            remove_mknod(process.to_mut());
        }
        if let Some(limit) = &self.open_files {
            put_open_files(process.to_mut(), limit);
        }
        if let Some(user) = &self.user {
            put_user(process.to_mut(), user);
        }
        if let Some(start) = &self.start {
            start.put_into(process.to_mut());
        }
        match process {
            Cow::Borrowed(_) => None,
            Cow::Owned(changed) => Some(changed),
        }
    }

    /// Returns `linux.resources` if it differs from the template's: the init does not count against
    /// the limit of processes.
    fn resources(&self, linux: &Value) -> Option<Value> {
        self.start.as_ref().filter(|start| start.init == Init::Provided)?;
        let limit = linux.pointer("/resources/pids/limit")?.as_i64().filter(|limit| *limit > 0)?;
        let mut resources = linux["resources"].clone();
        resources["pids"]["limit"] = limit.saturating_add(1).into();
        Some(resources)
    }

    /// Returns the keys of `linux` that concern user namespaces, with their values if these differ
    /// from the template's.
    fn user_namespaces(&self, linux: &Value) -> [(&'static str, Option<Value>); 3] {
        let namespaces = self.surroundings.as_ref().and_then(|_| without_user_namespace(&linux["namespaces"]));
        let emptied = |key: &'static str| {
            let has_some = namespaces.is_some() && linux[key].is_array();
            (key, has_some.then(|| json!([])))
        };
        [emptied("uidMappings"), emptied("gidMappings"), ("namespaces", namespaces.clone())]
    }

    /// Returns `mounts` if it differs from the template's.
    fn mounts(&self, mounts: &Value) -> Option<Value> {
        if self.binds_of_files.is_empty() && self.surroundings.is_none() {
            return None;
        }
        let mut mounts = mounts.clone();
        for index in &self.binds_of_files {
            if let Some(options) = mounts[*index]["options"].as_array_mut() {
                options.retain(|option| option != "ro" && option != "rro");
                options.push("ro".into());
            }
        }
        if let Some(surroundings) = &self.surroundings {
            let group = if self.cgroups_path().is_some() { OwnGroup::Present } else { OwnGroup::Absent };
            surroundings.change_mounts(&mut mounts, group);
        }
        Some(mounts)
    }

    /// Sets the control group unless the template names one.
    #[must_use]
    pub fn with_default_cgroups_path(mut self, path: impl Into<String>) -> Config {
        if self.cgroups_path().is_none() {
            self.set_cgroups_path(path);
        }
        self
    }
}

impl Serialize for Config {
    /// Serializes the template directly and replaces the values that differ.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let none = Map::new();
        let template = self.template.value.as_object().unwrap_or(&none);
        let filter = self.has_filter.then(|| self.template.filter()).flatten();
        let groups = self.keeps_groups.then(|| Value::from("1"));
        let annotations = [(CRUN_FILTER, filter.map(Value::from)), (CRUN_GROUPS, groups)];
        let has_annotations = annotations.iter().any(|(_, value)| value.is_some());
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in template {
            let changed = match key.as_str() {
                "process" => self.process(value),
                "mounts" => self.mounts(value),
                _ => None,
            };
            match (key.as_str(), &self.cgroups_path) {
                _ if changed.is_some() => map.serialize_entry(key, &changed)?,
                ("root", _) => {
                    map.serialize_entry(key, &With { value, changes: [("path", Some(self.rootfs.as_str().into()))] })?
                }
                ("annotations", _) if has_annotations => {
                    map.serialize_entry(key, &With { value, changes: annotations.clone() })?;
                }
                ("linux", path) => {
                    let path = ("cgroupsPath", path.as_deref().map(Value::from));
                    let [uids, gids, namespaces] = self.user_namespaces(value);
                    let changes = [path, ("resources", self.resources(value)), namespaces, uids, gids];
                    map.serialize_entry(key, &With { value, changes })?;
                }
                _ => map.serialize_entry(key, value)?,
            }
        }
        if let (Some(path), false) = (&self.cgroups_path, template.contains_key("linux")) {
            map.serialize_entry("linux", &json!({"cgroupsPath": path}))?;
        }
        if has_annotations && !template.contains_key("annotations") {
            map.serialize_entry("annotations", &With { value: &Value::Null, changes: annotations })?;
        }
        map.end()
    }
}

/// Replaces the limit of open files in `process`, if it has one.
fn put_open_files(process: &mut Value, limit: &Rlimit) {
    let limits = process.get_mut("rlimits").and_then(Value::as_array_mut).into_iter().flatten();
    for entry in limits.filter(|entry| entry["type"] == "RLIMIT_NOFILE") {
        (entry["soft"], entry["hard"]) = (limit.soft.into(), limit.hard.into());
    }
}

/// Removes CAP_MKNOD from every capability set of `process`.
fn remove_mknod(process: &mut Value) {
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    for set in sets.into_iter().flat_map(Map::values_mut).filter_map(Value::as_array_mut) {
        set.retain(|capability| capability != "CAP_MKNOD");
    }
}

impl Start {
    /// Inserts the helper before the command. Sets the size of the terminal unless the template
    /// does.
    fn put_into(&self, process: &mut Value) {
        let role = match self.init {
            Init::Provided => "init",
            Init::None => "exec",
        };
        let words = [PATH_INSIDE, role, &self.affinity].map(Value::from);
        if let Some(args) = process.get_mut("args").and_then(Value::as_array_mut) {
            args.splice(0..0, words);
        }
        if let (Some((columns, rows)), Some(process)) = (self.size, process.as_object_mut()) {
            process.entry("consoleSize").or_insert_with(|| json!({"height": rows, "width": columns}));
        }
    }
}

/// Writes the IDs of `user` into `process`, and its home directory unless `process` has one.
fn put_user(process: &mut Value, user: &User) {
    let Some(process) = process.as_object_mut() else { return };
    if let Value::Object(fields) = or_default(process, "user", json!({})) {
        let numbers = [("uid", user.uid), ("gid", user.gid)].map(|(key, id)| fields.insert(key.into(), id.into()));
        if numbers.iter().all(|number| number.as_ref().is_some_and(|number| *number == NOBODY)) {
            fields.shift_remove("username");
        }
        if !user.additional_gids.is_empty() {
            fields.insert("additionalGids".into(), user.additional_gids.clone().into());
        }
    }
    if let Value::Array(env) = or_default(process, "env", json!([])) {
        if !env.iter().any(|entry| entry.as_str().is_some_and(|entry| entry.starts_with(HOME))) {
            env.push(format!("{HOME}{}", user.home).into());
        }
    }
}

/// Returns the value of `key`. An absent or null value becomes `default`.
fn or_default<'a>(object: &'a mut Map<String, Value>, key: &str, default: Value) -> &'a mut Value {
    let value = object.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = default;
    }
    value
}

/// Serializes an object, or null, with some values replaced or appended.
struct With<'a, const N: usize> {
    value: &'a Value,
    changes: [(&'static str, Option<Value>); N],
}

impl<const N: usize> Serialize for With<'_, N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let none = Map::new();
        let fields = self.value.as_object().unwrap_or(&none);
        let changes = || self.changes.iter().filter_map(|(key, value)| Some((*key, value.as_ref()?)));
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in fields {
            let changed = changes().find(|(changed, _)| key == changed).map(|(_, value)| value);
            map.serialize_entry(key, changed.unwrap_or(value))?;
        }
        for (key, value) in changes().filter(|(key, _)| !fields.contains_key(*key)) {
            map.serialize_entry(key, value)?;
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
    fn a_template_that_names_a_control_group_keeps_it() {
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
    fn mknod_is_kept_only_if_the_template_allows_devices() {
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
        // A template without capabilities does not change.
        let bare = json!({"process": {"args": ["x"]}, "linux": {"resources": {"devices": [deny]}}});
        assert_eq!(serde_json::to_value(config(bare.clone()).without_device_nodes()).unwrap(), bare);
    }

    #[test]
    fn a_user_changes_only_the_numbers_and_home() {
        let user = |gids: &[u32]| User { uid: 1000, gid: 5, additional_gids: gids.to_vec(), home: "/home/opam".into() };
        let (user, in_groups) = (user(&[]), user(&[7, 8]));
        // (process, user, the same with the user)
        let table = [
            (
                json!({"user": {"uid": 65534, "gid": 65534, "umask": 2, "username": "opam:x"}, "env": ["A=1"], "cwd": "/"}),
                &user,
                json!({"user": {"uid": 1000, "gid": 5, "umask": 2}, "env": ["A=1", "HOME=/home/opam"], "cwd": "/"}),
            ),
            (
                json!({"user": {"uid": 1000, "gid": 5, "username": "x", "additionalGids": []}, "env": ["HOME=/mine", "HOMES=1"]}),
                &user,
                json!({"user": {"uid": 1000, "gid": 5, "username": "x", "additionalGids": []}, "env": ["HOME=/mine", "HOMES=1"]}),
            ),
            (
                json!({"user": {"uid": 0, "gid": 0, "additionalGids": [7]}, "env": ["HOMES=1", "HOME"]}),
                &in_groups,
                json!({"user": {"uid": 1000, "gid": 5, "additionalGids": [7, 8]}, "env": ["HOMES=1", "HOME", "HOME=/home/opam"]}),
            ),
            (json!({"env": ["HOME="]}), &user, json!({"env": ["HOME="], "user": {"uid": 1000, "gid": 5}})),
            (
                json!({"user": null, "env": null}),
                &user,
                json!({"user": {"uid": 1000, "gid": 5}, "env": ["HOME=/home/opam"]}),
            ),
            (json!("x"), &user, json!("x")),
        ];
        for (process, user, expected) in table {
            let with =
                |process: &Value| json!({"ociVersion": "1.1.0", "process": process, "root": {"path": "/run/merged"}});
            let config = config(with(&process)).with_user(user.clone());
            assert_eq!(serde_json::to_string(&config).unwrap(), with(&expected).to_string());
        }
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
    fn a_user_is_looked_up_once_in_a_root_below_the_bundle() {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(bundle.path().join("rootfs/etc")).unwrap();
        std::fs::write(bundle.path().join("rootfs/etc/passwd"), "opam:x:1000:5::/home/opam:\n").unwrap();
        let template = Template::builder(["true"]).user_spec("opam".parse().unwrap()).build().unwrap();
        for root in [Path::new("rootfs"), &bundle.path().join("rootfs")] {
            let config = template.instantiate(root).unwrap().resolve_user(bundle.path()).unwrap();
            let written = serde_json::to_value(&config).unwrap();
            assert_eq!(written["process"]["user"], json!({"uid": 1000, "gid": 5}));
            assert_eq!(written["process"]["env"][1], "HOME=/home/opam");
            assert_eq!(config.clone().resolve_user("/no/such/directory").unwrap(), config);
        }
        let error = template.instantiate(Path::new("none")).unwrap().resolve_user(bundle.path()).unwrap_err();
        assert_eq!(error.path(), Some(&*bundle.path().join("none")));
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

    /// On other machines, every runtime compiles the filter itself.
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
    fn only_root_without_groups_keeps_those_of_the_caller() {
        let user =
            |uid: u32, groups: &[u32]| json!({"process": {"user": {"uid": uid, "gid": 0, "additionalGids": groups}}});
        let theirs = json!({"annotations": {CRUN_GROUPS: "0"}});
        for (template, kept) in [
            (json!({}), Some(json!({CRUN_GROUPS: "1"}))),
            (user(0, &[]), Some(json!({CRUN_GROUPS: "1"}))),
            (json!({"annotations": {"a": "b"}}), Some(json!({"a": "b", CRUN_GROUPS: "1"}))),
            (user(0, &[5]), None),
            (user(1000, &[]), None),
            (theirs.clone(), Some(theirs["annotations"].clone())),
        ] {
            let written = serde_json::to_value(config(template.clone()).with_groups_of_caller()).unwrap();
            assert_eq!(written.get("annotations"), kept.as_ref(), "{template}");
        }
    }

    #[test]
    fn the_helper_starts_the_command_and_does_not_count_against_its_limits() {
        let template = json!({
            "process": {"args": ["make", "all"], "terminal": true},
            "linux": {"resources": {"pids": {"limit": 7}, "x": 1}, "y": 2}
        });
        let size = Winsize { ws_row: 40, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
        for (init, role, limit) in [(Init::Provided, "init", 8), (Init::None, "exec", 7)] {
            let config = config(template.clone()).started_by_helper(init, "ff".into(), Some(size));
            let mut expected = template.clone();
            expected["process"]["args"] = json!(["/proc/self/fd/4", role, "ff", "make", "all"]);
            expected["process"]["consoleSize"] = json!({"height": 40, "width": 101});
            expected["linux"]["resources"]["pids"]["limit"] = json!(limit);
            assert_eq!(serde_json::to_value(config).unwrap(), expected);
        }
        let sized = json!({"process": {"args": ["x"], "terminal": true, "consoleSize": {"height": 1, "width": 2}}});
        let config = config(sized.clone()).started_by_helper(Init::Provided, String::new(), Some(size));
        assert_eq!(serde_json::to_value(config).unwrap()["process"]["consoleSize"], sized["process"]["consoleSize"]);
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
