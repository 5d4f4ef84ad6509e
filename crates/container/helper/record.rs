//! What the helper reports, a record at a time: a [`Kind`] and a value, each four bytes in the machine's own order. Behind the
//! value of a [`Kind::Path`] and a [`Kind::Head`] stand as many bytes as it says.
//!
//! The helper and the crate both compile this file.

/// The descriptor that the helper reports on.
pub(crate) const REPORT: i32 = 3;

/// The descriptor of the helper's own program, by which the container starts it.
pub(crate) const PROGRAM: i32 = 4;

/// The most bytes of a path that are reported. With the head they fit into PIPE_BUF: what the helper writes by one call stays
/// together in the pipe, whatever another process writes to it.
pub(crate) const PATH_BYTES: usize = 2048;

/// The descriptor of a copy of the runtime, by which the keeper starts it, if there is one.
pub(crate) const RUNTIME: i32 = 5;

/// The most bytes of a program that are reported if the kernel does not execute it.
pub(crate) const HEAD_BYTES: usize = 1024;

/// What a record is about.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(helper), derive(Debug))]
#[repr(u32)]
pub(crate) enum Kind {
    /// The keeper cannot execute the runtime. The value is the errno.
    RuntimeNotExecuted = 1,
    /// The runtime has ended. The value is its wait status.
    RuntimeEnded = 2,
    /// The init is ready: it takes signals from now on.
    Ready = 3,
    /// The command cannot be executed. The value is the errno.
    NotExecuted = 4,
    /// The path that the errno is about.
    Path = 5,
    /// The first bytes of the file at that path, if there is one that the command's user may read.
    Head = 6,
    /// The command has ended. The value is its wait status.
    CommandEnded = 7,
    /// The container's first process has ended. The value is its wait status.
    ContainerEnded = 8,
}
