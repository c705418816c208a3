//! A keeper of the bench's own, beside a daemon's directory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Runs until the value is dropped, and detaches its mount then.
pub struct Keeper {
    child: Child,
    socket: PathBuf,
}

impl Keeper {
    /// For a daemon with its store in `store` and kubelet's directory in `kubelet` below one
    /// directory. `None`, with the reason printed, where that cannot be.
    pub fn start(directory: &Path) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            println!("SKIPPED: needs root and /dev/fuse");
            return None;
        }
        let built = Command::new(env!("CARGO")).args(["build", "--release", "-q", "-p", "larder-keeper"]).status();
        assert!(built.is_ok_and(|status| status.success()), "larder-keeper does not build");
        let binary = Path::new(env!("CARGO_BIN_EXE_larder")).with_file_name("larder-keeper");
        let (at, socket) = (|name: &str| directory.join(name), directory.join("keeper/keeper.sock"));
        for name in ["kubelet/plugins", "kubelet/plugins_registry"] {
            std::fs::create_dir_all(at(name)).expect("a directory");
        }
        let mut command = Command::new(binary);
        command.arg("--mount").arg(at("mount")).arg("--socket").arg(&socket);
        command.arg("--models").arg(at("store/v1/models"));
        command.arg("--bind-below").arg(at("kubelet/pods")).arg("--listen-below").arg(at("kubelet"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let keeper = Self { child: child.expect("larder-keeper starts"), socket };
        let began = Instant::now();
        while !keeper.socket.exists() {
            assert!(began.elapsed() < Duration::from_secs(10), "the keeper does not listen");
            std::thread::sleep(Duration::from_millis(2));
        }
        Some(keeper)
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
