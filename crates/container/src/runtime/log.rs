//! The log that a runtime writes its errors to.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;
use serde::Deserialize;

/// The reserved size of the log, enough for a runtime's error and the warnings before it.
const ROOM_BYTES: u64 = 8 << 10;

/// Creates an empty log and reserves room for its content. Without the reservation, a runtime on a
/// full disk could not report the reason of its failure.
pub(super) fn create(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    // Discards the messages of an earlier run of the same bundle.
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    let log = options.open(path)?;
    match fallocate(&log, FallocateFlags::KEEP_SIZE, 0, ROOM_BYTES) {
        // Not every file system supports this.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Returns the runtime's failure from its log (`--log-format json`): the last entry with a level
/// above warning.
///
/// An entry is a JSON object on one line, or on several (crun 1.28). A line that is not JSON counts
/// as a failure.
pub(super) fn failure(log: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Entry {
        level: String,
        msg: String,
    }
    let text = String::from_utf8_lossy(log);
    let (mut rest, mut last) = (text.trim_start(), None);
    while !rest.is_empty() {
        let mut entries = serde_json::Deserializer::from_str(rest).into_iter::<Entry>();
        let (failure, length) = match entries.next() {
            Some(Ok(Entry { level, msg })) => {
                let is_grave = ["error", "fatal", "panic"].contains(&&*level.to_ascii_lowercase());
                (is_grave.then_some(msg), entries.byte_offset())
            }
            _ => {
                let line = rest.lines().next().unwrap_or_default();
                (Some(line.to_owned()), line.len())
            }
        };
        last = failure.map(|message| message.trim().to_owned()).or(last);
        rest = rest[length..].trim_start();
    }
    last
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
        fn a_log_of_any_content_is_read_without_a_panic(text in mutated::bytes(ENTRIES)) {
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
    fn the_last_entry_above_warning_is_the_failure() {
        let table: [(&str, Option<&str>); 8] = [
            ("", None),
            (r#"{"level":"warning","msg":"unable to x","time":"t"}"#, None),
            (r#"{"level":"error","msg":"runc run failed: y","time":"t"}"#, Some("runc run failed: y")),
            (
                "{\"msg\":\"a\",\"level\":\"error\"}\n{\"msg\":\"b\",\"level\":\"fatal\"}\n{\"msg\":\"c\",\"level\":\"info\"}\n\n",
                Some("b"),
            ),
            ("{\"level\":\"ERROR\",\"msg\":\"youki\"}\n", Some("youki")),
            ("panic: out of words\n", Some("panic: out of words")),
            ("{\n  \"msg\": \"a\",\n  \"level\": \"error\"\n}\n{\"level\":\"debug\",\"msg\":\"b\"}\n", Some("a")),
            ("{\"level\":\"error\",\"msg\":\"cut off", Some("{\"level\":\"error\",\"msg\":\"cut off")),
        ];
        for (log, expected) in table {
            assert_eq!(failure(log.as_bytes()).as_deref(), expected, "{log}");
        }
    }
}
