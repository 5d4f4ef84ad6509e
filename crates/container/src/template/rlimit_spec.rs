//! Reads a resource limit from the text of a command line. The limit itself is in `rlimit`.

use std::str::FromStr;

use super::error::TemplateError;
use super::rlimit::{Rlimit, RlimitKind};

/// Parses the syntax of Docker's `--ulimit`: `NAME=SOFT[:HARD]`.
///
/// ```text
/// nofile=4096:65536
/// core=0
/// memlock=unlimited
/// ```
///
/// The names are `as`, `core`, `cpu`, `data`, `fsize`, `locks`, `memlock`, `msgqueue`, `nice`,
/// `nofile`, `nproc`, `rss`, `rtprio`, `rttime`, `sigpending` and `stack`. A limit is a number,
/// `unlimited` or `-1`. Without HARD, SOFT is both limits.
impl FromStr for Rlimit {
    type Err = TemplateError;

    fn from_str(spec: &str) -> Result<Rlimit, TemplateError> {
        parse(spec).map_err(|problem| TemplateError::RlimitSpec { spec: spec.to_owned(), problem })
    }
}

fn parse(spec: &str) -> Result<Rlimit, String> {
    let Some((name, limits)) = spec.split_once('=') else {
        return Err("has no value: write NAME=SOFT or NAME=SOFT:HARD, as in nofile=1024:4096".to_owned());
    };
    let Some(kind) = RlimitKind::named(name) else {
        return Err(format!("has an unknown name {name:?}: the names are {}", RlimitKind::names().join(", ")));
    };
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if soft > hard {
        return Err("has a soft limit above the hard limit: the soft limit comes first".to_owned());
    }
    Ok(Rlimit { kind, soft, hard })
}

fn number(text: &str) -> Result<u64, String> {
    match text {
        "unlimited" | "-1" => Ok(Rlimit::UNLIMITED),
        // `parse` accepts a sign.
        _ if text.starts_with('+') => Err(text),
        _ => text.parse().map_err(|_| text),
    }
    .map_err(|text| format!("has the limit {text:?}: write a number, or unlimited"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_in_dockers_syntax_are_read() {
        use RlimitKind::{As, Core, Memlock, Nofile, Stack};
        let table = [
            ("nofile=1024:524288", Nofile, 1024, 524_288),
            ("nofile=64", Nofile, 64, 64),
            ("core=0", Core, 0, 0),
            ("memlock=-1", Memlock, Rlimit::UNLIMITED, Rlimit::UNLIMITED),
            ("stack=8388608:unlimited", Stack, 8_388_608, Rlimit::UNLIMITED),
            ("as=18446744073709551615", As, Rlimit::UNLIMITED, Rlimit::UNLIMITED),
        ];
        for (spec, kind, soft, hard) in table {
            assert_eq!(spec.parse::<Rlimit>().unwrap(), Rlimit { kind, soft, hard }, "{spec}");
        }
        let names =
            "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack";
        for name in names.split(' ') {
            let limit = format!("{name}=1:2").parse::<Rlimit>().unwrap();
            assert_eq!(limit.kind.to_string(), format!("RLIMIT_{}", name.to_uppercase()));
        }
    }

    #[test]
    fn an_error_names_the_part_that_is_wrong() {
        let no_value = "has no value: write NAME=SOFT or NAME=SOFT:HARD, as in nofile=1024:4096";
        let limit = |text: &str| format!("has the limit {text:?}: write a number, or unlimited");
        let unknown = |name: &str| {
            format!(
                "has an unknown name {name:?}: the names are as, core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, \
                 nproc, rss, rtprio, rttime, sigpending, stack"
            )
        };
        let order = "has a soft limit above the hard limit: the soft limit comes first";
        let table = [
            ("", no_value.into()),
            ("nofile", no_value.into()),
            ("nofile:1", no_value.into()),
            ("=1", unknown("")),
            ("NOFILE=1", unknown("NOFILE")),
            ("files=1", unknown("files")),
            ("nofile=", limit("")),
            ("nofile=1:", limit("")),
            ("nofile=:1", limit("")),
            ("nofile=1:2:3", limit("2:3")),
            ("nofile=+1", limit("+1")),
            ("nofile=-2", limit("-2")),
            ("nofile= 1", limit(" 1")),
            ("nofile=1k", limit("1k")),
            ("nofile=18446744073709551616", limit("18446744073709551616")),
            ("nofile=2:1", order.into()),
            ("core=unlimited:0", order.into()),
        ];
        for (spec, problem) in table {
            let error = spec.parse::<Rlimit>().unwrap_err();
            assert_eq!(error.to_string(), format!("the limit {spec:?} {problem}"));
        }
    }
}
