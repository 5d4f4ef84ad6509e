use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;
use serde::Deserialize;

/// Room for the last words of a runtime, and what it may have to warn of before.
const ROOM_BYTES: u64 = 8 << 10;

/// Makes the log, empty, and keeps room for what is to be in it: on a full disk a runtime could not say that it has failed, and
/// the end of it would be taken for that of the command.
pub(super) fn create(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    // What an earlier run of the same bundle had to say is not of this one.
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    let log = options.open(path)?;
    match fallocate(&log, FallocateFlags::KEEP_SIZE, 0, ROOM_BYTES) {
        // Not every file system can.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;

    use crate::mutated;

    const ENTRIES: [&str; 2] = [
        "{\"level\":\"warning\",\"msg\":\"a\",\"time\":\"t\"}\n{\"level\":\"error\",\"msg\":\"exec: \\\"/x\\\": permission denied\"}\n",
        "panic: out of words\n",
    ];

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn logs_of_any_content(text in mutated::bytes(ENTRIES)) {
            let _ = failure(&text);
        }
    }

    #[test]
    fn a_new_log_is_empty_and_has_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "old words").unwrap();
        create(&path).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), 0);
        assert!(metadata.blocks() * 512 >= ROOM_BYTES);
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        assert!(create(&path).is_err() && !dir.path().join("elsewhere").exists());
    }

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
}
