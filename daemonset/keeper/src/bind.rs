//! Models where pods want them: bind mounts of directories of our file system, and of directories
//! of the daemon's store.
//!
//! A bind inherits nosuid, nodev, noexec and read-only from our file system; what is of the store is
//! given them.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use larder_keeper::protocol::Refusal;
use rustix::fs::{AtFlags, Mode, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use crate::args::Settings;
use crate::models::{self, Models};
use crate::mount::{Mount, STACK_LEN_MAX};
use crate::mountinfo::{self, Entry, TYPE};
use crate::place::{Place, is_plain, open_beneath, self_fd};
use crate::sys;

/// What the CSI specification's example drivers give a target.
const TARGET_MODE: u32 = 0o750;

/// Held from the look at a target to its change. Nothing is asked of our daemon meanwhile.
static TURN: Mutex<()> = Mutex::new(());

/// Says whether whoever asked still waits for the answer. Who does not may ask for the opposite next, or
/// have another daemon do so: nothing of theirs is done after that.
pub type Waits<'a> = &'a dyn Fn() -> bool;

/// Mounts `source`, a directory of the file system, at `target`.
pub fn bind(mount: &Mount, settings: &Settings, source: &Path, target: &Path, waits: Waits<'_>) -> Result<(), Refusal> {
    if !is_plain(source) {
        return Err(Refusal::new(Errno::INVAL, format!("`{}` is no path relative to the mount", source.display())));
    }
    let refuse = |errno| Refusal::kernel(errno, format_args!("open `{}` in the mount", source.display()));
    // Waits for the daemon, or for the next one.
    let source = open_beneath(&mount.root, source).map_err(refuse)?;
    let tree = clone(&source).map_err(refuse)?;
    let is_it = |entry: &Entry, at: &OwnedFd| entry.device_number == mount.device_number && inode(at) == inode(&source);
    put(settings, &tree, target, waits, is_it)
}

/// Mounts a complete model, a directory of real files, at `target`. Waits for no daemon.
pub fn publish(settings: &Settings, name: &Path, target: &Path, waits: Waits<'_>) -> Result<(), Refusal> {
    if name.file_name() != Some(name.as_os_str()) {
        return Err(Refusal::new(Errno::INVAL, format!("`{}` is no name of a model", name.display())));
    }
    let refuse = |errno| Refusal::kernel(errno, format_args!("open the model `{}`", name.display()));
    let tree = models::open(&settings.models, name).and_then(|source| clone(&source)).map_err(refuse)?;
    // Before it is anywhere, so that there is no moment in which it can be written to.
    sys::restrict(&tree).map_err(|error| match Errno::from_io_error(&error).unwrap_or(Errno::IO) {
        Errno::NOSYS => Refusal::new(Errno::NOSYS, "the kernel has no mount_setattr(2): Linux 5.12 is needed"),
        errno => Refusal::kernel(errno, format_args!("make a mount of `{}` read-only", name.display())),
    })?;
    let models = Models::find(&settings.models)?;
    put(settings, &tree, target, waits, |entry, _| models.is(name, entry))
}

/// Attaches a tree at `target`, which is missing or empty. What a keeper left there is detached
/// first, unless it is the same.
fn put(
    settings: &Settings,
    tree: &OwnedFd,
    target: &Path,
    waits: Waits<'_>,
    is_it: impl Fn(&Entry, &OwnedFd) -> bool,
) -> Result<(), Refusal> {
    let place = Place::find(&settings.bind_below, target)?;
    let refuse = |errno| Refusal::kernel(errno, format_args!("bind to `{}`", target.display()));
    let _turn = turn(waits)?;
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
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
                return move_mount(tree, "", &directory, "", flags).map_err(refuse);
            }
            Some(entry) if is_it(&entry, &directory) => return Ok(()),
            Some(entry) if is_ours(settings, &entry)? => detach(&directory).map_err(refuse)?,
            Some(_) => return Err(refuse(Errno::BUSY)),
        }
    }
    Err(refuse(Errno::BUSY))
}

/// Detaches every mount of ours at `target`, then removes the directory if it is empty. Says
/// whether there was one.
pub fn unbind(settings: &Settings, target: &Path, waits: Waits<'_>) -> Result<bool, Refusal> {
    let place = match Place::find(&settings.bind_below, target) {
        Err(refusal) if refusal.errno == Errno::NOENT.raw_os_error() => return Ok(false),
        place => place?,
    };
    let refuse = |errno| Refusal::kernel(errno, format_args!("unbind `{}`", target.display()));
    let _turn = turn(waits)?;
    let mut was_bound = false;
    for _ in 0..STACK_LEN_MAX {
        let directory = match place.open() {
            Err(Errno::NOENT) => return Ok(was_bound),
            directory => directory.map_err(refuse)?,
        };
        match mounted(&place, &directory)? {
            Some(entry) if is_ours(settings, &entry)? => detach(&directory).map_err(refuse)?,
            _ => break,
        }
        was_bound = true;
    }
    place.remove_directory().map_err(refuse)?;
    Ok(was_bound)
}

/// The turn of somebody who still waits. Asked in the turn: who leaves later asks later for something
/// else, and that has its turn after this.
fn turn(waits: Waits<'_>) -> Result<MutexGuard<'static, ()>, Refusal> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if waits() { Ok(turn) } else { Err(Refusal::new(Errno::CANCELED, "whoever asked has gone: nothing is changed")) }
}

/// What is mounted on a directory of a place, if anything.
fn mounted(place: &Place, directory: &OwnedFd) -> Result<Option<Entry>, Refusal> {
    let id = mountinfo::mount_id(directory)?;
    if id == mountinfo::mount_id(&place.parent)? { Ok(None) } else { mountinfo::entry(id).map(Some) }
}

/// Whether a mount is of a keeper's making: this one's, or one's before it.
fn is_ours(settings: &Settings, entry: &Entry) -> Result<bool, Refusal> {
    Ok(entry.kind == TYPE || Models::find(&settings.models)?.has(entry))
}

/// A mount of a directory, and of nothing that is mounted below it, that is nowhere yet.
fn clone(source: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(source, "", flags)
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
