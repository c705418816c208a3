//! One owner at a time.
//!
//! An open file description lock (flock(2)): the kernel drops it when its owner dies, so there
//! is no such thing as a stale lock.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use rustix::fs::{FlockOperation, flock};

use super::error::AtPath as _;
use super::{Error, Layout};

/// Holds the store while it lives.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the store or says who has it. Does not wait.
    pub(super) fn take(layout: &Layout) -> Result<Self, Error> {
        let path = layout.lock();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&path)
            .at("open the lock", &path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut owner = String::new();
                // Best effort: the text only names the owner, the lock itself is the kernel's.
                let _ = std::io::Read::by_ref(&mut file).take(200).read_to_string(&mut owner);
                let owner =
                    if owner.trim().is_empty() { "another process".to_owned() } else { owner.trim().to_owned() };
                return Err(Error::Busy { path: layout.base().to_owned(), owner });
            }
            Err(errno) => return Err(errno).at("lock", &path),
        }
        let command: Vec<String> = std::env::args().take(2).collect();
        let name = command.first().map_or("larder", |path| path.rsplit('/').next().unwrap_or(path));
        let verb = command.get(1).map_or("", String::as_str);
        let owner = format!("pid {} (`{}`)\n", std::process::id(), format!("{name} {verb}").trim());
        // Best effort: on a full disk `larder rm` must still get in.
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(owner.as_bytes()));
        Ok(Self { _file: file })
    }
}
