//! ptrace(2) of x86-64, as far as system calls go.

#![expect(unsafe_code, reason = "neither std nor rustix has ptrace")]

use std::fs;
use std::mem::MaybeUninit;

use libc::{c_int, c_long, pid_t};

/// Words of the registers in `struct user`.
const RAX: usize = 10;
const ORIG_RAX: usize = 15;

/// Why a thread stands still.
pub enum Stop {
    /// A call is about to be made.
    Entry(i64, [u64; 6]),
    /// It has been made.
    Exit,
    /// A signal is about to be delivered.
    Signal(c_int),
    /// It was stopped by a signal.
    Stopped,
    /// A thread or process begins, or another program.
    Other,
    /// It is no more.
    Ended(i32),
}

fn ptrace(request: libc::c_uint, thread: pid_t, address: usize, data: usize) -> c_long {
    // SAFETY: no request here writes to this process but GET_SYSCALL_INFO, into what `next` gives it.
    unsafe { libc::ptrace(request, thread, address, data) }
}

/// A number that is handed over as an address.
fn address(number: c_int) -> usize {
    number.cast_unsigned() as usize
}

const OPTIONS: c_int = libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACEEXEC;

/// Takes hold of a child that stops itself, and lets it go on. It ends with this process.
pub fn take(child: pid_t) {
    let mut status = 0;
    // SAFETY: `status` is ours.
    unsafe { libc::waitpid(child, &raw mut status, libc::WUNTRACED) };
    assert!(libc::WIFSTOPPED(status), "{status:x}");
    let options = OPTIONS | libc::PTRACE_O_EXITKILL;
    assert_eq!(ptrace(libc::PTRACE_SEIZE, child, 0, address(options)), 0, "{}", std::io::Error::last_os_error());
    // SAFETY: a signal to a child.
    unsafe { libc::kill(child, libc::SIGCONT) };
}

/// Takes hold of all threads of a process.
pub fn attach(process: pid_t) {
    let mut held = std::collections::HashSet::new();
    loop {
        let threads = fs::read_dir(format!("/proc/{process}/task")).expect("a process").flatten();
        let threads = threads.filter_map(|thread| thread.file_name().to_str()?.parse::<pid_t>().ok());
        let new: Vec<pid_t> = threads.filter(|thread| !held.contains(thread)).collect();
        if new.is_empty() {
            return;
        }
        for thread in new {
            // One that has ended since, or is held already as a child of another, is none to take.
            let taken = ptrace(libc::PTRACE_SEIZE, thread, 0, address(OPTIONS)) == 0;
            if taken {
                ptrace(libc::PTRACE_INTERRUPT, thread, 0, 0);
            }
            held.insert(thread);
        }
    }
}

/// The next thread that stands still; none when there is nothing to wait for.
pub fn next() -> Option<(pid_t, Stop)> {
    let mut status = 0;
    // SAFETY: `status` is ours.
    let thread = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
    if thread < 0 {
        return None;
    }
    if libc::WIFEXITED(status) {
        return Some((thread, Stop::Ended(libc::WEXITSTATUS(status))));
    }
    if libc::WIFSIGNALED(status) {
        return Some((thread, Stop::Ended(128 + libc::WTERMSIG(status))));
    }
    let signal = libc::WSTOPSIG(status);
    let stop = match (signal, status >> 16) {
        (_, 0) if signal == libc::SIGTRAP | 0x80 => call(thread),
        (_, 0) => Stop::Signal(signal),
        (libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU, libc::PTRACE_EVENT_STOP) => Stop::Stopped,
        _ => Stop::Other,
    };
    Some((thread, stop))
}

fn call(thread: pid_t) -> Stop {
    let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let len = size_of::<libc::ptrace_syscall_info>();
    if ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, len, info.as_mut_ptr() as usize) <= 0 {
        return Stop::Other;
    }
    // SAFETY: the kernel has filled it, or left zeros, and `op` says which part of it is meant.
    let info = unsafe { info.assume_init() };
    if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
        // SAFETY: as above.
        let entry = unsafe { info.u.entry };
        return Stop::Entry(entry.nr.cast_signed(), entry.args);
    }
    Stop::Exit
}

/// Lets a thread go on to its next call, with a signal if there is one.
pub fn go_on(thread: pid_t, signal: c_int) {
    // Whoever was killed meanwhile is waited for like everybody.
    ptrace(libc::PTRACE_SYSCALL, thread, 0, address(signal));
}

/// Leaves a thread stopped, until somebody continues it.
pub fn listen(thread: pid_t) {
    ptrace(libc::PTRACE_LISTEN, thread, 0, 0);
}

/// The call that is about to be made is not.
pub fn drop_call(thread: pid_t) {
    ptrace(libc::PTRACE_POKEUSER, thread, ORIG_RAX * 8, usize::MAX);
}

/// What a call that was made says.
pub fn answer(thread: pid_t, value: i64) {
    ptrace(libc::PTRACE_POKEUSER, thread, RAX * 8, value.cast_unsigned() as usize);
}
