//! The format of the helper's report: a sequence of records. A record is a [`Kind`] and a value of
//! four bytes each, in native byte order. For [`Kind::Path`] and [`Kind::Head`], the value is a
//! length, and that number of bytes follows.
//!
//! The helper and the crate both compile this file.

use core::ffi::CStr;

/// The descriptor that the helper reports on.
pub(crate) const REPORT: i32 = 3;

/// The descriptor of the helper's own program. The runtime executes the init through it.
pub(crate) const PROGRAM: i32 = 4;

/// The longest path that the helper reports, in bytes; it cuts off the rest. A path and a head fit
/// into PIPE_BUF together, so the helper's single write stays in one piece even if other processes
/// write to the same pipe.
pub(crate) const PATH_BYTES: usize = 2048;

/// The descriptor of the copy of the runtime, if there is one. The keeper executes the runtime
/// through it.
pub(crate) const RUNTIME: i32 = 5;

/// The descriptor of the network namespace that the keeper connects to the host's network, if there
/// is one. The runtime opens it as `/proc/1/fd/6`: the keeper is its process 1.
pub(crate) const NETWORK: i32 = 6;

/// The file with the messages of the program that connects the network, in the bundle.
pub(crate) const NETWORK_LOG: &CStr = c"network.log";

/// The most bytes that the helper reports of a file that the kernel refuses to execute.
pub(crate) const HEAD_BYTES: usize = 1024;

/// The kind of a record.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(helper), derive(Debug))]
#[repr(u32)]
pub(crate) enum Kind {
    /// The keeper cannot execute the runtime. The value is the errno.
    RuntimeNotExecuted = 1,
    /// The runtime has ended. The value is its wait status.
    RuntimeEnded = 2,
    /// The init is ready and accepts signals.
    Ready = 3,
    /// The command cannot be executed. The value is the errno.
    NotExecuted = 4,
    /// The path that the errno is about. The value is its length in bytes.
    Path = 5,
    /// The first bytes of the file at that path, if the file exists and the command's user may read
    /// it. The value is their length.
    Head = 6,
    /// The command has ended. The value is its wait status.
    CommandEnded = 7,
    /// The container's first process has ended. The value is its wait status.
    ContainerEnded = 8,
    /// No other process was left in the container when the command had ended. The value is 0.
    NothingLeft = 9,
    /// The keeper cannot execute the program that connects the network. The value is the errno.
    NetworkNotExecuted = 10,
    /// That program has failed. The value is its wait status.
    NetworkFailed = 11,
}
