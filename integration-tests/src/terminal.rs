//! A terminal of the test's own: a pseudoterminal, before which the test sits, and a program that has it as its own terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::processes::Running;
use crate::{FOR_EVER, find};

/// The side of a pseudoterminal that a person has before them. When it is dropped, the other side is hung up.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    /// What was shown and not looked at yet.
    shown: Vec<u8>,
}

impl Terminal {
    /// One of 24 lines of 80 characters.
    ///
    /// # Panics
    /// If there is none.
    pub fn new() -> Self {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        unlockpt(&keyboard).unwrap();
        let terminal = Self { keyboard: keyboard.into(), shown: Vec::new() };
        terminal.resize(24, 80);
        terminal
    }

    /// The side that programs have.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub fn side_of_programs(&self) -> OwnedFd {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        ioctl_tiocgptpeer(&self.keyboard, flags).unwrap()
    }

    /// Starts a program as the leader of a session, whose terminal and three streams this is.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(&self, command: &Command) -> Running {
        let mut leader = self.leader(command);
        Running::start(leader.stdout(self.side_of_programs()).stderr(self.side_of_programs()))
    }

    /// What starts a program as the leader of a session, whose terminal and input this is, with its outputs still to be named.
    pub fn leader(&self, command: &Command) -> Command {
        let mut leader = Command::new(find("setsid"));
        leader.arg("--ctty").arg(command.get_program()).args(command.get_args()).stdin(self.side_of_programs());
        for (name, value) in command.get_envs() {
            leader.env(name, value.unwrap_or_default());
        }
        leader
    }

    /// Changes its size.
    ///
    /// # Panics
    /// If it has none.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.keyboard, size).unwrap();
    }

    /// Types.
    ///
    /// # Panics
    /// If nobody has the terminal any more.
    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` is shown. Returns all that was shown before it, since the last time.
    ///
    /// # Panics
    /// If it never is.
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

    /// Waits until no program has it any more. Returns all that was shown since the last time, with plain ends of lines.
    ///
    /// # Panics
    /// If that never happens.
    pub fn rest(&mut self) -> String {
        while self.read() {}
        String::from_utf8(std::mem::take(&mut self.shown)).unwrap().replace("\r\n", "\n")
    }

    /// Reads what is shown next. Returns false if no program has it any more.
    fn read(&mut self) -> bool {
        let patience = Timespec::try_from(FOR_EVER).unwrap();
        let ready = poll(&mut [PollFd::new(&self.keyboard, PollFlags::IN)], Some(&patience)).unwrap();
        assert!(ready > 0, "nothing is shown; before: {:?}", String::from_utf8_lossy(&self.shown));
        let mut piece = [0; 4096];
        // EIO is the end.
        match self.keyboard.read(&mut piece) {
            Ok(length @ 1..) => self.shown.extend_from_slice(&piece[..length]),
            Ok(0) | Err(_) => return false,
        }
        true
    }

    /// Its settings.
    ///
    /// # Panics
    /// If it has none.
    pub fn settings(&self) -> Termios {
        tcgetattr(&self.keyboard).unwrap()
    }

    /// Whether it hands every key on as it is pressed, and shows none by itself.
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
