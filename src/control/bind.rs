//! A unix socket that is there with its mode from the first moment, and is nobody else's. One whose
//! name somebody has removed is made again.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use tokio::net::{UnixListener, UnixStream};

use crate::net::Accept;
use crate::report::{Exit, Failure};

/// How often it is looked whether a socket still has its name.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);

/// A listening socket and its place.
#[derive(Debug)]
pub struct Bound {
    listener: UnixListener,
    path: PathBuf,
    mode: u32,
    directory_mode: u32,
    /// Of its name.
    inode: Option<(u64, u64)>,
    told: bool,
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Bound {
    /// Makes the socket again where it lost its name. Who is connected stays so.
    fn look(&mut self) {
        if inode(&self.path).is_some_and(|found| Some(found) == self.inode) {
            return;
        }
        match bind(&self.path, self.mode, self.directory_mode) {
            Ok(again) => {
                tracing::warn!(socket = %self.path.display(), "the socket had been removed: it is made again");
                *self = again;
            }
            Err(failure) if !self.told => {
                self.told = true;
                tracing::error!(socket = %self.path.display(), why = failure.message, "nobody can connect any more: the socket has been removed, and cannot be made again");
            }
            Err(_) => {}
        }
    }
}

impl Accept for Bound {
    type Stream = UnixStream;

    async fn next(&mut self) -> io::Result<UnixStream> {
        loop {
            match tokio::time::timeout(LOOK_INTERVAL, self.listener.accept()).await {
                Ok(accepted) => return accepted.map(|(stream, _)| stream),
                Err(_) => self.look(),
            }
        }
    }
}

/// Whether somebody listens there, without waiting for them: a full queue is somebody, too.
fn is_live(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connected = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .and_then(|socket| connect(&socket, &SocketAddrUnix::new(path)?));
    matches!(connected, Ok(()) | Err(Errno::AGAIN))
}

/// Listens at `path`, where a socket that nobody listens at any more is replaced. Makes the
/// directory, with mode `directory_mode`, where it is missing.
///
/// # Errors
/// [`Exit::Busy`] when somebody listens there; [`Exit::Usage`] when something else is there, or the
/// directory cannot be written.
pub fn bind(path: &Path, mode: u32, directory_mode: u32) -> Result<Bound, Failure> {
    let failed = |what: &str, error: &io::Error| {
        Failure::hinted(
            Exit::Usage,
            format!("cannot {what} `{}`: {error}", path.display()),
            "name another path in the settings `socket` and `admin_socket`, or make its directory writable",
        )
    };
    if let Some(directory) = path.parent().filter(|directory| !directory.is_dir()) {
        std::fs::create_dir_all(directory).map_err(|error| failed("make the directory of", &error))?;
        std::fs::set_permissions(directory, Permissions::from_mode(directory_mode))
            .map_err(|error| failed("set the mode of the directory of", &error))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(Failure::new(Exit::Usage, format!("`{}` is there and is no socket", path.display())));
        }
        Ok(_) if is_live(path) => {
            return Err(Failure::hinted(
                Exit::Busy,
                format!("another process listens at `{}`", path.display()),
                "one daemon a socket: stop the other one, or name another socket",
            ));
        }
        _ => {}
    }
    // Made under another name first: whoever connects by this one finds the right mode.
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let _ = std::fs::remove_file(&new);
    let listener = std::os::unix::net::UnixListener::bind(&new).map_err(|error| failed("listen at", &error))?;
    std::fs::set_permissions(&new, Permissions::from_mode(mode)).map_err(|error| failed("set the mode of", &error))?;
    listener.set_nonblocking(true).map_err(|error| failed("listen at", &error))?;
    std::fs::rename(&new, path).map_err(|error| failed("listen at", &error))?;
    let listener = UnixListener::from_std(listener).map_err(|error| failed("listen at", &error))?;
    Ok(Bound { listener, path: path.to_owned(), mode, directory_mode, inode: inode(path), told: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "what the attribute makes of it")]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("run/sock");
        let first = bind(&path, 0o666, 0o755).expect("binds");
        assert_eq!(path.metadata().expect("there").permissions().mode() & 0o777, 0o666);
        let refused = bind(&path, 0o666, 0o755).expect_err("somebody listens");
        assert_eq!(refused.exit, Exit::Busy);
        drop(first);
        bind(&path, 0o600, 0o755).expect("replaced");
        assert_eq!(path.metadata().expect("there").permissions().mode() & 0o777, 0o600);
        // Nobody takes a connection of it, so its queue fills up: that is no dead socket.
        let full = directory.path().join("full");
        let listener = std::os::unix::net::UnixListener::bind(&full).expect("binds");
        rustix::net::listen(&listener, 0).expect("listens");
        assert!((0..3).all(|_| is_live(&full)));
        assert_eq!(bind(&full, 0o600, 0o755).expect_err("somebody listens").exit, Exit::Busy);
        let file = directory.path().join("file");
        std::fs::File::create(&file).expect("a file");
        assert_eq!(bind(&file, 0o600, 0o755).expect_err("no socket").exit, Exit::Usage);
    }
}
