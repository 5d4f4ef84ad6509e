//! A pseudoterminal whose master the test holds, as a person at a terminal would, and whose other
//! side is a program's terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::processes::Running;
use crate::{FOR_EVER, find};

/// The master of a pseudoterminal. Dropping it hangs up the other side.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    /// Output that was read but not consumed yet.
    shown: Vec<u8>,
}

impl Terminal {
    /// Opens a pseudoterminal with 24 lines of 80 characters.
    ///
    /// # Panics
    /// If the kernel provides no pseudoterminal.
    pub fn new() -> Self {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        unlockpt(&keyboard).unwrap();
        let terminal = Self { keyboard: keyboard.into(), shown: Vec::new() };
        terminal.resize(24, 80);
        terminal
    }

    /// Opens the side that programs use.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub fn side_of_programs(&self) -> OwnedFd {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        ioctl_tiocgptpeer(&self.keyboard, flags).unwrap()
    }

    /// Starts a program as a session leader, with this as its controlling terminal and its three
    /// streams.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(&self, command: &Command) -> Running {
        let mut leader = self.leader(command);
        Running::start(leader.stdout(self.side_of_programs()).stderr(self.side_of_programs()))
    }

    /// Returns a command that starts a program as a session leader, with this as its controlling
    /// terminal and its standard input. The caller sets the outputs.
    pub fn leader(&self, command: &Command) -> Command {
        let mut leader = Command::new(find("setsid"));
        leader.arg("--ctty").arg(command.get_program()).args(command.get_args()).stdin(self.side_of_programs());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => leader.env(name, value),
                None => leader.env_remove(name),
            };
        }
        leader
    }

    /// Changes the size of the terminal.
    ///
    /// # Panics
    /// If the size cannot be set.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.keyboard, size).unwrap();
    }

    /// Types `keys`.
    ///
    /// # Panics
    /// If no program has the terminal open.
    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the terminal shows `text`. Returns the output before `text`, since the last
    /// call.
    ///
    /// # Panics
    /// If `text` never appears.
    pub fn until(&mut self, text: &str) -> String {
        loop {
            let found = self.shown.windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = found {
                let before = self.shown.drain(..at + text.len()).take(at).collect();
                return String::from_utf8(before).unwrap();
            }
            assert!(self.read(), "never shown: {text:?}; but {:?}", String::from_utf8_lossy(&self.shown));
        }
    }

    /// Waits until no program has the terminal open. Returns the output since the last call, with
    /// plain newlines.
    ///
    /// # Panics
    /// If a program keeps the terminal open.
    pub fn rest(&mut self) -> String {
        while self.read() {}
        String::from_utf8(std::mem::take(&mut self.shown)).unwrap().replace("\r\n", "\n")
    }

    /// Reads the next output. Returns false if no program has the terminal open.
    fn read(&mut self) -> bool {
        let patience = Timespec::try_from(FOR_EVER).unwrap();
        let ready = poll(&mut [PollFd::new(&self.keyboard, PollFlags::IN)], Some(&patience)).unwrap();
        assert!(ready > 0, "nothing is shown; before: {:?}", String::from_utf8_lossy(&self.shown));
        let mut piece = [0; 4096];
        // EIO means that the other side is closed.
        match self.keyboard.read(&mut piece) {
            Ok(length @ 1..) => self.shown.extend_from_slice(&piece[..length]),
            Ok(0) | Err(_) => return false,
        }
        true
    }

    /// Returns the settings of the terminal.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn settings(&self) -> Termios {
        tcgetattr(&self.keyboard).unwrap()
    }

    /// Whether the terminal is in raw mode: it passes on every key immediately and does not echo.
    pub fn is_raw(&self) -> bool {
        !self.settings().local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.keyboard.as_fd()
    }
}
