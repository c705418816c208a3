//! Listening sockets: the keeper's own, and those in directories of kubelet that only root may
//! write to.

use std::fs::{self, DirBuilder};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use larder_keeper::protocol::Refusal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, Mode, Uid, chownat, fchmod};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with};

use crate::place::Place;
use crate::say;

const BACKLOG: i32 = 128;
/// A daemon needs two. Beyond that the oldest is no longer kept.
const KEPT_MAX: usize = 16;

/// Says no if there is a keeper at `path` already, which would be left without a mount.
pub fn nobody_listens(path: &Path) -> Result<(), Refusal> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connected = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .and_then(|socket| connect(&socket, &SocketAddrUnix::new(path)?));
    match connected {
        Ok(()) | Err(Errno::AGAIN) => {
            Err(Refusal::new(Errno::ADDRINUSE, format!("another keeper listens at `{}`", path.display())))
        }
        // What else may be wrong with the path, making the socket will tell.
        Err(_) => Ok(()),
    }
}

/// The keeper's own socket, which is made again where somebody removes its name.
#[derive(Debug)]
pub struct Own {
    pub listener: OwnedFd,
    path: PathBuf,
    peer_uid: u32,
    inode: Option<(u64, u64)>,
    told: bool,
}

impl Own {
    /// Listens at `path`.
    pub fn listen(path: &Path, peer_uid: u32) -> Result<Self, Refusal> {
        let listener = of_keeper(path, peer_uid)?;
        Ok(Self { listener, path: path.to_owned(), peer_uid, inode: inode(path), told: false })
    }

    /// Makes the socket again if it has lost its name. Who is connected stays so.
    pub fn look(&mut self) {
        if self.inode.is_some() && inode(&self.path) == self.inode {
            return;
        }
        match nobody_listens(&self.path).and_then(|()| Self::listen(&self.path, self.peer_uid)) {
            Ok(again) => {
                say(&format!("`{}` had been removed: it is made again", self.path.display()));
                *self = again;
            }
            Err(refusal) if !self.told => {
                self.told = true;
                say(&format!("`{}` has been removed, so no daemon finds this keeper: {refusal}", self.path.display()));
            }
            Err(_) => {}
        }
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Such a socket, for the peer and root only.
fn of_keeper(path: &Path, peer_uid: u32) -> Result<OwnedFd, Refusal> {
    let parent = path.parent().unwrap_or(path);
    let old = DirBuilder::new().recursive(true).mode(0o755).create(parent).and_then(|()| fs::symlink_metadata(path));
    if old.is_ok_and(|old| old.file_type().is_socket()) {
        let _ = fs::remove_file(path);
    }
    // Nobody can connect before `listen`, so there is no moment with another owner either.
    let made = named(SocketType::SEQPACKET, path).and_then(|socket| {
        chownat(CWD, path, Some(Uid::from_raw(peer_uid)), None, AtFlags::SYMLINK_NOFOLLOW)?;
        ioctl_fionbio(&socket, true)?;
        listen_on(socket)
    });
    made.map_err(|errno| Refusal::kernel(errno, format_args!("listen at `{}`", path.display())))
}

/// A socket with a name, to which its owner alone may connect, and not before it listens.
fn named(kind: SocketType, path: &Path) -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    // The name gets the mode that the socket has at bind(2), so there is no moment with another.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn listen_on(socket: OwnedFd) -> rustix::io::Result<OwnedFd> {
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// The sockets that were made for a daemon. While one is replaced, whoever connects waits for the
/// next one.
#[derive(Debug, Default)]
pub struct Kept(Mutex<Vec<Socket>>);

#[derive(Debug)]
struct Socket {
    path: PathBuf,
    /// Of its name. No other file gets this number while the socket is open here.
    inode: (u64, u64),
    open: Arc<OwnedFd>,
}

impl Socket {
    /// Whether it can still be reached: it has its name, and no daemon has shut it down.
    fn is_good(&self, place: &Place) -> bool {
        let mut polled = [PollFd::new(&self.open, PollFlags::RDHUP)];
        place.inode() == Ok(self.inode) && poll(&mut polled, Some(&Timespec::default())) == Ok(0)
    }
}

impl Kept {
    /// The listening socket at `path`: the one that was made before, or another one in the place of
    /// a socket that was there. Root, who is kubelet, may connect.
    pub fn listen(&self, allowed: &[PathBuf], path: &Path) -> Result<Arc<OwnedFd>, Refusal> {
        // Asked again and again by a daemon that wants to know whether it can still be reached.
        let place = Place::find_or_make(allowed, path)?;
        let mut sockets = self.sockets();
        if let Some(found) = sockets.iter().find(|kept| kept.path == path && kept.is_good(&place)) {
            return Ok(Arc::clone(&found.open));
        }
        sockets.retain(|kept| kept.path != path);
        let made = place.remove_socket().and_then(|()| {
            let socket = named(SocketType::STREAM, &place.path())?;
            Ok(Socket { path: path.to_owned(), inode: place.inode()?, open: Arc::new(listen_on(socket)?) })
        });
        let made = made.map_err(|errno| Refusal::kernel(errno, format_args!("listen at `{}`", path.display())))?;
        if sockets.len() >= KEPT_MAX {
            sockets.remove(0);
        }
        say(&format!("listens at `{}` for the daemon", path.display()));
        let socket = Arc::clone(&made.open);
        sockets.push(made);
        Ok(socket)
    }

    /// Forgets such a socket and removes its name.
    pub fn unlisten(&self, allowed: &[PathBuf], path: &Path) -> Result<(), Refusal> {
        let mut sockets = self.sockets();
        sockets.retain(|kept| kept.path != path);
        let place = match Place::find(allowed, path) {
            Err(refusal) if refusal.errno == Errno::NOENT.raw_os_error() => return Ok(()),
            place => place?,
        };
        place.remove_socket().map_err(|errno| Refusal::kernel(errno, format_args!("remove `{}`", path.display())))
    }

    /// Removes the names of all of them: kubelet is to see that nobody answers any more.
    pub fn remove_all(&self, allowed: &[PathBuf]) {
        for socket in self.sockets().drain(..) {
            if let Ok(place) = Place::find(allowed, &socket.path)
                && place.inode() == Ok(socket.inode)
            {
                let _ = place.remove_socket();
            }
        }
    }

    fn sockets(&self) -> MutexGuard<'_, Vec<Socket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
