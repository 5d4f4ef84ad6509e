//! Gives pages of the program back to the kernel while a long run waits. `spawn.rs` makes the call.
//!
//! A process that waits needs little of its program, but the pages that it needed before stay
//! mapped and count as its resident memory. They are clean pages of files, which stay in the page
//! cache, so that the process gets them back without reading the disk.

use std::fs;
use std::ops::Range;

use nix::libc;

use super::spawn;

/// Unmaps the pages of this program's code and of the C library's, and of their constants.
pub(super) fn release() {
    // The running code cannot be unloaded, and neither can the library that it calls.
    let code = [release as fn() as usize, libc::getpid as unsafe extern "C" fn() -> libc::pid_t as usize];
    let released = fs::read_to_string("/proc/self/smaps")
        .and_then(|smaps| released(&smaps, &code).into_iter().try_for_each(|range| spawn::release_pages(&range)));
    if let Err(error) = released {
        log::debug!("the pages of the program stay resident: {error}");
    }
}

/// One mapping in the form of `/proc/PID/smaps`, proc_pid_smaps(5).
#[derive(Debug, PartialEq)]
struct Mapping<'a> {
    range: Range<usize>,
    /// Whether it is private, of a file, and read-only, and no page of it has been changed.
    is_clean: bool,
    /// The device and the inode.
    file: (&'a str, &'a str),
}

/// Returns the clean ranges of the files that the addresses `code` lie in: the ranges that are next
/// to each other, as the loader has mapped them, and not a later mapping of the same file.
fn released(smaps: &str, code: &[usize]) -> Vec<Range<usize>> {
    let mappings = mappings(smaps);
    let mut ranges: Vec<_> = Vec::new();
    for address in code {
        let Some(found) = mappings.iter().position(|mapping| mapping.range.contains(address)) else { continue };
        let is_next =
            |one: &Mapping<'_>, other: &Mapping<'_>| one.range.end == other.range.start && one.file == other.file;
        let before = mappings[..=found].windows(2).rev().take_while(|pair| is_next(&pair[0], &pair[1])).count();
        let after = mappings[found..].windows(2).take_while(|pair| is_next(&pair[0], &pair[1])).count();
        let of_file = &mappings[found - before..=found + after];
        ranges.extend(of_file.iter().filter(|mapping| mapping.is_clean).map(|mapping| mapping.range.clone()));
    }
    ranges
}

fn mappings(smaps: &str) -> Vec<Mapping<'_>> {
    let mut mappings: Vec<Mapping<'_>> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        if let Some(field) = first.strip_suffix(':') {
            let is_changed = matches!(field, "Anonymous" | "Swap") && second != "0";
            if let Some(mapping) = mappings.last_mut().filter(|_| is_changed) {
                mapping.is_clean = false;
            }
        } else if let Some(range) = range(first) {
            let (_offset, device, inode) = (words.next(), words.next(), words.next());
            let file = (device.unwrap_or_default(), inode.unwrap_or_default());
            let is_clean = matches!(second, "r--p" | "r-xp") && !matches!(file.1, "" | "0");
            mappings.push(Mapping { range, is_clean, file });
        }
    }
    mappings
}

fn range(text: &str) -> Option<Range<usize>> {
    let (start, end) = text.split_once('-')?;
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
1000-2000 r--p 00000000 fe:00 77                         /usr/bin/layered
Rss:                   4 kB
Anonymous:             0 kB
2000-5000 r-xp 00001000 fe:00 77                         /usr/bin/layered
Private_Dirty:         4 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
5000-6000 r--p 00004000 fe:00 77                         /usr/bin/layered
Anonymous:             4 kB
6000-7000 rw-p 00005000 fe:00 77                         /usr/bin/layered
Anonymous:             0 kB
7000-8000 rw-p 00000000 00:00 0                          [heap]
9000-a000 r--p 00000000 fe:00 77                         /usr/bin/layered
Anonymous:             0 kB
b000-c000 r-xp 00000000 fe:00 99                         /usr/lib/libc.so.6
Anonymous:             0 kB
c000-d000 r--p 00000000 fe:00 98                         /usr/lib/libm.so.6
Anonymous:             0 kB
";

    #[test]
    fn only_unchanged_ranges_of_the_files_with_the_code_are_released() {
        assert_eq!(released(SMAPS, &[0x3000, 0xb123]), [0x1000..0x2000, 0x2000..0x5000, 0xb000..0xc000]);
        for (smaps, code) in
            [(SMAPS, [0x7000, 0x8000]), ("", [0x3000, 0]), ("1000-2000\nx-y r-xp\n-\nAnonymous: 3", [0x1000, 0])]
        {
            assert!(released(smaps, &code).is_empty(), "{smaps}");
        }
    }

    #[test]
    fn the_program_runs_on_after_its_pages_were_released() {
        const RELEASED: &str = "LAYERED_TEST_RELEASED";
        if std::env::var_os(RELEASED).is_none() {
            // Other tests would bring pages back in. A process of its own runs only this test.
            let test = concat!(module_path!(), "::the_program_runs_on_after_its_pages_were_released");
            let test = test.split_once("::").unwrap().1;
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            let child = child.args(["--exact", test, "--nocapture"]).env(RELEASED, "1").output().unwrap();
            let said = String::from_utf8_lossy(&child.stdout);
            assert!(child.status.success() && said.contains("1 passed"), "{child:?}");
            return;
        }
        // The sum of the resident pages of the code and the constants, in kB.
        let resident = || -> usize {
            let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
            let code = [release as fn() as usize];
            let ranges = released(&smaps, &code);
            assert!(!ranges.is_empty());
            let mut is_released = false;
            let mut sum = 0;
            for line in smaps.lines() {
                let (first, rest) = line.split_once(' ').unwrap();
                if let Some(range) = range(first) {
                    is_released = ranges.contains(&range);
                } else if first == "Rss:" && is_released {
                    sum += rest.trim().trim_end_matches(" kB").parse::<usize>().unwrap();
                }
            }
            sum
        };
        // Brings in all pages of the code.
        for range in released(&fs::read_to_string("/proc/self/smaps").unwrap(), &[release as fn() as usize]) {
            let memory = fs::File::open("/proc/self/mem").unwrap();
            let mut bytes = vec![0; range.len()];
            std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, range.start as u64).unwrap();
        }
        let before = resident();
        release();
        let after = resident();
        assert!(2 * after < before, "{before} kB, then {after} kB");
    }
}
