//! Makes one system call of a process fail: a debugger by ptrace(2), since nothing in a library sees
//! the calls of a program that makes them itself.
//!
//! It runs in a process of its own, because it waits for whatever its children do. What it sees goes
//! to a file, a line each: `seen CALL KIND`, and `failed CALL KIND WHAT` once.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::calls::{self, CALLS, Kind, What};
use super::ptrace::{self, Stop};

/// Which call is to fail, and with what; none to see what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    pub call: &'static str,
    pub kind: Kind,
    /// Which of them, from 1.
    pub nth: u32,
    pub errno: i32,
}

impl std::fmt::Display for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let error = std::io::Error::from_raw_os_error(self.errno);
        write!(f, "{} of {}, call {}: {error}", self.call, self.kind.as_str(), self.nth)
    }
}

const COMMAND: &str = "LARDER_INJECT_COMMAND";
const PID: &str = "LARDER_INJECT_PID";
const ORDER: &str = "LARDER_INJECT_ORDER";
const REPORT: &str = "LARDER_INJECT_REPORT";
const ERRORS: &str = "LARDER_INJECT_ERRORS";

/// The tracer of a process, ended by drop.
pub struct Tracer {
    child: Child,
    report: PathBuf,
}

fn tracer(order: Option<Order>, report: &Path) -> Command {
    let _ = fs::remove_file(report);
    let mut command = Command::new("/proc/self/exe");
    command.args(["inject::tracer::process", "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(REPORT, report).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    if let Some(Order { call, kind, nth, errno }) = order {
        command.env(ORDER, format!("{call} {} {nth} {errno}", kind.as_str()));
    }
    command
}

impl Tracer {
    /// Runs a command under it; what that says on standard error goes to a file.
    pub fn run(command: &Command, order: Option<Order>, report: &Path, errors: &Path) -> Self {
        let words: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_str().expect("text").to_owned())
            .collect();
        let mut tracer = tracer(order, report);
        tracer.env(COMMAND, words.join("\n")).env(ERRORS, errors);
        // The environment of the command, and nothing of the test's but what says how to trace.
        let own: Vec<_> = tracer.get_envs().map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned))).collect();
        tracer.env_clear();
        tracer.envs(own.into_iter().filter_map(|(key, value)| Some((key, value?))));
        tracer.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        Self { child: tracer.spawn().expect("this test again"), report: report.to_owned() }
    }

    /// Takes hold of all threads of a process. Lets go of it when it is dropped.
    pub fn attach(pid: u32, order: Option<Order>, report: &Path) -> Self {
        let mut command = tracer(order, report);
        command.env(PID, pid.to_string());
        let tracer = Self { child: command.spawn().expect("this test again"), report: report.to_owned() };
        let began = std::time::Instant::now();
        while !tracer.lines().iter().any(|line| line == "ready") {
            assert!(began.elapsed() < crate::node::PATIENCE, "nobody traces");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        tracer
    }

    /// The exit code of the command, once it has ended; `None` when it does not within the time. One
    /// that a signal ended has 128 and more.
    pub fn wait(mut self, patience: std::time::Duration) -> Option<i32> {
        let began = std::time::Instant::now();
        loop {
            if self.child.try_wait().expect("a child").is_some() {
                let ended = |line: &String| line.strip_prefix("ended ").and_then(|code| code.parse().ok());
                return Some(self.lines().iter().find_map(ended).expect("the tracer says how it ended"));
            }
            if began.elapsed() > patience {
                return None;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    fn lines(&self) -> Vec<String> {
        lines(&self.report)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn lines(report: &Path) -> Vec<String> {
    fs::read_to_string(report).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// How often each call was made.
pub fn seen(report: &Path) -> HashMap<(&'static str, Kind), u32> {
    let mut seen = HashMap::new();
    for line in lines(report) {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["seen", call, kind] = words[..]
            && let (Some(call), Some(kind)) = (calls::named(call), Kind::named(kind))
        {
            *seen.entry((call.name, kind)).or_default() += 1;
        }
    }
    seen
}

/// What failed, if it came to that.
pub fn failed(report: &Path) -> Option<String> {
    lines(report).into_iter().find_map(|line| line.strip_prefix("failed ").map(str::to_owned))
}

/// Not a test: the tracer.
#[test]
#[ignore = "the process that traces"]
fn process() {
    let variable = |name: &str| std::env::var(name).ok();
    let Some(report) = variable(REPORT) else { return };
    let report = File::options().create(true).append(true).open(report).expect("a report");
    let order = variable(ORDER).map(|text| {
        let words: Vec<&str> = text.split(' ').collect();
        let number = |at: usize| words[at].parse::<i32>().expect("a number");
        Order {
            call: calls::named(words[0]).expect("a call").name,
            kind: Kind::named(words[1]).expect("a kind"),
            nth: number(2).unsigned_abs(),
            errno: number(3),
        }
    });
    let mut tracing =
        Tracing { report, order, counts: HashMap::new(), failing: HashMap::new(), leader: 0, armed: false };
    if let Some(pid) = variable(PID) {
        let pid = pid.parse().expect("a pid");
        tracing.armed = true;
        tracing.leader = pid;
        ptrace::attach(pid);
        tracing.say("ready");
    } else {
        let words = variable(COMMAND).expect("a command");
        let errors = File::create(variable(ERRORS).expect("a file")).expect("a file");
        // It waits for its tracer, and becomes the command then.
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]).args(words.split('\n'));
        for name in [COMMAND, PID, ORDER, REPORT, ERRORS] {
            shell.env_remove(name);
        }
        shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let child = shell.spawn().expect("a shell");
        tracing.leader = child.id().cast_signed();
        ptrace::take(tracing.leader);
    }
    tracing.follow();
}

struct Tracing {
    report: File,
    order: Option<Order>,
    counts: HashMap<(&'static str, Kind), u32>,
    /// Threads whose call does not happen, and what it says instead.
    failing: HashMap<i32, i32>,
    leader: i32,
    /// Whether the program has begun: what loads it is not its own.
    armed: bool,
}

impl Tracing {
    fn say(&mut self, line: &str) {
        self.report.write_all(format!("{line}\n").as_bytes()).expect("a report");
    }

    fn follow(&mut self) {
        while let Some((thread, stop)) = ptrace::next() {
            match stop {
                Stop::Entry(number, arguments) => {
                    self.enter(thread, number, &arguments);
                    ptrace::go_on(thread, 0);
                }
                Stop::Exit => {
                    if let Some(errno) = self.failing.remove(&thread) {
                        ptrace::answer(thread, -i64::from(errno));
                    }
                    ptrace::go_on(thread, 0);
                }
                Stop::Signal(signal) => ptrace::go_on(thread, signal),
                Stop::Stopped => ptrace::listen(thread),
                Stop::Other => ptrace::go_on(thread, 0),
                Stop::Ended(code) if thread == self.leader => {
                    self.say(&format!("ended {code}"));
                    return;
                }
                Stop::Ended(_) => {}
            }
        }
    }

    fn enter(&mut self, thread: i32, number: i64, arguments: &[u64; 6]) {
        // Rust's runtime asks for this before `main`.
        if number == libc::SYS_sigaltstack {
            self.armed = true;
        }
        let Some(call) = CALLS.iter().find(|call| call.number == number).filter(|_| self.armed) else { return };
        let what = calls::what(call, thread, arguments);
        let What::Of(kind, about) = what else { return };
        let count = self.counts.entry((call.name, kind)).or_default();
        *count += 1;
        let count = *count;
        match self.order {
            None => self.say(&format!("seen {} {}", call.name, kind.as_str())),
            Some(order) if (order.call, order.kind, order.nth) == (call.name, kind, count) => {
                ptrace::drop_call(thread);
                self.failing.insert(thread, order.errno);
                self.say(&format!("failed {} {} {about}", call.name, kind.as_str()));
            }
            Some(_) => {}
        }
    }
}
