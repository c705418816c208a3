//! A node as a `DaemonSet` makes it: a keeper that is root, and a daemon that may do nothing.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use larder_origins::Origin;
use rustix::fs::Access;
use rustix::process::{Pid, Signal, kill_process};

use super::mountable;
use crate::node::{Node, PATIENCE, built};

/// Who the daemon is.
pub const UID: u32 = 65_532;

/// A node whose mount a keeper has. Ends everything and detaches every mount when it is dropped.
pub struct Kept {
    pub node: Node,
    keeper: Option<Child>,
}

impl Kept {
    /// A node with a keeper that runs, and a daemon that is yet to be started. `None`, with the
    /// reason printed, where that cannot be.
    pub fn at(origin: &Origin) -> Option<Self> {
        Self::of(Node::at(origin))
    }

    /// The same of a node that was not started yet.
    pub fn of(mut node: Node) -> Option<Self> {
        if !mountable() {
            return None;
        }
        let home = node.path("");
        for directory in ["", "store", "run", "admin", "kubelet", "kubelet/pods"] {
            own(&home.join(directory));
        }
        // kubelet's, and so root's.
        for directory in ["kubelet/plugins", "kubelet/plugins_registry"] {
            fs::create_dir_all(home.join(directory)).expect("a directory");
        }
        let socket = home.join("keeper/sock");
        node.set("mount", &format!("\"keeper:{}\"", socket.display()));
        let mut kept = Self { node, keeper: None };
        kept.run(Path::new(env!("CARGO_BIN_EXE_larder")));
        kept.start_keeper();
        Some(kept)
    }

    /// The same, started.
    pub fn started(origin: &Origin) -> Option<Self> {
        let mut kept = Self::at(origin)?;
        kept.node.start();
        Some(kept)
    }

    /// Has that binary be the daemon, from the next start on.
    pub fn run(&mut self, binary: &Path) {
        let reachable = self.reachable(binary);
        self.node.set_binary(unprivileged(UID).into_iter().chain([reachable.into()]));
    }

    /// Where the daemon's user finds the binary: `target` may be somewhere that is not for all.
    fn reachable(&self, binary: &Path) -> PathBuf {
        let binary = fs::canonicalize(binary).unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        let named = binary.display().to_string().replace('/', "-");
        let copy = self.node.path(&format!("bin{named}"));
        if rustix::fs::access(&copy, Access::EXISTS).is_err() && fs::hard_link(&binary, &copy).is_err() {
            fs::copy(&binary, &copy).expect("a copy of the binary");
        }
        copy
    }

    /// Starts the keeper and waits until it listens.
    #[track_caller]
    pub fn start_keeper(&mut self) {
        assert!(self.keeper.is_none(), "the keeper runs already");
        let node = &self.node;
        let log = fs::File::options().create(true).append(true).open(node.path("keeper.log")).expect("a log");
        let mut command = Command::new(keeper_binary());
        command.env_clear().arg("--mount").arg(super::root(node)).arg("--socket").arg(node.path("keeper/sock"));
        command.arg("--bind-below").arg(node.path("kubelet/pods")).arg("--listen-below").arg(node.path("kubelet"));
        command.arg("--models").arg(node.path("store/v1/models"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let _ = fs::remove_file(node.path("keeper/sock"));
        let keeper = self.keeper.insert(command.spawn().expect("larder-keeper starts"));
        let started = Instant::now();
        while !node.path("keeper/sock").exists() {
            let ended = keeper.try_wait().expect("a child");
            assert!(ended.is_none() && started.elapsed() < PATIENCE, "no keeper: {ended:?}\n{}", keeper_log(node));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The keeper's pid.
    #[track_caller]
    pub fn keeper_pid(&self) -> u32 {
        self.keeper.as_ref().expect("a keeper").id()
    }

    /// `kill -9` of the keeper.
    #[track_caller]
    pub fn kill_keeper(&mut self) {
        let mut keeper = self.keeper.take().expect("a keeper");
        keeper.kill().expect("a child");
        keeper.wait().expect("a child");
    }

    /// Stops the keeper in its tracks, or lets it go on.
    #[track_caller]
    pub fn signal_keeper(&self, signal: Signal) {
        let keeper = self.keeper.as_ref().expect("a keeper");
        kill_process(Pid::from_raw(keeper.id().cast_signed()).expect("a process"), signal).expect("a signal");
    }

    /// What the keepers and the daemons have said.
    pub fn logs(&self) -> String {
        format!("{}\n{}", keeper_log(&self.node), self.node.log())
    }

    /// Ends the keeper and the daemon: whoever waits for the mount gets an error.
    pub fn end(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
        if !self.node.end() {
            self.abort();
            self.node.end();
        }
    }

    /// Ends the connection to the kernel by the kernel's own switch: for a daemon that waits there
    /// for itself.
    fn abort(&self) {
        let at = self.node.path("fusectl");
        let _ = fs::create_dir_all(&at);
        let _ = rustix::mount::mount("none", &at, "fusectl", rustix::mount::MountFlags::empty(), None);
        let log = keeper_log(&self.node);
        for number in log.lines().filter_map(|line| line.split(" as 0:").nth(1)?.split(',').next()) {
            let _ = fs::write(at.join(number).join("abort"), "1");
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        self.end();
    }
}

/// The start of a command line that runs the rest as a user without any privilege.
pub fn unprivileged(uid: u32) -> Vec<OsString> {
    let who = uid.to_string();
    ["setpriv", "--reuid", &who, "--regid", &who, "--clear-groups", "--no-new-privs"]
        .into_iter()
        .chain(["--bounding-set=-all", "--inh-caps=-all", "--"])
        .map(Into::into)
        .collect()
}

/// A directory of the daemon's user that others may look into.
pub fn own(directory: &Path) {
    fs::create_dir_all(directory).expect("a directory");
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("a mode");
    chown(directory, Some(UID), Some(UID)).expect("an owner");
}

fn keeper_log(node: &Node) -> String {
    fs::read_to_string(node.path("keeper.log")).unwrap_or_default()
}

fn keeper_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| built("larder-keeper"))
}
