//! The functions that compiled code takes from the C library, which this program does not have.

use core::ffi::{c_char, c_void};

/// # Safety
/// As memcpy(3): `length` bytes at `from` are readable, `length` bytes at `to` are writable, and
/// the two do not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut c_void, from: *const c_void, length: usize) -> *mut c_void {
    for index in 0..length {
        // SAFETY: the caller's contract. Volatile: otherwise the compiler may turn the loop into a
        // call of this very function.
        unsafe { to.cast::<u8>().add(index).write_volatile(from.cast::<u8>().add(index).read()) };
    }
    to
}

/// # Safety
/// As memset(3): `length` bytes at `to` are writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut c_void, byte: i32, length: usize) -> *mut c_void {
    for index in 0..length {
        // SAFETY: the caller's contract. Volatile: see `memcpy`.
        unsafe { to.cast::<u8>().add(index).write_volatile(byte as u8) };
    }
    to
}

/// # Safety
/// As memcmp(3): `length` bytes are readable at both addresses.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const c_void, right: *const c_void, length: usize) -> i32 {
    for index in 0..length {
        // SAFETY: the caller's contract.
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
    // SAFETY: the caller's contract.
    unsafe { memcmp(left, right, length) }
}

/// # Safety
/// As strlen(3): a NUL follows, and every byte up to it is readable.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(string: *const c_char) -> usize {
    let mut length = 0;
    // SAFETY: the caller's contract. Volatile: see `memcpy`.
    while unsafe { string.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}

/// The compiled core library refers to this function for unwinding. This program never unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
