use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use layer::display::quoted;
use rustix::fs::{Dir, FileType, fstatvfs};

use super::check::{Check, Verdict};
use crate::table;

/// What there is to say of the scratch directory, and its real path, if it is of use.
pub(super) fn checks(scratch: &Path) -> (Vec<Check>, Option<PathBuf>) {
    let shown = quoted(scratch);
    let dir = match fs::canonicalize(scratch).and_then(|path| Ok((File::open(&path)?, path))) {
        Ok((dir, path)) if path.is_dir() => (dir, path),
        Ok(_) => return (vec![missing(format!("{shown} is not a directory"))], None),
        Err(error) => return (vec![missing(format!("cannot open {shown}: {error}"))], None),
    };
    let (dir, path) = dir;
    let mut checks = vec![match mount_of(&dir) {
        Ok(mount) => file_system(&path, &mount),
        Err(error) => Check::warning("scratch", format!("cannot tell the file system of {shown}: {error}"))
            .means("what follows shows whether it is of use"),
    }];
    checks
        .extend(names_with_types(&dir).unwrap_or_else(|error| Some(missing(format!("cannot read {shown}: {error}")))));
    if let Ok(room) = fstatvfs(&dir) {
        let inodes = (room.f_files > 0).then_some(room.f_favail);
        checks.push(space(room.f_bavail.saturating_mul(room.f_frsize), inodes));
    }
    let usable = checks.iter().all(|check| check.verdict != Verdict::Failed);
    (checks, usable.then_some(path))
}

fn missing(found: String) -> Check {
    Check::failed("scratch", found)
        .means("a run has nowhere to put its upper directory")
        .advice("make the directory, or give --scratch another")
}

/// A line of proc_pid_mountinfo(5).
#[derive(Debug, PartialEq, Eq)]
struct MountInfo {
    point: String,
    kind: String,
    source: String,
}

/// The mount that an open directory is on.
fn mount_of(dir: &File) -> io::Result<MountInfo> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", dir.as_raw_fd()))?;
    let table = String::from_utf8_lossy(&fs::read("/proc/self/mountinfo")?).into_owned();
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim);
    id.and_then(|id| mount_info(&table, id)).ok_or_else(|| io::Error::other("it is not in the mount table"))
}

fn mount_info(table: &str, id: &str) -> Option<MountInfo> {
    let line = table.lines().find(|line| line.split(' ').next() == Some(id))?;
    let (mount, rest) = line.split_once(" - ")?;
    let mut rest = rest.split(' ');
    let (kind, source) = (rest.next()?.into(), rest.next()?.into());
    Some(MountInfo { point: mount.split(' ').nth(4)?.into(), kind, source })
}

/// How many names one file can have, where that is a limit that a merge can reach.
fn link_limit(kind: &str) -> Option<u32> {
    match kind {
        // `EXT4_LINK_MAX` in fs/ext4/ext4.h.
        "ext4" => Some(65_000),
        // `EXT2_LINK_MAX` in fs/ext2/ext2.h; the driver of ext4 reports ext3 by its own name.
        "ext2" | "ext3" => Some(32_000),
        // `BTRFS_LINK_MAX` in fs/btrfs/ctree.h.
        "btrfs" => Some(65_535),
        _ => None,
    }
}

fn file_system(path: &Path, mount: &MountInfo) -> Check {
    let MountInfo { point, kind, source } = mount;
    let found = format!("{} is on {kind} ({source} on {point})", quoted(path));
    match &**kind {
        "overlay" => Check::failed("scratch", found)
            .means("overlayfs cannot hold the upper directory of an overlay")
            .advice("give --scratch a directory on another file system; in a container, one of a volume"),
        "tmpfs" | "ramfs" => Check::warning("scratch", found)
            .means("what commands write takes memory until it is moved elsewhere, and layers elsewhere are copied when they are merged")
            .advice("give --scratch a directory on the file system of the layers, or run with memory enough"),
        _ => {
            let links = link_limit(kind).map(|limit| format!(" (up to {limit} links to a file)")).unwrap_or_default();
            Check::ok("scratch", found)
                .means(format!("layers on it are linked{links} when they are merged, others copied; uppers can be renamed on it"))
        }
    }
}

/// Whether reading the directory tells what kind of file a name is, without which overlayfs shows whiteouts as files.
fn names_with_types(dir: &File) -> io::Result<Option<Check>> {
    let mut names = Dir::read_from(dir)?;
    let itself = names.find_map(|entry| entry.ok().filter(|entry| entry.file_name() == c"."));
    Ok(itself.filter(|entry| entry.file_type() == FileType::Unknown).map(|_| {
        Check::failed("names", "the scratch's file system keeps no types with names (d_type)")
            .means("overlayfs shows what was deleted as files that cannot be opened")
            .advice("give --scratch another file system, or make this one again: mkfs.xfs -n ftype=1")
    }))
}

/// What a single run may well write, and files a single package may have.
const LITTLE_BYTES: u64 = 1 << 30;
const FEW_INODES: u64 = 20_000;

/// `inodes` is `None` where the file system makes them as they are needed.
fn space(bytes: u64, inodes: Option<u64>) -> Check {
    let few = inodes.is_some_and(|inodes| inodes < FEW_INODES);
    let inodes = inodes.map_or("files without a limit".into(), |inodes| format!("{inodes} files"));
    let found = format!("{} and {inodes} are free on the scratch", table::bytes(bytes));
    match bytes < LITTLE_BYTES || few {
        false => Check::ok("space", found),
        true => Check::warning("space", found).means("a run fails when that is used up").advice(
            "remove something (layered sweep takes what killed runs have left), or give --scratch another file system",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems() {
        let table = [
            ("ext4", Verdict::Ok, "up to 65000 links"),
            ("xfs", Verdict::Ok, "are linked when they are merged, others copied"),
            ("btrfs", Verdict::Ok, "up to 65535 links"),
            ("tmpfs", Verdict::Warning, "takes memory"),
            ("overlay", Verdict::Failed, "cannot hold"),
        ];
        for (kind, verdict, text) in table {
            let mount = MountInfo { point: "/".into(), kind: kind.into(), source: "/dev/x".into() };
            let check = file_system(Path::new("/s"), &mount);
            let json = serde_json::to_string(&check).unwrap();
            assert!(check.verdict == verdict && json.contains(text), "{json}");
        }
    }

    #[test]
    fn space_is_bytes_and_inodes() {
        let table = [
            (10 << 30, Some(1_000_000), Verdict::Ok),
            (10 << 30, None, Verdict::Ok),
            (10 << 30, Some(100), Verdict::Warning),
            (1 << 20, Some(1_000_000), Verdict::Warning),
            (0, None, Verdict::Warning),
        ];
        for (bytes, inodes, verdict) in table {
            assert_eq!(space(bytes, inodes).verdict, verdict, "{bytes} {inodes:?}");
        }
    }

    #[test]
    fn mounts_are_found_by_their_number() {
        let table = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
220 22 0:30 / /dev/shm rw shared:9 master:1 - tmpfs tmpfs rw
";
        let tmpfs = MountInfo { point: "/dev/shm".into(), kind: "tmpfs".into(), source: "tmpfs".into() };
        assert_eq!(mount_info(table, "220"), Some(tmpfs));
        assert_eq!(mount_info(table, "2"), None);
    }
}
