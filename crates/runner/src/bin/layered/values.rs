//! Values of options as people write them: times, processors, memory and variables.
//!
//! The values that a library parses (mounts, limits, capabilities) are in `container`.

use std::time::Duration;

use container::Capability;
use container::advanced::parse_size;

/// Parses a duration. A bare number is seconds, as for timeout(1).
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match text.parse().ok().filter(|_| is_number) {
        Some(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string()),
        None => humantime::parse_duration(text).map_err(|error| error.to_string()),
    }
}

/// Parses the age of a layer. A bare number could mean seconds or days, so it is refused.
pub(crate) fn age(text: &str) -> Result<Duration, String> {
    match !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => Err(format!("it has no unit; write {text}d for days or {text}h for hours")),
        false => humantime::parse_duration(text).map_err(|error| error.to_string()),
    }
}

/// The least memory with which a runtime can start a container.
const LEAST_MEMORY: u64 = 4 << 20;

/// Parses a limit of memory.
pub(crate) fn memory(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        bytes if bytes < LEAST_MEMORY => Err(format!(
            "it is {bytes} bytes, and no container can start with less than {LEAST_MEMORY}; write a unit, as in 512m"
        )),
        bytes => Ok(bytes),
    }
}

/// The value of `--cpus`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cpus {
    /// Processor time in each [`PERIOD`](Self::PERIOD).
    Quota(Duration),
    /// A list of processors, which is also the value of `--cpuset-cpus`.
    List(String),
}

impl Cpus {
    /// The period of a quota: that of Docker and the default of the kernel.
    pub(crate) const PERIOD: Duration = Duration::from_millis(100);
}

/// Parses a number of processors such as 1.5, or a list such as 0-3,5.
pub(crate) fn cpus(text: &str) -> Result<Cpus, String> {
    if text.contains([',', '-']) {
        return Ok(Cpus::List(text.into()));
    }
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match text.parse::<f64>().ok().filter(|_| is_number) {
        // The kernel's smallest quota is 1 ms.
        Some(number) if (0.01..=1e6).contains(&number) => Ok(Cpus::Quota(Cpus::PERIOD.mul_f64(number))),
        Some(_) => Err(format!(
            "it is a number of processors, from 0.01; --cpuset-cpus {text} is a list of processors by their numbers"
        )),
        None => Err("write a number of processors, as in 1.5".into()),
    }
}

/// Parses a variable: KEY=VALUE, or KEY for the caller's value.
pub(crate) fn variable(text: &str) -> Result<(String, Option<String>), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.into(), Some(value.into()))),
        None if text.is_empty() => Err("it is empty; write KEY=VALUE, or KEY for your own value".into()),
        None => Ok((text.into(), None)),
    }
}

/// The value of `--cap-add` and `--cap-drop`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Capabilities {
    All,
    One(Capability),
}

/// Parses the name of a capability, or ALL.
pub(crate) fn capabilities(text: &str) -> Result<Capabilities, String> {
    match text.eq_ignore_ascii_case("all") {
        true => Ok(Capabilities::All),
        false => text.parse().map(Capabilities::One).map_err(|error: container::TemplateError| error.to_string()),
    }
}

/// Returns the capabilities of a container, by the rules of Docker: `ALL` counts first, and then
/// the single names of the other option.
pub(crate) fn granted(add: &[Capabilities], drop: &[Capabilities]) -> Vec<Capability> {
    let (adds, drops) = (
        |capability: &Capability| add.contains(&Capabilities::One(*capability)),
        |capability: &Capability| drop.contains(&Capabilities::One(*capability)),
    );
    let all = |list: &[Capabilities]| list.contains(&Capabilities::All);
    let is_granted = |capability: &Capability| match (all(add), all(drop)) {
        (true, _) => !drops(capability),
        (false, true) => adds(capability),
        (false, false) => adds(capability) || Capability::DEFAULT.contains(capability) && !drops(capability),
    };
    Capability::ALL.iter().copied().filter(is_granted).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{mutated, table};

    proptest! {
        #![proptest_config(mutated::config())]

        #[test]
        fn a_variable_of_any_text_round_trips_or_is_refused(text in mutated::text(["A=b=c", "A=", "=b", "A"])) {
            match variable(&text) {
                Ok((key, Some(value))) => prop_assert_eq!(format!("{key}={value}"), text),
                Ok((key, None)) => prop_assert_eq!(key, text),
                Err(_) => prop_assert!(text.is_empty()),
            }
        }

        #[test]
        fn a_duration_of_any_text_round_trips_or_is_refused(text in mutated::text(["90s", "2h 30m", "1year 3days 7ns", "90d", "5", "0.5"])) {
            if let Ok(time) = duration(&text) {
                let shown = humantime::format_duration(time).to_string();
                prop_assert_eq!(humantime::parse_duration(&shown).ok(), Some(time));
                let _ = table::duration(time);
            }
        }

        #[test]
        fn processors_of_any_text_are_a_list_or_a_quota_or_refused(text in mutated::text(["0-3,5", "1.5", "2", "0"])) {
            match cpus(&text) {
                Ok(Cpus::List(list)) => prop_assert_eq!(list, text),
                Ok(Cpus::Quota(quota)) => prop_assert!(quota >= Duration::from_millis(1)),
                Err(_) => {}
            }
        }
    }

    #[test]
    fn a_bare_number_is_seconds_but_no_age() {
        for (text, milliseconds) in [("5", 5000), ("0.5", 500), ("90s", 90_000), ("2h 30m", 9_000_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", ".", "1.2.3", "5x", "-1"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(age("90d"), Ok(Duration::from_secs(90 * 86_400)));
        assert_eq!(age("5").unwrap_err(), "it has no unit; write 5d for days or 5h for hours");
    }

    #[test]
    fn processors_are_a_number_or_a_list() {
        let quota = |milliseconds| Ok(Cpus::Quota(Duration::from_millis(milliseconds)));
        for (text, expected) in [
            ("1.5", quota(150)),
            ("2", quota(200)),
            ("0.01", quota(1)),
            ("0-3", Ok(Cpus::List("0-3".into()))),
            ("0,2", Ok(Cpus::List("0,2".into()))),
        ] {
            assert_eq!(cpus(text), expected, "{text}");
        }
        assert!(cpus("0").unwrap_err().contains("--cpuset-cpus 0 is a list"));
        for text in ["", "two", "nan", "inf", "1e3", "+1", "2000000"] {
            assert!(cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn too_little_memory_is_refused() {
        assert_eq!((memory("512m"), memory("4m")), (Ok(512 << 20), Ok(4 << 20)));
        assert!(memory("10").unwrap_err().contains("write a unit, as in 512m"));
        assert!(memory("").is_err());
    }

    #[test]
    fn a_variable_without_a_value_is_the_callers() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), Some("b=c".into()))));
        assert_eq!(variable("A="), Ok(("A".into(), Some(String::new()))));
        assert_eq!(variable("A"), Ok(("A".into(), None)));
        assert!(variable("").is_err());
    }

    #[test]
    fn capabilities_are_added_and_dropped_as_by_docker() {
        use Capability::{Chown, NetAdmin, NetRaw, SysAdmin};
        let parse = |names: &[&str]| names.iter().map(|name| capabilities(name).unwrap()).collect::<Vec<_>>();
        let of = |add: &[&str], drop: &[&str]| granted(&parse(add), &parse(drop));
        let sorted = |mut list: Vec<Capability>| {
            list.sort_by_key(Capability::to_string);
            list
        };
        assert_eq!(sorted(of(&[], &[])), sorted(Capability::DEFAULT.to_vec()));
        assert_eq!(of(&["ALL"], &[]), Capability::ALL);
        assert_eq!(of(&[], &["all"]), []);
        assert_eq!(of(&["CHOWN"], &["ALL"]), [Chown]);
        let some = of(&["net_admin", "CAP_SYS_ADMIN"], &["net_raw"]);
        assert!(some.contains(&NetAdmin) && some.contains(&SysAdmin) && !some.contains(&NetRaw), "{some:?}");
        let most = of(&["ALL"], &["SYS_ADMIN"]);
        assert!(most.len() == Capability::ALL.len() - 1 && !most.contains(&SysAdmin), "{most:?}");
        assert!(capabilities("nothing").unwrap_err().contains("capabilities(7)"));
    }
}
