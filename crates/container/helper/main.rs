//! The helper program that looks after a container. It runs in two roles: the [`keeper`] outside
//! the container, and the [`init`] inside it.
//!
//! The program is linked statically and without a C library, because it must run in any root file
//! system. It allocates no memory. `record.rs` defines what it reports. `build.rs` compiles it;
//! `supervise/helper.rs` embeds and starts it.
#![no_std]
#![no_main]

mod init;
mod keeper;
mod memory;
mod record;
mod sys;

use core::ffi::{CStr, c_char};

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call start",
    "ud2"
);
#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x0, sp", "bl start", "brk 1");

/// The exit status if the arguments are not those that this crate passes.
const USAGE: i32 = 125;

/// The arguments and the environment of a program. Each is a list that ends with a null pointer, as
/// in execve(2).
#[derive(Clone, Copy)]
struct Words {
    arguments: *const *const c_char,
    environment: *const *const c_char,
}

impl Words {
    /// Returns the argument at `index`, or `None` after the last one.
    fn argument(self, index: usize) -> Option<&'static CStr> {
        // SAFETY: the list ends with a null pointer, and no caller reads past that pointer. Each
        // word is a string that lives as long as the process.
        unsafe {
            let word = *self.arguments.add(index);
            (!word.is_null()).then(|| CStr::from_ptr(word))
        }
    }

    /// Returns the arguments from `index` on, as execve(2) takes them.
    fn arguments_from(self, index: usize) -> *const *const c_char {
        // SAFETY: no caller passes an index past the null pointer at the end.
        unsafe { self.arguments.add(index) }
    }
}

/// Runs the role that the arguments name. `_start` calls it with the initial stack: the number of
/// arguments, the arguments, null, the environment, null.
#[unsafe(no_mangle)]
unsafe extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: the kernel's ABI defines this layout of the initial stack.
    let words = unsafe {
        let arguments = stack.add(1).cast();
        Words { arguments, environment: stack.add(*stack + 2).cast() }
    };
    let role = words.argument(0).and_then(|_| words.argument(1)).map_or(&b""[..], CStr::to_bytes);
    match role.first() {
        Some(b'k') => keeper::run(words),
        Some(b'i') => init::run(words, init::Mode::Child),
        Some(b'e') => init::run(words, init::Mode::First),
        _ => sys::exit(USAGE),
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::exit(USAGE)
}
