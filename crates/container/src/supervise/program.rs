//! A program to execute, such as the runtime, and how it is found. The helper executes it.

use std::env;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf, absolute};
use std::sync::Arc;

use rustix::fd::OwnedFd;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;

use super::sealed;

/// Variables that the service manager sets for the caller alone. A runtime passes them on to the
/// container, and runc would wait for the command to notify the service manager.
const OF_THE_CALLER: [&str; 4] = ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// The path of the copy in the keeper: descriptor [`RUNTIME`](super::helper::record::RUNTIME).
const COPY: &CStr = c"/proc/self/fd/5";

/// A program with its arguments and the caller's environment, as execve(2) takes them.
#[derive(Debug)]
pub(crate) struct Program {
    path: CString,
    /// A copy of the program, if it is executed from one.
    copy: Option<Arc<OwnedFd>>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// Resolves `program`, which is a path or a name to look up in `PATH`.
    pub(crate) fn new(program: &Path, arguments: impl IntoIterator<Item = OsString>) -> io::Result<Self> {
        // The keeper executes it in another working directory.
        let path = absolute(find(program, env::var_os("PATH").as_deref())?)?;
        let all = [program.as_os_str().to_os_string()].into_iter().chain(arguments);
        let environment = env::vars_os().filter(|(name, _)| !OF_THE_CALLER.iter().any(|ours| name == ours));
        Ok(Self {
            path: string(path)?,
            copy: None,
            arguments: all.map(string).collect::<io::Result<_>>()?,
            environment: environment.map(|(name, value)| string(entry(name, &value))).collect::<io::Result<_>>()?,
        })
    }

    /// Returns the same program, set up to be executed from a sealed copy if that is possible.
    pub(crate) fn executed_from_a_copy(mut self) -> Self {
        let path = Path::new(OsStr::from_bytes(self.path.to_bytes()));
        match sealed::copy_of(path) {
            Ok(Some(copy)) => (self.path, self.copy) = (COPY.to_owned(), Some(copy)),
            Ok(None) => {}
            Err(error) => log::debug!("the runtime is not executed from a copy: {error}"),
        }
        self
    }

    /// Returns the sealed copy, if there is one.
    pub(super) fn copy(&self) -> Option<&OwnedFd> {
        self.copy.as_deref()
    }

    /// Appends the path and then the arguments, of which the first is the program's name.
    pub(super) fn append_to(&self, words: &mut Vec<CString>) {
        words.push(self.path.clone());
        words.extend_from_slice(&self.arguments);
    }

    pub(super) fn environment(&self) -> &[CString] {
        &self.environment
    }
}

/// Returns the first file named `program` in the directories of `search` that is executable. Unlike
/// execvp(3), it never runs a file of unknown format by a shell.
fn find(program: &Path, search: Option<&OsStr>) -> io::Result<PathBuf> {
    if program.as_os_str().as_bytes().contains(&b'/') {
        return Ok(program.into());
    }
    let search = search.unwrap_or(OsStr::new("/bin:/usr/bin"));
    let mut failure = Errno::NOENT;
    for dir in env::split_paths(search).filter(|_| !program.as_os_str().is_empty()) {
        let path = Path::new(".").join(dir).join(program);
        match accessat(CWD, &path, Access::EXEC_OK, AtFlags::EACCESS) {
            Ok(()) if path.is_file() => return Ok(path),
            Ok(()) => failure = Errno::ACCESS,
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => failure = error,
        }
    }
    Err(failure.into())
}

fn entry(mut name: OsString, value: &OsStr) -> OsString {
    name.push("=");
    name.push(value);
    name
}

pub(super) fn string(bytes: impl Into<OsString>) -> io::Result<CString> {
    Ok(CString::new(bytes.into().into_vec())?)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_name_is_looked_up_and_a_path_is_used_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
        fs::create_dir_all(a.join("runtime")).unwrap();
        for (dir, mode) in [(&b, 0o644), (&c, 0o755)] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("runtime"), "").unwrap();
            fs::set_permissions(dir.join("runtime"), Permissions::from_mode(mode)).unwrap();
        }
        let search = |dirs: &[&PathBuf]| env::join_paths(dirs).unwrap();
        let found = |dirs: &[&PathBuf]| find(Path::new("runtime"), Some(&search(dirs))).map_err(|error| error.kind());
        assert_eq!(found(&[&a, &b, &c]), Ok(c.join("runtime")));
        // A directory or a file without permission to execute: the error says that the name was
        // found.
        assert_eq!(found(&[&a]), Err(io::ErrorKind::PermissionDenied));
        assert_eq!(found(&[&b]), Err(io::ErrorKind::PermissionDenied));
        assert_eq!(found(&[&dir.path().join("none")]), Err(io::ErrorKind::NotFound));
        assert_eq!(find(Path::new(""), Some(&search(&[&c]))).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(find(Path::new("x/runtime"), None).unwrap(), Path::new("x/runtime"));
    }
}
