use serde::Deserialize;

/// The runtime's own failure in its log (`--log-format json`, a line an entry): the last entry of a level that is one.
/// Warnings are none. A line that is no JSON is taken as it stands.
pub(super) fn failure(log: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Entry {
        level: String,
        msg: String,
    }
    let text = String::from_utf8_lossy(log);
    let failures = text.lines().rev().filter(|line| !line.trim().is_empty());
    failures
        .filter_map(|line| match serde_json::from_str::<Entry>(line) {
            Ok(entry) => {
                let grave = ["error", "fatal", "panic"].contains(&&*entry.level.to_ascii_lowercase());
                grave.then(|| entry.msg.trim().to_string())
            }
            Err(_) => Some(line.trim().to_string()),
        })
        .next()
}

/// Whether the message says that there is no such command. runc names the failed step `exec: "…": `, crun begins with
/// `executable file`.
pub(super) fn says_not_found(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    let missing = message.contains("no such file or directory") || message.contains("not found");
    missing && (message.contains("exec: \"") || message.starts_with("executable "))
}

/// Whether the message says that the command cannot be executed.
pub(super) fn says_not_executable(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    let refused =
        ["permission denied", "operation not permitted", "is a directory", "exec format error", "not executable"];
    let about_exec = message.contains("exec: \"")
        || ["executable ", "open executable", "exec container process"].iter().any(|step| message.starts_with(step));
    about_exec && refused.iter().any(|reason| message.contains(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_grave_entry_counts() {
        let table: [(&str, Option<&str>); 6] = [
            ("", None),
            (r#"{"level":"warning","msg":"unable to x","time":"t"}"#, None),
            (r#"{"level":"error","msg":"runc run failed: y","time":"t"}"#, Some("runc run failed: y")),
            (
                "{\"msg\":\"a\",\"level\":\"error\"}\n{\"msg\":\"b\",\"level\":\"fatal\"}\n{\"msg\":\"c\",\"level\":\"info\"}\n\n",
                Some("b"),
            ),
            ("{\"level\":\"ERROR\",\"msg\":\"youki\"}\n", Some("youki")),
            ("panic: out of words\n", Some("panic: out of words")),
        ];
        for (log, expected) in table {
            assert_eq!(failure(log.as_bytes()).as_deref(), expected, "{log}");
        }
    }

    /// Messages of runc 1.1.5 and crun 1.8.1.
    #[test]
    fn messages_are_told_apart() {
        let table = [
            (
                r#"runc run failed: unable to start container process: exec: "/nope": stat /nope: no such file or directory"#,
                true,
                false,
            ),
            (
                r#"runc run failed: unable to start container process: exec: "nope": executable file not found in $PATH"#,
                true,
                false,
            ),
            ("executable file `/nope` not found in $PATH: No such file or directory", true, false),
            (r#"runc run failed: unable to start container process: exec: "/x": permission denied"#, false, true),
            (r#"runc run failed: unable to start container process: exec: "/etc": is a directory"#, false, true),
            ("open executable: Permission denied", false, true),
            ("open executable: Operation not permitted", false, true),
            ("error running hook: /lib/executable-hook: no such file or directory", false, false),
            (
                r#"runc run failed: unable to start container process: error mounting "/x" to rootfs: no such file or directory"#,
                false,
                false,
            ),
            (
                r#"runc run failed: unable to start container process: chdir to cwd ("/x") set in config.json failed: permission denied"#,
                false,
                false,
            ),
        ];
        for (message, not_found, not_executable) in table {
            assert_eq!(
                (says_not_found(message), says_not_executable(message)),
                (not_found, not_executable),
                "{message}"
            );
        }
    }
}
