//! The helper program that looks after a container, in two places: as the [`keeper`] outside of it, and as the [`init`] inside.
//!
//! It is linked statically, without a C library: it must run in any root file system. It allocates nothing, and what it reports
//! is defined in `record.rs`. `build.rs` compiles it; `supervise/helper.rs` holds the result and starts it.
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

/// What the process exits with if it is not called as this crate calls it.
const USAGE: i32 = 125;

/// The words that a program gets from execve(2): the arguments and the environment, each a list that ends with a null pointer.
#[derive(Clone, Copy)]
struct Words {
    arguments: *const *const c_char,
    environment: *const *const c_char,
}

impl Words {
    /// The argument `index`, or `None` behind the last one.
    fn argument(self, index: usize) -> Option<&'static CStr> {
        // SAFETY: the list ends with a null pointer, and no caller asks for more than one word behind it. Each word is a string that
        // stays for as long as the process does.
        unsafe {
            let word = *self.arguments.add(index);
            (!word.is_null()).then(|| CStr::from_ptr(word))
        }
    }

    /// The arguments from `index` on, as execve(2) takes them.
    fn arguments_from(self, index: usize) -> *const *const c_char {
        // SAFETY: no caller asks for more than one word behind the last one.
        unsafe { self.arguments.add(index) }
    }
}

/// Called by `_start` with the stack as the kernel has made it: the number of arguments, the arguments, null, the environment, null.
#[unsafe(no_mangle)]
unsafe extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: that is the ABI of a program's start.
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
