//! The kept runs of a scratch directory, as a table or as JSON.
//!
//! [`kept`] finds them and reads their descriptions.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use layer::display::{escaped_json, quoted};
use layer::{TreeSize, json_path};
use serde_json::{Value, json};

use super::Args;
use crate::kept::{self, Found};
use crate::{complain, defaults, table};

/// Prints the kept runs.
pub(super) fn list(args: &Args) -> anyhow::Result<ExitCode> {
    let scratch = defaults::kept_runs(args.scratch.as_deref());
    let runs = kept::list(&scratch)?;
    if runs.is_empty() {
        let dirs: Vec<_> = scratch.iter().map(|dir| quoted(dir).to_string()).collect();
        complain(format_args!("there are no kept runs in {}", dirs.join(" and ")));
    }
    let mut out = io::stdout().lock();
    let size = |run: &Found| args.size.then(|| TreeSize::of(&run.dir).map(|size| size.bytes)).transpose();
    if args.json {
        for run in &runs {
            let mut json = json!({
                "name": run.dir.file_name().map(json_path::to_value),
                "path": json_path::to_value(&run.dir),
                "kept_at": run.kept_at,
                "status": run.status,
                "argv": run.argv,
            });
            if let Some(bytes) = size(run)? {
                json["size"] = json!(bytes);
            }
            writeln!(out, "{}", escaped_json(json))?;
        }
        return Ok(ExitCode::SUCCESS);
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
        let mut row = vec![quoted(shown).to_string(), run.kept_at.as_str().unwrap_or("?").into(), status(&run.status)];
        row.extend(size(run)?.map(table::bytes));
        row.push(shell_words::join(&run.argv));
        rows.push(row);
    }
    table::print_to_fit(&mut out, &rows, if args.size { &[3] } else { &[] })?;
    Ok(ExitCode::SUCCESS)
}

/// Returns a status of a report as text. The description of a kept run can have any content.
fn status(status: &Value) -> String {
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
            assert_eq!(status(&ended), text);
        }
    }
}
