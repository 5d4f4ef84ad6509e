//! Prepares a mounted root file system: puts files into it and creates mount points.
//! `rootfs::users` finds its users, and `rootfs::working_directory` follows paths through the
//! template's mounts.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, fchown, openat2};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::template::Template;

mod users;
mod working_directory;

use working_directory::{Found, Refusal, View};

/// A mounted root file system, in which paths resolve as they will inside the container: no name
/// and no symbolic link leads out of it.
///
/// Every path is an absolute path in the container. New files go through the overlay to the upper,
/// so the kernel copies their parents up correctly. Existing parents keep their modification times.
///
/// Paths are resolved by [`openat2(2)`](https://man7.org/linux/man-pages/man2/openat2.2.html) with
/// `RESOLVE_IN_ROOT`, which needs Linux 5.6. The crate `libpathrs` is a general solution for the
/// same problem; it neither restores modification times nor lists what it created.
#[derive(Debug)]
pub struct Rootfs {
    root: OwnedFd,
    path: PathBuf,
    created: Vec<PathBuf>,
}

/// The kind of file that a mount needs as its mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MountPoint {
    /// A directory.
    Directory,
    /// A file that is not a directory.
    File,
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// The mode of a new directory, the same as runtimes use.
const USUAL_MODE: Mode = Mode::from_raw_mode(0o755);

/// The mode of a tmpfs that is mounted without the option `mode` (tmpfs(5)).
const TMPFS_MODE: Mode = Mode::from_raw_mode(0o1777);

/// How often to retry openat2(2) after EAGAIN, that is, after a concurrent rename or mount anywhere
/// on the machine. Each attempt takes microseconds.
const MOST_ATTEMPTS: usize = 10_000;

impl Rootfs {
    /// Opens the root file system at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if `path` is not a directory.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let root = rustix::fs::openat(CWD, &path, DIRECTORY | OFlags::PATH, Mode::empty())
            .map_err(Error::io("open the directory", &path))?;
        Ok(Self { root, path, created: Vec::new() })
    }

    /// Returns the path that the root file system was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns everything that this value has created, parents before their contents. The paths are
    /// absolute in the container and contain no symbolic links.
    pub fn created(&self) -> &[PathBuf] {
        &self.created
    }

    /// Creates a file at `path` with mode 0644, owned by root. Replaces an existing file that is
    /// not a directory, and replaces a symbolic link instead of following it. Creates missing
    /// parents with mode 0755.
    ///
    /// # Errors
    /// [`Error::Io`] with the path on the host: `path` is a directory, a parent is not a directory,
    /// or no space is left. Files that were created before the failure stay in the upper.
    pub fn put_file(&mut self, path: &Path, contents: &[u8]) -> Result<()> {
        let outside = self.outside(path);
        let (parent, name) = self.parent(path)?;
        let times = modification_time(&parent, &outside)?;
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(Error::io("replace", outside)(error)),
        }
        let mut file = create(&parent, name).map_err(Error::io("create", &outside))?;
        self.created.push(self.real(&parent, path));
        file.write_all(contents).map_err(Error::io("write", &outside))?;
        rustix::fs::futimens(&parent, &times)
            .map_err(Error::io("restore the modification time of the directory of", &outside))
    }

    /// Makes sure that `path` exists and can be mounted on. Creates an empty file or a directory,
    /// with its parents, if `path` does not exist. Replaces a dangling symbolic link.
    ///
    /// # Errors
    /// [`Error::Io`] if `path` is of the other kind or cannot be created.
    fn mount_point(&mut self, path: &Path, kind: MountPoint) -> Result<()> {
        self.mount_point_with(path, kind, USUAL_MODE)
    }

    fn mount_point_with(&mut self, path: &Path, kind: MountPoint, mode: Mode) -> Result<()> {
        let outside = self.outside(path);
        let flags = match kind {
            MountPoint::Directory => DIRECTORY | OFlags::PATH,
            MountPoint::File => OFlags::PATH | OFlags::CLOEXEC,
        };
        match self.resolve(path, flags) {
            Ok(found) => match (kind, File::from(found).metadata()) {
                (MountPoint::File, Ok(metadata)) if metadata.is_dir() => {
                    Err(Error::io("mount a file on", outside)(Errno::ISDIR))
                }
                (_, Ok(_)) => Ok(()),
                (_, Err(source)) => Err(Error::io("look at", outside)(source)),
            },
            Err(Errno::NOENT) => {
                let (parent, name) = self.parent(path)?;
                let times = modification_time(&parent, &outside)?;
                let make = || match kind {
                    MountPoint::Directory => make_directory(&parent, name, mode).map(drop),
                    MountPoint::File => create(&parent, name).map(drop),
                };
                match make() {
                    // A dangling link, as /etc/resolv.conf often is, is replaced.
                    Err(Errno::EXIST) => {
                        rustix::fs::unlinkat(&parent, name, AtFlags::empty())
                            .map_err(Error::io("replace", &outside))?;
                        make()
                    }
                    made => made,
                }
                .map_err(Error::io("create", &outside))?;
                self.created.push(self.real(&parent, path));
                rustix::fs::futimens(&parent, &times)
                    .map_err(Error::io("restore the modification time of the directory of", &outside))
            }
            Err(error) => Err(Error::io("open", outside)(error)),
        }
    }

    /// Creates the missing mount points of the template's mounts and the command's working
    /// directory. A mount point is an empty file or a directory; it replaces a dangling symbolic
    /// link.
    ///
    /// Runtimes create them too, but [`created`](Self::created) lists only what this value creates.
    /// Mount points inside another mount of the template are left to the runtime, because that
    /// mount would hide anything created here.
    ///
    /// The command's [user](Self::find_user) owns a working directory that this function creates,
    /// with the parents that it creates. An existing directory keeps its owner.
    ///
    /// Runtimes change to the working directory before the command runs, some of them with
    /// descriptors of the host still open. Therefore this function follows the path first, through
    /// links, `..` and the template's mounts, as the kernel will do inside the container.
    ///
    /// # Errors
    /// - [`Error::Io`] if the source of a bind mount does not exist, or a mount point is of the
    ///   wrong kind or cannot be created.
    /// - [`Error::StrayWorkingDirectory`] if the working directory leads into `/proc`, or into a
    ///   mount whose contents are unknown before the run.
    /// - The errors of [`find_user`](Self::find_user) if it creates the working directory.
    pub fn mount_points(&mut self, template: &Template) -> Result<()> {
        let mut covered: Vec<&Path> = Vec::new();
        for mount in template.mounts() {
            let destination = mount.destination();
            if !covered.iter().any(|other| destination.starts_with(other)) {
                match (mount.is_bind(), mount.source()) {
                    (true, Some(source)) => self.mount_point(destination, MountPoint::for_source(source)?)?,
                    (true, None) => {}
                    // A runtime gives the root of a tmpfs the mode of its mount point.
                    (false, _) if mount.file_system() == Some("tmpfs") => {
                        let mode = mount.mode().map_or(TMPFS_MODE, Mode::from_raw_mode);
                        self.mount_point_with(destination, MountPoint::Directory, mode)?;
                    }
                    (false, _) => self.mount_point(destination, MountPoint::Directory)?,
                }
            }
            covered.push(destination);
        }
        match template.cwd() {
            Some(cwd) if cwd != Path::new("/") => self.working_directory(cwd, template),
            _ => Ok(()),
        }
    }

    /// Removes the files and directories that this value has created and that are still empty,
    /// contents before their parents. The directories around them keep their modification times.
    /// Afterwards, [`created`](Self::created) is empty.
    ///
    /// # Errors
    /// [`Error::Io`] for the first one that cannot be removed. All others are still removed.
    pub fn remove_empty(&mut self) -> Result<()> {
        let mut first = Ok(());
        for path in std::mem::take(&mut self.created).iter().rev() {
            first = first.and(self.remove_if_empty(path));
        }
        first
    }

    fn remove_if_empty(&self, path: &Path) -> Result<()> {
        let outside = self.outside(path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
        // The paths in `created` lead through no link. One that does now was replaced. Nothing in
        // another mount is removed.
        let here = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let parent = match self.resolve_with(parent, DIRECTORY, here) {
            // The command has removed or replaced the parent.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(()),
            parent => parent.map_err(Error::io("open the directory of", &outside))?,
        };
        let flags = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => AtFlags::REMOVEDIR,
                FileType::RegularFile if stat.st_size == 0 => AtFlags::empty(),
                _ => return Ok(()),
            },
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(Error::io("look at", outside)(error)),
        };
        let times = modification_time(&parent, &outside)?;
        match rustix::fs::unlinkat(&parent, name, flags) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            removed => removed.map_err(Error::io("remove", &outside)),
        }?;
        rustix::fs::futimens(&parent, &times)
            .map_err(Error::io("restore the modification time of the directory of", &outside))
    }

    fn working_directory(&mut self, cwd: &Path, template: &Template) -> Result<()> {
        let view = View::new(&self.root, template.mounts()).map_err(Error::io("look at", &self.path))?;
        match view.find(cwd) {
            // `directory` fails if the path is a file or a link to one. The runtime reports that.
            Ok(Found::InRoot(path)) => match self.directory(&path) {
                Ok(_) => self.give_away(&path, template),
                Err(error) => {
                    log::debug!("the working directory is left to the runtime: {error}");
                    Ok(())
                }
            },
            Ok(Found::InMount | Found::Nowhere) => Ok(()),
            Err(Refusal::Stray { target, why }) => Err(Error::StrayWorkingDirectory { cwd: cwd.into(), target, why }),
            Err(Refusal::Failed(error)) => Err(Error::io("follow the working directory", self.outside(cwd))(error)),
        }
    }

    /// Makes the command's user the owner of the created part of `path`, which contains no links.
    fn give_away(&self, path: &Path, template: &Template) -> Result<()> {
        let mut created = self.created.iter().filter(|created| path.starts_with(created)).peekable();
        if created.peek().is_none() {
            return Ok(());
        }
        let (uid, gid) = match template.user_spec().ids() {
            // The caller is root, because it has created the directory.
            Some((0, 0)) => return Ok(()),
            Some(ids) => ids,
            None => self.find_user(template).map(|user| (user.uid(), user.gid()))?,
        };
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        created.try_for_each(|path| {
            let change = self.resolve(path, DIRECTORY).and_then(|directory| fchown(directory, owner.0, owner.1));
            change.map_err(Error::io("change the owner of", self.outside(path)))
        })
    }

    /// Fails if `/dev`, `/proc` or `/sys` is a symbolic link. It is not an error if they do not
    /// exist.
    ///
    /// Runtimes check their mount points, but not every file that they create. If `/dev` is a link
    /// to `/etc`, runc 1.1.5 creates `/dev/fd`, `/dev/ptmx` and others in the `/etc` of the host.
    ///
    /// # Errors
    /// [`Error::LinkedMountPoint`] for the first one that is a symbolic link.
    pub fn refuse_links(&self) -> Result<()> {
        for path in ["/dev", "/proc", "/sys"].map(Path::new) {
            let outside = self.outside(path);
            match rustix::fs::statat(&self.root, path.strip_prefix("/").unwrap_or(path), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                    return Err(Error::LinkedMountPoint { path: outside });
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(error) => return Err(Error::io("look at", outside)(error)),
            }
        }
        Ok(())
    }

    /// Returns the parent directory of `path`, which it creates if necessary, and the last name in
    /// `path`.
    fn parent<'p>(&mut self, path: &'p Path) -> Result<(OwnedFd, &'p OsStr)> {
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if path.is_absolute() => Ok((self.directory(parent)?, name)),
            _ => Err(Error::io("create", self.outside(path))(Errno::INVAL)),
        }
    }

    /// Opens the directory at `path`. Creates it and its parents if necessary.
    fn directory(&mut self, path: &Path) -> Result<OwnedFd> {
        match self.resolve(path, DIRECTORY) {
            Ok(found) => return Ok(found),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(Error::io("open the directory", self.outside(path))(error)),
        }
        let mut walked = PathBuf::from("/");
        let mut directory = self.resolve(&walked, DIRECTORY).map_err(Error::io("open the directory", &self.path))?;
        for component in path.components() {
            let name = match component {
                Component::Normal(name) => name,
                Component::RootDir | Component::CurDir => continue,
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(Error::io("create", self.outside(path))(Errno::INVAL));
                }
            };
            walked.push(name);
            let outside = self.outside(&walked);
            directory = match self.resolve(&walked, DIRECTORY) {
                Ok(found) => found,
                Err(Errno::NOENT) => {
                    let times = modification_time(&directory, &outside)?;
                    let made = make_directory(&directory, name, USUAL_MODE)
                        .map_err(Error::io("create the directory", &outside))?;
                    self.created.push(self.real(&directory, &walked));
                    rustix::fs::futimens(&directory, &times)
                        .map_err(Error::io("restore the modification time of the directory of", &outside))?;
                    made
                }
                Err(error) => return Err(Error::io("open the directory", outside)(error)),
            };
        }
        Ok(directory)
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        self.resolve_with(path, flags, ResolveFlags::empty())
    }

    fn resolve_with(&self, path: &Path, flags: OFlags, further: ResolveFlags) -> rustix::io::Result<OwnedFd> {
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | further;
        let mut attempts = 0;
        loop {
            match openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), inside) {
                // A concurrent rename or mount made the kernel give up on a `..`; "the caller may
                // retry": openat2(2).
                Err(Errno::AGAIN) if attempts < MOST_ATTEMPTS => attempts += 1,
                result => return result,
            }
        }
    }

    /// Returns `path` without symbolic links. `parent` is the directory that contains its last
    /// name.
    fn real(&self, parent: &OwnedFd, path: &Path) -> PathBuf {
        if path.parent() == Some(Path::new("/")) {
            return path.into();
        }
        let place = |file: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok();
        let real = place(&self.root).zip(place(parent)).and_then(|(root, parent)| {
            Some(Path::new("/").join(parent.strip_prefix(root).ok()?).join(path.file_name()?))
        });
        real.unwrap_or_else(|| path.into())
    }

    /// Returns the path on the host.
    fn outside(&self, path: &Path) -> PathBuf {
        self.path.join(path.strip_prefix("/").unwrap_or(path))
    }
}

fn make_directory(parent: impl AsFd, name: &OsStr, mode: Mode) -> rustix::io::Result<OwnedFd> {
    rustix::fs::mkdirat(&parent, name, mode)?;
    let made = rustix::fs::openat(&parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    // Set the mode again, because the umask or a default ACL may have changed it.
    rustix::fs::fchmod(&made, mode)?;
    Ok(made)
}

fn create(parent: impl AsFd, name: &OsStr) -> rustix::io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?;
    Ok(file.into())
}

fn modification_time(directory: &OwnedFd, about: &Path) -> Result<Timestamps> {
    let stat = rustix::fs::fstat(directory).map_err(Error::io("look at the directory of", about))?;
    Ok(Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
    })
}

impl MountPoint {
    /// Returns the kind of mount point that a bind mount of `source` needs.
    ///
    /// # Errors
    /// [`Error::Io`] if `source` does not exist.
    fn for_source(source: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(source).map_err(Error::io("bind", source))?;
        Ok(if metadata.is_dir() { MountPoint::Directory } else { MountPoint::File })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::{Duration, SystemTime};

    #[test]
    fn a_file_replaces_another_and_its_parent_keeps_its_time() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/hosts"), "old").unwrap();
        symlink("../run/stub", dir.path().join("etc/resolv.conf")).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::new(1000, 5);
        fs::File::open(dir.path().join("etc")).unwrap().set_modified(long_ago).unwrap();

        let mut rootfs = Rootfs::open(dir.path()).unwrap();
        rootfs.put_file(Path::new("/etc/hosts"), b"new").unwrap();
        rootfs.put_file(Path::new("/etc/resolv.conf"), b"nameserver ::1").unwrap();
        assert_eq!(fs::read(dir.path().join("etc/hosts")).unwrap(), b"new");
        assert!(fs::symlink_metadata(dir.path().join("etc/resolv.conf")).unwrap().is_file());
        assert_eq!(fs::metadata(dir.path().join("etc")).unwrap().modified().unwrap(), long_ago);
        assert_eq!(rootfs.created(), [Path::new("/etc/hosts"), Path::new("/etc/resolv.conf")]);
    }

    #[test]
    fn missing_parents_are_created_and_listed() {
        let dir = tempfile::tempdir().unwrap();
        let mut rootfs = Rootfs::open(dir.path()).unwrap();
        rootfs.put_file(Path::new("/a/b/c"), b"").unwrap();
        rootfs.mount_point(Path::new("/a/d/e"), MountPoint::Directory).unwrap();
        rootfs.mount_point(Path::new("/a/f"), MountPoint::File).unwrap();
        rootfs.mount_point(Path::new("/a/b/c"), MountPoint::File).unwrap();
        assert_eq!(rootfs.created(), ["/a", "/a/b", "/a/b/c", "/a/d", "/a/d/e", "/a/f"].map(PathBuf::from));
        assert!(dir.path().join("a/d/e").is_dir() && dir.path().join("a/f").is_file());
    }

    #[test]
    fn what_was_created_is_removed_if_it_is_still_empty() {
        let dir = tempfile::tempdir().unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::new(1000, 5);
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("point")).unwrap();
        let mut rootfs = Rootfs::open(dir.path()).unwrap();
        for (path, kind) in [
            ("/proc", MountPoint::Directory),
            ("/etc/file", MountPoint::File),
            ("/etc/written", MountPoint::File),
            ("/job/here", MountPoint::Directory),
            ("/gone/point", MountPoint::Directory),
            ("/link/point", MountPoint::Directory),
            ("/linked", MountPoint::Directory),
            ("/moved/point", MountPoint::Directory),
        ] {
            rootfs.mount_point(Path::new(path), kind).unwrap();
        }
        // A command may change everything that it finds.
        fs::write(dir.path().join("etc/written"), "result").unwrap();
        fs::write(dir.path().join("job/result"), "").unwrap();
        fs::remove_dir_all(dir.path().join("gone")).unwrap();
        fs::create_dir_all(dir.path().join("var/point")).unwrap();
        fs::remove_dir_all(dir.path().join("moved")).unwrap();
        symlink("var", dir.path().join("moved")).unwrap();
        for (link, target) in [("link", outside.path()), ("linked", Path::new("etc"))] {
            fs::remove_dir_all(dir.path().join(link)).unwrap();
            symlink(target, dir.path().join(link)).unwrap();
        }
        fs::File::open(dir.path()).unwrap().set_modified(long_ago).unwrap();
        rootfs.remove_empty().unwrap();
        assert!(rootfs.created().is_empty());
        assert_eq!(fs::metadata(dir.path()).unwrap().modified().unwrap(), long_ago);
        let left = ["etc/written", "job/result", "link", "linked"].map(|path| dir.path().join(path));
        assert!(left.iter().all(|path| path.symlink_metadata().is_ok()));
        let removed = ["proc", "etc/file", "job/here", "gone"].map(|path| dir.path().join(path));
        assert!(removed.iter().all(|path| !path.exists()));
        assert!(outside.path().join("point").exists(), "the removal leaves the root through no link");
        assert!(dir.path().join("var/point").exists(), "the removal follows no link in the root");
    }

    #[test]
    fn created_files_are_listed_by_their_real_paths() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("run/inner")).unwrap();
        fs::create_dir(dir.path().join("var")).unwrap();
        symlink("/run/inner", dir.path().join("var/run")).unwrap();
        let mut rootfs = Rootfs::open(dir.path()).unwrap();
        rootfs.put_file(Path::new("/var/run/file"), b"").unwrap();
        rootfs.mount_point(Path::new("/var/run/new/point"), MountPoint::File).unwrap();
        assert_eq!(rootfs.created(), ["/run/inner/file", "/run/inner/new", "/run/inner/new/point"].map(PathBuf::from));
    }

    #[test]
    fn mount_points_of_all_kinds_and_the_working_directory_are_created() {
        let dir = tempfile::tempdir().unwrap();
        let value = serde_json::json!({
            "ociVersion": "1.1.0",
            "process": {"args": ["sh"], "cwd": "/job/here", "user": {"uid": 0, "gid": 0}},
            "root": {"path": "<rootfs>"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=1700"]},
                {"destination": "/plain", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/tmp/below", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/file", "type": "bind", "source": "/etc/passwd", "options": ["bind"]}
            ]
        });
        let mut rootfs = Rootfs::open(dir.path()).unwrap();
        rootfs.mount_points(&Template::from_value(value).unwrap()).unwrap();
        let expected = ["/proc", "/tmp", "/plain", "/file", "/job", "/job/here"];
        assert_eq!(rootfs.created(), expected.map(PathBuf::from));
        for (name, mode) in [("proc", 0o755), ("tmp", 0o1700), ("plain", 0o1777), ("job", 0o755)] {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o7777, mode, "{name}");
        }
        assert!(dir.path().join("file").is_file());
    }

    #[test]
    fn no_symbolic_link_leads_out() {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("sub")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("absolute")).unwrap();
        symlink("../../../../../../../../../..", dir.path().join("dots")).unwrap();
        symlink(outside.path().join("hosts"), dir.path().join("hosts")).unwrap();
        let mut rootfs = Rootfs::open(dir.path()).unwrap();

        // The link's target does not exist in the container, so the file cannot be created.
        assert!(rootfs.put_file(Path::new("/absolute/x"), b"x").is_err());
        // `..` ends at the root.
        rootfs.put_file(Path::new("/dots/x"), b"x").unwrap();
        assert!(dir.path().join("x").is_file());
        // A link in the last place is replaced.
        rootfs.put_file(Path::new("/hosts"), b"x").unwrap();
        assert!(fs::symlink_metadata(dir.path().join("hosts")).unwrap().is_file());
        assert!(rootfs.mount_point(Path::new("/absolute/sub"), MountPoint::Directory).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_in_place_of_system_directories_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = Rootfs::open(dir.path()).unwrap();
        rootfs.refuse_links().unwrap();
        for name in ["dev", "proc", "sys"] {
            let path = dir.path().join(name);
            for target in ["/etc", "tmp", "/nowhere"] {
                symlink(target, &path).unwrap();
                assert!(matches!(rootfs.refuse_links(), Err(Error::LinkedMountPoint { path: named }) if named == path));
                fs::remove_file(&path).unwrap();
            }
            fs::create_dir(&path).unwrap();
            rootfs.refuse_links().unwrap();
        }
    }

    #[test]
    fn a_dangling_link_is_replaced_by_a_mount_point() {
        let dir = tempfile::tempdir().unwrap();
        symlink("../run/stub", dir.path().join("resolv.conf")).unwrap();
        symlink("/run/lock", dir.path().join("lock")).unwrap();
        let mut rootfs = Rootfs::open(dir.path()).unwrap();
        rootfs.mount_point(Path::new("/resolv.conf"), MountPoint::File).unwrap();
        rootfs.mount_point(Path::new("/lock"), MountPoint::Directory).unwrap();
        assert!(fs::symlink_metadata(dir.path().join("resolv.conf")).unwrap().is_file());
        assert!(fs::symlink_metadata(dir.path().join("lock")).unwrap().is_dir());
    }

    #[test]
    fn an_error_names_the_file_of_the_wrong_kind() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("hosts")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let mut rootfs = Rootfs::open(dir.path()).unwrap();
        let hosts = dir.path().join("hosts");
        assert_eq!(rootfs.put_file(Path::new("/hosts"), b"").unwrap_err().path(), Some(&*hosts));
        assert_eq!(rootfs.mount_point(Path::new("/hosts"), MountPoint::File).unwrap_err().path(), Some(&*hosts));
        let below = dir.path().join("file/x");
        assert_eq!(rootfs.mount_point(Path::new("/file/x"), MountPoint::Directory).unwrap_err().path(), Some(&*below));
        assert!(rootfs.put_file(Path::new("relative"), b"").is_err());
    }
}
