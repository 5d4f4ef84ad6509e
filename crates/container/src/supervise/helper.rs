//! The helper program, which is embedded in this crate: the keeper outside of the container and the init inside. Its source is in
//! `helper/`, beside `src/`.

use std::fs::File;
use std::io::{self, Write};
use std::sync::OnceLock;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

/// What the helper reports, and where. The helper compiles the same file.
#[path = "../../helper/record.rs"]
pub(super) mod record;

static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/helper"));

/// The path by which the container executes the helper: the descriptor that the runtime hands on. It needs no file in the
/// container, and nobody there can change it.
pub(crate) const PATH_INSIDE: &str = "/proc/self/fd/4";

/// The helper in a file of memory that nobody can write to, made once in a process.
pub(super) fn program() -> io::Result<BorrowedFd<'static>> {
    static FILE: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(file) = FILE.get() {
        return Ok(file.as_fd());
    }
    let file = create()?;
    // Of two threads that have made one, the first has it.
    Ok(FILE.get_or_init(|| file).as_fd())
}

fn create() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Linux 6.3 has a flag to say that it is to be executed, and a switch of the machine's that asks for it
    // (`vm.memfd_noexec`, see memfd_create(2)).
    let file = match memfd_create(c"layered", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => memfd_create(c"layered", flags)?,
        result => result?,
    };
    let mut file = File::from(file);
    file.write_all(PROGRAM)?;
    let file = OwnedFd::from(file);
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}
