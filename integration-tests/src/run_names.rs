//! Records the names of all runs that ever had a directory in one of the watched directories.
//! `traces` uses them.
//!
//! A run's cgroups have the name of the run and can outlive its directory. Nothing on the machine
//! shows which fixture such a cgroup belongs to. So the names come from inotify(7), which queues an
//! event when a run's directory is created. All fixtures of this process share one queue, because a
//! user may have only 128 queues.

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
    /// The names that each watch has recorded.
    names: Mutex<HashMap<i32, BTreeSet<String>>>,
}

static QUEUE: LazyLock<Queue> = LazyLock::new(|| Queue {
    inotify: init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap(),
    names: Mutex::default(),
});

impl RunNames {
    /// Records the runs that create their directories in `dir` from now on.
    pub(crate) fn watch(&self, dir: &Path) {
        let mut names = lock(&QUEUE.names);
        let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        let watch = add_watch(&QUEUE.inotify, dir, flags).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        names.entry(watch).or_default();
        lock(&self.watches).insert(watch);
    }

    /// Adds a run whose directory is in no watched directory.
    pub(crate) fn add(&self, name: &str) {
        lock(&self.given).insert(name.into());
    }

    /// Returns the names of all runs so far.
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
            // The kernel may have removed the watch with its directory.
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
            // Events of watches that were removed before have no entry.
            if let (Some(name), Some(recorded)) = (event.file_name(), names.get_mut(&event.wd())) {
                recorded.extend(run_name(&name.to_string_lossy()));
            }
        }
    }
}

/// Returns the name of the run that owns `directory`. A kept run keeps its name.
fn run_name(directory: &str) -> Option<String> {
    let id = directory.strip_prefix("layered-").or_else(|| directory.strip_prefix("kept-"))?;
    Some(format!("layered-{id}"))
}

/// Locks a mutex. A failed test does not make others fail.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
