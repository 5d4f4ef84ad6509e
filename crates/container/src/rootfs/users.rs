//! Finds the user of a template in the files that its command would see. `user::accounts` parses
//! their lines.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use super::Rootfs;
use super::working_directory::View;
use crate::chain::chain;
use crate::error::{Error, Result};
use crate::template::Template;
use crate::user::accounts::{self, NO_HOME};
use crate::user::{Account, User};
use crate::user_namespace::UserNamespace;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 16 << 20;

impl Rootfs {
    /// Looks up the template's user in the container's `/etc/passwd` and `/etc/group`. Returns the
    /// IDs of the user and its groups, and the home directory. If a file is bind-mounted over one
    /// of these, that file is read instead.
    ///
    /// A user given only by name gets the group of its line in `/etc/passwd`, and every group in
    /// `/etc/group` that lists it. A user given with a group gets only that group. A user given
    /// only by number gets the group of the same number. The template's own
    /// [groups](crate::TemplateBuilder::additional_groups) are always added.
    ///
    /// The home directory is the `HOME` of the template's environment. Without one, it is that of
    /// the first line in `/etc/passwd` with the user's name or number. Without such a line, it is
    /// `/`.
    ///
    /// # Errors
    /// [`Error::NotMapped`] if this process's [user namespace](crate::UserNamespace) does not have
    /// one of the IDs.
    ///
    /// Only for a name:
    /// - [`Error::UnknownUser`] if the container does not have it.
    /// - [`Error::Io`] if the file cannot be read, is not a regular file or has more than 16 MiB.
    pub fn find_user(&self, template: &Template) -> Result<User> {
        let (spec, own_home) = (template.user_spec(), template.home().map(str::to_owned));
        let mut additional_gids: Vec<u32> = template.additional_gids().collect();
        let (uid, entry) = match &spec.user {
            Account::Name(name) => {
                let entry = accounts::user_named(&self.accounts(PASSWD, template)?, name);
                let entry = entry.ok_or_else(|| unknown("user", name, PASSWD))?;
                (entry.uid, Some(entry))
            }
            // The file would be read only for the home directory.
            Account::Id(uid) if own_home.is_some() => (*uid, None),
            Account::Id(uid) => match self.accounts(PASSWD, template) {
                Ok(passwd) => (*uid, accounts::user_numbered(&passwd, *uid)),
                Err(error) => {
                    log::warn!("{}: HOME is /", chain(&error));
                    (*uid, None)
                }
            },
        };
        let gid = match (&spec.group, &spec.user) {
            (Some(Account::Id(gid)), _) => *gid,
            (Some(Account::Name(name)), _) => accounts::group_named(&self.accounts(GROUP, template)?, name)
                .ok_or_else(|| unknown("group", name, GROUP))?,
            (None, Account::Name(name)) => {
                additional_gids.extend(accounts::groups_listing(&self.accounts(GROUP, template)?, name));
                entry.as_ref().map_or(uid, |entry| entry.gid)
            }
            (None, Account::Id(uid)) => *uid,
        };
        let mut seen = std::collections::HashSet::new();
        additional_gids.retain(|gid| seen.insert(*gid));
        let home = own_home.or(entry.map(|entry| entry.home)).unwrap_or_else(|| NO_HOME.into());
        if let Some(namespace) = UserNamespace::current() {
            namespace.check_ids(uid, additional_gids.iter().copied().chain([gid]))?;
        }
        Ok(User { uid, gid, additional_gids, home })
    }

    /// Reads the container's file at `path`. Returns no bytes if the file does not exist.
    fn accounts(&self, path: &str, template: &Template) -> Result<Vec<u8>> {
        let path = Path::new(path);
        let file = match self.look_up(path, template) {
            Ok(Some(file)) => file,
            Ok(None) | Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            Err(errno) => return Err(Error::io("open", self.outside(path))(errno)),
        };
        read(&file).map_err(Error::io("read", self.outside(path)))
    }

    /// Opens the file that the command will see at `path`, with `O_PATH`, which has no effect on
    /// the file.
    fn look_up(&self, path: &Path, template: &Template) -> rustix::io::Result<Option<Rc<OwnedFd>>> {
        // A bind mount can be anywhere, and its destination can contain links.
        if template.mounts().any(|mount| mount.is_bind() || path.starts_with(mount.destination())) {
            return View::new(&self.root, template.mounts())?.open(path);
        }
        self.resolve(path, OFlags::PATH).map(|file| Some(Rc::new(file)))
    }
}

/// Reads the file that `place` refers to, if it is a regular file. Opening any other kind of file
/// may block or have side effects.
fn read(place: &OwnedFd) -> io::Result<Vec<u8>> {
    if FileType::from_raw_mode(fstat(place)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(openat(CWD, path, flags, Mode::empty())?);
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MAX_BYTES {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 16 MiB")),
        false => Ok(bytes),
    }
}

fn unknown(kind: &'static str, name: &str, file: &str) -> Error {
    Error::UnknownUser { kind, name: name.to_owned(), file: file.into() }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::mknodat;
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;
    use crate::template::TemplateBuilder;

    /// Creates a root file system with a user and groups.
    fn root() -> TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let passwd = "root:x:0:0::/root:\nopam:x:1000:1001::/home/opam:\nbare:x:7:8:::\n";
        fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        fs::write(root.path().join("etc/group"), "root:x:0:opam\nopam:x:1001:\nstaff:x:50:opam,bare\n").unwrap();
        root
    }

    fn builder(user: &str) -> TemplateBuilder {
        Template::builder(["true"]).user_spec(user.parse().unwrap())
    }

    fn find(root: &Path, template: TemplateBuilder) -> Result<User> {
        Rootfs::open(root)?.find_user(&template.build().unwrap())
    }

    fn user(uid: u32, gid: u32, additional_gids: &[u32], home: &str) -> User {
        User { uid, gid, additional_gids: additional_gids.to_vec(), home: home.into() }
    }

    #[test]
    fn a_user_is_found_by_number_and_by_name() {
        let root = root();
        let table = [
            ("0", user(0, 0, &[], "/root")),
            ("1000", user(1000, 1000, &[], "/home/opam")),
            ("1000:5", user(1000, 5, &[], "/home/opam")),
            ("1000:staff", user(1000, 50, &[], "/home/opam")),
            ("4242", user(4242, 4242, &[], "/")),
            ("7", user(7, 7, &[], "/")),
            ("opam", user(1000, 1001, &[0, 50], "/home/opam")),
            ("opam:staff", user(1000, 50, &[], "/home/opam")),
            ("opam:77", user(1000, 77, &[], "/home/opam")),
            ("bare", user(7, 8, &[50], "/")),
        ];
        for (spec, expected) in table {
            assert_eq!(find(root.path(), builder(spec)).unwrap(), expected, "{spec}");
        }
        // The template's own groups come first, and each group occurs once.
        let more = builder("opam").additional_groups([9, 50, 9]).env("HOME", "/elsewhere");
        assert_eq!(find(root.path(), more).unwrap(), user(1000, 1001, &[9, 50, 0], "/elsewhere"));
    }

    #[test]
    fn the_error_for_an_unknown_name_has_the_file_and_advice() {
        let root = root();
        let table = [
            ("opa", "user 'opa'", PASSWD),
            ("staff", "user 'staff'", PASSWD),
            ("x:y", "user 'x'", PASSWD),
            ("opam:stuff", "group 'stuff'", GROUP),
            ("5:it's", "group \"it's\"", GROUP),
        ];
        for (spec, who, file) in table {
            let error = find(root.path(), builder(spec)).unwrap_err();
            let expected =
                format!("the {who} is not in the container's {file}: add a layer that has it, or give its number");
            assert_eq!((error.to_string(), error.path()), (expected, Some(Path::new(file))));
        }
        // The container has neither file.
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(find(empty.path(), builder("root")), Err(Error::UnknownUser { .. })));
        assert_eq!(find(empty.path(), builder("1000")).unwrap(), user(1000, 1000, &[], "/"));
        fs::remove_file(root.path().join("etc/group")).unwrap();
        assert_eq!(find(root.path(), builder("opam")).unwrap(), user(1000, 1001, &[], "/home/opam"));
    }

    #[test]
    fn links_stay_inside_and_only_regular_files_are_opened() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("passwd"), "opam:x:1:1::/outside:\n").unwrap();
        let root = root();
        let passwd = root.path().join("etc/passwd");
        let replace = |make: &dyn Fn(&Path)| {
            let _ = fs::remove_file(&passwd);
            make(&passwd);
            (find(root.path(), builder("opam")), find(root.path(), builder("1")).unwrap())
        };
        fs::rename(&passwd, root.path().join("real")).unwrap();
        let (found, _) = replace(&|path| symlink("/../../real", path).unwrap());
        assert_eq!(found.unwrap().uid(), 1000);

        let of_nobody = user(1, 1, &[], "/");
        for target in [&*outside.path().join("passwd"), Path::new("/nowhere")] {
            let (found, by_number) = replace(&|path| symlink(target, path).unwrap());
            assert!(matches!(found, Err(Error::UnknownUser { .. })), "{found:?}");
            assert_eq!(by_number, of_nobody);
        }
        type Make<'a> = &'a dyn Fn(&Path);
        let makes: [(Make<'_>, &str); 4] = [
            (&|path| mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap(), "it is not a regular file"),
            (&|path| symlink("passwd", path).unwrap(), "Too many levels of symbolic links"),
            (
                &|path| {
                    File::create(path).unwrap().set_len(MAX_BYTES + 1).unwrap();
                },
                "it has more than 16 MiB",
            ),
            (&|path| fs::create_dir(path).unwrap(), "it is not a regular file"),
        ];
        for (make, problem) in makes {
            let (found, by_number) = replace(make);
            let Err(Error::Io { source, path, .. }) = found else { panic!("{found:?}") };
            assert!(source.to_string().contains(problem), "{source}");
            assert_eq!((path, by_number), (passwd.clone(), of_nobody.clone()));
        }
    }

    #[test]
    fn a_mount_hides_the_account_file_below_it() {
        let (root, source) = (root(), tempfile::tempdir().unwrap());
        fs::write(source.path().join("passwd"), "opam:x:5:6::/bound:\n").unwrap();
        symlink("passwd", source.path().join("link")).unwrap();
        symlink("etc", root.path().join("to-etc")).unwrap();
        let bind = |name: &str, destination: &str| json!({"destination": destination, "source": source.path().join(name), "options": ["rbind"]});
        let tmpfs = json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs"});
        let stack = user(1000, 1001, &[0, 50], "/home/opam");
        // (mounts, the user found)
        let table = [
            (json!([]), Some(stack.clone())),
            (json!([bind("passwd", "/src")]), Some(stack.clone())),
            (json!([bind("passwd", "/etc/passwd")]), Some(user(5, 6, &[0, 50], "/bound"))),
            (json!([bind("link", "/to-etc/passwd")]), Some(user(5, 6, &[0, 50], "/bound"))),
            (json!([bind("", "/etc")]), Some(user(5, 6, &[], "/bound"))),
            (json!([bind("none", "/etc/passwd")]), None),
            (json!([tmpfs]), None),
            (json!([tmpfs, bind("passwd", "/etc/passwd")]), Some(user(5, 6, &[], "/bound"))),
            (json!([bind("passwd", "/etc/passwd"), tmpfs]), None),
        ];
        for (mounts, expected) in table {
            let mut value: Value = serde_json::to_value(builder("opam").build().unwrap()).unwrap();
            value["mounts"] = mounts.clone();
            let found = Rootfs::open(root.path()).unwrap().find_user(&Template::from_value(value).unwrap());
            assert_eq!(found.ok(), expected, "{mounts}");
        }
    }
}
