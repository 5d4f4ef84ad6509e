//! Makes the configuration of an image of the record of a run, as the sidecar `run.json` of the
//! topmost layer has it. Pure.

use runner::CommandRecord;
use serde_json::{Map, Value, json};

/// Returns the object `config` of an image that starts the recorded command. `base` is that of the
/// image that the base came from.
///
/// Variables whose values were not recorded are those of the base.
pub(crate) fn of_record(record: &CommandRecord, base: &Map<String, Value>) -> Map<String, Value> {
    let mut config = Map::new();
    config.insert("Entrypoint".into(), json!(record.argv));
    let env = with_values(record, base);
    if !env.is_empty() {
        config.insert("Env".into(), json!(env));
    }
    // An image has no other paths.
    if let Some(cwd) = record.cwd.to_str().filter(|cwd| !cwd.is_empty()) {
        config.insert("WorkingDir".into(), json!(cwd));
    }
    if !record.user.is_empty() {
        config.insert("User".into(), json!(record.user));
    }
    config
}

/// Returns the environment of the base, with the values that were recorded.
fn with_values(record: &CommandRecord, base: &Map<String, Value>) -> Vec<String> {
    let strings = base.get("Env").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let mut env: Vec<String> = strings.map(Into::into).collect();
    for (name, value) in &record.env {
        let Some(value) = value else { continue };
        let line = format!("{name}={value}");
        match env.iter_mut().find(|line| line.split('=').next() == Some(name)) {
            Some(of_base) => *of_base = line,
            None => env.push(line),
        }
    }
    env
}

/// Adds the keys that the caller gives to a configuration. With a program or arguments, the caller
/// replaces the recorded command as a whole.
pub(crate) fn add(config: &mut Map<String, Value>, given: Map<String, Value>) {
    for (key, value) in given {
        match (key.as_str(), value, config.get_mut(&key)) {
            ("config", Value::Object(given), Some(Value::Object(parts))) => {
                if ["Entrypoint", "Cmd"].iter().any(|key| given.contains_key(*key)) {
                    parts.remove("Entrypoint");
                }
                parts.extend(given);
            }
            (_, value, _) => drop(config.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(json: Value) -> CommandRecord {
        serde_json::from_value(json).unwrap()
    }

    fn map(json: Value) -> Map<String, Value> {
        json.as_object().unwrap().clone()
    }

    #[test]
    fn an_image_starts_the_recorded_command() {
        let base = map(json!({"Env": ["PATH=/bin", "A=base", "KEPT=1"], "Cmd": ["sh"]}));
        let whole = json!({"argv": ["make", "-j"], "cwd": "/src", "user": "7:8",
            "env": {"A": "run", "NEW": "x=y", "PATH": null, "SECRET": null}});
        for (recorded, base, expected) in [
            (
                &whole,
                &base,
                json!({"Entrypoint": ["make", "-j"], "Env": ["PATH=/bin", "A=run", "KEPT=1", "NEW=x=y"],
                    "WorkingDir": "/src", "User": "7:8"}),
            ),
            (
                &whole,
                &Map::new(),
                json!({"Entrypoint": ["make", "-j"], "Env": ["A=run", "NEW=x=y"], "WorkingDir": "/src", "User": "7:8"}),
            ),
            (&json!({"argv": ["a"]}), &Map::new(), json!({"Entrypoint": ["a"]})),
        ] {
            assert_eq!(Value::from(of_record(&record(recorded.clone()), base)), expected);
        }
    }

    #[test]
    fn what_the_caller_gives_replaces_the_record() {
        let recorded = json!({"config": {"Entrypoint": ["run"], "User": "7:8"}});
        for (given, expected) in [
            (json!({}), recorded.clone()),
            (json!({"author": "me"}), json!({"config": {"Entrypoint": ["run"], "User": "7:8"}, "author": "me"})),
            (json!({"config": {"User": "0"}}), json!({"config": {"Entrypoint": ["run"], "User": "0"}})),
            (json!({"config": {"Cmd": ["x"]}}), json!({"config": {"User": "7:8", "Cmd": ["x"]}})),
            (json!({"config": {"Entrypoint": null}}), json!({"config": {"User": "7:8", "Entrypoint": null}})),
        ] {
            let mut config = map(recorded.clone());
            add(&mut config, map(given));
            assert_eq!(Value::from(config), expected);
        }
    }
}
