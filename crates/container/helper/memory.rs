//! The functions that the compiler takes from a C library, where there is none.

use core::ffi::{c_char, c_void};

/// # Safety
/// As memcpy(3): `length` bytes at `from` can be read and as many at `to` be written, and they do not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut c_void, from: *const c_void, length: usize) -> *mut c_void {
    for index in 0..length {
        // SAFETY: the caller's. Volatile: the compiler must not make a call of this function out of the loop.
        unsafe { to.cast::<u8>().add(index).write_volatile(from.cast::<u8>().add(index).read()) };
    }
    to
}

/// # Safety
/// As memset(3): `length` bytes at `to` can be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut c_void, byte: i32, length: usize) -> *mut c_void {
    for index in 0..length {
        // SAFETY: the caller's. Volatile: see `memcpy`.
        unsafe { to.cast::<u8>().add(index).write_volatile(byte as u8) };
    }
    to
}

/// # Safety
/// As memcmp(3): `length` bytes can be read at both places.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const c_void, right: *const c_void, length: usize) -> i32 {
    for index in 0..length {
        // SAFETY: the caller's.
        let (left, right) = unsafe { (left.cast::<u8>().add(index).read(), right.cast::<u8>().add(index).read()) };
        if left != right {
            return i32::from(left) - i32::from(right);
        }
    }
    0
}

/// # Safety
/// As memcmp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const c_void, right: *const c_void, length: usize) -> i32 {
    // SAFETY: the caller's.
    unsafe { memcmp(left, right, length) }
}

/// # Safety
/// As strlen(3): a NUL follows at some place, and all before it can be read.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(string: *const c_char) -> usize {
    let mut length = 0;
    // SAFETY: the caller's. Volatile: see `memcpy`.
    while unsafe { string.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}

/// What the compiled core library refers to for unwinding, which this program never does.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
