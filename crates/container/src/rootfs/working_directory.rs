//! Follows a path as the container will see it. The container's mounts do not exist yet, so this
//! module resolves the path itself. `rootfs` creates the mount points.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat, openat2, readlinkat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};

use crate::template::MountEntry;

/// The mounts of a template over a root file system, as the container will see them.
#[derive(Debug)]
pub(super) struct View {
    root: Content,
    /// In the template's order.
    mounts: Vec<MountAt>,
}

/// The place to which a path leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// In the root file system, whether it exists or not: the path without links.
    InRoot(PathBuf),
    /// In a mount.
    InMount,
    /// Behind a file that is not a directory, or a directory that this process may not enter.
    Nowhere,
}

/// Why a working directory cannot be used.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It may lead out of the container.
    Stray { target: PathBuf, why: &'static str },
    /// The kernel's error.
    Failed(Errno),
}

/// A mount of the template.
#[derive(Debug)]
struct MountAt {
    /// The mount point without links.
    at: PathBuf,
    content: Content,
}

/// The contents of a directory on the way, as far as they are known.
#[derive(Debug, Clone)]
enum Content {
    /// The directory exists and is open.
    Open(Rc<OwnedFd>, MountsBelow),
    /// The directory is empty. Files that runtimes create in it before the command runs are not
    /// links.
    Nothing,
    /// The kernel creates the contents, and their links stay inside.
    Kernel,
    /// The contents may be links that lead anywhere.
    Unsafe(&'static str),
}

/// Whether the container sees the mounts below a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MountsBelow {
    Seen,
    Hidden,
}

/// Whether a path through [`Content::Unsafe`] is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unsafe {
    Refused,
    /// It is not an error, because the path is the destination of a mount. Runtimes do not follow
    /// such links there.
    Passed,
}

/// A directory on the way, with the index of the mount that it is in.
#[derive(Debug)]
struct Step {
    name: OsString,
    content: Content,
    mount: Option<usize>,
}

const IN_PROC: &str = "in /proc, whose links lead out of the container";
const UNSEEN: &str = "whose contents are unknown before the run";

/// `PROC_SUPER_MAGIC` in `linux/magic.h`.
const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// The kernel's limit of links in a path: path_resolution(7).
const MOST_LINKS: usize = 40;

/// The links that runtimes create in `/dev` unless that is a bind mount: runtime-linux.md, "Dev
/// symbolic links".
const DEV_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
];

impl View {
    /// Creates the view of the root file system at `root` with `mounts`, whose mount points exist.
    pub(super) fn new<'t>(root: &OwnedFd, mounts: impl Iterator<Item = MountEntry<'t>>) -> rustix::io::Result<Self> {
        let root = Content::Open(Rc::new(fcntl_dupfd_cloexec(root, 3)?), MountsBelow::Seen);
        let mut view = Self { root, mounts: Vec::new() };
        for mount in mounts.filter(|mount| !mount.copies_covered_directory()) {
            // The runtime refuses a destination that leads nowhere.
            if let Ok(Some(steps)) = view.walk(mount.destination(), Unsafe::Passed) {
                view.mounts.push(MountAt { at: path(&steps), content: Content::of(&mount) });
            }
        }
        Ok(view)
    }

    /// Finds the place to which `cwd`, an absolute path, leads.
    pub(super) fn find(&self, cwd: &Path) -> Result<Found, Refusal> {
        Ok(match self.walk(cwd, Unsafe::Refused)? {
            None => Found::Nowhere,
            Some(steps) if steps.last().is_some_and(|last| last.mount.is_some()) => Found::InMount,
            Some(steps) => Found::InRoot(path(&steps)),
        })
    }

    /// Opens `path`, an absolute path. Returns `None` if it does not exist, or if its content is
    /// unknown before the run.
    pub(super) fn open(&self, path: &Path) -> rustix::io::Result<Option<Rc<OwnedFd>>> {
        match self.walk(path, Unsafe::Refused) {
            Ok(steps) => Ok(steps.and_then(|mut steps| steps.pop()).and_then(|last| match last.content {
                Content::Open(file, _) => Some(file),
                _ => None,
            })),
            Err(Refusal::Stray { .. }) => Ok(None),
            Err(Refusal::Failed(errno)) => Err(errno),
        }
    }

    /// Returns the directories on the way to `target`, the root first. Returns `None` if another
    /// kind of file is on the way, or a directory that this process may not enter.
    fn walk(&self, target: &Path, choice: Unsafe) -> Result<Option<Vec<Step>>, Refusal> {
        let mut steps = vec![Step { name: OsString::new(), content: self.root.clone(), mount: None }];
        // The next name is the last element.
        let mut pending = names(target);
        let mut links = 0;
        while let Some(name) = pending.pop() {
            let here = steps.last().expect("the root is never left");
            let stray = |target: PathBuf, why| {
                let target = pending.iter().rev().fold(target, |path, name| path.join(name));
                Err(Refusal::Stray { target, why })
            };
            if name == "/" {
                steps.truncate(1);
                continue;
            }
            if name == ".." {
                // A link that the kernel created may have led here. Then `..` does not lead to the
                // previous directory of the path.
                if matches!(here.content, Content::Kernel) && choice == Unsafe::Refused && !is_mount_root(&steps) {
                    return stray(path(&steps).join(".."), UNSEEN);
                }
                steps.truncate((steps.len() - 1).max(1));
                continue;
            }
            let at = path(&steps).join(&name);
            if let Some(step) = self.mounted(&at, &name, here.mount) {
                steps.push(step);
                continue;
            }
            if let (Some(target), Unsafe::Refused) = (self.link_of_dev(&at), choice) {
                return stray(target.into(), IN_PROC);
            }
            let content = match &here.content {
                Content::Unsafe(why) if choice == Unsafe::Refused && !self.is_above_a_mount(&at) => {
                    return stray(at, why);
                }
                Content::Open(directory, below) => match look(directory, &name, *below) {
                    Ok(Entry::Other(content)) => content,
                    Ok(Entry::Link(target)) if links < MOST_LINKS => {
                        links += 1;
                        pending.extend(names(&target));
                        continue;
                    }
                    Ok(Entry::Link(_)) => return Err(Refusal::Failed(Errno::LOOP)),
                    Err(Errno::NOENT) => Content::Nothing,
                    // A network file system may refuse root but not the command's user.
                    Err(Errno::NOTDIR | Errno::ACCESS) => return Ok(None),
                    // The container sees the directory that this mount covers.
                    Err(Errno::XDEV) => Content::Unsafe(UNSEEN),
                    Err(error) => return Err(Refusal::Failed(error)),
                },
                same => same.clone(),
            };
            let mount = here.mount;
            steps.push(Step { name, content, mount });
        }
        Ok(Some(steps))
    }

    /// Returns the topmost mount at `at`, as seen from a directory in the mount `from`. Only mounts
    /// after `from` are visible there, because `from` covers the earlier ones.
    fn mounted(&self, at: &Path, name: &OsStr, from: Option<usize>) -> Option<Step> {
        let visible = |number: usize| from.is_none_or(|from| number > from);
        let found = self.mounts.iter().enumerate().rev().find(|(number, mount)| visible(*number) && mount.at == at);
        found.map(|(number, mount)| Step { name: name.into(), content: mount.content.clone(), mount: Some(number) })
    }

    /// Returns the target of a link that runtimes create at `at`.
    fn link_of_dev(&self, at: &Path) -> Option<&'static str> {
        let name = at.strip_prefix("/dev").ok()?;
        let dev = self.mounts.iter().rev().find(|mount| mount.at == Path::new("/dev"));
        let is_bind = dev.is_some_and(|mount| matches!(mount.content, Content::Open(..)));
        DEV_LINKS.iter().find(|(link, _)| !is_bind && name == Path::new(link)).map(|(_, target)| *target)
    }

    fn is_above_a_mount(&self, at: &Path) -> bool {
        self.mounts.iter().any(|mount| mount.at.starts_with(at))
    }
}

impl Content {
    fn of(mount: &MountEntry<'_>) -> Self {
        match (mount.is_bind(), mount.file_system(), mount.source()) {
            (true, _, Some(source)) => {
                let below = if mount.is_recursive() { MountsBelow::Seen } else { MountsBelow::Hidden };
                match openat(CWD, source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
                    Ok(source) => Self::open(source, below),
                    Err(_) => Self::Unsafe(UNSEEN),
                }
            }
            (false, Some("tmpfs" | "ramfs"), _) => Self::Nothing,
            (false, Some("sysfs" | "cgroup" | "cgroup2" | "devpts" | "mqueue"), _) => Self::Kernel,
            (false, Some("proc"), _) => Self::Unsafe(IN_PROC),
            _ => Self::Unsafe(UNSEEN),
        }
    }

    fn open(file: OwnedFd, below: MountsBelow) -> Self {
        match fstatfs(&file) {
            Ok(statfs) if statfs.f_type as u64 == PROC_SUPER_MAGIC => Self::Unsafe(IN_PROC),
            _ => Self::Open(Rc::new(file), below),
        }
    }
}

/// The kind of file that a name refers to.
enum Entry {
    Link(PathBuf),
    Other(Content),
}

fn look(directory: &OwnedFd, name: &OsStr, below: MountsBelow) -> rustix::io::Result<Entry> {
    let resolve = match below {
        MountsBelow::Seen => ResolveFlags::empty(),
        MountsBelow::Hidden => ResolveFlags::NO_XDEV,
    };
    let file = openat2(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    match FileType::from_raw_mode(fstat(&file)?.st_mode) {
        FileType::Symlink => {
            let target = readlinkat(&file, "", Vec::new())?;
            Ok(Entry::Link(OsString::from_vec(target.into_bytes()).into()))
        }
        _ => Ok(Entry::Other(Content::open(file, below))),
    }
}

/// Returns whether the last directory is the root of a mount.
fn is_mount_root(steps: &[Step]) -> bool {
    match steps {
        [.., above, last] => above.mount != last.mount,
        _ => true,
    }
}

fn path(steps: &[Step]) -> PathBuf {
    Path::new("/").join(steps.iter().map(|step| &step.name).collect::<PathBuf>())
}

/// Returns the names in a path in reverse order, with `/` for the root and `..` unchanged.
fn names(path: &Path) -> Vec<OsString> {
    let components = path.components().rev().filter(|component| *component != Component::CurDir);
    components.map(|component| component.as_os_str().into()).collect()
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Refusal::Failed(errno)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;
    use crate::error::Error;
    use crate::rootfs::Rootfs;
    use crate::template::Template;

    /// A root file system, and a directory of the host that is bind-mounted into it.
    struct Trees {
        root: TempDir,
        source: TempDir,
    }

    impl Trees {
        fn new() -> Self {
            let trees = Self { root: tempfile::tempdir().unwrap(), source: tempfile::tempdir().unwrap() };
            let [root, source] = [trees.root.path(), trees.source.path()];
            for dir in ["src/deep", "var", "run/lock", "a/b"] {
                fs::create_dir_all(root.join(dir)).unwrap();
            }
            fs::write(root.join("file"), "").unwrap();
            fs::create_dir_all(source.join("sub/deep")).unwrap();
            let links = [
                // Links that stay inside.
                (root, "build", "/src/deep"),
                (root, "var/run", "../run"),
                (root, "above", "../../../../src"),
                (root, "chain", "chain-2/"),
                (root, "chain-2", "/./build/../deep"),
                (root, "nowhere", "/none/such"),
                (root, "to-tmp", "/tmp"),
                (root, "to-bind", "bind/sub"),
                (source, "relative", "sub/deep"),
                (source, "to-root", "/src"),
                (source, "out-and-in", "../src"),
                // Links that lead out.
                (root, "descriptor", "/proc/self/fd/9"),
                (root, "dev-link", "dev/fd/9"),
                (root, "indirect", "a/b/../../chain-out"),
                (root, "chain-out", "descriptor"),
                (root, "by-bind", "/bind/descriptor"),
                (root, "loop", "loop"),
                (source, "descriptor", "/proc/1/root"),
                (source, "by-root", "../descriptor"),
            ];
            for (tree, link, target) in links {
                symlink(target, tree.join(link)).unwrap();
            }
            trees
        }

        fn template(&self, cwd: &str, more: &[Value]) -> Template {
            let mut mounts = vec![
                json!({"destination": "/proc", "type": "proc", "source": "proc"}),
                json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}),
                json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"}),
                json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}),
                json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}),
                json!({"destination": "/bind", "type": "bind", "source": self.source.path(), "options": ["rbind"]}),
            ];
            mounts.extend_from_slice(more);
            let value = json!({
                "ociVersion": "1.1.0",
                "process": {"args": ["sh"], "cwd": cwd, "user": {"uid": 0, "gid": 0}},
                "root": {"path": "<rootfs>"},
                "mounts": mounts
            });
            Template::from_value(value).unwrap()
        }

        fn find(&self, template: &Template) -> Result<Found, Refusal> {
            let mut rootfs = Rootfs::open(self.root.path()).unwrap();
            let prepared = rootfs.mount_points(template);
            let root = rustix::fs::open(self.root.path(), OFlags::PATH, Mode::empty()).unwrap();
            let found = View::new(&root, template.mounts()).unwrap().find(template.cwd().unwrap());
            match (&found, &prepared) {
                (Ok(_), Ok(())) => {}
                (Err(Refusal::Stray { target, .. }), Err(Error::StrayWorkingDirectory { cwd, target: named, .. })) => {
                    assert_eq!((target, &**cwd), (named, template.cwd().unwrap()));
                }
                (Err(Refusal::Failed(_)), Err(Error::Io { .. })) => {}
                different => panic!("{different:?}"),
            }
            found
        }
    }

    #[test]
    fn paths_that_stay_inside_are_found() {
        let trees = Trees::new();
        let in_root = |path: &str| Found::InRoot(path.into());
        let table = [
            ("/src", in_root("/src")),
            ("//src/./deep/", in_root("/src/deep")),
            ("/..", in_root("/")),
            ("/build", in_root("/src/deep")),
            ("/build/..", in_root("/src")),
            ("/var/run/lock", in_root("/run/lock")),
            ("/above/../above/deep", in_root("/src/deep")),
            ("/chain", in_root("/src/deep")),
            ("/new/and/below", in_root("/new/and/below")),
            ("/new/../build", in_root("/src/deep")),
            ("/nowhere", in_root("/none/such")),
            ("/file/x", Found::Nowhere),
            ("/tmp", Found::InMount),
            ("/tmp/new/../newer", Found::InMount),
            ("/to-tmp/new", Found::InMount),
            ("/tmp/../src", in_root("/src")),
            ("/dev/shm/new", Found::InMount),
            ("/dev/fdx", Found::InMount),
            ("/proc", Found::InMount),
            ("/proc/../build", in_root("/src/deep")),
            ("/sys/class/net", Found::InMount),
            ("/sys/fs/cgroup/x", Found::InMount),
            ("/bind", Found::InMount),
            ("/bind/sub/new", Found::InMount),
            ("/to-bind/deep", Found::InMount),
            ("/bind/relative/..", Found::InMount),
            ("/bind/to-root/deep", in_root("/src/deep")),
            ("/bind/out-and-in", in_root("/src")),
            ("/bind/..", in_root("/")),
        ];
        for (cwd, expected) in table {
            match trees.find(&trees.template(cwd, &[])) {
                Ok(found) => assert_eq!(found, expected, "{cwd}"),
                Err(refusal) => panic!("{cwd}: {refusal:?}"),
            }
        }
        // A missing directory is created and listed by its real path.
        let mut rootfs = Rootfs::open(trees.root.path()).unwrap();
        fs::remove_dir_all(trees.root.path().join("none")).unwrap();
        rootfs.mount_points(&trees.template("/nowhere", &[])).unwrap();
        assert_eq!(rootfs.created(), ["/none", "/none/such"].map(PathBuf::from));
    }

    #[test]
    fn paths_that_may_lead_out_are_refused() {
        let trees = Trees::new();
        let table = [
            ("/descriptor", "/proc/self/fd/9"),
            ("/descriptor/../..", "/proc/self/fd/9/../.."),
            ("/proc/self/fd/9", "/proc/self/fd/9"),
            ("/proc/1/root", "/proc/1/root"),
            ("/proc/self/cwd/..", "/proc/self/cwd/.."),
            ("/proc/sys", "/proc/sys"),
            ("/src/deep/../../proc/thread-self/root", "/proc/thread-self/root"),
            ("/tmp/../proc/self", "/proc/self"),
            ("/new/../descriptor", "/proc/self/fd/9"),
            ("/indirect", "/proc/self/fd/9"),
            ("/indirect/x", "/proc/self/fd/9/x"),
            ("/dev/fd/9", "/proc/self/fd/9"),
            ("/dev-link", "/proc/self/fd/9"),
            ("/dev/stdin", "/proc/self/fd/0"),
            ("/dev/../dev/core", "/proc/kcore"),
            ("/by-bind", "/proc/1/root"),
            ("/bind/descriptor", "/proc/1/root"),
            ("/bind/by-root", "/proc/self/fd/9"),
            // /sys/class/net/lo is a link to a directory that is deeper.
            ("/sys/class/net/lo/..", "/sys/class/net/lo/.."),
            ("/sys/fs/cgroup/../..", "/sys/fs/.."),
            (
                "/sys/devices/virtual/net/lo/subsystem/../../../proc/1/cwd",
                "/sys/devices/virtual/net/lo/subsystem/../../../proc/1/cwd",
            ),
        ];
        for (cwd, expected) in table {
            match trees.find(&trees.template(cwd, &[])) {
                Err(Refusal::Stray { target, .. }) => assert_eq!(target, Path::new(expected), "{cwd}"),
                other => panic!("{cwd}: {other:?}"),
            }
        }
        assert!(matches!(trees.find(&trees.template("/loop", &[])), Err(Refusal::Failed(Errno::LOOP))));
    }

    #[test]
    fn the_templates_mounts_decide_what_is_found() {
        let trees = Trees::new();
        let bind = |source: &str, destination: &str| json!({"destination": destination, "source": source, "options": ["rbind"]});
        let mount = |kind: &str, destination: &str| json!({"destination": destination, "type": kind, "source": kind});
        let source = trees.source.path().to_str().unwrap();
        let copying = json!({"destination": "/a", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]});
        symlink("/proc/self/fd/9", trees.root.path().join("a/descriptor")).unwrap();
        // (mounts, working directory, whether it is found)
        let table = [
            // A proc elsewhere, and a destination that is reached by a link.
            (vec![mount("proc", "/src")], "/build", false),
            (vec![mount("proc", "/build")], "/src/deep/self", false),
            (vec![mount("proc", "/build")], "/src/deep", true),
            // A covered mount has no effect.
            (vec![mount("tmpfs", "/proc")], "/proc/self/fd/9", true),
            (vec![mount("tmpfs", "/bind")], "/bind/descriptor", true),
            (vec![bind(source, "/a/b"), mount("tmpfs", "/a")], "/a/b/descriptor", true),
            (vec![mount("tmpfs", "/a"), bind(source, "/a/b")], "/a/b/descriptor", false),
            (vec![copying], "/a/descriptor", false),
            // The whole host, with its /proc.
            (vec![bind("/", "/host")], "/host/proc/self/fd/9", false),
            (vec![bind("/", "/host")], "/host/proc", true),
            (vec![bind("/", "/host")], "/host", true),
            (vec![bind("/proc/self", "/me")], "/me/cwd", false),
            // In a bind-mounted /dev, the runtime creates no links.
            (vec![bind(source, "/dev")], "/dev/fd", true),
            (vec![bind(source, "/dev")], "/dev/descriptor", false),
            // A mount inside /proc.
            (vec![bind(source, "/proc/acpi")], "/proc/acpi/sub", true),
            (vec![bind(source, "/proc/acpi")], "/proc/acpi/descriptor", false),
            // The contents of a disk are unknown.
            (vec![mount("ext4", "/disk")], "/disk", true),
            (vec![mount("ext4", "/disk")], "/disk/sub", false),
            (vec![mount("ext4", "/disk"), bind(source, "/disk/a")], "/disk/a/sub", true),
            (vec![mount("ramfs", "/disk")], "/disk/sub", true),
        ];
        for (mounts, cwd, is_found) in table {
            let found = trees.find(&trees.template(cwd, &mounts));
            assert_eq!(found.is_ok(), is_found, "{mounts:?} {cwd}: {found:?}");
        }
        // A bind mount that is not recursive hides the mounts below its source.
        let plain = json!({"destination": "/host", "source": "/", "options": ["bind"]});
        assert!(trees.find(&trees.template("/host/proc", std::slice::from_ref(&plain))).is_ok());
        assert!(trees.find(&trees.template("/host/proc/self", &[plain])).is_err());
        // A template without /proc.
        let mut value = serde_json::to_value(trees.template("/descriptor", &[])).unwrap();
        value["mounts"].as_array_mut().unwrap().remove(0);
        let found = trees.find(&Template::from_value(value).unwrap()).unwrap();
        assert_eq!(found, Found::InRoot("/proc/self/fd/9".into()));
    }

    #[test]
    fn the_message_has_the_directory_its_target_and_advice() {
        let trees = Trees::new();
        let mut rootfs = Rootfs::open(trees.root.path()).unwrap();
        let error = rootfs.mount_points(&trees.template("/descriptor", &[])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the working directory /descriptor leads to /proc/self/fd/9, in /proc, whose links lead out of the container: \
             choose a directory of the layers or of a bind mount"
        );
        assert_eq!(error.path(), Some(Path::new("/descriptor")));
    }
}
