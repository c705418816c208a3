//! `larder mount`: models as a file system, with nothing to set up. It is a daemon of its own, for
//! one user, until Ctrl-C; the other commands find it by the store's lock.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::Mount;
use super::console::Console;
use crate::config::{Config, Loaded, MountAt};
use crate::daemon;
use crate::report::{Exit, Failure};

/// Mounts until Ctrl-C or SIGTERM.
pub fn run(console: Console, store: &Path, args: &Mount, verbose: u8) -> Result<Exit, Failure> {
    let absolute = |path: &Path| {
        std::path::absolute(path)
            .map_err(|error| Failure::new(Exit::Usage, format!("`{}` is no path: {error}", path.display())))
    };
    let (store, directory) = (absolute(store)?, absolute(&args.directory)?);
    let sockets = sockets(&store);
    let config = Config {
        socket: sockets.join("use").join("sock"),
        admin_socket: sockets.join("admin").join("sock"),
        listen: None,
        // Only this user reaches the socket that takes requests, and may read its own files.
        sources: ["s3://", "gs://", "https://", "http://", "file://"].map(str::to_owned).to_vec(),
        // Nothing of a person's own is taken away before the disk is as good as full.
        high_watermark: 99,
        low_watermark: 98,
        anonymous: args.origin.anonymous,
        requester_pays: args.origin.requester_pays,
        region: args.origin.region.clone(),
        endpoint_url: args.origin.endpoint_url.clone(),
        scrub_rate: 0,
        stop_within: Duration::from_secs(5),
        mount: Some(MountAt::Directory(directory.clone())),
        log: ["warn", "info", "larder=debug,info", "trace"][usize::from(verbose.min(3))].to_owned(),
        store,
        ..Config::default()
    };
    let serving = || console.note(&format!("models appear in `{}` until Ctrl-C", directory.display()));
    let ran = daemon::run(&Loaded::of(config), serving);
    for directory in [sockets.join("use"), sockets.join("admin"), sockets] {
        let _ = std::fs::remove_dir(directory);
    }
    ran
}

/// A directory for the sockets of this store, short enough for the kernel.
fn sockets(store: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir());
    let name = blake3::hash(store.as_os_str().as_bytes()).to_hex()[..16].to_owned();
    base.unwrap_or_else(std::env::temp_dir).join(format!("larder-{}-{name}", rustix::process::getuid().as_raw()))
}
