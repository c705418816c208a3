//! A node: the daemon as a process of its own, with a store, sockets and a kubelet's directory,
//! and the pods and people that ask it.

mod contract;
pub mod http;
mod hung;
mod leases;
mod metrics;
mod offline;
mod pods;
mod readme;
mod records;
mod schema;
mod scrub;
mod settings;
mod start;
mod stopping;
mod verbs;
mod wanted;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use larder_origins::Origin;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{self, Ran, s3_environment};

/// What a test waits for comes within this time, or never.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The daemon and everything around it, gone with the value.
pub struct Node {
    home: tempfile::TempDir,
    settings: Vec<(String, String)>,
    /// Text behind the settings: the list of what to prefetch.
    list: String,
    environment: Vec<(String, String)>,
    /// The command line of the daemon up to its own arguments: the binary, with what starts it.
    binary: Vec<OsString>,
    daemon: Option<Child>,
}

impl Node {
    /// A node whose daemon has that environment. Starts nothing.
    pub fn new<K: AsRef<str>, V: AsRef<str>>(environment: impl IntoIterator<Item = (K, V)>) -> Self {
        let home = tempfile::Builder::new().prefix("larder-node-").tempdir().expect("a directory under /tmp");
        let environment =
            environment.into_iter().map(|(k, v)| (k.as_ref().to_owned(), v.as_ref().to_owned())).collect();
        fs::create_dir_all(home.path().join("kubelet/pods")).expect("a directory");
        let mut node =
            Self { home, settings: Vec::new(), list: String::new(), environment, binary: Vec::new(), daemon: None };
        node.set_binary([env!("CARGO_BIN_EXE_larder")]);
        for (name, path) in [("store", "store"), ("socket", "run/sock"), ("admin_socket", "admin/sock")] {
            node.set(name, &quoted(&node.path(path)));
        }
        node.set("kubelet_dir", &quoted(&node.path("kubelet")));
        node.set("listen", "\"\"");
        node
    }

    /// For an S3-shaped origin of ours, with a static credential.
    pub fn at(origin: &Origin) -> Self {
        Self::new(s3_environment(origin))
    }

    /// The same, started.
    pub fn started(origin: &Origin) -> Self {
        let mut node = Self::at(origin);
        node.start();
        node
    }

    /// Sets a setting to a value as TOML has it, from the next start on.
    pub fn set(&mut self, name: &str, toml: &str) {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), toml.to_owned()));
    }

    /// What to prefetch, as text of the file: `[[prefetch]]` and so on, from the next start on.
    pub fn set_list(&mut self, toml: &str) {
        toml.clone_into(&mut self.list);
    }

    /// Sets a variable of the daemon's environment, from the next start on.
    pub fn set_variable(&mut self, name: &str, value: impl Into<String>) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.into()));
    }

    /// What the daemon is started with: its binary, behind whatever else starts it.
    pub fn set_binary<S: Into<OsString>>(&mut self, command: impl IntoIterator<Item = S>) {
        self.binary = command.into_iter().map(Into::into).collect();
    }

    /// Has metrics and health served, at a port of their own; where.
    pub fn listen(&mut self) -> String {
        let probe = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = probe.local_addr().expect("an address").to_string();
        self.set("listen", &format!("\"{address}\""));
        address
    }

    /// A path below the node's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/sock")
    }

    pub fn admin_socket(&self) -> PathBuf {
        self.path("admin/sock")
    }

    /// What kubelet does when a pod comes: its directory.
    pub fn begin_pod(&self, uid: &str) {
        fs::create_dir_all(self.path("kubelet/pods").join(uid)).expect("a directory");
    }

    /// What kubelet does when a pod has ended.
    pub fn end_pod(&self, uid: &str) {
        fs::remove_dir_all(self.path("kubelet/pods").join(uid)).expect("a directory");
    }

    /// Writes the settings file as it stands now, as kubelet does: by rename. Its path.
    pub fn write_settings(&self) -> PathBuf {
        let lines: String = self.settings.iter().map(|(name, value)| format!("{name} = {value}\n")).collect();
        self.write_settings_text(&format!("{lines}\n{}", self.list))
    }

    /// Writes that text as the settings file. Its path.
    pub fn write_settings_text(&self, text: &str) -> PathBuf {
        let (file, new) = (self.path("larder.toml"), self.path("larder.toml.new"));
        fs::write(&new, text).expect("a file");
        fs::rename(&new, &file).expect("a rename");
        file
    }

    /// `larder daemon` with the settings file, in the daemon's environment.
    pub fn daemon_command(&self) -> Command {
        let mut command = Command::new(&self.binary[0]);
        command.args(&self.binary[1..]).args(["daemon", "--config"]).arg(self.write_settings());
        self.plain(&mut command);
        command.envs(self.environment.iter().cloned());
        command
    }

    /// `larder` in the daemon's environment, with its store.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.args(args);
        self.plain(&mut command);
        command.env("LARDER_STORE", self.store()).envs(self.environment.iter().cloned());
        command
    }

    fn plain(&self, command: &mut Command) {
        command.env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.home.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    }

    /// Runs `larder` in the daemon's environment, with its store.
    pub fn larder(&self, args: &[&str]) -> Ran {
        support::wait(self.command(args).spawn().expect("larder starts"))
    }

    /// Starts the daemon and waits until it answers; how long that took.
    #[track_caller]
    pub fn start(&mut self) -> Duration {
        assert!(self.daemon.is_none(), "the daemon runs already");
        let log = fs::File::options().create(true).append(true).open(self.path("log")).expect("a log");
        let mut command = self.daemon_command();
        command.stdout(Stdio::null()).stderr(log);
        let started = Instant::now();
        self.daemon = Some(command.spawn().expect("larder starts"));
        loop {
            if http::ask(&self.socket(), "GET", "/v1/status", None).is_ok_and(|answer| answer.status == 200) {
                return started.elapsed();
            }
            let ended = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().expect("a child"));
            assert!(ended.is_none(), "the daemon ended: {ended:?}\n{}", self.log());
            assert!(started.elapsed() < PATIENCE, "the daemon does not answer\n{}", self.log());
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Everything the daemons of this node have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The daemon's pid.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("a daemon").id()
    }

    /// Whether the daemon has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.daemon.as_mut().is_none_or(|daemon| daemon.try_wait().expect("a child").is_some())
    }

    /// `kill -9`.
    #[track_caller]
    pub fn kill(&mut self) {
        let daemon = self.daemon.as_mut().expect("a daemon");
        daemon.kill().expect("a child");
        let is_dead = self.is_dead_within(PATIENCE);
        // If not, a thread waits in the kernel for what the daemon itself should answer.
        assert!(is_dead, "the daemon outlives SIGKILL\n{}\n{}", self.stacks(), self.log());
    }

    /// Waits for the end of a daemon that was killed.
    pub fn is_dead_within(&mut self, patience: Duration) -> bool {
        let killed = Instant::now();
        while let Some(daemon) = &mut self.daemon {
            if daemon.try_wait().expect("a child").is_some() {
                self.daemon = None;
            } else if killed.elapsed() > patience {
                return false;
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        true
    }

    /// Where in the kernel the daemon's threads are.
    fn stacks(&self) -> String {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        let stack =
            |file: &str, thread: &fs::DirEntry| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        threads.map(|thread| format!("{}{}", stack("comm", &thread), stack("stack", &thread))).collect()
    }

    /// `kill -9`, if it runs; whether it is dead then.
    pub fn end(&mut self) -> bool {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
        }
        self.is_dead_within(Duration::from_secs(5))
    }

    /// SIGTERM; the exit code, and how long the end took.
    #[track_caller]
    pub fn terminate(&mut self) -> (Option<i32>, Duration) {
        let mut daemon = self.daemon.take().expect("a daemon");
        let asked = Instant::now();
        kill_process(Pid::from_child(&daemon), Signal::TERM).expect("a signal");
        while asked.elapsed() < PATIENCE {
            if let Some(status) = daemon.try_wait().expect("a child") {
                return (status.code(), asked.elapsed());
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        daemon.kill().expect("a child");
        daemon.wait().expect("a child");
        panic!("the daemon did not end within {PATIENCE:?} of SIGTERM\n{}", self.log());
    }

    /// `kill -9` and a start.
    #[track_caller]
    pub fn restart(&mut self) -> Duration {
        self.kill();
        self.start()
    }

    /// Asks at the socket of pods; status and body.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        Self::ask_at(&self.socket(), method, path, body)
    }

    /// Asks at the socket of administrators; status and body.
    #[track_caller]
    pub fn ask_admin(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        Self::ask_at(&self.admin_socket(), method, path, body)
    }

    #[track_caller]
    fn ask_at(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let body = body.map(ToString::to_string);
        let answer = http::ask(socket, method, path, body.as_ref().map(String::as_bytes));
        let answer = answer.unwrap_or_else(|error| panic!("{method} {path} at {}: {error}", socket.display()));
        (answer.status, answer.json())
    }

    /// `GET /v1/status`.
    #[track_caller]
    pub fn status(&self) -> Value {
        let (status, body) = self.ask("GET", "/v1/status", None);
        assert_eq!(status, 200, "{body}");
        body
    }

    /// Asks for a model; its events as they come.
    #[track_caller]
    pub fn ensuring(&self, wish: &Value) -> http::Events {
        let body = wish.to_string();
        let answer = http::ask(&self.socket(), "POST", "/v1/ensure", Some(body.as_bytes())).expect("an answer");
        match answer.status {
            200 => answer.events(),
            status => panic!("{wish}: {status} {}", answer.text()),
        }
    }

    /// Asks for a model; all events, the last of which says how it ended. Not for a lease of the
    /// connection, which has no end.
    #[track_caller]
    pub fn ensure(&self, wish: &Value) -> Vec<Value> {
        self.ensuring(wish).collect()
    }

    /// Asks for a model that must come; the last event.
    #[track_caller]
    pub fn ready(&self, wish: &Value) -> Value {
        let events = self.ensure(wish);
        let last = events.last().cloned().unwrap_or_default();
        assert_eq!(last["event"], "ready", "{events:?}\n{}", self.log());
        last
    }

    /// `larder-init` as a pod has it: nothing but the socket in its environment.
    pub fn init_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(init_binary());
        command.args(args);
        self.plain(&mut command);
        command.env("LARDER_SOCKET", self.socket()).env("LARDER_TIMEOUT", "60");
        command
    }

    pub fn spawn_init(&self, args: &[&str]) -> Child {
        self.init_command(args).spawn().expect("larder-init starts")
    }

    /// Runs `larder-init`.
    pub fn init(&self, args: &[&str]) -> Ran {
        support::wait(self.spawn_init(args))
    }

    /// Waits until the status of the node is as wanted; that status.
    #[track_caller]
    pub fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}\n{status:#}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
        // Mounts stay when who made them is killed.
        unmount_below(self.home.path());
    }
}

/// Detaches everything that is mounted below a directory, the last mount first.
pub fn unmount_below(directory: &Path) {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let at = table.lines().rev().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    for at in at.filter(|at| at.starts_with(directory)) {
        let _ = rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Flips a bit in the middle of a file of a model, as a bad disk does.
pub fn damage(file: &Path) {
    let mode = file.metadata().expect("a file").permissions();
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).expect("a mode");
    let opened = fs::File::options().read(true).write(true).open(file).expect("a file");
    let (mut byte, middle) = ([0], opened.metadata().expect("a file").len() / 2);
    opened.read_exact_at(&mut byte, middle).expect("a byte");
    opened.write_all_at(&[byte[0] ^ 1], middle).expect("written");
    fs::set_permissions(file, mode).expect("a mode");
}

/// A path as TOML has it.
pub fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}

/// The binary of the init image.
fn init_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| built("larder-init"))
}

/// The binary of another package, built in a directory of its own: cargo knows only the binaries of
/// the package under test, and other builds in `target` must not be waited for.
pub fn built(package: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(package);
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--locked", "-p", package]);
    support::program(cargo.arg("--target-dir").arg(&target));
    target.join("debug").join(package)
}
