//! A container without its root file system. `builder` makes one from typed fields, `validate`
//! checks it, `defaults` has the default container as data, and `config` adds the root file system.

mod builder;
mod caller_limits;
mod capability;
mod choices;
mod config;
mod controllers;
mod defaults;
pub(crate) mod error;
mod fields;
#[cfg(test)]
mod golden;
mod mount;
mod mount_entry;
mod mount_spec;
mod rlimit;
mod rlimit_spec;
mod seccomp;
#[cfg(test)]
mod shape;
mod size;
mod spec;
mod user_namespace;
mod validate;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use oci_spec::runtime::LinuxSeccomp;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::network;
use crate::user::{NOBODY, UserSpec};

pub use builder::TemplateBuilder;
pub use capability::Capability;
pub use choices::{Fsync, Network, NoNewPrivileges, Owners, RootAccess, Seccomp, Terminal};
pub use config::Config;
pub use defaults::ROOTFS_PLACEHOLDER;
pub use error::TemplateError;
pub use mount::Mount;
pub use mount_entry::MountEntry;
pub use rlimit::{Rlimit, RlimitKind};
pub use size::parse_size;

/// The beginning of the environment's entry for `HOME`.
const HOME: &str = "HOME=";

/// The largest file that is read, in bytes. A configuration with Docker's seccomp profile takes
/// about 20 KB.
const MAX_BYTES: u64 = 16 << 20;

/// A container without its root file system: a valid `config.json` of the [OCI runtime
/// specification] in which `root.path` is [`ROOTFS_PLACEHOLDER`].
///
/// One template serves any number of runs: [`instantiate`](Self::instantiate) adds a root file
/// system each time. [`builder`](Self::builder) creates a template from typed fields, with defaults
/// close to Docker's. [`from_file`](Self::from_file) reads an existing `config.json` and keeps
/// every key, known or not.
///
/// ```
/// use std::path::Path;
/// use container::{Mount, Network, Template};
///
/// let template = Template::builder(["make", "-j4"])
///     .cwd("/src")
///     .env("LANG", "C.UTF-8")
///     .user(1000, 1000)
///     .mount(Mount::bind("/var/cache/ccache", "/ccache"))
///     .network(Network::Host)
///     .memory_limit_bytes(2 << 30)
///     .build()?;
/// let config = template.instantiate(Path::new("/run/build/rootfs"))?;
/// assert_eq!(config.rootfs(), Path::new("/run/build/rootfs"));
/// # Ok::<(), container::Error>(())
/// ```
///
/// [OCI runtime specification]: https://github.com/opencontainers/runtime-spec/blob/v1.1.0/config.md
#[derive(Debug, Clone)]
pub struct Template {
    /// Shared with every configuration of this template.
    value: Arc<Value>,
    /// The compiled `linux.seccomp`, if this crate has created the profile.
    filter: Option<Arc<OnceLock<Option<String>>>>,
}

impl Template {
    /// Reads a `config.json` in which `root.path` is [`ROOTFS_PLACEHOLDER`], or `rootfs`, as in the
    /// files that `runc spec` and `crun spec` write.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read or has more than 16 MiB, and
    /// [`Error::TemplateFile`] with the error of [`from_json`](Self::from_json) if it cannot be
    /// used.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Template> {
        let path = path.as_ref();
        let mut json = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut json))
            .map_err(Error::io("read", path))?;
        if json.len() as u64 > MAX_BYTES {
            return Err(Error::io("read", path)(io::Error::from(io::ErrorKind::FileTooLarge)));
        }
        Template::from_json(&json).map_err(|source| Error::TemplateFile { path: path.to_owned(), source })
    }

    /// Parses the text of a `config.json` in which `root.path` is [`ROOTFS_PLACEHOLDER`] or
    /// `rootfs`. Changes nothing in it.
    ///
    /// # Errors
    /// [`TemplateError::NotASpec`] if the text is not JSON, and the errors of
    /// [`from_value`](Self::from_value).
    pub fn from_json(json: impl AsRef<[u8]>) -> Result<Template, TemplateError> {
        let value = serde_json::from_slice(json.as_ref()).map_err(|source| TemplateError::NotASpec { source })?;
        Template::from_value(value)
    }

    /// Creates a template from a configuration in which `root.path` is [`ROOTFS_PLACEHOLDER`] or
    /// `rootfs`. Changes nothing in it, and keeps keys that the specification does not have.
    ///
    /// # Errors
    /// - [`TemplateError::NotASpec`] if a value does not have the specification's type.
    /// - [`TemplateError::RootAbsent`] or [`TemplateError::RootFilled`] if `root.path` is neither
    ///   of the two.
    /// - Another [`TemplateError`] for a value that the builder would refuse too.
    pub fn from_value(value: Value) -> Result<Template, TemplateError> {
        validate::value(&value)?;
        Ok(Template { value: Arc::new(value), filter: None })
    }

    /// Replaces the command.
    ///
    /// # Errors
    /// [`TemplateError::NoCommand`], [`TemplateError::EmptyProgram`] and [`TemplateError::Nul`], as
    /// from the builder.
    pub fn with_args(mut self, argv: impl IntoIterator<Item = impl Into<String>>) -> Result<Template, TemplateError> {
        let argv: Vec<String> = argv.into_iter().map(Into::into).collect();
        validate::args(&argv)?;
        let argv = Value::from(argv);
        validate::no_nul("process.args", &argv)?;
        Arc::make_mut(&mut self.value)["process"]["args"] = argv;
        Ok(self)
    }

    /// Sets an environment variable. Replaces every earlier value of the same name.
    ///
    /// # Errors
    /// [`TemplateError::EnvironmentKey`] and [`TemplateError::Nul`], as from the builder.
    pub fn with_env(mut self, key: impl AsRef<str>, value: impl AsRef<str>) -> Result<Template, TemplateError> {
        let key = key.as_ref();
        validate::environment_key(key)?;
        let entry = Value::from(format!("{key}={}", value.as_ref()));
        validate::no_nul("process.env[]", &entry)?;
        let sets_key =
            |entry: &Value| entry.as_str().and_then(|entry| entry.split_once('=')).is_some_and(|(name, _)| name == key);
        let env = array_mut(&mut Arc::make_mut(&mut self.value)["process"]["env"]);
        let place = env.iter().position(sets_key).unwrap_or(env.len());
        env.retain(|entry| !sets_key(entry));
        env.insert(place, entry);
        Ok(self)
    }

    /// Adds a mount, on top of the template's mounts.
    ///
    /// # Errors
    /// [`TemplateError::MountDestination`], [`TemplateError::MountSource`],
    /// [`TemplateError::MountSetting`], [`TemplateError::NotUtf8`] and [`TemplateError::Nul`], as
    /// from the builder.
    pub fn with_mount(mut self, mount: Mount) -> Result<Template, TemplateError> {
        validate::mount(&mount)?;
        let mount = mount.to_spec();
        validate::mount_entry(&mount)?;
        let entry = to_value(&mount)?;
        validate::no_nul("mounts[]", &entry)?;
        array_mut(&mut Arc::make_mut(&mut self.value)["mounts"]).push(entry);
        Ok(self)
    }

    /// Replaces the command's user and group. Supplementary groups and a `HOME` in the environment
    /// stay as they are.
    ///
    /// # Errors
    /// [`TemplateError::Id`], as from the builder.
    pub fn with_user(mut self, user: UserSpec) -> Result<Template, TemplateError> {
        let user = spec::user(&user);
        validate::user(&user)?;
        let entry = &mut Arc::make_mut(&mut self.value)["process"]["user"];
        entry.as_object_mut().map(|entry| entry.shift_remove("username"));
        if let Value::Object(fields) = to_value(&user)? {
            fields.into_iter().for_each(|(key, value)| entry[key] = value);
        }
        Ok(self)
    }

    /// Sets whether the command gets a terminal. Does not change a `TERM` in its environment.
    pub fn with_terminal(mut self, terminal: Terminal) -> Template {
        Arc::make_mut(&mut self.value)["process"]["terminal"] = Value::from(terminal == Terminal::Attached);
        self
    }

    /// Returns the command: the program and its arguments.
    pub fn args(&self) -> impl Iterator<Item = &str> {
        self.array("/process/args").filter_map(Value::as_str)
    }

    /// Returns the command's working directory.
    pub fn cwd(&self) -> Option<&Path> {
        self.value.pointer("/process/cwd")?.as_str().map(Path::new)
    }

    /// Returns the command's environment, in order. If a variable is set several times, runtimes
    /// keep the last value.
    pub fn env(&self) -> impl Iterator<Item = (&str, &str)> {
        self.array("/process/env").filter_map(|entry| entry.as_str()?.split_once('='))
    }

    /// Returns the IDs of the command's user and group. If only a name is known, the IDs have no
    /// meaning: the builder then writes those of nobody (65534). See
    /// [`user_spec`](Self::user_spec).
    pub fn user(&self) -> (u32, u32) {
        let id = |name| self.value.pointer(name).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        (id("/process/user/uid").unwrap_or_default(), id("/process/user/gid").unwrap_or_default())
    }

    /// Returns the command's user and group by number or by name.
    ///
    /// The configuration stores a [`UserSpec`] with a name in `process.user.username`, which
    /// runtimes on Linux ignore. The name counts only if both IDs are those of nobody (65534).
    /// Otherwise, the IDs of the configuration decide.
    pub fn user_spec(&self) -> UserSpec {
        let name = self.value.pointer("/process/user/username").and_then(Value::as_str);
        let (uid, gid) = self.user();
        let name = name.filter(|_| (uid, gid) == (NOBODY, NOBODY));
        name.and_then(|name| name.parse().ok()).unwrap_or(UserSpec::of_ids(uid, gid))
    }

    /// Returns the IDs of the supplementary groups.
    pub(crate) fn additional_gids(&self) -> impl Iterator<Item = u32> {
        let ids = self.array("/process/user/additionalGids").filter_map(Value::as_u64);
        ids.filter_map(|id| u32::try_from(id).ok())
    }

    /// Returns the `HOME` of the environment, if it has one.
    pub(crate) fn home(&self) -> Option<&str> {
        // If a variable is set several times, runtimes keep the last value.
        self.array("/process/env").filter_map(|entry| entry.as_str()?.strip_prefix(HOME)).last()
    }

    /// Returns the container's own hostname. Without one, the container shows the host's.
    pub fn hostname(&self) -> Option<&str> {
        self.value.get("hostname")?.as_str()
    }

    /// Returns the container's network. A configuration without a network namespace has the host's
    /// network.
    pub fn network(&self) -> Network {
        let namespace = self.array("/linux/namespaces").find(|entry| entry["type"] == "network");
        match namespace.map(|entry| entry["path"].as_str().filter(|path| !path.is_empty())) {
            None => Network::Host,
            Some(None) => Network::None,
            Some(Some(network::PATH)) => Network::Private,
            Some(Some(path)) => Network::Joined(path.into()),
        }
    }

    /// Returns whether the command gets a terminal.
    pub fn terminal(&self) -> Terminal {
        match self.value.pointer("/process/terminal") {
            Some(Value::Bool(true)) => Terminal::Attached,
            _ => Terminal::None,
        }
    }

    /// Returns the controllers that the limits need, by their names in cgroups(7).
    /// [`Cgroup::require`](crate::Cgroup::require) looks for them.
    pub fn controllers(&self) -> BTreeSet<String> {
        controllers::needed(&self.value)
    }

    /// Returns the mounts of the container in the runtime's order. A later mount covers an earlier
    /// one.
    pub fn mounts(&self) -> impl Iterator<Item = MountEntry<'_>> {
        self.array("/mounts").map(|json| MountEntry { json })
    }

    /// Returns whether the device rules deny every device and allow none, as the builder's do. A
    /// runtime adds the devices that it creates.
    pub(crate) fn denies_devices(&self) -> bool {
        let any = |value: &Value| value.is_null() || value == -1;
        let every = |rule: &Value| {
            let access = rule["access"].as_str().unwrap_or("rwm");
            (rule["type"].is_null() || rule["type"] == "a")
                && (any(&rule["major"]) && any(&rule["minor"]))
                && ["r", "w", "m"].iter().all(|letter| access.contains(letter))
        };
        let rules = || self.array("/linux/resources/devices");
        rules().any(every) && rules().all(|rule| rule["allow"] == false)
    }

    /// Returns whether the seccomp profile answers changes of users by success without making them,
    /// as with [`Owners::Fake`].
    pub(crate) fn fakes_users(&self) -> bool {
        self.value.pointer("/linux/seccomp").is_some_and(seccomp::fakes_users)
    }

    /// Returns whether this crate compiles the seccomp profile and has not done it yet.
    pub(crate) fn awaits_filter(&self) -> bool {
        self.filter.as_ref().is_some_and(|filter| filter.get().is_none())
    }

    /// Compiles the seccomp profile, if this crate does that. The template and its copies share the
    /// result.
    pub(crate) fn compile_filter(&self) {
        let _ = self.filter();
    }

    /// Returns the compiled seccomp profile in Base64. The first call compiles it.
    fn filter(&self) -> Option<&str> {
        let compile = || {
            let profile = LinuxSeccomp::deserialize(self.value.pointer("/linux/seccomp")?).ok()?;
            seccomp::compiled(&profile)
        };
        self.filter.as_ref()?.get_or_init(compile).as_deref()
    }

    fn array(&self, pointer: &str) -> impl Iterator<Item = &Value> {
        self.value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
    }
}

/// Returns the array at `value`, which `validate` has found to be an array, null or absent.
fn array_mut(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut().expect("an array")
}

fn to_value(value: impl Serialize) -> Result<Value, TemplateError> {
    serde_json::to_value(value).map_err(|source| TemplateError::Serialize { source })
}

impl PartialEq for Template {
    /// Returns whether both are the same configuration.
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.as_ref().serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;

    use serde_json::json;

    use super::*;

    /// Returns a configuration with keys that `oci-spec` does not know, at every depth.
    fn foreign() -> Value {
        json!({
            "ociVersion": "1.0.2-dev",
            "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0, "x-user": [1.5]}, "x-process": {"a": null}},
            "root": {"path": "<rootfs>", "readonly": true, "x-root": "kept"},
            "hostname": "here",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/a", "type": "none", "source": "/srv/a", "options": ["rbind", "ro"], "x-mount": true}
            ],
            "linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/a"}], "x-linux": 18446744073709551615u64},
            "x-top": {"deep": [{}, "<rootfs>"]}
        })
    }

    #[test]
    fn only_the_root_of_a_configuration_from_elsewhere_changes() {
        let template = Template::from_json(foreign().to_string()).unwrap();
        assert_eq!(serde_json::to_string(&template).unwrap(), foreign().to_string());

        let mut expected = foreign();
        expected["root"]["path"] = json!("/run/x/merged");
        let config = template.instantiate(Path::new("/run/x/merged")).unwrap();
        assert_eq!(serde_json::to_string(&config).unwrap(), expected.to_string());
        assert_eq!(config.spec().root().as_ref().unwrap().path(), Path::new("/run/x/merged"));
        assert_eq!(serde_json::to_value(&template).unwrap(), foreign(), "the template does not change");
    }

    #[test]
    fn a_new_command_changes_nothing_else() {
        let mut expected = foreign();
        expected["process"]["args"] = json!(["make", ""]);
        let template = Template::from_value(foreign()).unwrap();
        assert_eq!(serde_json::to_value(template.clone().with_args(["make", ""]).unwrap()).unwrap(), expected);

        let refused = |argv: Vec<&str>| template.clone().with_args(argv).unwrap_err().to_string();
        assert_eq!(refused(vec![]), "process.args is empty: give the command to run");
        assert_eq!(refused(vec![""]), "process.args[0] is empty: give the name or the path of a program");
        assert!(refused(vec!["a", "b\0"]).starts_with("process.args[1] is \"b\\0\", which contains a NUL byte"));
    }

    #[test]
    fn a_template_from_elsewhere_is_changed_as_the_builder_builds() {
        let with_all = |template: Template| {
            let template = template.with_env("LANG", "C")?.with_env("LANG", "C.UTF-8")?.with_user("opam".parse()?)?;
            template.with_mount(Mount::bind("/srv/b", "/b").read_only())?.with_mount(Mount::tmpfs("/t"))
        };
        let built = Template::builder(["sh"]).env("LANG", "C.UTF-8").user_spec("opam".parse().unwrap());
        let built = built.mount(Mount::bind("/srv/b", "/b").read_only()).mount(Mount::tmpfs("/t")).build().unwrap();
        assert_eq!(with_all(Template::builder(["sh"]).build().unwrap()).unwrap(), built);

        let changed = with_all(Template::from_value(foreign()).unwrap()).unwrap();
        let mut expected = foreign();
        let built = serde_json::to_value(&built).unwrap();
        expected["process"]["env"] = json!(["LANG=C.UTF-8"]);
        expected["process"]["user"] = json!({"uid": NOBODY, "gid": NOBODY, "x-user": [1.5], "username": "opam"});
        let added = built["mounts"].as_array().unwrap().iter().rev().take(2).rev().cloned();
        expected["mounts"].as_array_mut().unwrap().extend(added);
        assert_eq!(serde_json::to_value(&changed).unwrap(), expected);
        let back = changed.with_user(UserSpec::of_ids(1, 2)).unwrap();
        assert_eq!(
            serde_json::to_value(&back).unwrap()["process"]["user"],
            json!({"uid": 1, "gid": 2, "x-user": [1.5]})
        );
    }

    #[test]
    fn a_change_is_refused_as_by_the_builder() {
        let template = Template::from_value(foreign()).unwrap();
        let builder = || Template::builder(["sh"]);
        let bad_id = UserSpec::of_ids(u32::MAX, 0);
        let relative = Mount::bind("relative", "/a");
        let table = [
            (template.clone().with_env("A=B", "c"), builder().env("A=B", "c")),
            (template.clone().with_env("", "c"), builder().env("", "c")),
            (template.clone().with_mount(Mount::tmpfs("a")), builder().mount(Mount::tmpfs("a"))),
            (template.clone().with_mount(relative.clone()), builder().mount(relative)),
            (
                template.clone().with_mount(Mount::tmpfs("/a").size_bytes(0)),
                builder().mount(Mount::tmpfs("/a").size_bytes(0)),
            ),
            (template.clone().with_user(bad_id.clone()), builder().user_spec(bad_id)),
        ];
        for (changed, built) in table {
            assert_eq!(changed.unwrap_err().to_string(), built.build().unwrap_err().to_string());
        }
        for changed in [template.clone().with_env("A", "b\0"), template.with_mount(Mount::tmpfs("/a\0"))] {
            assert!(matches!(changed, Err(TemplateError::Nul { .. })), "{changed:?}");
        }
    }

    #[test]
    fn the_root_of_a_new_file_of_a_runtime_is_a_placeholder() {
        let mut value = foreign();
        value["root"]["path"] = json!("rootfs");
        let config = Template::from_value(value).unwrap().instantiate(Path::new("/run/x/merged")).unwrap();
        assert_eq!(config.spec().root().as_ref().unwrap().path(), Path::new("/run/x/merged"));
    }

    #[test]
    fn a_root_that_is_not_utf8_is_named() {
        let template = Template::builder(["true"]).build().unwrap();
        let error = template.instantiate(Path::new(OsStr::from_bytes(b"/run/\xff"))).unwrap_err();
        let Error::Template(reason) = error else { panic!("{error:?}") };
        assert_eq!(
            reason.to_string(),
            "root.path \"/run/\\xFF\" is not UTF-8, and config.json is JSON: choose another scratch directory"
        );
    }

    #[test]
    fn the_getters_return_the_values_of_the_configuration() {
        let foreign = Template::from_value(foreign()).unwrap();
        assert_eq!(foreign.args().collect::<Vec<_>>(), ["sh"]);
        assert_eq!(foreign.hostname(), Some("here"));
        assert_eq!((foreign.cwd(), foreign.user()), (Some(Path::new("/")), (0, 0)));
        assert_eq!(foreign.network(), Network::Joined("/run/netns/a".into()));
        assert_eq!(foreign.terminal(), Terminal::None);
        let mounts: Vec<_> =
            foreign.mounts().map(|m| (m.destination(), m.source(), m.file_system(), m.is_bind())).collect();
        assert_eq!(
            mounts,
            [
                (Path::new("/proc"), Some(Path::new("proc")), Some("proc"), false),
                (Path::new("/a"), Some(Path::new("/srv/a")), Some("none"), true)
            ]
        );

        let built = |network| Template::builder(["sh"]).network(network).terminal(Terminal::Attached).build().unwrap();
        for network in [Network::None, Network::Host, Network::Private, Network::Joined("/run/netns/b".into())] {
            let template = built(network.clone());
            assert_eq!(
                (template.network(), template.terminal(), template.hostname()),
                (network, Terminal::Attached, None)
            );
        }
    }

    #[test]
    fn an_error_of_a_file_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        assert_eq!(Template::from_file(&path).unwrap_err().to_string(), format!("cannot read {}", path.display()));

        fs::write(&path, "{}").unwrap();
        let error = Template::from_file(&path).unwrap_err();
        assert_eq!(error.to_string(), format!("{} cannot serve as a template", path.display()));
        assert!(matches!(error, Error::TemplateFile { source: TemplateError::RootAbsent, .. }), "{error:?}");

        let error = Template::from_file("/dev/zero").unwrap_err();
        assert!(matches!(error, Error::Io { operation: "read", .. }), "{error}");

        fs::write(&path, foreign().to_string()).unwrap();
        assert_eq!(Template::from_file(&path).unwrap(), Template::from_value(foreign()).unwrap());
    }
}
