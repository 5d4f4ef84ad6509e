//! What is written beside an upper that is kept: enough to open a shell in just that state.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf, absolute};
use std::time::SystemTime;

use anyhow::{Context, bail};
use container::Template;
use layer::{Base, Layer};
use runner::Upper;
use serde_json::{Value, json};

use crate::table;

/// The name of the description, beside the upper.
pub(crate) const DESCRIPTION: &str = "run.json";

/// The stack and the container of a run.
#[derive(Debug)]
pub(crate) struct KeptRun {
    pub(crate) base: Base,
    pub(crate) layers: Vec<Layer>,
    pub(crate) template: Template,
}

/// RUN as it is given on the command line.
#[derive(Debug, clap::Args)]
pub(crate) struct KeptArgs {
    /// The kept run: its directory, or the name of that in --scratch.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Where the directory of RUN is, if RUN is only its name [default: the system's temporary directory].
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

impl KeptArgs {
    /// The kept run's directory.
    pub(crate) fn dir(&self) -> PathBuf {
        let is_name = self.run.components().count() == 1 && self.run.symlink_metadata().is_err();
        let scratch = || self.scratch.clone().unwrap_or_else(std::env::temp_dir);
        if is_name { scratch().join(&self.run) } else { self.run.clone() }
    }

    /// Opens the upper, which nobody else can meanwhile.
    pub(crate) fn reopen(&self) -> anyhow::Result<Upper> {
        Ok(Upper::reopen(self.dir())?)
    }
}

impl KeptRun {
    /// Writes the description into the kept run's directory `dir`, with what the run's report says of its status, for people to
    /// read, and for a capture.
    pub(crate) fn write(&self, dir: &Path, mut report: Value) -> anyhow::Result<()> {
        let path = dir.join(DESCRIPTION);
        let layers: Vec<_> = self.layers.iter().map(|layer| to_json(layer.path())).collect::<anyhow::Result<_>>()?;
        let description = json!({
            "status": report["status"].take(),
            "kept_at": table::timestamp(SystemTime::now()),
            "base": to_json(self.base.path())?,
            "layers": layers,
            "config": self.template,
            "capture": report["capture"].take(),
        });
        fs::write(&path, format!("{description:#}\n")).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads the description from the kept run's directory.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(DESCRIPTION);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let invalid = || format!("{} does not describe a run", path.display());
        let mut description: Value = serde_json::from_slice(&text).with_context(invalid)?;
        let template = Template::from_value(description["config"].take()).with_context(invalid)?;
        let layers = description["layers"].as_array().with_context(invalid)?;
        Ok(Self {
            base: Base::open(from_json(&description["base"]).with_context(invalid)?)?,
            layers: layers
                .iter()
                .map(|path| Ok(Layer::open(from_json(path).with_context(invalid)?)?))
                .collect::<anyhow::Result<_>>()?,
            template,
        })
    }
}

/// An absolute path as a string, or as an array of its bytes if it is no UTF-8.
fn to_json(path: &Path) -> anyhow::Result<Value> {
    let path = absolute(path).with_context(|| format!("cannot make {} absolute", path.display()))?;
    Ok(match path.to_str() {
        Some(text) => text.into(),
        None => path.as_os_str().as_bytes().into(),
    })
}

fn from_json(value: &Value) -> anyhow::Result<PathBuf> {
    match value {
        Value::String(text) => Ok(text.into()),
        Value::Array(_) => Ok(OsString::from_vec(serde_json::from_value(value.clone())?).into()),
        _ => bail!("{value} is no path"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_any_bytes_come_back() {
        for path in
            ["/a b", "/tmp/\u{e9}"].map(PathBuf::from).into_iter().chain([OsString::from_vec(b"/\xff".to_vec()).into()])
        {
            assert_eq!(from_json(&to_json(&path).unwrap()).unwrap(), path);
        }
        assert!(from_json(&Value::Null).is_err());
        assert_eq!(from_json(&to_json(Path::new("x")).unwrap()).unwrap(), std::env::current_dir().unwrap().join("x"));
    }
}
