//! The record of a command, which the report of a run and the sidecar `run.json` of a layer
//! contain.
//!
//! `capture_record` has the record that a capture needs; `publish` writes the sidecar.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use container::{Runtime, Template};
use layer::json_path;
use serde::{Deserialize, Serialize};

/// A record of a command, its environment and its runtime, for people who look at a layer later.
///
/// As JSON:
/// `{"argv":[…],"cwd":PATH,"env":{NAME:null…},"user":"0:0","runtime":PATH,"kernel":"6.1.0","host":"n1"}`.
/// [`Report::to_json`](crate::Report::to_json) has it as `command`. As the sidecar
/// [`SIDECAR`](Self::SIDECAR), [`Report::publish`](crate::Report::publish) and `layered commit` put
/// it into a layer. Every key but `argv` may be absent.
///
/// This crate defines the record because only this crate deals with both commands and layers.
/// `layer` does not interpret sidecars, and `container` does not use layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandRecord {
    /// The program and its arguments. They can contain secrets, too.
    pub argv: Vec<String>,
    /// The working directory in the container.
    #[serde(default, with = "json_path")]
    pub cwd: PathBuf,
    /// The variables of the environment by their names. A value is `None` unless the caller of the
    /// run asked for the [values](RecordEnv::Values), because many contain secrets.
    #[serde(default)]
    pub env: BTreeMap<String, Option<String>>,
    /// The user and the group as the template names them: `1000:1000`, `opam`. The `layer.json` has
    /// their IDs.
    #[serde(default)]
    pub user: String,
    /// The program of the OCI runtime: a name or a path. Its version is not recorded: the runtime
    /// would have to be started once more to report it.
    #[serde(default, with = "json_path")]
    pub runtime: PathBuf,
    /// The release of the kernel, as of uname(2).
    #[serde(default)]
    pub kernel: String,
    /// The host name of the machine, as of uname(2). The layers of one store can be from many.
    #[serde(default)]
    pub host: String,
}

/// What a [`CommandRecord`] contains of the command's environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RecordEnv {
    /// The names of the variables.
    #[default]
    Names,
    /// The names and the values.
    Values,
}

impl CommandRecord {
    /// The name of the sidecar that contains the record.
    pub const SIDECAR: &str = "run";

    pub(crate) fn new(template: &Template, runtime: &Runtime, env: RecordEnv) -> Self {
        let value = |value: &str| match env {
            RecordEnv::Names => None,
            RecordEnv::Values => Some(value.into()),
        };
        let machine = rustix::system::uname();
        Self {
            argv: template.args().map(Into::into).collect(),
            cwd: template.cwd().unwrap_or(Path::new("/")).into(),
            env: template.env().map(|(name, text)| (name.into(), value(text))).collect(),
            user: template.user_spec().to_string(),
            runtime: runtime.program().into(),
            kernel: machine.release().to_string_lossy().into_owned(),
            host: machine.nodename().to_string_lossy().into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::mutated;

    fn record(env: RecordEnv) -> Value {
        let template = Template::builder(["sh", "-c", "exit 3"]).cwd("/src").env("TOKEN", "secret").user(7, 8);
        let record = CommandRecord::new(&template.build().unwrap(), &Runtime::new("/opt/crun"), env);
        serde_json::to_value(record).unwrap()
    }

    #[test]
    fn the_values_of_variables_are_recorded_only_on_request() {
        let mut names = record(RecordEnv::Names);
        assert!(!names.to_string().contains("secret"));
        assert_eq!(record(RecordEnv::Values)["env"]["TOKEN"], "secret");
        let kernel = names.as_object_mut().unwrap().remove("kernel").unwrap();
        assert!(kernel.as_str().unwrap().starts_with(|first: char| first.is_ascii_digit()), "{kernel}");
        let host = names.as_object_mut().unwrap().remove("host").unwrap();
        assert_eq!(host, *rustix::system::uname().nodename().to_string_lossy());
        let env = json!({"PATH": null, "TOKEN": null});
        assert_eq!(
            names,
            json!({"argv": ["sh", "-c", "exit 3"], "cwd": "/src", "env": env, "user": "7:8", "runtime": "/opt/crun"})
        );
    }

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn a_record_of_any_shape_is_refused_or_read_back(value in mutated::value(record(RecordEnv::Values))) {
            if let Ok(record) = serde_json::from_value::<CommandRecord>(value) {
                let again = serde_json::from_value(serde_json::to_value(&record).unwrap()).unwrap();
                prop_assert_eq!(record, again);
            }
        }
    }
}
