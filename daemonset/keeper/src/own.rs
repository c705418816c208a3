//! Directories that are the daemon's. What Kubernetes makes on a node for it is root's, and the
//! daemon may do nothing about that.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use larder_keeper::protocol::Refusal;
use rustix::fs::{AtFlags, Gid, Uid, chownat};
use rustix::io::Errno;

use crate::place::open_without_links;
use crate::say;

/// Makes the directories that are missing, and gives each of them, but nothing in it, to a user and
/// the group of the same number.
pub fn give(directories: &[PathBuf], uid: u32) -> Result<(), Refusal> {
    for directory in directories {
        give_one(directory, uid)?;
        say(&format!("`{}` is user {uid}'s", directory.display()));
    }
    Ok(())
}

fn give_one(directory: &Path, uid: u32) -> Result<(), Refusal> {
    let refuse = |errno| Refusal::kernel(errno, format_args!("give `{}` away", directory.display()));
    // A directory of the daemon's may be on the way, with whatever the daemon put into it.
    let opened = match open_without_links(directory) {
        Err(Errno::NOENT) => {
            let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
            made.map_err(|error| Refusal::new(Errno::IO, format!("cannot make `{}`: {error}", directory.display())))?;
            open_without_links(directory)
        }
        opened => opened,
    };
    let opened = opened.map_err(refuse)?;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    chownat(&opened, "", Some(user), Some(group), AtFlags::EMPTY_PATH).map_err(refuse)
}
