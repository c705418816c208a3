//! One child process, measured by the kernel.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a child cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    pub wall: Duration,
    /// User and system time.
    pub cpu: Duration,
    /// Peak resident set, bytes. A child starts with its parent's peak (`exec_mmap` in fs/exec.c),
    /// so a child that stays below this process has none that can be told.
    pub rss: Option<u64>,
}

/// Runs a command to its end and asks the kernel what it cost.
pub fn run(command: &mut Command) -> Cost {
    let own = own_peak();
    let started = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let child = child.unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (status, usage) = wait4(&child);
    let wall = started.elapsed();
    assert!(status == 0, "{command:?} ended with wait status {status}");
    // ru_maxrss is in KiB on Linux (getrusage(2)).
    let rss = Some(usage.ru_maxrss.unsigned_abs() * 1024).filter(|rss| *rss > own);
    Cost { wall, cpu: time(usage.ru_utime) + time(usage.ru_stime), rss }
}

/// This process's peak resident set in bytes (`VmHWM` in proc(5)).
fn own_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") * 1024
}

/// `wait4(2)`: the only call that gives one child's resources.
#[expect(unsafe_code, reason = "neither std nor rustix has wait4")]
fn wait4(child: &Child) -> (i32, libc::rusage) {
    let pid = i32::try_from(child.id()).expect("a pid");
    let mut status = 0;
    // SAFETY: rusage is plain data, valid when zeroed; both pointers live through the call.
    let (ended, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::wait4(pid, &raw mut status, 0, &raw mut usage), usage)
    };
    assert_eq!(ended, pid, "wait4: {}", std::io::Error::last_os_error());
    (status, usage)
}

/// This process's user and system time so far.
#[expect(unsafe_code, reason = "neither std nor rustix has getrusage")]
pub fn own_cpu() -> Duration {
    // SAFETY: rusage is plain data, valid when zeroed, and lives through the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &raw mut usage), 0);
        usage
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

fn time(t: libc::timeval) -> Duration {
    Duration::from_secs(t.tv_sec.unsigned_abs()) + Duration::from_micros(t.tv_usec.unsigned_abs())
}

/// The middle of some values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

/// Costs of one side over the rounds.
#[derive(Debug)]
pub struct Side {
    pub name: String,
    pub bytes: u64,
    pub costs: Vec<Cost>,
}

impl Side {
    pub fn new(name: &str, bytes: u64) -> Self {
        Self { name: name.to_owned(), bytes, costs: Vec::new() }
    }

    fn median(&self, of: impl Fn(&Cost) -> f64) -> f64 {
        median(self.costs.iter().map(of).collect())
    }

    pub fn cpu_per_gib(&self) -> f64 {
        self.median(|cost| cost.cpu.as_secs_f64()) / (self.bytes as f64 / f64::from(1 << 30))
    }

    pub fn wall(&self) -> f64 {
        self.median(|cost| cost.wall.as_secs_f64())
    }

    pub fn peak(&self) -> String {
        let peaks: Option<Vec<u64>> = self.costs.iter().map(|cost| cost.rss).collect();
        let peak = peaks.and_then(|peaks| peaks.into_iter().max());
        peak.map_or_else(String::new, |bytes| format!("{:>7} MiB peak", bytes >> 20))
    }

    pub fn print(&self) {
        println!(
            "  {:<28} {:>6.2} CPU-s/GiB {:>7.2} s wall {}",
            self.name,
            self.cpu_per_gib(),
            self.wall(),
            self.peak()
        );
    }
}

/// Prints both sides and their ratios.
pub fn compare(title: &str, ours: &Side, theirs: &Side) {
    println!("{title} ({} rounds, in turn)", ours.costs.len());
    theirs.print();
    ours.print();
    println!(
        "  ratio: {:.2} CPU, {:.2} wall\n",
        ours.cpu_per_gib() / theirs.cpu_per_gib(),
        ours.wall() / theirs.wall()
    );
}
