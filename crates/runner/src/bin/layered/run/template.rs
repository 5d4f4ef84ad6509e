//! The options that describe the container, and the template that they make.
//!
//! [`values`] parses their values.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use container::{
    Capability, Fsync, Mount, Network, NoNewPrivileges, Owners, Rlimit, RootAccess, Seccomp, Template, Terminal,
    UserSpec,
};
use layer::display::quoted;
use rustix::thread::CapabilitySet;

use crate::stack::read_given;
use crate::values::{self, Capabilities, Cpus, capabilities, cpus, memory, variable};

use super::{COMMAND, LIMITS, SECURITY};

/// The options that `--spec` replaces.
#[derive(Debug, clap::Args)]
#[group(conflicts_with = "spec")]
pub(super) struct TemplateArgs {
    /// Set an environment variable for the command; may be repeated.
    ///
    /// KEY alone passes your own value on, if the variable is set.
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = variable, help_heading = COMMAND)]
    env: Vec<(String, Option<String>)>,
    /// Working directory of the command.
    #[arg(short = 'w', long, visible_alias = "workdir", value_name = "DIR", default_value = "/", help_heading = COMMAND)]
    cwd: PathBuf,
    /// User and group of the command, by name or number.
    ///
    /// Names are those of the stack's /etc/passwd and /etc/group. Without GROUP, a name gets its
    /// own group and all groups that list it, and a number is also the number of the group.
    #[arg(short, long, value_name = "USER[:GROUP]", default_value = "0:0", help_heading = COMMAND)]
    user: UserSpec,
    /// Hostname of the container [default: that of the host].
    #[arg(long, value_name = "NAME", help_heading = COMMAND)]
    hostname: Option<String>,
    /// Network of the container: none, private or host.
    ///
    /// `none` has only a loopback interface. `private` is a separate network from which the command
    /// reaches other hosts, but not the loopback interface of this one; nothing can reach the
    /// command. It needs pasta (package passt). `host` is the host's network. With `host`, the
    /// container gets copies of the host's /etc/hosts and /etc/resolv.conf, and with `private` an
    /// /etc/resolv.conf for the same name servers, unless --etc is `stack`.
    #[arg(long, default_value = "none", hide_possible_values = true, help_heading = COMMAND)]
    network: NetworkArg,
    /// Give the command a terminal, e.g. for an interactive shell.
    #[arg(short, long, help_heading = COMMAND)]
    tty: bool,
    /// Mount a file or directory of the host; may be repeated.
    ///
    /// A relative SOURCE is in the working directory of layered. A later mount covers an earlier
    /// one, in the order --mount, --volume, --tmpfs.
    #[arg(short, long = "volume", value_name = "SOURCE:TARGET[:ro]", value_parser = Mount::from_volume, help_heading = COMMAND)]
    volumes: Vec<Mount>,
    /// Mount an empty directory in memory; may be repeated.
    ///
    /// OPTIONS are ro, size=SIZE and mode=MODE, with commas between them.
    #[arg(long, value_name = "TARGET[:OPTIONS]", value_parser = Mount::from_tmpfs, help_heading = COMMAND)]
    tmpfs: Vec<Mount>,
    /// Mount a path of the host or a tmpfs; may be repeated.
    ///
    /// SPEC is type=bind,source=/a,target=/b or type=tmpfs,target=/c,size=64m. With ,readonly at
    /// its end, a bind mount is read-only. A relative source is in the working directory of
    /// layered.
    #[arg(long = "mount", value_name = "SPEC", help_heading = COMMAND)]
    mounts: Vec<Mount>,
    /// Whether sync calls wait: fake or real.
    ///
    /// With `fake`, sync, msync and sync_file_range succeed without waiting for the disk, because
    /// after a power failure the upper is useless anyway. With `real`, they wait. fsync never waits
    /// for the upper.
    #[arg(long, value_name = "MODE", default_value = "fake", hide_possible_values = true, help_heading = COMMAND)]
    sync: SyncArg,
    /// Whether chown and setuid take effect: real or fake.
    ///
    /// With `fake`, chown, setgroups, setuid and their families succeed without doing anything.
    /// This is for --ids single, where the real calls fail because there is no other user: apt and
    /// dpkg then install packages. Pass -o APT::Sandbox::User=root to apt. A program that drops its
    /// privileges in this way still has them.
    #[arg(long, value_name = "MODE", default_value = "real", hide_possible_values = true, help_heading = COMMAND)]
    owners: OwnersArg,
    /// Limit of memory and swap for the container, e.g. 512m or 2g.
    ///
    /// SIZE is a number of bytes, or one with a suffix: k, m, g, t (powers of 1024).
    #[arg(short, long, value_name = "SIZE", value_parser = memory, help_heading = LIMITS)]
    memory: Option<u64>,
    /// Limit of processes and threads for the container.
    #[arg(long, visible_alias = "pids-limit", value_name = "N", help_heading = LIMITS)]
    pids: Option<u64>,
    /// Limit of processor time for the container, e.g. 1.5.
    ///
    /// N is the number of processors that the container may keep busy. A value with a comma or a
    /// dash is a list as of --cpuset-cpus.
    #[arg(long, value_name = "N", value_parser = cpus, help_heading = LIMITS)]
    cpus: Option<Cpus>,
    /// Processors that the container may use, e.g. 0-3,5.
    #[arg(long, value_name = "LIST", help_heading = LIMITS)]
    cpuset_cpus: Option<String>,
    /// Set a resource limit, e.g. nofile=1024:65536; may be repeated.
    ///
    /// NAME is a name of Docker's --ulimit. SOFT and HARD are in the units of setrlimit(2), or
    /// `unlimited`. Without HARD, SOFT is both limits. The default is nofile=1024:524288, or less
    /// if the caller's own hard limit is lower.
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]", help_heading = LIMITS)]
    ulimits: Vec<Rlimit>,
    /// Let the command write only to mounts, /dev and /tmp.
    #[arg(long, help_heading = SECURITY)]
    read_only: bool,
    /// Give root in the container a capability; may be repeated.
    ///
    /// NAME is a name of capabilities(7), such as NET_ADMIN, or ALL for all that layered has.
    #[arg(long, value_name = "NAME", value_parser = capabilities, help_heading = SECURITY)]
    cap_add: Vec<Capabilities>,
    /// Take a capability from root in the container; may be repeated.
    ///
    /// NAME is a name of capabilities(7), such as NET_RAW, or ALL. By default root has Docker's 14.
    #[arg(long, value_name = "NAME", value_parser = capabilities, help_heading = SECURITY)]
    cap_drop: Vec<Capabilities>,
    /// Seccomp profile: default, native, unconfined or a file.
    ///
    /// `default` is Docker's default profile, under which the command cannot create namespaces.
    /// `native` is the same profile without support for 32-bit programs, which makes runc start
    /// faster. `unconfined` allows all system calls. A file has the linux.seccomp of the OCI
    /// runtime specification as JSON, without the conditions of Docker's own format.
    #[arg(long, value_name = "PROFILE", default_value = "default", help_heading = SECURITY)]
    seccomp: SeccompArg,
    /// Run set-user-ID programs (su, sudo) without their privileges.
    ///
    /// This sets the no_new_privs attribute of prctl(2).
    #[arg(long, help_heading = SECURITY)]
    no_new_privileges: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum NetworkArg {
    None,
    Private,
    Host,
}

#[derive(Debug, Clone, PartialEq)]
enum SeccompArg {
    Default,
    Native,
    Unconfined,
    File(PathBuf),
}

impl FromStr for SeccompArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "default" => Self::Default,
            "native" => Self::Native,
            "unconfined" => Self::Unconfined,
            path => Self::File(path.into()),
        })
    }
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum SyncArg {
    Fake,
    Real,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum OwnersArg {
    Real,
    Fake,
}

impl TemplateArgs {
    /// Returns the template that runs `command`.
    pub(super) fn template(&self, command: &[String]) -> anyhow::Result<Template> {
        let mut builder = Template::builder(command)
            .cwd(&self.cwd)
            .user_spec(self.user.clone())
            .hostname(self.hostname.as_deref())
            .memory_limit_bytes(self.memory)
            .pids_limit(self.pids)
            .cpus(self.processors()?)
            .capabilities(self.capabilities())
            .root_access(if self.read_only { RootAccess::ReadOnly } else { RootAccess::ReadWrite })
            .network(match self.network {
                NetworkArg::None => Network::None,
                NetworkArg::Private => Network::Private,
                NetworkArg::Host => Network::Host,
            })
            .seccomp(self.seccomp.profile()?)
            .fsync(match self.sync {
                SyncArg::Fake => Fsync::Ignored,
                SyncArg::Real => Fsync::Real,
            })
            .owners(match self.owners {
                OwnersArg::Real => Owners::Real,
                OwnersArg::Fake => Owners::Fake,
            })
            .no_new_privileges(if self.no_new_privileges { NoNewPrivileges::On } else { NoNewPrivileges::Off })
            .terminal(if self.tty { Terminal::Attached } else { Terminal::None });
        if let Some(Cpus::Quota(quota)) = self.cpus {
            builder = builder.cpu_quota(quota, Cpus::PERIOD);
        }
        for (key, value) in &self.env {
            if let Some(value) = value.clone().map_or_else(|| callers(key), |value| Ok(Some(value)))? {
                builder = builder.env(key, value);
            }
        }
        for limit in &self.ulimits {
            builder = builder.rlimit(limit.kind, limit.soft, limit.hard);
        }
        for mount in self.mounts.iter().chain(&self.volumes).chain(&self.tmpfs) {
            let relative = mount.source().is_some_and(Path::is_relative);
            builder = builder.mount(match relative {
                true => mount.clone().source_in(&std::env::current_dir().context("cannot tell the working directory")?),
                false => mount.clone(),
            });
        }
        Ok(builder.build()?)
    }

    /// Returns the capabilities of the container. `ALL` stands for those that layered itself has.
    fn capabilities(&self) -> Vec<Capability> {
        let mut granted = values::granted(&self.cap_add, &self.cap_drop);
        if self.cap_add.contains(&Capabilities::All) {
            let own = rustix::thread::capabilities(None).map_or(CapabilitySet::all(), |sets| sets.permitted);
            let bit = |name: &str| CapabilitySet::from_name(name.trim_start_matches("CAP_"));
            granted.retain(|capability| bit(&capability.to_string()).is_none_or(|bit| own.contains(bit)));
        }
        granted
    }

    /// Returns the list of processors. Refuses one that this machine does not have, which a runtime
    /// would refuse as `numerical result out of range`.
    fn processors(&self) -> anyhow::Result<Option<&str>> {
        let list = match (&self.cpus, self.cpuset_cpus.as_deref()) {
            (Some(Cpus::List(_)), Some(_)) => {
                bail!("--cpus has a list of processors, and so has --cpuset-cpus; pass one")
            }
            (Some(Cpus::List(list)), None) => Some(list.as_str()),
            (_, list) => list,
        };
        if let Some(list) = list {
            let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
            let online = online.trim();
            // Where the kernel does not say, the runtime does.
            let exceeds = last(online).zip(last(list)).is_some_and(|(last, wanted)| wanted > last);
            anyhow::ensure!(
                !exceeds,
                "cannot use the processors {list}: this machine has {online}; for an amount of processor time, use --cpus N"
            );
        }
        Ok(list)
    }
}

/// Returns the highest number in a list of processors.
fn last(list: &str) -> Option<u32> {
    list.split([',', '-']).filter_map(|number| number.parse().ok()).max()
}

/// Returns the caller's value of a variable, or `None` if it is not set.
fn callers(key: &str) -> anyhow::Result<Option<String>> {
    match std::env::var(key) {
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => {
            bail!("cannot pass the variable {key:?} on: its value is not UTF-8; write {key}=VALUE")
        }
    }
}

impl SeccompArg {
    fn profile(&self) -> anyhow::Result<Seccomp> {
        Ok(match self {
            Self::Default => Seccomp::Default,
            Self::Native => Seccomp::Native,
            Self::Unconfined => Seccomp::Unconfined,
            Self::File(path) => {
                let text = read_given(path).context("--seccomp is default, native, unconfined or a file")?;
                let profile = serde_json::from_slice(&text);
                Seccomp::Custom(profile.with_context(|| format!("{} is not JSON", quoted(path)))?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Debug, Parser)]
    struct Options {
        // The group of the options conflicts with it.
        #[arg(long)]
        spec: Option<PathBuf>,
        #[command(flatten)]
        template: TemplateArgs,
    }

    fn config(line: &str) -> Value {
        let words = ["run"].into_iter().chain(line.split(' ').filter(|word| !word.is_empty()));
        let options = Options::try_parse_from(words).unwrap();
        assert!(options.spec.is_none());
        serde_json::to_value(options.template.template(&["true".into()]).unwrap()).unwrap()
    }

    fn refused(line: &str) -> String {
        match Options::try_parse_from(["run"].into_iter().chain(line.split(' '))) {
            Ok(options) => format!("{:#}", options.template.template(&["true".into()]).unwrap_err()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn options_of_habit_are_those_of_layered() {
        for (habit, layered) in [
            ("-e A=b -e C=d", "--env A=b --env C=d"),
            ("-w /src", "--cwd /src"),
            ("--workdir /src", "--cwd /src"),
            ("-u 7:8", "--user 7:8"),
            ("-t", "--tty"),
            ("-m 64m", "--memory 64m"),
            ("--pids-limit 9", "--pids 9"),
            ("-v /a:/b -v /c:/d:ro", "--mount type=bind,source=/a,target=/b --mount source=/c,target=/d,readonly"),
            ("--tmpfs /run:size=1m", "--mount type=tmpfs,target=/run,size=1m"),
            ("--cpus 0-0", "--cpuset-cpus 0-0"),
            ("--cap-drop SYS_ADMIN", ""),
        ] {
            assert_eq!(config(habit), config(layered), "{habit}");
        }
    }

    #[test]
    fn options_of_habit_reach_the_configuration() {
        assert_eq!(config("--read-only")["root"]["readonly"], true);
        let cpu = &config("--cpus 1.5 --cpuset-cpus 0")["linux"]["resources"]["cpu"];
        assert_eq!((&cpu["quota"], &cpu["period"], &cpu["cpus"]), (&json!(150_000), &json!(100_000), &json!("0")));
        let bounding = |line| config(line)["process"]["capabilities"]["bounding"].clone();
        assert_eq!(bounding("--cap-drop ALL --cap-add net_admin"), json!(["CAP_NET_ADMIN"]));
        let env = |line| config(line)["process"]["env"].as_array().unwrap()[1..].to_vec();
        assert_eq!(
            env("-e CARGO_MANIFEST_DIR -e LAYERED_UNSET"),
            [json!(concat!("CARGO_MANIFEST_DIR=", env!("CARGO_MANIFEST_DIR")))]
        );
    }

    #[test]
    fn a_profile_is_read_from_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        std::fs::write(path, r#"{"defaultAction": "SCMP_ACT_LOG"}"#).unwrap();
        let seccomp = config(&format!("--sync real --seccomp {path}"))["linux"]["seccomp"].clone();
        assert_eq!(seccomp, json!({"defaultAction": "SCMP_ACT_LOG"}));
        std::fs::write(path, "SCMP_ACT_LOG").unwrap();
        assert!(refused(&format!("--seccomp {path}")).contains("is not JSON"));
        assert!(refused("--seccomp off").contains("--seccomp is default, native, unconfined or a file"));
    }

    #[test]
    fn a_value_that_cannot_be_meant_is_refused() {
        for (line, message) in [
            ("--cpus 0", "--cpuset-cpus 0 is a list"),
            ("--cpuset-cpus 4095", "cannot use the processors 4095: this machine has 0"),
            ("--cpus 0-1 --cpuset-cpus 0", "pass one"),
            ("-m 10", "write a unit, as in 512m"),
            ("-v /a", "has no target: write SOURCE:TARGET"),
            ("--tmpfs /a:exec", "the options are ro, rw, size and mode"),
            ("--mount .:/src", "write \"source=.,target=/src\""),
            ("--cap-add magic", "the names are those of capabilities(7)"),
        ] {
            let seen = refused(line);
            assert!(seen.contains(message), "{line}: {seen}");
        }
    }
}
