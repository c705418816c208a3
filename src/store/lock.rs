//! One owner at a time.
//!
//! An open file description lock (flock(2)): the kernel drops it when its owner dies, so there
//! is no such thing as a stale lock.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::error::AtPath as _;
use super::{Error, Layout, fsx};

/// What begins the line that says where the owner can be asked.
const SOCKET_WORD: &str = "socket ";
/// Two lines, one of them a path.
const OWNER_LEN_MAX: u64 = 8 << 10;

/// Holds the store while it lives.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
    socket: Option<PathBuf>,
}

impl Lock {
    /// Takes the store or says who has it. Does not wait.
    pub(super) fn take(layout: &Layout, socket: Option<&Path>) -> Result<Self, Error> {
        let path = layout.lock();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o644);
        let mut file = fsx::open_with(&mut options, &path).at("open the lock", &path)?;
        hold(&mut file, layout)?;
        let lock = Self { _file: file, socket: socket.map(Path::to_owned) };
        // Best effort: on a full disk `larder rm` must still get in.
        let _ = lock.name(layout);
        Ok(lock)
    }

    /// The same where nothing can be written, the owner's name neither.
    pub(super) fn take_unwritten(layout: &Layout, socket: Option<&Path>) -> Result<Self, Error> {
        let path = layout.lock();
        let mut file = fsx::open(&path).at("open the lock", &path)?;
        hold(&mut file, layout)?;
        Ok(Self { _file: file, socket: socket.map(Path::to_owned) })
    }

    /// Writes down who has it.
    pub(super) fn name(&self, layout: &Layout) -> Result<(), Error> {
        let mut owner = format!("pid {} (`{}`)\n", std::process::id(), command(std::env::args()));
        owner.extend(self.socket.iter().map(|socket| format!("{SOCKET_WORD}{}\n", socket.display())));
        let path = layout.lock();
        let written = fsx::open_with(OpenOptions::new().write(true).truncate(true), &path);
        written.and_then(|mut file| file.write_all(owner.as_bytes())).at("write", &path)
    }
}

fn hold(file: &mut File, layout: &Layout) -> Result<(), Error> {
    match flock(&*file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let (owner, socket) = read(file);
            Err(Error::Busy { path: layout.base().to_owned(), owner, socket })
        }
        Err(errno) => Err(errno).at("lock", layout.lock()),
    }
}

/// The program and its verb. The rest of a command line may hold a signed URL, which others must not see.
fn command(args: impl Iterator<Item = String>) -> String {
    let mut args = args;
    let program = args.next().unwrap_or_default();
    let name = program.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("larder");
    let mut verb = String::new();
    while let Some(arg) = args.next() {
        if arg == "--store" {
            args.next();
        } else if !arg.starts_with('-') {
            verb = arg;
            break;
        }
    }
    format!("{name} {verb}").trim().to_owned()
}

/// Owner and socket, as far as they can be read: the text only names them, the lock itself is the
/// kernel's.
fn read(file: &mut File) -> (String, Option<PathBuf>) {
    let mut text = String::new();
    let _ = file.take(OWNER_LEN_MAX).read_to_string(&mut text);
    let mut lines = text.lines().map(str::trim);
    let owner = lines.next().filter(|line| !line.is_empty()).unwrap_or("another process").to_owned();
    (owner, lines.find_map(|line| line.strip_prefix(SOCKET_WORD)).map(PathBuf::from))
}

/// The socket of whoever took the store last.
pub(super) fn last_socket(layout: &Layout) -> Option<PathBuf> {
    read(&mut fsx::open(&layout.lock()).ok()?).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_named_by_its_verb_alone() {
        let named = |line: &str| command(line.split(' ').map(str::to_owned));
        assert_eq!(named("/usr/bin/larder prefetch https://h/f?token=S3CR3T"), "larder prefetch");
        assert_eq!(named("larder -q --store /data --json verify s3://b/m"), "larder verify");
        assert_eq!((named("larder --store=/d rm x"), named("")), ("larder rm".to_owned(), "larder".to_owned()));
    }
}
