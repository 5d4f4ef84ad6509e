//! Reads a mount from the text of a command line. The mount itself is in `mount`.

use std::str::FromStr;

use super::error::TemplateError;
use super::mount::Mount;
use super::size::parse_size;

/// Parses the syntax of `--mount` of Docker and BuildKit: `key=value` pairs, separated by commas.
///
/// ```text
/// type=bind,source=/srv/sources,target=/src,readonly
/// type=tmpfs,target=/build,size=64m,mode=0755
/// ```
///
/// | Key | Synonyms | Value |
/// |---|---|---|
/// | `type` | | `bind` (the default) or `tmpfs` |
/// | `target` | `dst`, `destination` | its path in the container |
/// | `source` | `src` | for `bind`: its path on the host |
/// | `readonly` | `ro` | nothing, `true` or `false` |
/// | `rw` | | nothing: the opposite of `readonly`, and the default |
/// | `size` | `tmpfs-size` | for `tmpfs`: bytes, or a number with `k`, `m`, `g` or `t` for powers of 1,024 |
/// | `mode` | `tmpfs-mode` | for `tmpfs`: octal permissions |
///
/// A pair that contains a comma is written in double quotes, in which `""` stands for one double
/// quote: `"source=/a,b"`. Unknown keys and repeated keys are errors that name the key.
impl FromStr for Mount {
    type Err = TemplateError;

    fn from_str(spec: &str) -> Result<Mount, TemplateError> {
        let mount = parse(spec).map_err(|problem| TemplateError::MountSpec { spec: spec.to_owned(), problem })?;
        mount.validate()?;
        Ok(mount)
    }
}

impl Mount {
    /// Parses the syntax of Docker's `--volume` for a bind mount: `SOURCE:TARGET`, with `:ro` or
    /// `:rw` at its end. A path with a colon needs the [long syntax](#impl-FromStr-for-Mount).
    ///
    /// ```
    /// # use container::Mount;
    /// assert_eq!(Mount::from_volume("/srv/a:/b:ro")?, Mount::bind("/srv/a", "/b").read_only());
    /// # Ok::<(), container::TemplateError>(())
    /// ```
    ///
    /// # Errors
    /// [`TemplateError::MountSpec`] with the problem.
    pub fn from_volume(spec: &str) -> Result<Mount, TemplateError> {
        let parts: Vec<_> = spec.split(':').collect();
        let (source, target, access) = match parts[..] {
            [source, target] if !source.is_empty() && !target.is_empty() => (source, target, "rw"),
            [source, target, access] if !source.is_empty() && !target.is_empty() => (source, target, access),
            [_] => {
                return Err(refused(
                    spec,
                    "has no target: write SOURCE:TARGET, or mount a tmpfs for an empty directory",
                ));
            }
            _ => return Err(refused(spec, "is not SOURCE:TARGET with :ro or :rw at its end")),
        };
        let mount = Mount::bind(source, target);
        match access {
            "rw" => Ok(mount),
            "ro" => Ok(mount.read_only()),
            other => Err(refused(spec, &format!("has an unknown option {other:?}: the options are ro and rw"))),
        }
    }

    /// Parses the syntax of Docker's `--tmpfs`: `TARGET` or `TARGET:OPTION,…`. The options are
    /// `ro`, `rw`, `size=SIZE` and `mode=MODE`. `nosuid` and `nodev` are always in effect and may
    /// be named.
    ///
    /// ```
    /// # use container::Mount;
    /// assert_eq!(Mount::from_tmpfs("/run:size=64m")?, Mount::tmpfs("/run").size_bytes(64 << 20));
    /// # Ok::<(), container::TemplateError>(())
    /// ```
    ///
    /// # Errors
    /// [`TemplateError::MountSpec`] with the problem.
    pub fn from_tmpfs(spec: &str) -> Result<Mount, TemplateError> {
        let (target, options) = spec.split_once(':').unwrap_or((spec, ""));
        let (mut mount, mut is_read_only) = (Mount::tmpfs(target), false);
        for option in options.split(',').filter(|option| !option.is_empty()) {
            mount = match option.split_once('=') {
                // The last one counts, as for mount(8).
                None if ["ro", "rw"].contains(&option) => {
                    is_read_only = option == "ro";
                    mount
                }
                None if ["nosuid", "nodev"].contains(&option) => mount,
                Some(("size", size)) => mount
                    .size_bytes(parse_size(size).map_err(|problem| refused(spec, &format!("has size: {problem}")))?),
                Some(("mode", octal)) => mount.mode(mode(octal).map_err(|problem| refused(spec, &problem))?),
                _ => {
                    let problem = format!("has an unknown option {option:?}: the options are ro, rw, size and mode");
                    return Err(refused(spec, &problem));
                }
            };
        }
        let mount = if is_read_only { mount.read_only() } else { mount };
        mount.validate()?;
        Ok(mount)
    }
}

fn refused(spec: &str, problem: &str) -> TemplateError {
    TemplateError::MountSpec { spec: spec.to_owned(), problem: problem.to_owned() }
}

#[derive(Debug, Default)]
struct Keys {
    kind: Option<String>,
    target: Option<String>,
    source: Option<String>,
    readonly: Option<bool>,
    size_bytes: Option<u64>,
    mode: Option<u32>,
}

fn parse(spec: &str) -> Result<Mount, String> {
    let mut keys = Keys::default();
    for pair in pairs(spec)? {
        let (key, value) = match pair.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (pair.as_str(), None),
        };
        match key {
            "type" => set(&mut keys.kind, key, text(key, value)?)?,
            "target" | "dst" | "destination" => set(&mut keys.target, key, text(key, value)?)?,
            "source" | "src" => set(&mut keys.source, key, text(key, value)?)?,
            "readonly" | "ro" => set(&mut keys.readonly, key, flag(key, value)?)?,
            "rw" if value.is_none() => set(&mut keys.readonly, key, false)?,
            "size" | "tmpfs-size" => set(
                &mut keys.size_bytes,
                key,
                parse_size(&text(key, value)?).map_err(|problem| format!("has {key}: {problem}"))?,
            )?,
            "mode" | "tmpfs-mode" => set(&mut keys.mode, key, mode(&text(key, value)?)?)?,
            _ if value.is_none() && key.contains(':') => {
                let (source, target) = key.split_once(':').unwrap_or_default();
                let pairs = format!("source={source},target={target}");
                return Err(format!("is not key=value: write {pairs:?}"));
            }
            _ => {
                return Err(format!(
                    "has an unknown key {key:?}: the keys are type, source, target, readonly, size and mode"
                ));
            }
        }
    }
    let Some(target) = keys.target else {
        return Err("has no target: add target=PATH, its path in the container".to_owned());
    };
    let mut mount = match (keys.kind.as_deref(), keys.source) {
        (None | Some("bind"), Some(source)) => Mount::bind(source, target),
        (None | Some("bind"), None) => {
            return Err("has no source: add source=PATH of the host, or type=tmpfs".to_owned());
        }
        (Some("tmpfs"), None) => Mount::tmpfs(target),
        (Some("tmpfs"), Some(_)) => {
            return Err("has a source, but a tmpfs starts empty: leave the source out".to_owned());
        }
        (Some(kind), _) => return Err(format!("has an unknown type {kind:?}: the types are bind and tmpfs")),
    };
    if keys.readonly == Some(true) {
        mount = mount.read_only();
    }
    if let Some(size_bytes) = keys.size_bytes {
        mount = mount.size_bytes(size_bytes);
    }
    if let Some(mode) = keys.mode {
        mount = mount.mode(mode);
    }
    Ok(mount)
}

/// Returns the fields of one line of CSV (RFC 4180). Docker parses the text as CSV.
fn pairs(spec: &str) -> Result<Vec<String>, String> {
    let mut pairs = Vec::new();
    let mut rest = spec;
    loop {
        let mut pair = String::new();
        if let Some(mut quoted) = rest.strip_prefix('"') {
            loop {
                let Some(end) = quoted.find('"') else { return Err("has a `\"` that is not closed".to_owned()) };
                pair.push_str(&quoted[..end]);
                quoted = &quoted[end + 1..];
                match quoted.strip_prefix('"') {
                    Some(after) => {
                        pair.push('"');
                        quoted = after;
                    }
                    None => break,
                }
            }
            rest = quoted;
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            pair.push_str(&rest[..end]);
            rest = &rest[end..];
        }
        if pair.is_empty() {
            return Err("has an empty pair: write key=value with one comma between two of them".to_owned());
        }
        pairs.push(pair);
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.is_empty() => return Ok(pairs),
            None => return Err(format!("continues with {rest:?} after a closing `\"`: put a comma there")),
        }
    }
}

fn set<T>(slot: &mut Option<T>, key: &str, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("has {key:?} twice: keep one")),
    }
}

fn text(key: &str, value: Option<&str>) -> Result<String, String> {
    match value {
        Some(value) if !value.is_empty() => Ok(value.to_owned()),
        _ => Err(format!("has no value for {key:?}: write {key}=VALUE")),
    }
}

fn flag(key: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(value) => Err(format!("has {key}={value:?}: write true or false, or only the key for true")),
    }
}

fn mode(text: &str) -> Result<u32, String> {
    // `from_str_radix` accepts a sign.
    let octal = text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mode = octal.then(|| u32::from_str_radix(text, 8).ok()).flatten();
    mode.ok_or_else(|| format!("has the mode {text:?}: write permissions in octal, as in 0755"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_in_the_syntax_of_docker_and_buildkit_are_read() {
        let table = [
            ("type=bind,source=/a,target=/b", Mount::bind("/a", "/b")),
            ("source=/a,target=/b", Mount::bind("/a", "/b")),
            ("type=bind,src=/a,dst=/b,ro", Mount::bind("/a", "/b").read_only()),
            ("destination=/b,src=/a,type=bind,readonly", Mount::bind("/a", "/b").read_only()),
            ("type=bind,src=/a,dst=/b,readonly=true", Mount::bind("/a", "/b").read_only()),
            ("type=bind,src=/a,dst=/b,ro=1", Mount::bind("/a", "/b").read_only()),
            ("type=bind,src=/a,dst=/b,readonly=false", Mount::bind("/a", "/b")),
            ("type=bind,src=/a,dst=/b,rw", Mount::bind("/a", "/b")),
            ("type=bind,src=/a=b,dst=/c", Mount::bind("/a=b", "/c")),
            ("type=bind,\"src=/a,b\",dst=/c", Mount::bind("/a,b", "/c")),
            ("\"src=/a \"\"b\"\"\",dst=/c", Mount::bind("/a \"b\"", "/c")),
            ("type=tmpfs,target=/c", Mount::tmpfs("/c")),
            ("type=tmpfs,target=/c,size=64m", Mount::tmpfs("/c").size_bytes(64 << 20)),
            ("type=tmpfs,target=/c,tmpfs-size=1GiB", Mount::tmpfs("/c").size_bytes(1 << 30)),
            ("type=tmpfs,target=/c,size=4096", Mount::tmpfs("/c").size_bytes(4096)),
            ("type=tmpfs,target=/c,mode=0755,ro", Mount::tmpfs("/c").mode(0o755).read_only()),
            ("type=tmpfs,target=/c,tmpfs-mode=1770", Mount::tmpfs("/c").mode(0o1770)),
        ];
        for (spec, mount) in table {
            assert_eq!(spec.parse::<Mount>().unwrap(), mount, "{spec}");
        }
    }

    #[test]
    fn an_error_names_the_part_that_is_wrong() {
        let table = [
            ("", "has an empty pair: write key=value with one comma between two of them"),
            ("src=/a,,dst=/b", "has an empty pair: write key=value with one comma between two of them"),
            ("src=/a,dst=/b,", "has an empty pair: write key=value with one comma between two of them"),
            ("type=bind,source=/a", "has no target: add target=PATH, its path in the container"),
            ("type=bind,target=/b", "has no source: add source=PATH of the host, or type=tmpfs"),
            ("target=", "has no value for \"target\": write target=VALUE"),
            ("src,dst=/b", "has no value for \"src\": write src=VALUE"),
            ("type=volume,src=a,dst=/b", "has an unknown type \"volume\": the types are bind and tmpfs"),
            ("type=tmpfs,src=/a,dst=/b", "has a source, but a tmpfs starts empty: leave the source out"),
            ("src=/a,source=/b,dst=/c", "has \"source\" twice: keep one"),
            ("src=/a,dst=/b,ro,rw", "has \"rw\" twice: keep one"),
            (".:/src", "is not key=value: write \"source=.,target=/src\""),
            (
                "src=/a,dst=/b,bind-propagation=shared",
                "has an unknown key \"bind-propagation\": the keys are type, source, target, readonly, size and mode",
            ),
            ("src=/a,dst=/b,ro=maybe", "has ro=\"maybe\": write true or false, or only the key for true"),
            (
                "type=tmpfs,dst=/b,size=big",
                "has size: \"big\" is not a size: write a number of bytes, or a number with k, m, g or t, as in 64m",
            ),
            (
                "type=tmpfs,dst=/b,size=-1",
                "has size: \"-1\" is not a size: write a number of bytes, or a number with k, m, g or t, as in 64m",
            ),
            (
                "type=tmpfs,dst=/b,size=64x",
                "has size: \"64x\" is not a size: write a number of bytes, or a number with k, m, g or t, as in 64m",
            ),
            ("type=tmpfs,dst=/b,size=99999999999t", "has size: \"99999999999t\" needs more than 64 bits"),
            ("type=tmpfs,dst=/b,mode=+755", "has the mode \"+755\": write permissions in octal, as in 0755"),
            ("type=tmpfs,dst=/b,mode=888", "has the mode \"888\": write permissions in octal, as in 0755"),
            ("\"src=/a,dst=/b", "has a `\"` that is not closed"),
            ("\"src=/a\"x,dst=/b", "continues with \"x,dst=/b\" after a closing `\"`: put a comma there"),
        ];
        for (spec, problem) in table {
            let error = spec.parse::<Mount>().unwrap_err();
            assert_eq!(error.to_string(), format!("the mount {spec:?} {problem}"));
        }
    }

    #[test]
    fn the_short_syntax_of_docker_is_read() {
        for (spec, mount) in [
            ("/a:/b", Mount::bind("/a", "/b")),
            (".:/b:rw", Mount::bind(".", "/b")),
            ("/a:/b:ro", Mount::bind("/a", "/b").read_only()),
        ] {
            assert_eq!(Mount::from_volume(spec).unwrap(), mount, "{spec}");
        }
        for (spec, mount) in [
            ("/run", Mount::tmpfs("/run")),
            ("/run:rw,nosuid,nodev,size=65536k", Mount::tmpfs("/run").size_bytes(64 << 20)),
            ("/run:ro,mode=755", Mount::tmpfs("/run").mode(0o755).read_only()),
        ] {
            assert_eq!(Mount::from_tmpfs(spec).unwrap(), mount, "{spec}");
        }
    }

    #[test]
    fn an_error_of_the_short_syntax_names_the_part_that_is_wrong() {
        let form = "is not SOURCE:TARGET with :ro or :rw at its end";
        for (spec, problem) in [
            ("/a", "has no target: write SOURCE:TARGET, or mount a tmpfs for an empty directory"),
            (":/b", form),
            ("/a:", form),
            ("/a:/b:ro:z", form),
            ("/a:/b:z", "has an unknown option \"z\": the options are ro and rw"),
        ] {
            let error = Mount::from_volume(spec).unwrap_err();
            assert_eq!(error.to_string(), format!("the mount {spec:?} {problem}"));
        }
        for (spec, problem) in [
            ("/b:noexec", "has an unknown option \"noexec\": the options are ro, rw, size and mode"),
            ("/b:mode=888", "has the mode \"888\": write permissions in octal, as in 0755"),
        ] {
            let error = Mount::from_tmpfs(spec).unwrap_err();
            assert_eq!(error.to_string(), format!("the mount {spec:?} {problem}"));
        }
    }

    #[test]
    fn settings_of_the_other_kind_are_refused() {
        let table = [
            ("src=/a,dst=/b,size=1m", "the mount at \"/b\" cannot have the size 1048576: only a tmpfs has a size"),
            (
                "src=/a,dst=/b,mode=755",
                "the mount at \"/b\" cannot have the mode 755: a bind mount has the mode of its source; only a tmpfs has its own",
            ),
            (
                "type=tmpfs,dst=/b,size=0",
                "the mount at \"/b\" cannot have the size 0: to tmpfs, that means no limit; give at least one byte",
            ),
            (
                "type=tmpfs,dst=/b,mode=10000",
                "the mount at \"/b\" cannot have the mode 10000: permissions are at most 7777 (octal)",
            ),
        ];
        for (spec, message) in table {
            assert_eq!(spec.parse::<Mount>().unwrap_err().to_string(), message);
        }
    }
}
