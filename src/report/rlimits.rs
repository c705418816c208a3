//! The limits that somebody set on this process, for a user who ran into one of them.

use rustix::process::{Resource, getrlimit};

/// Those that keep it from starting a thread, or where others are set.
#[must_use]
pub fn on_threads() -> String {
    let limits = [
        (Resource::Nproc, 1, "processes and threads of this user (`ulimit -u`)"),
        (Resource::As, 1 << 10, "KiB of address space (`ulimit -v`)"),
    ];
    let set = limits.iter().filter_map(|(resource, unit, what)| {
        getrlimit(*resource).current.map(|limit| format!("at most {} {what}", limit / unit))
    });
    let set: Vec<String> = set.collect();
    format!(
        "limits here: {}",
        if set.is_empty() { "those of the cgroup (`pids.max`)".to_owned() } else { set.join(", ") }
    )
}

/// The one that keeps a file from growing.
#[must_use]
pub fn on_a_file() -> String {
    match getrlimit(Resource::Fsize).current {
        Some(limit) => format!(
            "no file may be longer than {} KiB here: raise that limit (`ulimit -f`), and the same command goes on from there",
            limit >> 10
        ),
        None => "that file system takes no longer file: use another one".to_owned(),
    }
}
