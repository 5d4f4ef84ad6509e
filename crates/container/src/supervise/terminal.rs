//! The container's terminal. The runtime sends its master side over a socket (`--console-socket`).
//! The run then copies between the master and the caller's own terminal, byte for byte.

use std::io::{self, IoSliceMut, stdin, stdout};
use std::mem::MaybeUninit;
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags, SocketType,
    accept_with, bind, listen, recvmsg, socket_with,
};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{OptionalActions, Termios, Winsize, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::Init;

/// The name of the socket in the bundle. The runtime gets this relative path, because the bundle is
/// its working directory: an absolute path may exceed the 107 bytes that unix(7) allows.
pub(crate) const SOCKET: &str = "console.sock";

/// The container's terminal, both before and after the runtime has sent it.
pub(super) struct Console {
    listener: Option<OwnedFd>,
    /// The connection over which the runtime sends the terminal.
    connection: Option<OwnedFd>,
    keyboard: Keyboard,
    init: Init,
    terminal: Option<OwnedFd>,
    /// The container's side of the terminal.
    peer: Option<OwnedFd>,
    /// The caller's own terminal settings, if they have been changed.
    saved: Option<Saved>,
}

/// The source of a terminal's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keyboard {
    /// The caller's standard input, which may be a terminal itself.
    Callers,
    /// Another source, or none.
    Other,
}

impl Console {
    /// Creates the socket in `bundle`. Replaces an earlier socket there.
    pub(super) fn new(bundle: &Path, keyboard: Keyboard, init: Init) -> io::Result<Self> {
        use std::os::fd::AsRawFd;
        let directory = openat(CWD, bundle, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        match unlinkat(&directory, SOCKET, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        bind(&listener, &SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))?)?;
        listen(&listener, 1)?;
        Ok(Self { listener: Some(listener), connection: None, keyboard, init, terminal: None, peer: None, saved: None })
    }

    /// Returns the socket that becomes readable when the runtime sends something, or `None` once
    /// the terminal has arrived.
    pub(super) fn socket(&self) -> Option<&OwnedFd> {
        self.connection.as_ref().or(self.listener.as_ref())
    }

    /// Receives the terminal if the runtime has sent it. Then puts the caller's own terminal into
    /// raw mode, so that only the container's terminal processes lines.
    pub(super) fn receive(&mut self) -> io::Result<Option<&OwnedFd>> {
        let Some(listener) = &self.listener else { return Ok(None) };
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(None),
                connection => connection?,
            },
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        // The runtime also sends the name of the terminal. The run does not need it.
        let mut name = [0; 4096];
        match recvmsg(&connection, &mut [IoSliceMut::new(&mut name)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::AGAIN | Errno::INTR) => {
                drop(ancillary);
                self.connection = Some(connection);
                return Ok(None);
            }
            received => received?,
        };
        let files = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        });
        let Some(terminal) = files.flatten().find(|file| isatty(file)) else { return Ok(None) };
        self.listener = None;
        // The master reports the end of the terminal when no process has it open, but a command may
        // close its terminal and open it again. The init keeps it open. Without the init, this
        // process does.
        if self.init == Init::None {
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            self.peer = ioctl_tiocgptpeer(&terminal, flags)
                .inspect_err(|error| log::debug!("the container's terminal may end early: {error}"))
                .ok();
        }
        resize(&terminal);
        if self.keyboard == Keyboard::Callers {
            self.saved = Saved::make_raw()?;
        }
        Ok(Some(self.terminal.insert(terminal)))
    }

    /// Closes the container's terminal. The kernel hangs it up once the [streams](super::Streams)
    /// have closed it, too.
    pub(super) fn hang_up(&mut self) {
        (self.terminal, self.peer) = (None, None);
    }

    /// Sets the size of the container's terminal to that of the caller's.
    pub(super) fn resize(&self) {
        self.terminal.iter().for_each(resize);
    }
}

fn resize(terminal: &OwnedFd) {
    if let Some(size) = size() {
        if let Err(error) = tcsetwinsize(terminal, size) {
            log::debug!("the container's terminal does not get the size of the caller's: {error}");
        }
    }
}

/// Returns the size of the caller's terminal, if it has one.
pub(crate) fn size() -> Option<Winsize> {
    let sizes = [tcgetwinsize(stdin()), tcgetwinsize(stdout())];
    sizes.into_iter().flatten().find(|size| size.ws_row > 0 && size.ws_col > 0)
}

/// The settings of the terminal that is standard input. Dropping this value restores them.
struct Saved(Termios);

impl Saved {
    fn make_raw() -> io::Result<Option<Self>> {
        let Ok(saved) = tcgetattr(stdin()) else { return Ok(None) };
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(Some(Self(saved)))
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        // Does not wait for pending output: if the terminal's output is stopped, that would block
        // the caller.
        match tcsetattr(stdin(), OptionalActions::Now, &self.0) {
            // A terminal that has been hung up has no settings to restore.
            Ok(()) | Err(Errno::IO) => {}
            Err(error) => log::warn!("cannot restore the terminal's settings: {error}; run `reset`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::unix::net::UnixStream;

    use rustix::fd::AsFd;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use rustix::pty::{OpenptFlags, openpt};

    use super::*;

    fn send(connection: &UnixStream, file: &OwnedFd) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files = [file.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)));
        sendmsg(connection, &[IoSlice::new(b"name")], &mut ancillary, SendFlags::empty()).unwrap();
    }

    #[test]
    fn a_runtime_that_has_not_sent_a_terminal_does_not_block_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let mut console = Console::new(dir.path(), Keyboard::Other, Init::Provided).unwrap();
        assert!(console.receive().unwrap().is_none());
        // The first connection closes without sending anything. The second one sends a file that is
        // not a terminal.
        let connect = || UnixStream::connect(dir.path().join(SOCKET)).unwrap();
        let silent = connect();
        assert!(console.receive().unwrap().is_none() && console.receive().unwrap().is_none());
        drop(silent);
        assert!(console.receive().unwrap().is_none());
        let other = connect();
        assert!(console.receive().unwrap().is_none());
        send(&other, &std::fs::File::open("/dev/null").unwrap().into());
        assert!(console.receive().unwrap().is_none());
        let last = connect();
        assert!(console.receive().unwrap().is_none() && console.socket().is_some());
        send(&last, &openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap());
        assert!(console.receive().unwrap().is_some() && console.socket().is_none());
    }
}
