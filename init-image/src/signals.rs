//! Ending when told to.

#![expect(unsafe_code, reason = "std sets no signal handlers")]

use std::ffi::c_int;

use larder_init::failure;

const SIGHUP: c_int = 1;
const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;
/// As on every architecture but mips and parisc.
const SIGXFSZ: c_int = 25;

unsafe extern "C" {
    fn signal(number: c_int, handler: extern "C" fn(c_int)) -> usize;
    fn _exit(status: c_int) -> !;
}

extern "C" fn end(_: c_int) {
    // SAFETY: _exit is async-signal-safe (signal-safety(7)).
    unsafe { _exit(c_int::from(failure::INTERRUPTED)) }
}

extern "C" fn go_on(_: c_int) {}

/// Ends the process on SIGTERM, SIGINT and SIGHUP. The default would do so too, but not for
/// process 1 of a container, to which the kernel delivers only signals that have a handler
/// (`man 7 pid_namespaces`): a deleted pod would wait out its grace period. Half-made files have
/// temporary names, which the next run sweeps up.
///
/// A file that may not grow (`ulimit -f`) is an error of the write, and no reason to be killed.
pub fn end_when_told() {
    for number in [SIGHUP, SIGINT, SIGTERM] {
        // SAFETY: the handler does nothing but call _exit.
        unsafe { signal(number, end) };
    }
    // SAFETY: the handler does nothing.
    unsafe { signal(SIGXFSZ, go_on) };
}
