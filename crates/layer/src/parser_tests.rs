//! Gives every parser of this crate input that is nearly valid. A parser must either read or refuse
//! it. A value that a parser has read must be the same after it is written and read again. The
//! parser of holds is private, and `hold` tests it.

use std::fs;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::capture::made::Made;
use crate::capture::record::RunRecord;
use crate::capture::upper_id::UpperId;
use crate::display::escaped_json;
use crate::error::Error;
use crate::json_path::JsonPath;
use crate::layer::Layer;
use crate::layer::access::Access;
use crate::layer::meta::Meta;
use crate::mutated::{self, config};
use crate::stack::plan::Rung;

fn valid_meta() -> Value {
    json!({
        "exit_status": 0, "parent_hashes": ["b", "a"], "uid": 1000, "gid": 1000, "base_hash": "base", "disk_usage": 4096,
        "timing": {"runc_run": 1.5, "merge": 0.0}, "created_at": "2026-01-31T23:59:59Z", "failed_dep": null,
        "package": {"name": "x", "deps": [1, -2, 2.5, "é"]},
    })
}

/// Replaces decimals, which may lose their last bits when they are written and read again.
fn without_decimals(value: Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => json!("a decimal"),
        Value::Array(items) => items.into_iter().map(without_decimals).collect(),
        Value::Object(items) => items.into_iter().map(|(key, item)| (key, without_decimals(item))).collect(),
        other => other,
    }
}

fn json<T: serde::Serialize>(value: &T) -> Value {
    without_decimals(serde_json::to_value(value).unwrap())
}

/// Checks that the value that `$text` has as a `$kind`, if any, is the same after it is written and
/// read again.
macro_rules! comes_back {
    ($kind:ty, $text:expr) => {
        if let Ok(read) = serde_json::from_slice::<$kind>($text) {
            let again = serde_json::from_str::<$kind>(&serde_json::to_string(&read).unwrap()).unwrap();
            prop_assert_eq!(json(&again), json(&read));
        }
    };
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_text_is_read_as_meta_or_refused(text in mutated::bytes([valid_meta().to_string()])) {
        comes_back!(Meta, &text);
    }

    #[test]
    fn any_json_is_read_as_meta_or_refused(value in mutated::value(valid_meta())) {
        comes_back!(Meta, value.to_string().as_bytes());
        // A value that is nested too deeply cannot be parsed.
        if let Ok(shown) = serde_json::from_str(&escaped_json(&value).to_string()) {
            prop_assert_eq!(without_decimals(shown), without_decimals(value));
        }
    }

    #[test]
    fn files_of_a_layer_with_any_content_are_read_or_refused(text in mutated::bytes([valid_meta().to_string()])) {
        let dir = tempfile::tempdir().unwrap();
        let layer = Layer::at(dir.path());
        let sidecar = layer.sidecar_path("doc").unwrap();
        for path in [&layer.meta_path(), &sidecar] {
            fs::write(path, &text).unwrap();
        }
        match layer.meta() {
            Ok(meta) => prop_assert!(meta.is_some()),
            Err(Error::Json { path, .. }) => prop_assert_eq!(path, layer.meta_path()),
            Err(error) => prop_assert!(false, "{}", error),
        }
        match layer.read_sidecar::<Value>("doc") {
            Ok(value) => {
                layer.write_sidecar("doc", &value).unwrap();
                let again = layer.read_sidecar::<Value>("doc").unwrap();
                prop_assert_eq!(json(&again), json(&value));
            }
            Err(Error::Json { path, .. }) => prop_assert_eq!(path, sidecar),
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    #[test]
    fn records_of_runs_are_read_back_unchanged(
        value in mutated::value(valid_records()),
        text in mutated::bytes([valid_records().to_string()]),
    ) {
        for text in [value.to_string().into_bytes(), text] {
            comes_back!(Vec<Record>, &text);
        }
        for record in value.as_array().into_iter().flatten() {
            comes_back!(RunRecord, record.to_string().as_bytes());
            comes_back!(UpperId, record.to_string().as_bytes());
            comes_back!(Made, record.to_string().as_bytes());
            comes_back!(JsonPath, record.to_string().as_bytes());
        }
    }

    #[test]
    fn any_word_is_read_as_an_option_or_refused(text in mutated::text(["lowerdir+", "mount-paths", "0750", "777"])) {
        if let Ok(rung) = text.parse::<Rung>() {
            prop_assert_eq!(rung.to_string(), text.as_str());
        }
        if let Ok(access) = text.parse::<Access>() {
            prop_assert!(access.bits() <= 0o777);
        }
    }
}

type Record = serde_json::Map<String, Value>;

/// Returns the records that the report of a run can have, made from a real directory.
fn valid_records() -> Value {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("proc")).unwrap();
    fs::write(dir.path().join("hosts"), "x").unwrap();
    let made = Made::look(dir.path(), ["/proc", "/hosts"]).unwrap();
    let mut record = RunRecord { root_mode: Some(0o755), ..RunRecord::default() };
    record.add(made.clone());
    json!([record, UpperId::of(dir.path()).unwrap(), made[0], JsonPath("/a".into()), [255, 47]])
}
