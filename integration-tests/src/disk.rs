//! A small ext4 in a file, which can be filled, copied and mounted again. Needs loop devices and mkfs.ext4.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, mkdirat, mknodat};
use rustix::io::Errno;

/// A mounted file system, unmounted when it is dropped. Mount it in a [mount namespace](crate::stack::private_mounts) of the
/// thread's own.
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
}

/// Runs a program to its end.
///
/// # Panics
/// If it fails.
pub fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Disk {
    /// Makes the file `image` a file system of `bytes` bytes, with further `options` of mkfs.ext4(8).
    ///
    /// # Panics
    /// If that fails.
    pub fn format(image: &Path, bytes: u64, options: &str) {
        File::create(image).unwrap().set_len(bytes).unwrap();
        // mkfs.ext4 is not in every user's PATH.
        let script = format!("PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -F {options} \"$1\"");
        run("sh", &["-c", &script, "sh", image.to_str().unwrap()]);
    }

    /// Mounts the image on `at`, which is made if it is missing.
    ///
    /// # Panics
    /// If that fails.
    pub fn mount(image: &Path, at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        run("mount", &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()]);
        Self { at }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Takes all blocks.
    ///
    /// # Panics
    /// If there is one for a new directory.
    pub fn fill_blocks(&self) {
        self.fill_with(File::create(self.at.join("blocks")).unwrap());
    }

    /// Takes all blocks and all inodes.
    ///
    /// # Panics
    /// As the two.
    pub fn fill(&self) {
        let file = File::create(self.at.join("blocks")).unwrap();
        self.fill_inodes();
        self.fill_with(file);
    }

    fn fill_with(&self, mut file: File) {
        let mut size = 1 << 20;
        while size > 0 {
            match file.write(&vec![1; size]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => size /= 2,
                Err(error) => panic!("{error}"),
            }
        }
        // Blocks may have been reserved for more than it took.
        file.sync_all().unwrap();
        let full = (0..).find_map(|n| mkdirat(CWD, self.at.join(format!("directory-{n}")), Mode::RWXU).err());
        assert_eq!(full, Some(Errno::NOSPC));
    }

    /// Takes all inodes.
    ///
    /// # Panics
    /// If an inode is left.
    pub fn fill_inodes(&self) {
        let dir = self.at.join("inodes");
        fs::create_dir(&dir).unwrap();
        let make = |n| mknodat(CWD, dir.join(format!("{n}")), FileType::RegularFile, Mode::RUSR, 0);
        assert_eq!((0..).find_map(|n: u32| make(n).err()), Some(Errno::NOSPC));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // For a moment, a process that another test starts may have a descriptor of a file on it: it is unmounted for this thread
        // all the same.
        run("umount", &["--lazy", self.at.to_str().unwrap()]);
    }
}
