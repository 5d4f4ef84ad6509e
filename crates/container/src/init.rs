//! The program that is process 1 of a container.

/// The program that is process 1 of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Init {
    /// A small init of this crate. It starts the command, forwards signals to it, and reaps the
    /// processes that the command leaves behind. The command can end itself by a signal, as it can
    /// outside a container.
    #[default]
    Provided,
    /// The command itself, for a command that is an init. The kernel does not deliver signals from
    /// inside the container to process 1 unless it has a handler for them, and the command must
    /// reap its orphans itself: pid_namespaces(7).
    None,
}
