//! Keeps freed memory for the next slice.
#![expect(unsafe_code, reason = "mallopt(3) is a C function")]

/// Network buffers of a few hundred KiB come and go thousands of times a second. By default glibc
/// maps each of them anew and gives it back (its threshold is 128 KiB), and the page faults of a
/// pull then cost a fifth of its CPU. Above every buffer we allocate, below any surprise.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD: i32 = 32 << 20;
/// Free memory at the top of a heap goes back only beyond this. Memory in use is bounded by the
/// permits of a pull, so what is kept is too.
#[cfg(target_env = "gnu")]
const TRIM_THRESHOLD: i32 = 256 << 20;
/// One heap for each thread would multiply what is kept, and buffers are freed by other threads
/// than those that asked for them. Small objects never meet its lock: threads cache those.
#[cfg(target_env = "gnu")]
const ARENAS: i32 = 1;

/// Sets the allocator up for a process that moves bytes. Other C libraries keep their defaults.
pub(super) fn settle() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD),
        (libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD),
        (libc::M_ARENA_MAX, ARENAS),
    ] {
        // SAFETY: takes two integers; a value it does not like is refused and changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
}
