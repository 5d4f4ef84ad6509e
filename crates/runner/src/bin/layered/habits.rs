//! What people who know other tools type first, and what they find here instead.
//!
//! An option of habit that `layered` can serve is an option of [`run`](crate::run).

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue};

/// Subcommands of Docker and Podman.
const COMMANDS: [(&[&str], &str); 18] = [
    (&["images", "image", "list"], "`layered ls STORE` lists layers"),
    (&["inspect", "history"], "`layered show LAYER` describes a layer"),
    (&["ps", "top", "stats"], "a run is the process `layered run`; ps(1) lists it, and `layered ls --kept` kept runs"),
    (
        &["exec", "attach"],
        "`layered run … -- COMMAND` runs a command; `layered shell` opens a failed run that was kept",
    ),
    (&["rmi", "remove"], "`layered rm LAYER` removes layers"),
    (&["prune", "system"], "`layered gc STORE` removes the layers that are used least"),
    (&["logs"], "the output of a run goes to the terminal, or to the file of `layered run --output FILE`"),
    (&["build"], "`layered run --commit STORE/NAME` runs a command, and makes a layer of what it wrote"),
    (&["create", "start"], "`layered run` starts a command and waits for its end"),
    (&["stop", "kill"], "a signal to the process `layered run` reaches the command; --timeout ends it"),
    (&["pause", "wait"], "a run ends with its process; wait for that"),
    (&["load"], FROM_IMAGE),
    (&["save"], TO_IMAGE),
    (&["cp", "mount"], "a layer is a directory; its files are in `fs/`"),
    (&["tag", "rename"], "the name of a layer is that of its directory"),
    (&["info"], "`layered doctor` checks this machine"),
    (&["search", "login"], "layered uses the logins of `podman login` and `docker login`"),
    (&["volume", "network"], "`layered run` has --volume and --network none, private or host"),
];

/// Advice for the subcommands that move layers here, and images in the other tools.
const IMAGES: [(&[&str], &str); 2] = [(&["pull"], FROM_IMAGE), (&["push"], TO_IMAGE)];

const FROM_IMAGE: &str = "`layered import docker://NAME base` makes a base of an image; `layered import docker-archive:FILE base` that of a file";
const TO_IMAGE: &str =
    "`layered export docker://NAME …` writes an image; `layered export oci-archive:FILE:TAG …` writes it to a file";

/// Options with which Docker, Podman, bubblewrap and systemd-nspawn run a command.
const OPTIONS: [(&[&str], &str); 25] = [
    (&["--rm"], "leave it out: a run leaves nothing to remove, unless --commit, --upper or --keep-failed keeps it"),
    (&["--name", "-M", "--machine"], "leave it out: a run has no name, and several can run at the same time"),
    (
        &["-i", "--interactive", "-it", "-ti"],
        "leave -i out: the command always gets standard input; -t gives it a terminal",
    ),
    (&["-d", "--detach"], "layered stays in the foreground; let the shell start it in the background"),
    (
        &["-p", "--publish", "--expose"],
        "a private network publishes no ports; --network host lets the command serve those of the host",
    ),
    (&["--net"], "write --network none, private or host; private is like Docker's bridge"),
    (&["--dns", "--dns-search"], "mount a file with -v FILE:/etc/resolv.conf"),
    (&["--add-host"], "mount a file with -v FILE:/etc/hosts"),
    (&["--shm-size"], "write --tmpfs /dev/shm:size=SIZE"),
    (&["--ipc", "--pid", "--uts", "--cgroupns"], "leave it out: each run has a namespace of its own"),
    (&["--device", "--gpus"], "a run gets no devices of the host; --spec FILE can configure them"),
    (&["--privileged"], "grant what is needed with --cap-add and --seccomp unconfined"),
    (&["--security-opt"], "use --seccomp PROFILE or --no-new-privileges"),
    (&["--entrypoint"], "write the program as the first word of COMMAND"),
    (&["--env-file"], "pass each variable with -e"),
    (&["--setenv", "-E"], "write -e KEY=VALUE"),
    (&["--bind", "--bind-try", "--dev-bind"], "write -v SOURCE:TARGET"),
    (&["--ro-bind", "--bind-ro"], "write -v SOURCE:TARGET:ro"),
    (&["--chdir"], "write --workdir DIR"),
    (&["--uid", "--gid"], "write --user UID:GID"),
    (&["-D", "--directory", "--root"], "write --rootfs DIR"),
    (&["--memory-swap"], "--memory limits memory and swap together"),
    (&["--image"], "write --base DIR or --rootfs DIR"),
    (&["--init"], "leave it out: every run has an init, unless --no-init"),
    (&["--pull", "--platform", "--label", "--restart"], "leave it out: a run has no image and no daemon"),
];

/// Puts advice for a habit into a usage error, in place of clap's.
pub(crate) fn advise(error: &mut clap::Error) {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let find = |table: &[(&[&str], &'static str)], word: &str| {
        let word = word.split('=').next().unwrap_or_default();
        table.iter().find(|(words, _)| words.contains(&word)).map(|(_, advice)| *advice)
    };
    let usage = match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => usage.to_string(),
        _ => String::new(),
    };
    let is_run = usage.contains("layered run ");
    let image = ["pull", "push"].into_iter().find(|command| usage.contains(&format!("layered {command} ")));
    let advice = match (text(ContextKind::InvalidSubcommand), text(ContextKind::InvalidArg)) {
        (Some(word), _) => find(&COMMANDS, &word),
        (None, Some(word)) if is_run => find(&OPTIONS, &word),
        // A mistyped option is no habit.
        _ if error.get(ContextKind::SuggestedArg).is_some() => None,
        _ => image.and_then(|command| find(&IMAGES, command)),
    };
    let tips = match (advice, error.remove(ContextKind::Suggested)) {
        (Some(advice), _) => {
            error.remove(ContextKind::SuggestedSubcommand);
            error.remove(ContextKind::SuggestedArg);
            vec![StyledStr::from(advice)]
        }
        // To pass an unknown option as the command is never what the caller means.
        (None, Some(ContextValue::StyledStrs(tips))) => {
            tips.into_iter().filter(|tip| !tip.to_string().starts_with("to pass '")).collect()
        }
        _ => return,
    };
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    fn message(line: &str) -> String {
        let mut error = crate::Cli::try_parse_from(line.split(' ')).unwrap_err();
        advise(&mut error);
        error.to_string()
    }

    #[test]
    fn a_habit_that_cannot_be_served_is_told_what_to_use() {
        for (line, advice) in [
            ("layered images", "`layered ls STORE`"),
            ("layered inspect x", "`layered show LAYER`"),
            ("layered ps", "ps(1) lists it"),
            ("layered exec x sh", "`layered run"),
            ("layered rmi x", "`layered rm LAYER`"),
            ("layered logs x", "--output FILE"),
            ("layered run --rm base true", "a run leaves nothing to remove"),
            ("layered run --name=x base true", "a run has no name"),
            ("layered run -it base sh", "-t gives it a terminal"),
            ("layered run --device /dev/fuse base true", "--spec FILE"),
            ("layered run --privileged base true", "--cap-add"),
            ("layered run --shm-size 1g base true", "--tmpfs /dev/shm:size=SIZE"),
        ] {
            let message = message(line);
            assert!(message.contains("tip: ") && message.contains(advice), "{message}");
            assert!(!message.contains("similar"), "{message}");
        }
    }

    #[test]
    fn no_tip_proposes_to_pass_an_option_as_the_command() {
        for line in ["layered run --no-such-option base true", "layered run -Z base true", "layered plan --tyme"] {
            assert!(!message(line).contains("as a value"), "{line}");
        }
        assert!(message("layered run --memery 1g base true").contains("a similar argument exists: '--memory'"));
    }

    #[test]
    fn no_advice_is_about_what_exists() {
        let command = crate::Cli::command();
        for words in COMMANDS.iter().map(|(words, _)| words) {
            assert!(command.get_subcommands().all(|known| !words.contains(&known.get_name())), "{words:?}");
        }
        let run = command.find_subcommand("run").unwrap();
        for word in OPTIONS.iter().flat_map(|(words, _)| *words) {
            let is_known = |known: &clap::Arg| {
                known
                    .get_long_and_visible_aliases()
                    .unwrap_or_default()
                    .iter()
                    .any(|long| format!("--{long}") == **word)
                    || known.get_short().is_some_and(|short| format!("-{short}") == **word)
            };
            assert!(!run.get_arguments().any(is_known), "{word}");
        }
    }
}
