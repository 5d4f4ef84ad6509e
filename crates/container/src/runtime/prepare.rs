//! Prepares the first run of a process in the background.

use std::thread::{self, JoinHandle};

use super::Runtime;
use crate::supervise::Program;
use crate::template::Template;

impl Runtime {
    /// Copies crun and compiles the seccomp filter of `template`, on a background thread. The first
    /// [`run`](Self::run) needs both, and later runs use them again. Call this function before you
    /// mount the root file system: the mount and this work take about a millisecond each, and then
    /// overlap.
    ///
    /// `run` waits for anything that is not ready, and makes anything that is missing. Only `run`
    /// reports errors. This function does nothing for runtimes other than crun, or if the filter of
    /// `template` is ready.
    ///
    /// Dropping the value waits for the background thread.
    pub fn prepare(&self, template: &Template) -> PreparedRuntime {
        if !self.is_crun() || !template.awaits_filter() {
            return PreparedRuntime(None);
        }
        let (runtime, template) = (self.clone(), template.clone());
        let prepare = move || {
            // In the order in which the run needs them.
            template.compile_filter();
            let _ = Program::new(&runtime.program, []).map(Program::executed_from_a_copy);
        };
        PreparedRuntime(thread::Builder::new().name("prepare".into()).spawn(prepare).ok())
    }
}

/// The thread of [`Runtime::prepare`].
#[derive(Debug)]
#[must_use = "dropping it waits for the thread, which should have time"]
pub struct PreparedRuntime(Option<JoinHandle<()>>);

impl Drop for PreparedRuntime {
    fn drop(&mut self) {
        // The thread does not panic.
        let _ = self.0.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_crun_gets_its_filter_compiled_in_advance() {
        for (runtime, expected) in [("crun", false), ("/no/such/crun", false), ("runc", true)] {
            let template = Template::builder(["true"]).build().unwrap();
            let copy = template.clone();
            drop(Runtime::new(runtime).prepare(&template));
            assert_eq!((template.awaits_filter(), copy.awaits_filter()), (expected, expected), "{runtime}");
        }
    }

    #[test]
    fn a_thread_is_started_only_for_a_filter_that_is_not_ready() {
        let runtime = Runtime::new("crun");
        let starts = |template: &Template| runtime.prepare(template).0.is_some();
        let template = Template::builder(["true"]).build().unwrap();
        assert_eq!((starts(&template), starts(&template)), (true, false));
        let mut value = json!({"ociVersion": "1.1.0", "root": {"path": "<rootfs>"}});
        value["process"] = json!({"cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0}});
        assert!(!starts(&Template::from_value(value).unwrap()));
    }
}
