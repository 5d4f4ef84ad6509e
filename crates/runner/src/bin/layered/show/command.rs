//! Shows the record of the command that made a layer, which is in its sidecar `run.json`.
//!
//! [`show`](super) prints the rest of the layer, and the JSON of every other sidecar.

use runner::CommandRecord;
use serde_json::Value;

/// Returns the rows of a table that describe the command, if `sidecar` is its record.
pub(super) fn rows(sidecar: Option<&Value>) -> Option<Vec<Vec<String>>> {
    let record: CommandRecord = serde_json::from_value(sidecar?.clone()).ok()?;
    let CommandRecord { argv, cwd, env, user, runtime, kernel, host } = record;
    let row = |name: &str, value: String| (!value.is_empty()).then(|| vec![name.to_string(), value]);
    let variables = env.iter().map(|(name, value)| match value {
        Some(value) => format!("{name}={}", shell_words::quote(value)),
        None => name.clone(),
    });
    let mut rows: Vec<_> = [
        row("command", shell_words::join(argv)),
        row("directory", cwd.to_string_lossy().into_owned()),
        row("as user", user),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !env.is_empty() {
        rows.extend(super::lines("environment", variables, " "));
    }
    rows.extend(row("runtime", runtime.to_string_lossy().into_owned()));
    rows.extend(row("kernel", kernel));
    rows.extend(row("host", host));
    Some(rows)
}

/// Returns whether the [`rows`] show all of `sidecar`. A `run.json` of another program can have
/// keys that a record does not have.
pub(super) fn is_whole(sidecar: &Value) -> bool {
    let record = serde_json::from_value::<CommandRecord>(sidecar.clone()).and_then(serde_json::to_value);
    match (sidecar.as_object(), record) {
        (Some(keys), Ok(record)) => keys.keys().all(|key| record.get(key).is_some()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_command_is_shown_as_a_shell_takes_it() {
        let sidecar = json!({
            "argv": ["sh", "-c", "echo 'it is' $HOME"],
            "cwd": "/my src",
            "env": {"HOME": "/root", "PATH": null},
            "user": "opam:staff",
            "runtime": "crun",
            "kernel": "6.1.0",
            "host": "n1",
            "unknown": 1,
        });
        let shown: Vec<String> = rows(Some(&sidecar)).unwrap().into_iter().map(|row| row.join(" ")).collect();
        let expected = [
            r"command sh -c 'echo '\''it is'\'' $HOME'",
            "directory /my src",
            "as user opam:staff",
            "environment HOME=/root PATH",
            "runtime crun",
            "kernel 6.1.0",
            "host n1",
        ];
        assert_eq!(shown, expected);
        assert!(!is_whole(&sidecar));
        for (sidecar, expected) in [
            (json!({"argv": ["true"], "cwd": "/", "env": {}, "user": "0:0", "runtime": "runc", "kernel": "6.1"}), true),
            (json!({"argv": ["true"]}), true),
            (json!({"argv": ["true"], "mine": null}), false),
            (json!({"argv": 1}), false),
        ] {
            assert_eq!(is_whole(&sidecar), expected, "{sidecar}");
        }
        assert_eq!(rows(Some(&json!({"argv": ["true"]}))).unwrap(), [["command", "true"]]);
        for other in [json!("make"), json!({"argv": "make"}), json!(null)] {
            assert_eq!(rows(Some(&other)), None);
        }
        assert_eq!(rows(None), None);
    }
}
