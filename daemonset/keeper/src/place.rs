//! Places in kubelet's directories that the peer names, and the only way to them.
//!
//! A place is below one of the directories that the keeper was started with. Nothing on the way
//! there may be `..`, a symbolic link, or another mount: pods write into some of these
//! directories, and a file system that is mounted there may never answer.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use larder_keeper::protocol::Refusal;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, statat, unlinkat};
use rustix::io::Errno;

/// For every directory on a walk: opens no file, asks no file system.
pub const WALK: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// A directory that exists, and a name in it that may.
#[derive(Debug)]
pub struct Place {
    /// The directory.
    pub parent: OwnedFd,
    name: PathBuf,
}

/// Opens a directory below another one: on the same mount, and not through links.
pub fn open_beneath(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    openat2(root, path, WALK, Mode::empty(), BENEATH | ResolveFlags::NO_XDEV)
}

/// Opens a directory that the administrator named, if no part of its path is a link: a part may be
/// in a directory of the daemon's.
pub fn open_without_links(path: &Path) -> rustix::io::Result<OwnedFd> {
    openat2(CWD, path, WALK, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

/// Whether there is a directory of that name.
pub fn there(allowed: &[PathBuf], path: &Path) -> Result<bool, Refusal> {
    let (root, relative) = split(allowed, path)?;
    match open_beneath(&root, relative) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(errno) => Err(unreachable(path, errno)),
    }
}

/// Whether a path consists of names only, one at least.
pub fn is_plain(path: &Path) -> bool {
    path.file_name().is_some() && path.components().all(|part| matches!(part, Component::Normal(_)))
}

impl Place {
    /// Finds the place that a path names.
    pub fn find(allowed: &[PathBuf], path: &Path) -> Result<Self, Refusal> {
        let (root, relative) = split(allowed, path)?;
        Self::below(&root, relative).map_err(|errno| unreachable(path, errno))
    }

    /// The same, and makes the directory if it is the only one missing.
    pub fn find_or_make(allowed: &[PathBuf], path: &Path) -> Result<Self, Refusal> {
        let (root, relative) = split(allowed, path)?;
        let place = match (Self::below(&root, relative), relative.parent().filter(|parent| is_plain(parent))) {
            (Err(Errno::NOENT), Some(parent)) => Self::below(&root, parent)
                .and_then(|place| place.make_directory(Mode::from_raw_mode(0o755)))
                .and_then(|()| Self::below(&root, relative)),
            (place, _) => place,
        };
        place.map_err(|errno| unreachable(path, errno))
    }

    fn below(root: &OwnedFd, relative: &Path) -> rustix::io::Result<Self> {
        let parent = relative.parent().filter(|parent| is_plain(parent)).unwrap_or(Path::new("."));
        let parent = open_beneath(root, parent)?;
        Ok(Self { parent, name: relative.file_name().unwrap_or_default().into() })
    }

    /// Opens the directory of that name, or what is mounted on it.
    pub fn open(&self) -> rustix::io::Result<OwnedFd> {
        openat2(&self.parent, &self.name, WALK, Mode::empty(), BENEATH)
    }

    /// Makes a directory of that name, unless there is one.
    pub fn make_directory(&self, mode: Mode) -> rustix::io::Result<()> {
        match mkdirat(&self.parent, &self.name, mode) {
            Err(Errno::EXIST) => Ok(()),
            result => result,
        }
    }

    /// Removes the directory of that name if it is empty and nothing is mounted on it.
    pub fn remove_directory(&self) -> rustix::io::Result<()> {
        match unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT | Errno::NOTEMPTY | Errno::BUSY) => Ok(()),
            result => result,
        }
    }

    /// Removes the socket of that name, and nothing but a socket.
    pub fn remove_socket(&self) -> rustix::io::Result<()> {
        match statat(&self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Socket => {
                unlinkat(&self.parent, &self.name, AtFlags::empty())
            }
            Ok(_) => Err(Errno::NOTSOCK),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// The number of whatever has that name, and of its file system.
    pub fn inode(&self) -> rustix::io::Result<(u64, u64)> {
        let found = statat(&self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((found.st_dev, found.st_ino))
    }

    /// A path for calls that take nothing else; leads through the open directory.
    pub fn path(&self) -> PathBuf {
        self_fd(&self.parent).join(&self.name)
    }
}

/// A path to what a descriptor of this thread is open on.
pub fn self_fd(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/thread-self/fd/{}", fd.as_raw_fd()))
}

fn split<'p>(allowed: &[PathBuf], path: &'p Path) -> Result<(OwnedFd, &'p Path), Refusal> {
    let below = allowed.iter().find_map(|root| Some((root, path.strip_prefix(root).ok()?)));
    let Some((root, relative)) = below.filter(|(_, relative)| is_plain(relative)) else {
        return Err(Refusal::new(
            Errno::PERM,
            format!("`{}` is in no directory that the keeper was given", path.display()),
        ));
    };
    // The directory itself is the administrator's word, and may be a link.
    let root = openat(CWD, root, WALK, Mode::empty()).map_err(|errno| unreachable(path, errno))?;
    Ok((root, relative))
}

fn unreachable(path: &Path, errno: Errno) -> Refusal {
    Refusal::kernel(errno, format_args!("reach `{}`", path.display()))
}
