//! Checks the file system of the scratch directory and its free space. [`access`](super::access)
//! checks which users can enter the directory, and [`overlay`](super::overlay) what overlays can do
//! there.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use layer::display::quoted;
use rustix::fs::{Dir, FileType, fstatvfs};

use super::check::{Check, Verdict};
use crate::table;

/// Checks the scratch directory. Returns also its real path, if it is usable.
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
        Err(error) => Check::warning("scratch", format!("cannot find the file system of {shown}: {error}"))
            .means("the checks below show whether it is usable"),
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
        .means("a run cannot create its upper directory")
        .advice("create the directory, or choose another --scratch")
}

/// The fields of a line of proc_pid_mountinfo(5) that are needed.
#[derive(Debug, PartialEq, Eq)]
struct MountInfo {
    point: String,
    kind: String,
    source: String,
}

/// Returns the mount that contains an open directory.
fn mount_of(dir: &File) -> io::Result<MountInfo> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", dir.as_raw_fd()))?;
    let table = String::from_utf8_lossy(&fs::read("/proc/self/mountinfo")?).into_owned();
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim);
    id.and_then(|id| mount_info(&table, id)).ok_or_else(|| io::Error::other("its mount is not in the mount table"))
}

fn mount_info(table: &str, id: &str) -> Option<MountInfo> {
    let line = table.lines().find(|line| line.split(' ').next() == Some(id))?;
    let (mount, rest) = line.split_once(" - ")?;
    let mut rest = rest.split(' ');
    let (kind, source) = (rest.next()?.into(), rest.next()?.into());
    Some(MountInfo { point: mount.split(' ').nth(4)?.into(), kind, source })
}

/// Returns the most names that a file can have, if a merge can reach that limit.
fn link_limit(kind: &str) -> Option<u32> {
    match kind {
        // `EXT4_LINK_MAX` in fs/ext4/ext4.h.
        "ext4" => Some(65_000),
        // `EXT2_LINK_MAX` in fs/ext2/ext2.h. The ext4 driver reports ext3 under that name.
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
            .means("the upper directory of an overlay cannot be on overlayfs")
            .advice("choose a --scratch on another file system (in a container, on a volume)"),
        "tmpfs" | "ramfs" => Check::warning("scratch", found)
            .means("files that commands write take up memory until they are moved, and a merge copies layers from other file systems")
            .advice("choose a --scratch on the file system of the layers, or have enough memory"),
        _ => {
            let links = link_limit(kind).map(|limit| format!(" (up to {limit} links per file)")).unwrap_or_default();
            Check::ok("scratch", found).means(format!(
                "a merge links layers on the same file system{links} and copies others; an upper can be moved within it"
            ))
        }
    }
}

/// Checks whether directory entries have file types (d_type). Without them, overlayfs shows
/// whiteouts as files.
fn names_with_types(dir: &File) -> io::Result<Option<Check>> {
    let mut names = Dir::read_from(dir)?;
    let itself = names.find_map(|entry| entry.ok().filter(|entry| entry.file_name() == c"."));
    Ok(itself.filter(|entry| entry.file_type() == FileType::Unknown).map(|_| {
        Check::failed("names", "directory entries in the scratch directory have no file types (d_type)")
            .means("overlayfs shows deleted files as files that cannot be opened")
            .advice("choose a --scratch on another file system, or format this one again (mkfs.xfs -n ftype=1)")
    }))
}

/// Bytes that a single run can easily write, and files that a single package can have.
const LITTLE_BYTES: u64 = 1 << 30;
const FEW_INODES: u64 = 20_000;

/// Checks the free bytes and inodes. `inodes` is `None` if the file system creates inodes on
/// demand.
fn space(bytes: u64, inodes: Option<u64>) -> Check {
    let few = inodes.is_some_and(|inodes| inodes < FEW_INODES);
    let inodes = inodes.map_or("any number of inodes".into(), |inodes| format!("{inodes} inodes"));
    let found = format!("{} and {inodes} are free in the scratch directory", table::bytes(bytes));
    match bytes < LITTLE_BYTES || few {
        false => Check::ok("space", found),
        true => Check::warning("space", found)
            .means("a run that needs more fails")
            .advice("free some space (layered sweep removes the remains of killed runs), or choose another --scratch"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_directory_can_be_on_any_file_system_but_overlayfs() {
        let table = [
            ("ext4", Verdict::Ok, "up to 65000 links"),
            ("xfs", Verdict::Ok, "links layers on the same file system and copies others"),
            ("btrfs", Verdict::Ok, "up to 65535 links"),
            ("tmpfs", Verdict::Warning, "take up memory"),
            ("overlay", Verdict::Failed, "cannot be on overlayfs"),
        ];
        for (kind, verdict, text) in table {
            let mount = MountInfo { point: "/".into(), kind: kind.into(), source: "/dev/x".into() };
            let check = file_system(Path::new("/s"), &mount);
            let json = serde_json::to_string(&check).unwrap();
            assert!(check.verdict == verdict && json.contains(text), "{json}");
        }
    }

    #[test]
    fn little_space_is_few_bytes_or_few_inodes() {
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
    fn a_mount_is_found_by_its_id() {
        let table = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
220 22 0:30 / /dev/shm rw shared:9 master:1 - tmpfs tmpfs rw
";
        let tmpfs = MountInfo { point: "/dev/shm".into(), kind: "tmpfs".into(), source: "tmpfs".into() };
        assert_eq!(mount_info(table, "220"), Some(tmpfs));
        assert_eq!(mount_info(table, "2"), None);
    }
}
