//! Typed fields to a runtime-spec configuration, without touching anything. What a default container looks like is data
//! in `defaults` and `seccomp`; what is refused is in `validate`.

mod builder;
mod caller_limits;
mod capability;
mod choices;
mod config;
mod controllers;
mod defaults;
mod error;
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
use crate::user::{NOBODY, UserSpec};

pub use builder::TemplateBuilder;
pub use capability::Capability;
pub use choices::{Fsync, Network, NoNewPrivileges, RootAccess, Seccomp, Terminal};
pub use config::Config;
pub use defaults::ROOTFS_PLACEHOLDER;
pub use error::TemplateError;
pub use mount::Mount;
pub use mount_entry::MountEntry;
pub use rlimit::{Rlimit, RlimitKind};
pub use size::parse_size;

/// The beginning of the environment's entry for `HOME`.
const HOME: &str = "HOME=";

/// The largest file that is read. A configuration with Docker's seccomp profile has about 20 KB.
const MAX_BYTES: u64 = 16 << 20;

/// A container but for its root file system: a valid `config.json` of the [OCI runtime specification] in which `root.path`
/// is [`ROOTFS_PLACEHOLDER`].
///
/// One template serves any number of runs: [`instantiate`](Self::instantiate) fills in a root file system each time. It
/// is made from typed fields by [`builder`](Self::builder), with defaults close to Docker's, or from an existing
/// `config.json` by [`from_file`](Self::from_file), of which every key is kept, known or not.
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
    /// Shared with every configuration that is made of it.
    value: Arc<Value>,
    /// What its `linux.seccomp` is compiled to, if that is this crate's own.
    filter: Option<Arc<OnceLock<Option<String>>>>,
}

impl Template {
    /// Reads a `config.json` in which `root.path` is [`ROOTFS_PLACEHOLDER`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be read or has more than 16 MiB, and [`Error::TemplateFile`] with the error of
    /// [`from_json`](Self::from_json) if it cannot be used.
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

    /// Takes over the text of a `config.json` in which `root.path` is [`ROOTFS_PLACEHOLDER`]. Nothing in it is changed.
    ///
    /// # Errors
    ///
    /// [`TemplateError::NotASpec`] when it is no JSON or no configuration, and what [`from_value`](Self::from_value) finds.
    pub fn from_json(json: impl AsRef<[u8]>) -> Result<Template, TemplateError> {
        let value = serde_json::from_slice(json.as_ref()).map_err(|source| TemplateError::NotASpec { source })?;
        Template::from_value(value)
    }

    /// Takes over a configuration in which `root.path` is [`ROOTFS_PLACEHOLDER`]. Nothing in it is changed, and keys that
    /// the specification does not have survive.
    ///
    /// # Errors
    ///
    /// [`TemplateError::NotASpec`] when it does not have the specification's types, [`TemplateError::RootAbsent`] and
    /// [`TemplateError::RootFilled`], and the rest of [`TemplateError`] for values that the builder would refuse too.
    pub fn from_value(value: Value) -> Result<Template, TemplateError> {
        validate::value(&value)?;
        Ok(Template { value: Arc::new(value), filter: None })
    }

    /// The same container with another command.
    ///
    /// # Errors
    ///
    /// [`TemplateError::NoCommand`], [`TemplateError::EmptyProgram`] and [`TemplateError::Nul`], as from the builder.
    pub fn with_args(mut self, argv: impl IntoIterator<Item = impl Into<String>>) -> Result<Template, TemplateError> {
        let argv: Vec<String> = argv.into_iter().map(Into::into).collect();
        validate::args(&argv)?;
        let argv = Value::from(argv);
        validate::no_nul("process.args", &argv)?;
        Arc::make_mut(&mut self.value)["process"]["args"] = argv;
        Ok(self)
    }

    /// The same container, with a terminal for the command or without one. A `TERM` in its environment stays what it is.
    pub fn with_terminal(mut self, terminal: Terminal) -> Template {
        Arc::make_mut(&mut self.value)["process"]["terminal"] = Value::from(terminal == Terminal::Attached);
        self
    }

    /// The command: the program and its arguments.
    pub fn args(&self) -> impl Iterator<Item = &str> {
        self.array("/process/args").filter_map(Value::as_str)
    }

    /// The command's working directory.
    pub fn cwd(&self) -> Option<&Path> {
        self.value.pointer("/process/cwd")?.as_str().map(Path::new)
    }

    /// The numbers of the user and the group that the command runs as. They mean nothing while only a name is known, and are
    /// nobody's (65534) then if the builder has made the template: see [`user_spec`](Self::user_spec).
    pub fn user(&self) -> (u32, u32) {
        let id = |name| self.value.pointer(name).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        (id("/process/user/uid").unwrap_or_default(), id("/process/user/gid").unwrap_or_default())
    }

    /// The user and the group that the command runs as, by number or by name.
    ///
    /// In the configuration a [`UserSpec`] with a name is the text of `process.user.username`, which runtimes on Linux do not look
    /// at. It counts only beside the numbers of nobody (65534): with others, a file's own numbers decide.
    pub fn user_spec(&self) -> UserSpec {
        let name = self.value.pointer("/process/user/username").and_then(Value::as_str);
        let (uid, gid) = self.user();
        let name = name.filter(|_| (uid, gid) == (NOBODY, NOBODY));
        name.and_then(|name| name.parse().ok()).unwrap_or(UserSpec::of_ids(uid, gid))
    }

    /// The supplementary groups, by number.
    pub(crate) fn additional_gids(&self) -> impl Iterator<Item = u32> {
        let ids = self.array("/process/user/additionalGids").filter_map(Value::as_u64);
        ids.filter_map(|id| u32::try_from(id).ok())
    }

    /// The `HOME` in the environment, if there is one.
    pub(crate) fn home(&self) -> Option<&str> {
        // Of several variables of one name, runtimes keep the last.
        self.array("/process/env").filter_map(|entry| entry.as_str()?.strip_prefix(HOME)).last()
    }

    /// The container's own hostname, if it has one; otherwise it shows the host's.
    pub fn hostname(&self) -> Option<&str> {
        self.value.get("hostname")?.as_str()
    }

    /// The network that the container sees. A configuration that names no network namespace has the host's.
    pub fn network(&self) -> Network {
        let namespace = self.array("/linux/namespaces").find(|entry| entry["type"] == "network");
        match namespace.map(|entry| entry["path"].as_str().filter(|path| !path.is_empty())) {
            None => Network::Host,
            Some(None) => Network::None,
            Some(Some(path)) => Network::Joined(path.into()),
        }
    }

    /// Whether the command gets a terminal of its own.
    pub fn terminal(&self) -> Terminal {
        match self.value.pointer("/process/terminal") {
            Some(Value::Bool(true)) => Terminal::Attached,
            _ => Terminal::None,
        }
    }

    /// The controllers that its limits need, by name (cgroups(7)): what [`Cgroup::require`](crate::Cgroup::require) looks for.
    pub fn controllers(&self) -> BTreeSet<String> {
        controllers::needed(&self.value)
    }

    /// What the runtime mounts into the root file system, in its order: a later one covers an earlier one.
    pub fn mounts(&self) -> impl Iterator<Item = MountEntry<'_>> {
        self.array("/mounts").map(|json| MountEntry { json })
    }

    /// Whether its device rules deny every device and allow none, as the builder's do: a runtime adds those that it makes.
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

    /// The program that its seccomp profile comes to, in Base64, made when it is first asked for.
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

impl PartialEq for Template {
    /// Whether they are the same configuration.
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

    /// With keys that `oci-spec` does not know, at every depth.
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
    fn only_the_root_of_a_foreign_configuration_changes() {
        let template = Template::from_json(foreign().to_string()).unwrap();
        assert_eq!(serde_json::to_string(&template).unwrap(), foreign().to_string());

        let mut expected = foreign();
        expected["root"]["path"] = json!("/run/x/merged");
        let config = template.instantiate(Path::new("/run/x/merged")).unwrap();
        assert_eq!(serde_json::to_string(&config).unwrap(), expected.to_string());
        assert_eq!(config.spec().root().as_ref().unwrap().path(), Path::new("/run/x/merged"));
        assert_eq!(serde_json::to_value(&template).unwrap(), foreign(), "the template is as it was");
    }

    #[test]
    fn another_command_changes_nothing_else() {
        let mut expected = foreign();
        expected["process"]["args"] = json!(["make", ""]);
        let template = Template::from_value(foreign()).unwrap();
        assert_eq!(serde_json::to_value(template.clone().with_args(["make", ""]).unwrap()).unwrap(), expected);

        let refused = |argv: Vec<&str>| template.clone().with_args(argv).unwrap_err().to_string();
        assert_eq!(refused(vec![]), "process.args is empty: give the command to run");
        assert_eq!(refused(vec![""]), "process.args[0] is empty: give the name or the path of a program");
        assert!(refused(vec!["a", "b\0"]).starts_with("process.args[1] is \"b\\0\", with a NUL byte"));
    }

    #[test]
    fn a_root_that_json_cannot_carry_is_named() {
        let template = Template::builder(["true"]).build().unwrap();
        let error = template.instantiate(Path::new(OsStr::from_bytes(b"/run/\xff"))).unwrap_err();
        let Error::Template(reason) = error else { panic!("{error:?}") };
        assert_eq!(
            reason.to_string(),
            "root.path \"/run/\\xFF\" is not UTF-8, and config.json is JSON: choose another scratch directory"
        );
    }

    #[test]
    fn tells_a_runner_what_it_has_to_prepare() {
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
        for network in [Network::None, Network::Host, Network::Joined("/run/netns/b".into())] {
            let template = built(network.clone());
            assert_eq!(
                (template.network(), template.terminal(), template.hostname()),
                (network, Terminal::Attached, None)
            );
        }
    }

    #[test]
    fn a_file_is_named_in_what_is_wrong_with_it() {
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
