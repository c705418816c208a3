//! Models where pods want them: bind mounts of directories of our file system.
//!
//! A bind inherits nosuid, nodev, noexec and read-only from the mount it is taken from.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use larder_keeper::protocol::Refusal;
use rustix::fs::{AtFlags, Mode, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use crate::mount::{Mount, STACK_LEN_MAX};
use crate::mountinfo::{self, Entry, TYPE};
use crate::place::{Place, is_plain, open_beneath, self_fd};

/// What the CSI specification's example drivers give a target.
const TARGET_MODE: u32 = 0o750;

/// Held from the look at a target to its change. Nothing is asked of our daemon meanwhile.
static TURN: Mutex<()> = Mutex::new(());

/// Mounts `source`, a directory of the file system, at `target`, which is missing or empty.
/// What an earlier keeper left there is detached first; what is there already stays.
pub fn bind(mount: &Mount, allowed: &[PathBuf], source: &Path, target: &Path) -> Result<(), Refusal> {
    if !is_plain(source) {
        return Err(Refusal::new(Errno::INVAL, format!("`{}` is no path relative to the mount", source.display())));
    }
    // Waits for the daemon, or for the next one.
    let source = open_beneath(&mount.root, source)
        .map_err(|errno| Refusal::kernel(errno, format_args!("open `{}` in the mount", source.display())))?;
    let place = Place::find(allowed, target)?;
    let refuse = |errno| Refusal::kernel(errno, format_args!("bind to `{}`", target.display()));
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    place.make_directory(Mode::from_raw_mode(TARGET_MODE)).map_err(refuse)?;
    for _ in 0..STACK_LEN_MAX {
        let directory = place.open().map_err(refuse)?;
        match mounted(&place, &directory)? {
            None => {
                // A daemon gone wrong must not hide what a pod or another driver has there.
                let mut names = fs::read_dir(self_fd(&directory))
                    .map_err(|error| Refusal::new(Errno::IO, format!("cannot list `{}`: {error}", target.display())))?;
                if names.next().is_some() {
                    return Err(refuse(Errno::NOTEMPTY));
                }
                return attach(&source, &directory).map_err(refuse);
            }
            Some(entry) if entry.kind != TYPE => return Err(refuse(Errno::BUSY)),
            Some(entry) if entry.device_number == mount.device_number && inode(&directory) == inode(&source) => {
                return Ok(());
            }
            Some(_) => detach(&directory).map_err(refuse)?,
        }
    }
    Err(refuse(Errno::BUSY))
}

/// Detaches every mount of ours at `target`, then removes the directory if it is empty. Says
/// whether there was one.
pub fn unbind(allowed: &[PathBuf], target: &Path) -> Result<bool, Refusal> {
    let place = match Place::find(allowed, target) {
        Err(refusal) if refusal.errno == Errno::NOENT.raw_os_error() => return Ok(false),
        place => place?,
    };
    let refuse = |errno| Refusal::kernel(errno, format_args!("unbind `{}`", target.display()));
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut was_bound = false;
    for _ in 0..STACK_LEN_MAX {
        let directory = match place.open() {
            Err(Errno::NOENT) => return Ok(was_bound),
            directory => directory.map_err(refuse)?,
        };
        if mounted(&place, &directory)?.is_none_or(|entry| entry.kind != TYPE) {
            break;
        }
        detach(&directory).map_err(refuse)?;
        was_bound = true;
    }
    place.remove_directory().map_err(refuse)?;
    Ok(was_bound)
}

/// What is mounted on a directory of a place, if anything.
fn mounted(place: &Place, directory: &OwnedFd) -> Result<Option<Entry>, Refusal> {
    let id = mountinfo::mount_id(directory)?;
    if id == mountinfo::mount_id(&place.parent)? { Ok(None) } else { mountinfo::entry(id).map(Some) }
}

fn attach(source: &OwnedFd, directory: &OwnedFd) -> rustix::io::Result<()> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(source, "", clone)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", directory, "", flags)
}

/// Detaches the very mount that was looked at, whatever its name leads to by now.
fn detach(directory: &OwnedFd) -> rustix::io::Result<()> {
    unmount(self_fd(directory), UnmountFlags::DETACH)
}

/// The inode number as the kernel knows it, without a word to the daemon.
fn inode(directory: &OwnedFd) -> Option<u64> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    statx(directory, "", flags, StatxFlags::INO).map(|found| found.stx_ino).ok()
}
