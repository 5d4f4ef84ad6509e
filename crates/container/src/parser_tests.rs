//! Tests the public parsers with nearly valid input: each accepts it or returns an error, and
//! accepted values are consistent. Private parsers have such tests in their own modules.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::id::ContainerId;
use crate::mutated::{self, config};
use crate::template::{Mount, Network, Rlimit, Template, TemplateError, Terminal, parse_size};
use crate::user::UserSpec;

type Parser = fn(&str) -> Result<Mount, TemplateError>;

const PARSERS: [Parser; 3] = [str::parse, Mount::from_volume, Mount::from_tmpfs];

const MOUNTS: [&str; 6] = [
    "/srv/sources:/src:ro",
    "/build:rw,size=64m,mode=0755",
    "type=bind,source=/srv/sources,target=/src,readonly",
    "type=tmpfs,target=/build,size=64m,mode=0755",
    "\"source=/a,\"\"b\"\"\",dst=/c,ro=true",
    "src=relative,destination=/d",
];

/// Returns a configuration with all keys that this crate reads.
fn valid_spec() -> Value {
    let builder = Template::builder(["make", "-j4"]).cwd("/src").env("A", "1").user(1000, 1001).hostname("builder");
    let builder = MOUNTS[2..].iter().fold(builder, |builder, mount| {
        let mount: Mount = mount.parse().unwrap();
        builder.mount(if mount.source().is_some() { mount.source_in(Path::new("/")) } else { mount })
    });
    let builder = builder.network(Network::Joined("/run/netns/a".into())).cgroups_path("/builds/1");
    let builder = builder.memory_limit_bytes(1 << 30).pids_limit(100).cpus("0-1").mems("0");
    let mut value = serde_json::to_value(builder.build().unwrap()).unwrap();
    // The rules are most of the text, and this crate does not read them.
    value["linux"]["seccomp"]["syscalls"].as_array_mut().unwrap().truncate(2);
    value["process"]["user"]["username"] = json!("opam:staff");
    value["x-unknown"] = json!({"deep": [1.5, null, 18446744073709551615_u64]});
    value
}

/// Calls every method of a template that a run calls.
fn use_as_a_run_does(template: Template) -> Result<(), TestCaseError> {
    let config = template.instantiate(Path::new("/run/merged")).unwrap();
    let _ = (template.user(), template.network(), template.hostname(), template.cwd(), template.controllers());
    let _ = (config.spec(), config.has_terminal(), config.cgroups_path());
    prop_assert_eq!(config.rootfs(), Path::new("/run/merged"));
    let spec = template.user_spec();
    prop_assert_eq!(spec.to_string().parse::<UserSpec>().unwrap(), spec);
    for mount in template.mounts() {
        prop_assert!(mount.destination().is_absolute());
        let _ = (mount.source(), mount.mode(), mount.is_bind(), mount.is_recursive(), mount.copies_covered_directory());
    }
    let config =
        config.with_default_cgroups_path("/x").with_filter_for_crun().with_limits_of_caller().with_binds_of_files();
    prop_assert!(serde_json::to_value(&config).unwrap().is_object());
    let other = template.with_terminal(Terminal::Attached).with_args(["true"]).unwrap();
    prop_assert_eq!(other.args().collect::<Vec<_>>(), ["true"]);
    let text = serde_json::to_string(&other).unwrap();
    prop_assert!(Template::from_json(text).is_ok());
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_spec_of_any_text_is_refused_or_usable(text in mutated::bytes([valid_spec().to_string()])) {
        if let Ok(template) = Template::from_json(text) {
            use_as_a_run_does(template)?;
        }
    }

    #[test]
    fn a_spec_of_any_json_is_refused_or_usable(value in mutated::value(valid_spec())) {
        match Template::from_value(value.clone()) {
            Ok(template) => {
                prop_assert_eq!(serde_json::to_value(&template).unwrap(), value);
                use_as_a_run_does(template)?;
            }
            // The message has no character that a terminal interprets.
            Err(error) => prop_assert!(error.to_string().chars().all(|character| !character.is_control()), "{}", error),
        }
    }

    #[test]
    fn a_mount_of_any_text_is_refused_or_usable(text in mutated::text(MOUNTS), parse in prop::sample::select(PARSERS.to_vec())) {
        match parse(&text) {
            Ok(mount) => {
                let mount = if mount.source().is_some() { mount.source_in(Path::new("/")) } else { mount };
                // The path may be one that no container can have.
                if let Ok(template) = Template::builder(["true"]).mount(mount.clone()).build() {
                    prop_assert!(template.mounts().any(|entry| entry.destination() == mount.destination()));
                    use_as_a_run_does(template)?;
                }
            }
            Err(error) => prop_assert!(error.to_string().chars().all(|character| !character.is_control()), "{}", error),
        }
    }

    #[test]
    fn a_size_of_any_text_is_refused_or_read_back(text in mutated::text(["64m", "1024", "64MiB", "3g", "17179869184g"])) {
        if let Ok(bytes) = parse_size(&text) {
            prop_assert!(text.starts_with(|first: char| first.is_ascii_digit()));
            prop_assert_eq!(parse_size(&bytes.to_string()), Ok(bytes));
        }
    }

    #[test]
    fn a_resource_limit_of_any_text_is_refused_or_read_back(text in mutated::text(["nofile=1024:524288", "core=0", "memlock=unlimited", "nice=-1:-1"])) {
        match text.parse::<Rlimit>() {
            Ok(limit) => {
                prop_assert!(limit.soft <= limit.hard);
                let name = limit.kind.to_string().trim_start_matches("RLIMIT_").to_lowercase();
                prop_assert_eq!(format!("{name}={}:{}", limit.soft, limit.hard).parse::<Rlimit>().ok(), Some(limit));
            }
            Err(error) => prop_assert!(error.to_string().chars().all(|character| !character.is_control()), "{}", error),
        }
    }

    #[test]
    fn an_accepted_run_name_is_a_file_name(text in mutated::text(["layered-0123456789abcdef"])) {
        if let Some(id) = ContainerId::of_earlier_run(text.clone()) {
            prop_assert!(!id.as_str().contains(['/', '\n', '\0']) && id.as_str() == text);
        }
    }
}
