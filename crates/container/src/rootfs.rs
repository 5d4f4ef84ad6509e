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

/// A mounted root file system, seen from outside as the container will see it from inside: no name and no symbolic link in it
/// leads out of it.
///
/// Every path is absolute as in the container. What is made here lands in the upper through the overlay, so the kernel copies
/// the parents up as it should; the modification times of parents that were there before are put back.
///
/// [`openat2(2)`](https://man7.org/linux/man-pages/man2/openat2.2.html) with `RESOLVE_IN_ROOT`, kernel 5.6.
#[derive(Debug)]
pub struct Rootfs {
    root: OwnedFd,
    path: PathBuf,
    made: Vec<PathBuf>,
}

/// What a mount needs to stand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MountPoint {
    /// A directory.
    Directory,
    /// A file of any kind but a directory.
    File,
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// The mode of a directory that is made, as runtimes make it.
const USUAL_MODE: Mode = Mode::from_raw_mode(0o755);

/// The mode of a tmpfs that is mounted without one (tmpfs(5)).
const TMPFS_MODE: Mode = Mode::from_raw_mode(0o1777);

/// How often a path is resolved again that the rest of the machine has disturbed. Each time takes microseconds.
const MOST_ATTEMPTS: usize = 10_000;

impl Rootfs {
    /// The root file system at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if `path` is no directory.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let root = rustix::fs::openat(CWD, &path, DIRECTORY | OFlags::PATH, Mode::empty())
            .map_err(Error::io("open the directory", &path))?;
        Ok(Self { root, path, made: Vec::new() })
    }

    /// Everything that was made here, parents before what is in them, as absolute paths in the container in which no part is a
    /// symbolic link.
    pub fn made(&self) -> &[PathBuf] {
        &self.made
    }

    /// Puts a file there, mode 0644, owned by root, in place of whatever stood there but a directory. A symbolic link is
    /// replaced, not followed. Missing parents are made, mode 0755.
    ///
    /// # Errors
    /// [`Error::Io`], naming the path as seen from outside: a directory stands there, a parent is none, no space is left. What
    /// was made until then is in the upper.
    pub fn put_file(&mut self, path: &Path, contents: &[u8]) -> Result<()> {
        let outside = self.outside(path);
        let (parent, name) = self.parent(path)?;
        let times = modification_time(&parent, &outside)?;
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(Error::io("replace", outside)(error)),
        }
        let mut file = create(&parent, name).map_err(Error::io("create", &outside))?;
        self.made.push(self.real(&parent, path));
        file.write_all(contents).map_err(Error::io("write", &outside))?;
        rustix::fs::futimens(&parent, &times).map_err(Error::io("put the time back of the directory of", &outside))
    }

    /// Makes sure that `path` exists for something to be mounted on: an empty file or a directory, with its parents, is made
    /// if nothing is there, or a symbolic link to nowhere, which it replaces.
    ///
    /// # Errors
    /// [`Error::Io`] if something of the other kind is there, or nothing can be made.
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
                    // A link to nowhere, as /etc/resolv.conf often is, gives way.
                    Err(Errno::EXIST) => {
                        rustix::fs::unlinkat(&parent, name, AtFlags::empty())
                            .map_err(Error::io("replace", &outside))?;
                        make()
                    }
                    made => made,
                }
                .map_err(Error::io("create", &outside))?;
                self.made.push(self.real(&parent, path));
                rustix::fs::futimens(&parent, &times)
                    .map_err(Error::io("put the time back of the directory of", &outside))
            }
            Err(error) => Err(Error::io("open", outside)(error)),
        }
    }

    /// Makes sure that everything the template mounts has something to be mounted on, like `mount_point`,
    /// and that the command's working directory is there. Runtimes do that too, but only what was made here is told by
    /// [`made`](Self::made). What is below another of the template's mounts is left to the runtime: here it would lie under that
    /// mount.
    ///
    /// If the working directory is missing, it belongs to the command's [user](Self::find_user), and so does every directory above
    /// it that had to be made. What is there already keeps its owner.
    ///
    /// Runtimes go to the working directory before the command runs, some of them with descriptors of the host's still open. So the
    /// path is followed here first, through links, `..` and the template's mounts, as the kernel will follow it inside.
    ///
    /// # Errors
    /// [`Error::Io`] if the source of a bind does not exist, and as for `mount_point`. [`Error::StrayWorkingDirectory`] if the working
    /// directory leads into `/proc`, or into a mount that has to be made before anyone can look into it. If the working directory is
    /// made, as for `find_user`.
    pub fn mount_points(&mut self, template: &Template) -> Result<()> {
        let mut covered: Vec<&Path> = Vec::new();
        for mount in template.mounts() {
            let destination = mount.destination();
            if !covered.iter().any(|other| destination.starts_with(other)) {
                match (mount.is_bind(), mount.source()) {
                    (true, Some(source)) => self.mount_point(destination, MountPoint::for_source(source)?)?,
                    (true, None) => {}
                    // A runtime gives the root of a tmpfs the mode of what it is mounted on.
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

    fn working_directory(&mut self, cwd: &Path, template: &Template) -> Result<()> {
        let view = View::new(&self.root, template.mounts()).map_err(Error::io("look at", &self.path))?;
        match view.find(cwd) {
            // A file, or a link to one: the runtime knows what to say.
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

    /// Makes the command's user the owner of what was made of `path`, a directory without links on the way.
    fn give_away(&self, path: &Path, template: &Template) -> Result<()> {
        let mut made = self.made.iter().filter(|made| path.starts_with(made)).peekable();
        if made.peek().is_none() {
            return Ok(());
        }
        let (uid, gid) = match template.user_spec().ids() {
            // Whoever can make something here is root.
            Some((0, 0)) => return Ok(()),
            Some(ids) => ids,
            None => self.find_user(template).map(|user| (user.uid(), user.gid()))?,
        };
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        made.try_for_each(|path| {
            let change = self.resolve(path, DIRECTORY).and_then(|directory| fchown(directory, owner.0, owner.1));
            change.map_err(Error::io("change the owner of", self.outside(path)))
        })
    }

    /// Makes sure that `/dev`, `/proc` and `/sys` are no symbolic links, if they are there. Runtimes look at the places of their
    /// mounts, but not at all that they make: over a `/dev` that leads to `/etc`, runc 1.1.5 makes `/dev/fd`, `/dev/ptmx` and
    /// their like in the `/etc` of the host.
    ///
    /// # Errors
    /// [`Error::LinkedMountPoint`] for the first that is one.
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

    /// The directory that holds `path`, made if it is missing, and the last name in `path`.
    fn parent<'p>(&mut self, path: &'p Path) -> Result<(OwnedFd, &'p OsStr)> {
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if path.is_absolute() => Ok((self.directory(parent)?, name)),
            _ => Err(Error::io("make a file of", self.outside(path))(Errno::INVAL)),
        }
    }

    /// The directory at `path`, made with its parents where it is missing.
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
                    return Err(Error::io("make", self.outside(path))(Errno::INVAL));
                }
            };
            walked.push(name);
            let outside = self.outside(&walked);
            directory = match self.resolve(&walked, DIRECTORY) {
                Ok(found) => found,
                Err(Errno::NOENT) => {
                    let times = modification_time(&directory, &outside)?;
                    let made = make_directory(&directory, name, USUAL_MODE)
                        .map_err(Error::io("make the directory", &outside))?;
                    self.made.push(self.real(&directory, &walked));
                    rustix::fs::futimens(&directory, &times)
                        .map_err(Error::io("put the time back of the directory of", &outside))?;
                    made
                }
                Err(error) => return Err(Error::io("open the directory", outside)(error)),
            };
        }
        Ok(directory)
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut attempts = 0;
        loop {
            match openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), inside) {
                // openat2(2): a rename or a mount somewhere on the machine came in the way of a `..`; "the caller may retry".
                Err(Errno::AGAIN) if attempts < MOST_ATTEMPTS => attempts += 1,
                result => return result,
            }
        }
    }

    /// `path`, whose last name is in `parent`, without a symbolic link on the way.
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

    fn outside(&self, path: &Path) -> PathBuf {
        self.path.join(path.strip_prefix("/").unwrap_or(path))
    }
}

fn make_directory(parent: impl AsFd, name: &OsStr, mode: Mode) -> rustix::io::Result<OwnedFd> {
    rustix::fs::mkdirat(&parent, name, mode)?;
    let made = rustix::fs::openat(&parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    // Neither the umask nor a default ACL has a say.
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
    /// What a mount with this source needs to stand on: a directory for a directory, a file for anything else.
    ///
    /// # Errors
    /// [`Error::Io`] if there is nothing at `source`.
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
    fn a_file_is_put_in_place_of_what_is_there_and_parents_keep_their_times() {
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
        assert_eq!(rootfs.made(), [Path::new("/etc/hosts"), Path::new("/etc/resolv.conf")]);
    }

    #[test]
    fn missing_parents_are_made_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut rootfs = Rootfs::open(dir.path()).unwrap();
        rootfs.put_file(Path::new("/a/b/c"), b"").unwrap();
        rootfs.mount_point(Path::new("/a/d/e"), MountPoint::Directory).unwrap();
        rootfs.mount_point(Path::new("/a/f"), MountPoint::File).unwrap();
        rootfs.mount_point(Path::new("/a/b/c"), MountPoint::File).unwrap();
        assert_eq!(rootfs.made(), ["/a", "/a/b", "/a/b/c", "/a/d", "/a/d/e", "/a/f"].map(PathBuf::from));
        assert!(dir.path().join("a/d/e").is_dir() && dir.path().join("a/f").is_file());
    }

    #[test]
    fn what_was_made_is_told_by_its_real_path() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("run/inner")).unwrap();
        fs::create_dir(dir.path().join("var")).unwrap();
        symlink("/run/inner", dir.path().join("var/run")).unwrap();
        let mut rootfs = Rootfs::open(dir.path()).unwrap();
        rootfs.put_file(Path::new("/var/run/file"), b"").unwrap();
        rootfs.mount_point(Path::new("/var/run/new/point"), MountPoint::File).unwrap();
        assert_eq!(rootfs.made(), ["/run/inner/file", "/run/inner/new", "/run/inner/new/point"].map(PathBuf::from));
    }

    #[test]
    fn mounts_of_all_kinds_and_the_working_directory_have_their_places() {
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
        assert_eq!(rootfs.made(), expected.map(PathBuf::from));
        for (name, mode) in [("proc", 0o755), ("tmp", 0o1700), ("plain", 0o1777), ("job", 0o755)] {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o7777, mode, "{name}");
        }
        assert!(dir.path().join("file").is_file());
    }

    #[test]
    fn no_symlink_leads_out() {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("sub")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("absolute")).unwrap();
        symlink("../../../../../../../../../..", dir.path().join("dots")).unwrap();
        symlink(outside.path().join("hosts"), dir.path().join("hosts")).unwrap();
        let mut rootfs = Rootfs::open(dir.path()).unwrap();

        // The link's target does not exist inside, so nothing can be made there.
        assert!(rootfs.put_file(Path::new("/absolute/x"), b"x").is_err());
        // `..` ends at the root.
        rootfs.put_file(Path::new("/dots/x"), b"x").unwrap();
        assert!(dir.path().join("x").is_file());
        // The last name is replaced.
        rootfs.put_file(Path::new("/hosts"), b"x").unwrap();
        assert!(fs::symlink_metadata(dir.path().join("hosts")).unwrap().is_file());
        assert!(rootfs.mount_point(Path::new("/absolute/sub"), MountPoint::Directory).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_systems_own_directories_are_no_links() {
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
    fn a_link_to_nowhere_gives_way() {
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
    fn what_is_of_the_wrong_kind_is_named() {
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
