//! A node in a temporary directory: a keeper, its directories, and daemons that come and go.
//!
//! Whatever a test does, at its end the processes that it started are ended, and everything that
//! is mounted below its directory is detached.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use larder_keeper::protocol::{self, Packet};
use larder_keeper::{Errands, Hello, Keeper};
use rustix::mount::{UnmountFlags, unmount};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, Signal, kill_process};

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Who the daemon is.
pub const PEER_UID: u32 = 65532;

pub struct Scene {
    pub root: PathBuf,
    keeper: Option<Child>,
}

/// A scene with a keeper that runs, or none (and a line that says so) where there cannot be one.
pub fn scene() -> Option<Scene> {
    let mut scene = empty_scene()?;
    scene.start();
    Some(scene)
}

/// The same without a keeper.
pub fn empty_scene() -> Option<Scene> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("skipped: needs root and /dev/fuse");
        return None;
    }
    let name = format!("larder-keeper-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let root = std::env::temp_dir().join(name);
    for directory in ["mount", "pods/p", "plugins", "registry", "store", "data/v1/models/whole/sub", "data/v1/scratch"]
    {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    fs::write(root.join("data/v1/models/whole/plain"), content("whole")).expect("a file");
    let model = root.join("store/model");
    fs::create_dir(&model).expect("a directory");
    for name in ["passed", "plain", "slow"] {
        fs::write(model.join(name), content(name)).expect("a file");
    }
    Some(Scene { root, keeper: None })
}

/// What a file of the model holds: more than one page, and not the same as another.
pub fn content(name: &str) -> Vec<u8> {
    name.bytes().cycle().take(300_000).collect()
}

impl Scene {
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn mount(&self) -> PathBuf {
        self.path("mount/models")
    }

    /// Where the daemon would keep complete models; `whole` is one.
    pub fn models(&self) -> PathBuf {
        self.path("data/v1/models")
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/keeper.sock")
    }

    pub fn log(&self) -> fs::File {
        fs::File::options().create(true).append(true).open(self.path("log")).expect("a log")
    }

    /// The keeper's command line for this scene.
    pub fn command(&self) -> Command {
        let binary = std::env::var_os("LARDER_KEEPER").unwrap_or_else(|| env!("CARGO_BIN_EXE_larder-keeper").into());
        let mut command = Command::new(binary);
        command
            .env_clear()
            .env("LARDER_KEEPER_MOUNT", self.mount())
            .env("LARDER_KEEPER_MODELS", self.models())
            .arg("--socket")
            .arg(self.socket())
            .arg("--bind-below")
            .arg(self.path("pods"))
            .arg("--listen-below")
            .arg(self.path("plugins"))
            .arg("--listen-below")
            .arg(self.path("registry"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log());
        command
    }

    /// Starts the keeper and waits until it listens.
    pub fn start(&mut self) {
        let command = self.command();
        self.start_as(command);
    }

    pub fn start_as(&mut self, mut command: Command) {
        self.keeper = Some(command.spawn().expect("a keeper"));
        until("the keeper listens", || {
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
            let (socket, address) = (socket.expect("a socket"), SocketAddrUnix::new(self.socket()).expect("short"));
            // Until this connection is over, so that nobody counts it.
            connect(&socket, &address).is_ok() && {
                assert!(ask(&socket, b"anyone?").starts_with("error|"));
                answer(&socket).is_none()
            }
        });
        until("that connection is forgotten", || self.threads() == 1);
    }

    pub fn pid(&self) -> u32 {
        self.keeper.as_ref().expect("a keeper").id()
    }

    /// Ends the keeper and says how it went.
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        let pid = self.pid().cast_signed();
        self.end_by(pid, signal)
    }

    pub fn end_by(&mut self, pid: i32, signal: Signal) -> ExitStatus {
        kill_process(Pid::from_raw(pid).expect("a process"), signal).expect("a signal");
        self.wait()
    }

    /// Waits for the keeper's end.
    pub fn wait(&mut self) -> ExitStatus {
        ended(&mut self.keeper.take().expect("a keeper"))
    }

    pub fn connect(&self) -> (Keeper, Hello) {
        Keeper::connect(self.socket(), PATIENCE).expect("a keeper")
    }

    pub fn errands(&self) -> Errands {
        Errands::new(self.socket())
    }

    /// A connection that has said nothing.
    pub fn raw(&self) -> OwnedFd {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let socket = socket.expect("a socket");
        connect(&socket, &SocketAddrUnix::new(self.socket()).expect("short")).expect("a keeper");
        socket
    }

    /// A daemon as it runs on a node: another user, without capabilities.
    pub fn daemon(&self, parks: bool) -> Daemon {
        let mut command = again("daemon::daemon_process");
        command
            .env("LARDER_KEEPER_TEST_SOCKET", self.socket())
            .env("LARDER_KEEPER_TEST_STORE", self.path("store/model"))
            .env("LARDER_KEEPER_TEST_PARKS", if parks { "yes" } else { "" })
            .uid(PEER_UID)
            .gid(PEER_UID)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("a daemon");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, said) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The test harness leaves the beginning of the first line.
                if let Some((_, text)) = line.split_once("daemon: ") {
                    let _ = sender.send(text.to_owned());
                }
            }
        });
        let daemon = Daemon { child, said };
        daemon.says("serves");
        daemon
    }

    /// The lines of mountinfo for mounts below this scene.
    pub fn mounts(&self) -> Vec<String> {
        let root = self.root.to_str().expect("ASCII");
        let table = fs::read("/proc/self/mountinfo").expect("mountinfo");
        // Some tests mount what has no name in UTF-8.
        let table = String::from_utf8_lossy(&table);
        let point = |line: &str| line.split(' ').nth(4).expect("a mount point").to_owned();
        table.lines().filter(|line| Path::new(&point(line)).starts_with(root)).map(str::to_owned).collect()
    }

    /// How many descriptors the keeper has.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("a process").count()
    }

    pub fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.pid())).expect("a process").count()
    }

    /// How often the keeper has said something.
    pub fn logs(&self, text: &str) -> usize {
        fs::read_to_string(self.path("log")).unwrap_or_default().matches(text).count()
    }

    pub fn logged(&self, text: &str) -> bool {
        fs::read_to_string(self.path("log")).unwrap_or_default().contains(text)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the keeper said:\n{}", fs::read_to_string(self.path("log")).unwrap_or_default());
        }
        if let Some(mut keeper) = self.keeper.take() {
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
        // The last one first: mounts are listed in the order in which they were made.
        for line in self.mounts().iter().rev() {
            let point = line.split(' ').nth(4).expect("a mount point");
            let _ = unmount(Path::new(point), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
        let left = self.mounts();
        if left.is_empty() {
            let _ = fs::remove_dir_all(&self.root);
        } else if !thread::panicking() {
            panic!("still mounted: {left:#?}");
        }
    }
}

/// A process that answers FUSE.
pub struct Daemon {
    child: Child,
    said: Receiver<String>,
}

impl Daemon {
    /// Waits for a line that begins so, and gives the rest of it.
    #[track_caller]
    pub fn says(&self, beginning: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.said.recv_timeout(left).unwrap_or_else(|_| panic!("the daemon never said {beginning}"));
            if let Some(rest) = line.strip_prefix(beginning) {
                return rest.trim().to_owned();
            }
        }
    }

    pub fn kill(mut self) {
        self.child.kill().expect("a signal");
        self.child.wait().expect("its end");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This test binary again, for one of the "tests" that are processes of their own.
pub fn again(name: &str) -> Command {
    // By this name another user can run it wherever it lies.
    let mut command = Command::new("/proc/self/exe");
    command.args([name, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command
}

/// Waits for something that happens soon.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for the end of a process, and ends it if that does not come.
#[track_caller]
pub fn ended(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("the process does not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The answer to a message, as text.
#[track_caller]
pub fn ask(socket: &OwnedFd, message: &[u8]) -> String {
    protocol::send(socket, message, None).expect("sent");
    answer(socket).expect("an answer")
}

/// The next answer; none if the connection is closed.
pub fn answer(socket: &OwnedFd) -> Option<String> {
    let Packet { bytes, .. } = protocol::receive(socket).ok()??;
    Some(String::from_utf8_lossy(&bytes).replace('\0', "|"))
}

/// The `errno` of what must fail.
#[track_caller]
pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> rustix::io::Errno {
    let error = result.expect_err("an error");
    rustix::io::Errno::from_raw_os_error(larder_keeper::client::errno(&error).unwrap_or_else(|| panic!("{error:?}")))
}

pub fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let mut bytes = Vec::new();
    fs::File::open(path).expect("a file").read_to_end(&mut bytes).expect("bytes");
    bytes
}

pub fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

pub fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("there").permissions().mode() & 0o7777
}

/// Mounts something of the test's own, such as a tmpfs.
pub fn mount_tmpfs(at: &Path) {
    let data: Option<&std::ffi::CStr> = Some(c"size=16m");
    let nothing: &OsStr = OsStr::new("larder-keeper-test");
    rustix::mount::mount(nothing, at, "tmpfs", rustix::mount::MountFlags::empty(), data).expect("a tmpfs");
}
