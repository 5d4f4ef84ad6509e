//! The names of all runs that ever had a directory in one of the directories that are watched.
//!
//! A run's name is that of its cgroups, which can outlive its directory, and nothing on the machine tells whose such a cgroup is.
//! The kernel records the name: inotify(7) queues an event when the run's directory is created. All fixtures of this process share
//! one queue, since a user may have 128 of them only.

use std::collections::{BTreeSet, HashMap};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};

use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init, remove_watch};
use rustix::io::Errno;

/// The runs of one fixture.
#[derive(Debug, Default)]
pub(crate) struct RunNames {
    watches: Mutex<BTreeSet<i32>>,
    given: Mutex<BTreeSet<String>>,
}

struct Queue {
    inotify: OwnedFd,
    /// What each watch has recorded.
    names: Mutex<HashMap<i32, BTreeSet<String>>>,
}

static QUEUE: LazyLock<Queue> = LazyLock::new(|| Queue {
    inotify: init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap(),
    names: Mutex::default(),
});

impl RunNames {
    /// Records from now on the runs that have their directories in `dir`.
    pub(crate) fn watch(&self, dir: &Path) {
        let mut names = lock(&QUEUE.names);
        let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        let watch = add_watch(&QUEUE.inotify, dir, flags).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        names.entry(watch).or_default();
        lock(&self.watches).insert(watch);
    }

    /// Adds a run whose directory is in none of those.
    pub(crate) fn add(&self, name: &str) {
        lock(&self.given).insert(name.into());
    }

    /// Returns the names of all runs until now.
    pub(crate) fn until_now(&self) -> BTreeSet<String> {
        let mut names = lock(&QUEUE.names);
        QUEUE.drain(&mut names);
        let recorded = lock(&self.watches).iter().flat_map(|watch| names[watch].clone()).collect::<BTreeSet<_>>();
        recorded.union(&lock(&self.given)).cloned().collect()
    }
}

impl Drop for RunNames {
    fn drop(&mut self) {
        let mut names = lock(&QUEUE.names);
        for watch in lock(&self.watches).iter() {
            // The kernel removes it with its directory.
            let _gone_already = remove_watch(&QUEUE.inotify, *watch);
            names.remove(watch);
        }
    }
}

impl Queue {
    fn drain(&self, names: &mut HashMap<i32, BTreeSet<String>>) {
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => continue,
                Err(error) => panic!("cannot read what inotify has recorded: {error}"),
            };
            assert!(!event.events().contains(ReadFlags::QUEUE_OVERFLOW), "more runs began than inotify can record");
            // A watch that a fixture had and has no longer is in no entry.
            if let (Some(name), Some(recorded)) = (event.file_name(), names.get_mut(&event.wd())) {
                recorded.extend(run_name(&name.to_string_lossy()));
            }
        }
    }
}

/// The name of the run whose directory is called so: a kept run has the name that it had before.
fn run_name(directory: &str) -> Option<String> {
    let id = directory.strip_prefix("layered-").or_else(|| directory.strip_prefix("kept-"))?;
    Some(format!("layered-{id}"))
}

/// A test that has failed does not make others fail.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
