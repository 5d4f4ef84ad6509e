//! A small ext4 file system in a file, which a test can fill, copy and mount again. Needs loop
//! devices and mkfs.ext4.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, mkdirat, mknodat, syncfs};
use rustix::io::Errno;

/// A mounted file system that is unmounted when the value is dropped. The calling thread should
/// have a [private mount namespace](crate::stack::private_mounts).
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
}

/// Runs a program and waits for it.
///
/// # Panics
/// If the program fails.
pub fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Disk {
    /// Formats the file `image` as an ext4 file system of `bytes` bytes, with further `options` of
    /// mkfs.ext4(8).
    ///
    /// # Panics
    /// If mkfs.ext4 fails.
    pub fn format(image: &Path, bytes: u64, options: &str) {
        File::create(image).unwrap().set_len(bytes).unwrap();
        // mkfs.ext4 is not in every user's PATH.
        let script = format!("PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -F {options} \"$1\"");
        run("sh", &["-c", &script, "sh", image.to_str().unwrap()]);
    }

    /// Mounts the image on `at` and creates that directory if it is missing.
    ///
    /// # Panics
    /// If the mount fails.
    pub fn mount(image: &Path, at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        run("mount", &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()]);
        Self { at }
    }

    /// Returns the mount point.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Allocates all free blocks.
    ///
    /// # Panics
    /// If a new directory still gets a block.
    pub fn fill_blocks(&self) {
        self.fill_with(File::create(self.at.join("blocks")).unwrap());
    }

    /// Allocates all free blocks and inodes.
    ///
    /// # Panics
    /// If a new file or directory still fits.
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
        // The kernel may have reserved more blocks than the file needed.
        file.sync_all().unwrap();
        let full = (0..).find_map(|n| mkdirat(CWD, self.at.join(format!("directory-{n}")), Mode::RWXU).err());
        assert_eq!(full, Some(Errno::NOSPC));
    }

    /// Allocates all free inodes.
    ///
    /// # Panics
    /// If an inode is left.
    pub fn fill_inodes(&self) {
        let dir = self.at.join("inodes");
        fs::create_dir(&dir).unwrap();
        let make = |n| mknodat(CWD, dir.join(format!("{n}")), FileType::RegularFile, Mode::RUSR, 0);
        assert_eq!((0..).find_map(|n: u32| make(n).err()), Some(Errno::NOSPC));
        // Blocks for what was written before are allocated now. Otherwise, the number of free
        // blocks would still change when the kernel writes it.
        syncfs(File::open(&dir).unwrap()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A process that another test starts may briefly have a descriptor of a file on this disk.
        // The lazy unmount succeeds for this thread nevertheless.
        run("umount", &["--lazy", self.at.to_str().unwrap()]);
    }
}
