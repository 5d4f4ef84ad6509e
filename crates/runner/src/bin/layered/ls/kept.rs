//! The kept runs of a scratch directory, as a table or as JSON.
//!
//! [`kept`] finds them and reads their descriptions.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;

use layer::display::quoted;
use layer::{TreeSize, json_path};
use serde::Serialize;
use serde_json::Value;

use super::Args;
use crate::kept::{self, Found};
use crate::{complain, defaults, table};

/// The JSON of a kept run.
#[derive(Debug, Serialize)]
struct Line<'a> {
    #[serde(serialize_with = "json_path::serialize")]
    name: &'a OsStr,
    #[serde(serialize_with = "json_path::serialize")]
    path: &'a Path,
    kept_at: &'a Value,
    status: &'a Value,
    argv: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
}

/// Prints the kept runs.
pub(super) fn list(args: &Args) -> anyhow::Result<ExitCode> {
    let (mut runs, mut searched, mut is_complete) = (Vec::new(), Vec::new(), true);
    for dir in defaults::kept_runs(args.scratch.as_deref()) {
        // Reports a directory that cannot be read, and lists the others.
        match kept::list(&dir) {
            Ok(found) => {
                runs.extend(found);
                searched.push(quoted(&dir).to_string());
            }
            Err(error) => {
                complain(format_args!("cannot read {}: {error}", quoted(&dir)));
                // A directory that does not exist has no kept runs.
                is_complete &= error.kind() == ErrorKind::NotFound;
            }
        }
    }
    let is_success = is_complete && !searched.is_empty();
    let status = if is_success { ExitCode::SUCCESS } else { crate::FAILURE.into() };
    runs.sort_by_key(Found::order);
    if runs.is_empty() && !searched.is_empty() {
        complain(format_args!("there are no kept runs in {}", searched.join(" and ")));
    }
    let mut out = table::stdout();
    let size = |run: &Found| args.size.then(|| TreeSize::of(&run.dir).map(|size| size.bytes)).transpose();
    if args.json {
        for run in &runs {
            let Found { dir, kept_at, status, argv } = run;
            let name = dir.file_name().unwrap_or_default();
            table::print_json(&mut out, &Line { name, path: dir, kept_at, status, argv, size: size(run)? })?;
        }
        return Ok(status);
    }
    let mut rows = vec![vec!["RUN".into(), "KEPT".into(), "STATUS".into()]];
    rows[0].extend(args.size.then(|| "SIZE".into()));
    rows[0].push("COMMAND".into());
    for run in &runs {
        // A name is enough for the other commands, unless the caller has named the directory here.
        let shown = match &args.scratch {
            Some(_) => run.dir.as_path(),
            None => Path::new(run.dir.file_name().unwrap_or_default()),
        };
        let mut row = vec![quoted(shown).to_string(), run.kept_at.as_str().unwrap_or("?").into(), ending(&run.status)];
        row.extend(size(run)?.map(table::bytes));
        row.push(shell_words::join(&run.argv));
        rows.push(row);
    }
    table::print_to_fit(&mut out, &rows, if args.size { &[3] } else { &[] }, &[1])?;
    Ok(status)
}

/// Returns a status of a report as text. The description of a kept run can have any content.
fn ending(status: &Value) -> String {
    match status {
        Value::Null => "?".into(),
        Value::String(text) => text.replace('_', " "),
        status => match (&status["exited"], &status["signaled"]) {
            (Value::Number(code), _) => format!("exit {code}"),
            (_, Value::Number(signal)) => format!("signal {signal}"),
            _ => status.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use container::Status;

    use serde_json::json;

    use super::*;

    #[test]
    fn every_status_has_a_text() {
        for (ended, text) in [
            (json!(Status::Exited(3)), "exit 3"),
            (json!(Status::Signaled(9)), "signal 9"),
            (json!(Status::TimedOut), "timed out"),
            (json!(Status::OutOfMemory), "out of memory"),
            (json!(null), "?"),
            (json!({"else": 1}), "{\"else\":1}"),
        ] {
            assert_eq!(ending(&ended), text);
        }
    }
}
