//! Reports layers that disappear from their store, with inotify(7).
//!
//! `stacks` then drops the overlays that have them.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;

/// The entry of a watched directory that was removed or renamed.
#[derive(Debug)]
pub(super) enum Gone<'a> {
    Entry(&'a Path),
    /// It may be any entry.
    Any,
}

/// A thread that watches directories. Dropping this value ends the thread.
#[derive(Debug)]
pub(super) struct Watch {
    watched: Arc<Watched>,
    /// `None` once the thread was joined.
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Watched {
    inotify: OwnedFd,
    /// Becomes readable when the thread must end.
    end: OwnedFd,
    /// The paths by which each directory was added. Several paths of one directory, for example by
    /// bind mounts, have one watch.
    directories: Mutex<HashMap<i32, BTreeSet<PathBuf>>>,
}

impl Watch {
    /// Starts the thread, which calls `gone`.
    pub(super) fn start(gone: impl Fn(Gone<'_>) + Send + 'static) -> io::Result<Self> {
        let watched = Arc::new(Watched {
            inotify: init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            end: eventfd(0, EventfdFlags::CLOEXEC)?,
            directories: Mutex::default(),
        });
        let own = Arc::clone(&watched);
        let thread = thread::Builder::new().name("stacks".into()).spawn(move || {
            if let Err(error) = own.report(&gone) {
                log::warn!("layers that are removed are no longer noticed: {error}");
                gone(Gone::Any);
            }
        })?;
        Ok(Self { watched, thread: Some(thread) })
    }

    /// Watches the entries of `directory`, a real path.
    pub(super) fn add(&self, directory: &Path) -> io::Result<()> {
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            return Err(io::Error::other("the thread that watches has ended"));
        }
        let of_entries = WatchFlags::MOVED_FROM | WatchFlags::DELETE;
        let of_itself = WatchFlags::MOVE_SELF | WatchFlags::DELETE_SELF | WatchFlags::ONLYDIR;
        // The lock makes the thread wait until it can find the path.
        let mut directories = self.watched.directories();
        let watch = add_watch(&self.watched.inotify, directory, of_entries | of_itself)?;
        directories.entry(watch).or_default().insert(directory.into());
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Err(error) = rustix::io::write(&self.watched.end, &1_u64.to_ne_bytes()) {
            // The thread would never end.
            return log::error!("cannot end the thread that watches stores: {error}");
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread that watched stores has panicked");
        }
    }
}

impl Watched {
    fn directories(&self) -> std::sync::MutexGuard<'_, HashMap<i32, BTreeSet<PathBuf>>> {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `gone` until the thread must end.
    fn report(&self, gone: &dyn Fn(Gone<'_>)) -> rustix::io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 8 << 10];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        loop {
            let mut ready = [PollFd::new(&self.end, PollFlags::IN), PollFd::new(&self.inotify, PollFlags::IN)];
            match poll(&mut ready, None) {
                Err(Errno::INTR) => continue,
                result => result?,
            };
            if !ready[0].revents().is_empty() {
                return Ok(());
            }
            loop {
                let event = match reader.next() {
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => continue,
                    event => event?,
                };
                let directories = self.directories().get(&event.wd()).cloned();
                match (directories, event.file_name()) {
                    (Some(directories), Some(name)) => {
                        let name = OsStr::from_bytes(name.to_bytes());
                        directories.iter().for_each(|directory| gone(Gone::Entry(&directory.join(name))));
                    }
                    // The kernel has lost events, or the directory itself has moved or is gone.
                    (directories, _) => {
                        if event.events().contains(ReadFlags::IGNORED) {
                            self.directories().remove(&event.wd());
                        }
                        if directories.is_some() || event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                            gone(Gone::Any);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn entries_that_disappear_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let [store, elsewhere] = ["store", "elsewhere"].map(|name| dir.path().join(name));
        for path in [&store, &elsewhere, &store.join("a"), &store.join("b"), &store.join("c")] {
            fs::create_dir(path).unwrap();
        }
        let (sender, reported) = mpsc::channel();
        let watch = Watch::start(move |gone| {
            let gone = match gone {
                Gone::Entry(path) => Some(path.to_path_buf()),
                Gone::Any => None,
            };
            sender.send(gone).unwrap();
        });
        let watch = watch.unwrap();
        watch.add(&store).unwrap();
        watch.add(&store).unwrap();

        fs::create_dir(store.join("new")).unwrap();
        fs::rename(store.join("a"), elsewhere.join("a")).unwrap();
        assert_eq!(reported.recv().unwrap(), Some(store.join("a")));
        fs::remove_dir(store.join("b")).unwrap();
        assert_eq!(reported.recv().unwrap(), Some(store.join("b")));
        // Another path of the same directory.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&store, &link).unwrap();
        watch.add(&link).unwrap();
        fs::create_dir(store.join("d")).unwrap();
        fs::remove_dir(store.join("d")).unwrap();
        assert_eq!([(); 2].map(|()| reported.recv().unwrap()), [Some(link.join("d")), Some(store.join("d"))]);
        // A change in a layer is not an end of it.
        fs::write(store.join("c/last_used"), "").unwrap();
        fs::rename(&store, dir.path().join("moved")).unwrap();
        assert_eq!(reported.recv().unwrap(), None);

        drop(watch);
        // The thread has ended.
        reported.recv().unwrap_err();
    }
}
