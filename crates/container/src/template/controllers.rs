//! The cgroup controllers that a configuration needs. `Cgroup::require` looks for them on the
//! machine.

use std::collections::BTreeSet;

use serde_json::Value;

/// Returns the controllers that `linux.resources` needs, by their names in cgroups(7). A limit that
/// the specification does not have is returned under its own name. No machine has such a
/// controller, so the run is refused: no runtime would enforce the limit.
///
/// Values that limit nothing need no controller: null, 0, -1, and empty ones.
pub(super) fn needed(config: &Value) -> BTreeSet<String> {
    let mut needed = BTreeSet::new();
    let resources = config.pointer("/linux/resources").and_then(Value::as_object);
    for (key, value) in resources.into_iter().flatten().filter(|(_, value)| limits(value)) {
        match key.as_str() {
            // Devices are a controller on v1 and a BPF program on v2. Every machine has one of
            // them.
            "devices" => {}
            "cpu" => needed.extend(value.as_object().into_iter().flatten().filter(|(_, value)| limits(value)).map(
                |(key, _)| match key.as_str() {
                    "cpus" | "mems" => "cpuset".to_owned(),
                    _ => "cpu".to_owned(),
                },
            )),
            "blockIO" => needed.extend(["io".to_owned()]),
            "hugepageLimits" => needed.extend(["hugetlb".to_owned()]),
            "network" => needed.extend(["net_cls".to_owned()]),
            // The keys are files of cgroup v2. Their names begin with the controller's.
            "unified" => needed.extend(
                value
                    .as_object()
                    .into_iter()
                    .flatten()
                    .filter_map(|(file, _)| Some(file.split_once('.')?.0.to_owned())),
            ),
            other => needed.extend([other.to_owned()]),
        }
    }
    needed
}

/// Returns whether the value limits anything.
fn limits(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(number) => number.as_i64().is_none_or(|number| number > 0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => items.iter().any(limits),
        Value::Object(fields) => fields.values().any(limits),
        Value::Bool(true) => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_limit_needs_its_controller() {
        let table = [
            (json!(null), ""),
            (json!({"devices": [{"allow": false, "access": "rwm"}]}), ""),
            (json!({"memory": {"limit": 4096}}), "memory"),
            (json!({"memory": {"limit": -1, "swap": 0}, "pids": {"limit": 0}, "cpu": {"cpus": ""}}), ""),
            (json!({"cpu": {"cpus": "0-3"}}), "cpuset"),
            (
                json!({"cpu": {"quota": 10_000, "period": 100_000, "mems": "0"}, "pids": {"limit": 9}}),
                "cpu cpuset pids",
            ),
            (json!({"blockIO": {"weight": 10}, "hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}), "hugetlb io"),
            (
                json!({"unified": {"memory.high": "1g"}, "network": {"classID": 5}, "rdma": {"x": {"y": 1}}}),
                "memory net_cls rdma",
            ),
            (json!({"thermal": {"limit": 60}}), "thermal"),
        ];
        for (resources, controllers) in table {
            let found: Vec<_> = needed(&json!({"linux": {"resources": resources}})).into_iter().collect();
            assert_eq!(found.join(" "), controllers, "{resources}");
        }
        assert!(needed(&json!({})).is_empty());
    }
}
