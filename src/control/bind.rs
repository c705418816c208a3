//! A unix socket that is there with its mode from the first moment, and is nobody else's.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::report::{Exit, Failure};

/// Listens at `path`, where a socket that nobody listens at any more is replaced. Makes the
/// directory, with mode `directory_mode`, where it is missing.
///
/// # Errors
/// [`Exit::Busy`] when somebody listens there; [`Exit::Usage`] when something else is there, or the
/// directory cannot be written.
pub fn bind(path: &Path, mode: u32, directory_mode: u32) -> Result<UnixListener, Failure> {
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
        Ok(_) if UnixStream::connect(path).is_ok() => {
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
    UnixListener::from_std(listener).map_err(|error| failed("listen at", &error))
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
        let file = directory.path().join("file");
        std::fs::File::create(&file).expect("a file");
        assert_eq!(bind(&file, 0o600, 0o755).expect_err("no socket").exit, Exit::Usage);
    }
}
