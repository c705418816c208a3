//! Stand-ins for parts of glibc that a static larder-init never needs. Without them the archive
//! drags in stdio, locales, iconv and the dynamic loader: more than half of the binary.
//!
//! glibc's objects reach for these names only to say why they abort, for statistics, for
//! translations, and (through std) for the guard page of the main thread and for symbol names in
//! backtraces. A strong definition here keeps the archive's member out; where another glibc uses
//! another name, the binary is larger or does not link, and without `lto = "fat"` neither. What
//! links must start: `init-image/build` tries, and `LARDER_INIT=path cargo test --test cli` runs
//! every test with it. `LEAN=no init-image/build` does without this file.

#![expect(unsafe_code, reason = "names of C functions, which std and glibc call")]

use std::ffi::{c_char, c_int, c_long, c_ulong, c_void};

const ENOSYS: c_int = 38;
const ERANGE: c_int = 34;
const AT_PAGESZ: c_ulong = 6;
const SC_PAGESIZE: c_int = 30;

unsafe extern "C" {
    fn getauxval(kind: c_ulong) -> c_ulong;
    fn strerrordesc_np(number: c_int) -> *const c_char;
    fn strlen(text: *const c_char) -> usize;
}

/// A failed assertion of glibc would be told through stdio.
#[unsafe(no_mangle)]
extern "C" fn __assert_fail(_: *const c_char, _: *const c_char, _: u32, _: *const c_char) -> ! {
    std::process::abort()
}

/// Likewise.
#[unsafe(no_mangle)]
extern "C" fn __assert_perror_fail(_: c_int, _: *const c_char, _: u32, _: *const c_char) -> ! {
    std::process::abort()
}

/// The text of an error, untranslated; what glibc itself uses to say why it aborts.
#[unsafe(no_mangle)]
extern "C" fn __strerror_r(number: c_int, _: *mut c_char, _: usize) -> *const c_char {
    // SAFETY: takes a number, returns a text that lives forever or null.
    let text = unsafe { strerrordesc_np(number) };
    if text.is_null() { c"unknown error".as_ptr() } else { text }
}

/// The same into a buffer: how std gets the text of an error.
#[unsafe(no_mangle)]
extern "C" fn __xpg_strerror_r(number: c_int, buffer: *mut c_char, len: usize) -> c_int {
    let text = __strerror_r(number, buffer, len);
    // SAFETY: the text ends with a NUL, which is copied with it.
    let text_len = unsafe { strlen(text) } + 1;
    if text_len > len {
        return ERANGE;
    }
    // SAFETY: the caller's buffer has `len` bytes, checked above, and is not the static text.
    unsafe { std::ptr::copy_nonoverlapping(text, buffer, text_len) };
    0
}

/// Reads /proc/self/maps with scanf to find the stack's end. std does without when it fails.
#[unsafe(no_mangle)]
extern "C" fn pthread_getattr_np(_: c_ulong, _: *mut c_void) -> c_int {
    ENOSYS
}

/// Only used to find files with debugging symbols, of which there are none.
#[unsafe(no_mangle)]
extern "C" fn realpath(_: *const c_char, _: *mut c_char) -> *mut c_char {
    std::ptr::null_mut()
}

/// std asks for the size of a page; the rest of sysconf reads /sys and /proc.
#[unsafe(no_mangle)]
extern "C" fn sysconf(name: c_int) -> c_long {
    if name != SC_PAGESIZE {
        return -1;
    }
    // SAFETY: takes a number, returns a number.
    (unsafe { getauxval(AT_PAGESZ) }) as c_long
}

/// Points the tables of isalpha and its kin at the thread's locale, of which there is none.
#[unsafe(no_mangle)]
extern "C" fn __ctype_init() {}

/// malloc bounds the number of its arenas by it; there is one thread.
#[unsafe(no_mangle)]
extern "C" fn __get_nprocs() -> c_int {
    1
}

/// The statistics of malloc, which nobody calls, print through these four.
#[unsafe(no_mangle)]
extern "C" fn fprintf() -> c_int {
    -1
}

/// Likewise.
#[unsafe(no_mangle)]
extern "C" fn _IO_fputs() -> c_int {
    -1
}

/// Likewise.
#[unsafe(no_mangle)]
extern "C" fn fwrite() -> usize {
    0
}

/// Likewise.
#[unsafe(no_mangle)]
static stderr: usize = 0;
