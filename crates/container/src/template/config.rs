use std::borrow::Cow;
use std::path::Path;

use oci_spec::runtime::Spec;
use rustix::termios::Winsize;
use serde::Deserialize;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value, json};

use super::error::TemplateError;
use super::{HOME, Template};
use crate::supervise::PATH_INSIDE;
use crate::{Init, Result, Rootfs, User};

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
    user: Option<User>,
    start: Option<Start>,
}

/// How the helper starts the command.
#[derive(Debug, Clone, PartialEq)]
struct Start {
    init: Init,
    /// The mask of the processors that it may run on.
    affinity: String,
    /// The columns and the rows of its terminal.
    size: Option<(u16, u16)>,
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
            user: None,
            start: None,
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

    /// Writes the numbers of `user` in the place of the template's, and its home directory into the environment as `HOME`, unless
    /// the template has one.
    #[must_use]
    pub fn with_user(mut self, user: User) -> Config {
        self.user = Some(user);
        self
    }

    /// Looks the template's user up in the root file system, unless a [user](Self::with_user) has been given. `bundle` is the
    /// directory that a relative root file system is taken from.
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

    /// Has the helper start the command: as a child of its own, or in its own place.
    pub(crate) fn started_by_helper(mut self, init: Init, affinity: String, size: Option<Winsize>) -> Config {
        let size = size.filter(|_| self.has_terminal()).map(|size| (size.ws_col, size.ws_row));
        self.start = Some(Start { init, affinity, size });
        self
    }

    /// Whether the container has a proc file system where the helper looks for it.
    pub(crate) fn mounts_proc(&self) -> bool {
        let at_proc = self.template.mounts().filter(|mount| mount.destination() == Path::new("/proc"));
        // What a bind mount shows cannot be told from here.
        at_proc.last().is_some_and(|mount| mount.is_bind() || mount.file_system() == Some("proc"))
    }

    /// Takes CAP_MKNOD away, if the template lets no device be opened but those that the runtime makes.
    pub(crate) fn without_device_nodes(mut self) -> Config {
        self.makes_devices = !self.template.denies_devices();
        self
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
            match (key.as_str(), &self.cgroups_path) {
                ("process", _) => map.serialize_entry(key, &self.process(value))?,
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

impl Config {
    /// The template's `process` as the runtime is to have it.
    fn process<'v>(&self, process: &'v Value) -> Cow<'v, Value> {
        let mut process = Cow::Borrowed(process);
        if !self.makes_devices {
            remove_mknod(process.to_mut());
        }
        if let Some(user) = &self.user {
            put_user(process.to_mut(), user);
        }
        if let Some(start) = &self.start {
            start.put_into(process.to_mut());
        }
        process
    }
}

/// Takes CAP_MKNOD out of every set of `process`.
fn remove_mknod(process: &mut Value) {
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    for set in sets.into_iter().flat_map(Map::values_mut).filter_map(Value::as_array_mut) {
        set.retain(|capability| capability != "CAP_MKNOD");
    }
}

impl Start {
    /// Puts the helper before the command, and the size of the terminal beside it unless the template says one.
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

/// Writes `user` into `process`: its numbers in the place of a name, and its home directory unless there is one.
fn put_user(process: &mut Value, user: &User) {
    let Some(process) = process.as_object_mut() else { return };
    if let Value::Object(fields) = or_default(process, "user", json!({})) {
        fields.insert("uid".into(), user.uid.into());
        fields.insert("gid".into(), user.gid.into());
        // Runtimes on Linux do not look at it, and it is not the name of a user alone.
        fields.shift_remove("username");
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

/// The value of `key`, which becomes `default` if it is absent or null.
fn or_default<'a>(object: &'a mut Map<String, Value>, key: &str, default: Value) -> &'a mut Value {
    let value = object.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = default;
    }
    value
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
    fn a_user_changes_its_numbers_and_home_alone() {
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
                json!({"user": {"uid": 1000, "gid": 5, "additionalGids": []}, "env": ["HOME=/mine", "HOMES=1"]}),
                &user,
                json!({"user": {"uid": 1000, "gid": 5, "additionalGids": []}, "env": ["HOME=/mine", "HOMES=1"]}),
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
