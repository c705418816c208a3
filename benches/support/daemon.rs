//! A daemon of the bench's own, and the binary that asks it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A daemon with its store and sockets below one directory.
pub struct Daemon {
    directory: PathBuf,
    environment: Vec<(&'static str, String)>,
    child: Option<Child>,
}

impl Daemon {
    /// One that pulls as the environment says. Not started yet.
    pub fn new(directory: &Path, environment: Vec<(&'static str, String)>) -> Self {
        let path = |name: &str| directory.join(name).display().to_string();
        let settings = format!(
            "store = {:?}\nsocket = {:?}\nadmin_socket = {:?}\nlisten = \"\"\nscrub_rate = \"0\"\nkubelet_dir = {:?}\nhigh_watermark = 98\nlow_watermark = 97\nlog = \"warn\"\n",
            path("store"),
            path("run/larder.sock"),
            path("admin/larder.sock"),
            path("kubelet"),
        );
        std::fs::create_dir_all(directory.join("kubelet/pods/bench")).expect("a directory");
        std::fs::write(directory.join("larder.toml"), settings).expect("settings");
        Self { directory: directory.to_owned(), environment, child: None }
    }

    /// Adds a line to its settings, before it starts.
    pub fn set(&self, line: &str) {
        let path = self.directory.join("larder.toml");
        let settings = std::fs::read_to_string(&path).expect("settings");
        std::fs::write(path, format!("{settings}{line}\n")).expect("settings");
    }

    pub fn store(&self) -> PathBuf {
        self.directory.join("store")
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("run/larder.sock")
    }

    /// Starts it and waits until it answers; how long that took.
    pub fn start(&mut self) -> Duration {
        self.start_as(Command::new(env!("CARGO_BIN_EXE_larder")))
    }

    /// The same inside a cgroup, from its first instruction on, as a container is.
    pub fn start_in(&mut self, group: &Path) -> Duration {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group.join("cgroup.procs"));
        command.arg(env!("CARGO_BIN_EXE_larder"));
        self.start_as(command)
    }

    fn start_as(&mut self, mut command: Command) -> Duration {
        let started = Instant::now();
        command.args(["daemon", "--config"]).arg(self.directory.join("larder.toml"));
        command.envs(self.environment.iter().cloned()).stdin(Stdio::null()).stdout(Stdio::null());
        self.child = Some(command.spawn().expect("larder starts"));
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            assert!(started.elapsed() < Duration::from_secs(30), "the daemon does not listen");
            std::thread::sleep(Duration::from_millis(1));
        }
        started.elapsed()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) {
        if let Some(child) = &self.child
            && let Some(pid) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let told = Instant::now();
            while told.elapsed() < Duration::from_secs(20) {
                if self.child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None))) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.kill();
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Its peak resident set and its CPU time so far.
    pub fn cost(&self) -> (u64, Duration) {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", self.pid())).expect("procfs");
        let status = read("status");
        let peak = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
        let peak = peak.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") * 1024;
        let stat = read("stat");
        let (_, rest) = stat.rsplit_once(')').expect("a command");
        // utime and stime, fields 14 and 15 of proc_pid_stat(5).
        let ticks: u64 = rest.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().expect("ticks")).sum();
        (peak, Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
    }

    /// `larder-init` for a model, as a pod of this node.
    pub fn init(&self, source: &str, destination: &Path) -> Command {
        let mut command = Command::new(larder_init());
        command.env_clear().env("LARDER_SOCKET", self.socket()).env("LARDER_POD_UID", "bench");
        command.arg(source).arg(destination).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The binary of the init image: `LARDER_INIT`, or the one that is built here.
pub fn larder_init() -> PathBuf {
    if let Some(path) = std::env::var_os("LARDER_INIT") {
        return path.into();
    }
    let directory = Path::new(env!("CARGO_BIN_EXE_larder")).parent().expect("a directory");
    let path = directory.join("larder-init");
    if !path.exists() {
        let built = Command::new(env!("CARGO")).args(["build", "--release", "-q", "-p", "larder-init"]).status();
        assert!(built.is_ok_and(|status| status.success()), "larder-init does not build");
    }
    path
}
