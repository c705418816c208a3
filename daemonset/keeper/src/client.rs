//! What a daemon asks of the keeper.
//!
//! Calls may come from any thread. Those about backing files take turns on the daemon's one
//! connection, a [`Keeper`]; [`Errands`] make a connection each, since a `bind` walks into the mount
//! and so waits for the threads of the daemon that answer FUSE, which may want a `back` first.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, shutdown, socket_with};

use crate::fuse::Agreed;
use crate::protocol::{self, Packet, Refusal, join, number, path};

/// None of it waits for anything but the keeper and the kernel.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A walk waits for whoever serves the file systems on its way, this daemon among them.
const WALK_TIMEOUT: Duration = Duration::from_mins(2);
/// More mounts than that no kernel has (`fs.mount-max`).
const MOUNTS_MAX: usize = 100_000;
/// Between two attempts at a keeper that is not there yet.
const CONNECT_INTERVAL: Duration = Duration::from_millis(50);

/// What is mounted for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where.
    pub target: PathBuf,
    /// What.
    pub what: What,
}

/// What a mount is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A complete model, or something in it, by the name of its directory in the store; empty where
    /// that has been removed.
    Model(OsString),
    /// A directory of the file system, of this keeper's mount or of one before, relative to its root.
    Directory(PathBuf),
}

/// What the keeper says first.
#[derive(Debug)]
pub struct Hello {
    /// The protocol, [`protocol::VERSION`].
    pub version: u32,
    /// The keeper's package.
    pub keeper_version: String,
    /// Where the file system is mounted, as the keeper sees it.
    pub mount: PathBuf,
    /// The kernel's end of that mount.
    pub fuse: FuseConnection,
}

/// Where the kernel asks about one mount, however many places it is at.
#[derive(Debug)]
pub struct FuseConnection {
    /// Another one for every mount: what a daemon remembers of backing ids and open files is
    /// worth something only under the same one.
    pub epoch: u64,
    /// What the keeper and the kernel agreed upon.
    pub agreed: Agreed,
    /// `/dev/fuse`, connected to the mount.
    pub device: OwnedFd,
}

/// The daemon's connection to the keeper.
#[derive(Debug)]
pub struct Keeper {
    socket: OwnedFd,
    turn: Mutex<()>,
}

impl Keeper {
    /// Becomes the keeper's one daemon; whoever was it before is cut off. Waits up to `timeout`
    /// for a keeper that is not there yet.
    ///
    /// # Errors
    /// The last attempt's error when the time is up; a [`Refusal`] when the keeper speaks another
    /// protocol.
    pub fn connect(at: impl AsRef<Path>, timeout: Duration) -> io::Result<(Self, Hello)> {
        let at = at.as_ref();
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match Self::connect_now(at, left.clamp(CONNECT_INTERVAL, ANSWER_TIMEOUT)) {
                Err(error) if refusal(&error).is_none() && left > CONNECT_INTERVAL => {
                    std::thread::sleep(CONNECT_INTERVAL);
                }
                result => return result,
            }
        }
    }

    fn connect_now(at: &Path, timeout: Duration) -> io::Result<(Self, Hello)> {
        let socket = open(at, timeout)?;
        let mut packet = call(&socket, &[b"hello", protocol::VERSION.to_string().as_bytes()], None, timeout)?;
        let hello = hello(&mut packet).ok_or_else(not_an_answer)?;
        Ok((Self { socket, turn: Mutex::new(()) }, hello))
    }

    /// The backing id of a key on the connection `epoch`: of `file`, a regular file opened for
    /// reading only, or of the one that the key was given for earlier.
    ///
    /// # Errors
    /// A [`Refusal`] with the kernel's `errno` (`EOPNOTSUPP` without passthrough, `ELOOP` for a
    /// file on an overlay), `ENOSPC` for too many keys or `ENOTCONN` for an unknown epoch; or the
    /// keeper is lost.
    pub fn back(&self, epoch: u64, key: u64, file: impl AsFd) -> io::Result<u32> {
        let [epoch, key] = [epoch, key].map(|number| number.to_string());
        let packet = self.ask(&[b"back", epoch.as_bytes(), key.as_bytes()], Some(file.as_fd()))?;
        single(&packet).and_then(number).ok_or_else(not_an_answer)
    }

    /// Forgets a key, so that its file's space can be freed. Whoever has it open keeps it. Says
    /// whether the key was known.
    ///
    /// # Errors
    /// As for [`Keeper::back`].
    pub fn unback(&self, epoch: u64, key: u64) -> io::Result<bool> {
        let [epoch, key] = [epoch, key].map(|number| number.to_string());
        flag(&self.ask(&[b"unback", epoch.as_bytes(), key.as_bytes()], None)?)
    }

    /// Keys in ascending order, those above `after`, with their ids, at most
    /// [`protocol::KEYS_PER_ANSWER`]; none at the end.
    ///
    /// # Errors
    /// A [`Refusal`] for an unknown epoch, or the keeper is lost.
    pub fn keys(&self, epoch: u64, after: Option<u64>) -> io::Result<Vec<(u64, u32)>> {
        let (epoch, after) = (epoch.to_string(), after.map(|after| after.to_string()).unwrap_or_default());
        let packet = self.ask(&[b"keys", epoch.as_bytes(), after.as_bytes()], None)?;
        let fields: Vec<&[u8]> = fields(&packet).collect();
        let (pairs, []) = fields.as_chunks::<2>() else { return Err(not_an_answer()) };
        pairs.iter().map(|[key, id]| number(key).zip(number(id)).ok_or_else(not_an_answer)).collect()
    }

    /// Has the keeper keep the connection of a mount that a keeper before made, so that it too
    /// outlives this daemon. Says whether that is news.
    ///
    /// # Errors
    /// A [`Refusal`]: it is no such connection (`EINVAL`), nobody has that mount any more
    /// (`ENOTCONN`), or there are too many (`ENOSPC`).
    pub fn adopt(&self, fuse: &FuseConnection) -> io::Result<bool> {
        let (epoch, terms) = (fuse.epoch.to_string(), fuse.agreed.fields());
        let mut request: Vec<&[u8]> = vec![b"adopt", epoch.as_bytes()];
        request.extend(terms.iter().map(String::as_bytes));
        flag(&self.ask(&request, Some(fuse.device.as_fd()))?)
    }

    /// The adopted connection with the lowest epoch above `after`.
    ///
    /// # Errors
    /// The keeper is lost.
    pub fn adopted(&self, after: Option<u64>) -> io::Result<Option<FuseConnection>> {
        let after = after.map(|after| after.to_string()).unwrap_or_default();
        let mut packet = self.ask(&[b"adopted", after.as_bytes()], None)?;
        let device = packet.descriptors.pop();
        let fields: Vec<&[u8]> = fields(&packet).collect();
        match device {
            None if fields.is_empty() => Ok(None),
            None => Err(not_an_answer()),
            Some(device) => fuse(&fields, device).map(Some).ok_or_else(not_an_answer),
        }
    }

    /// Tells the keeper which id a key has on an adopted connection: the kernel takes no other one
    /// for a file that is open.
    ///
    /// # Errors
    /// As for [`Keeper::back`].
    pub fn remember(&self, epoch: u64, key: u64, id: u32) -> io::Result<()> {
        let [epoch, key] = [epoch, key].map(|number| number.to_string());
        self.ask(&[b"remember", epoch.as_bytes(), key.as_bytes(), id.to_string().as_bytes()], None).map(drop)
    }

    /// Whether the keeper is gone or has another daemon now. Either way this one must stop
    /// answering FUSE: two that read from one connection take each other's requests.
    ///
    /// To be told, wait for `POLLHUP` on the descriptor that [`AsFd`] lends.
    #[must_use]
    pub fn closed(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        !matches!(poll(&mut polled, Some(&Timespec::default())), Ok(0))
    }

    fn ask(&self, request: &[&[u8]], descriptor: Option<BorrowedFd<'_>>) -> io::Result<Packet> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let result = call(&self.socket, request, descriptor, ANSWER_TIMEOUT);
        if let Err(error) = &result
            && refusal(error).is_none()
        {
            // The answer may still come; the next request must not take it for its own.
            let _ = shutdown(&self.socket, Shutdown::Both);
        }
        result
    }
}

impl AsFd for Keeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What anybody who is the peer may ask, the daemon or not. Each call makes a connection, waits for
/// its answer, and so may be made from any thread; clones share nothing but the path.
#[derive(Debug, Clone)]
pub struct Errands {
    at: Arc<Path>,
    patience: Duration,
}

impl Errands {
    /// Errands to the keeper that listens at `at`, now or later.
    #[must_use]
    pub fn new(at: impl AsRef<Path>) -> Self {
        Self { at: at.as_ref().into(), patience: WALK_TIMEOUT }
    }

    /// The same keeper, and less patience: each errand ends within so long, from its connection to its
    /// answer.
    #[must_use]
    pub fn within(&self, patience: Duration) -> Self {
        Self { at: Arc::clone(&self.at), patience: patience.min(WALK_TIMEOUT) }
    }

    /// Mounts the directory `source` of the file system, a path relative to its root, at `target`,
    /// read only. Waits for the daemon's own answers to FUSE. Doing it twice is doing it once.
    ///
    /// # Errors
    /// A [`Refusal`]: `target` is not where binds may be, is in use, or `source` is not there.
    pub fn bind(&self, source: impl AsRef<Path>, target: impl AsRef<Path>) -> io::Result<()> {
        self.errand(&[b"bind", bytes(source.as_ref()), bytes(target.as_ref())]).map(drop)
    }

    /// Mounts the complete model of that name, a directory of the daemon's store, at `target`, read
    /// only. Waits for no daemon. Doing it twice is doing it once.
    ///
    /// # Errors
    /// A [`Refusal`]: `target` is not where binds may be, is in use, the model is not there, or the
    /// kernel is older than Linux 5.12 (`ENOSYS`).
    pub fn publish(&self, name: impl AsRef<Path>, target: impl AsRef<Path>) -> io::Result<()> {
        self.errand(&[b"publish", bytes(name.as_ref()), bytes(target.as_ref())]).map(drop)
    }

    /// Takes back what [`bind`](Self::bind) or [`publish`](Self::publish) of this keeper or of one
    /// before it did, and removes the directory if it is empty. Says whether something was mounted
    /// there.
    ///
    /// # Errors
    /// A [`Refusal`]: `target` is not where binds may be.
    pub fn unbind(&self, target: impl AsRef<Path>) -> io::Result<bool> {
        flag(&self.errand(&[b"unbind", bytes(target.as_ref())])?)
    }

    /// Whether `path` is a directory: whether a pod, say, is still there.
    ///
    /// # Errors
    /// A [`Refusal`]: `path` is not where binds may be, or nobody can tell. That is no `false`.
    pub fn there(&self, path: impl AsRef<Path>) -> io::Result<bool> {
        flag(&self.errand(&[b"there", bytes(path.as_ref())])?)
    }

    /// What is mounted for pods by this keeper and those before it, and what kubelet has mounted of
    /// that elsewhere in its directories. It is read from the kernel: no daemon is asked, and nothing
    /// of it is walked into.
    ///
    /// # Errors
    /// A [`Refusal`]: the keeper cannot see where pods are. That is no empty list.
    pub fn mounts(&self) -> io::Result<Vec<Mounted>> {
        let began = Instant::now();
        let socket = open(&self.at, self.patience.min(ANSWER_TIMEOUT))?;
        let mut found = Vec::new();
        let mut after: Option<u64> = None;
        loop {
            let asked = after.map(|after| after.to_string()).unwrap_or_default();
            let left = self.patience.saturating_sub(began.elapsed());
            let packet = call(&socket, &[b"mounts", asked.as_bytes()], None, left)?;
            let fields: Vec<&[u8]> = fields(&packet).collect();
            let (mounts, []) = fields.as_chunks::<4>() else { return Err(not_an_answer()) };
            if mounts.is_empty() {
                return Ok(found);
            }
            for [id, verb, what, target] in mounts {
                let id = number(id).filter(|id| after.is_none_or(|after| *id > after)).ok_or_else(not_an_answer)?;
                let what = match *verb {
                    b"publish" => What::Model(OsStr::from_bytes(what).to_owned()),
                    b"bind" => What::Directory(path(what).to_owned()),
                    _ => return Err(not_an_answer()),
                };
                found.push(Mounted { target: path(target).to_owned(), what });
                after = Some(id);
            }
            if found.len() > MOUNTS_MAX {
                return Err(not_an_answer());
            }
        }
    }

    /// The listening stream socket at `path`: the one that the daemon before had, with whoever
    /// waits in it, or a new one in the place of a socket that was there.
    ///
    /// It is one socket for all who got it: so is whether it blocks, and a `shutdown(2)` ends it
    /// for all. Closing it ends nothing.
    ///
    /// # Errors
    /// A [`Refusal`]: `path` is not where sockets may be, or is something else.
    pub fn listen(&self, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
        let mut packet = self.errand(&[b"listen", bytes(path.as_ref())])?;
        packet.descriptors.pop().ok_or_else(not_an_answer)
    }

    /// Has the keeper forget a socket, and removes its name.
    ///
    /// # Errors
    /// As for [`Errands::listen`].
    pub fn unlisten(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.errand(&[b"unlisten", bytes(path.as_ref())]).map(drop)
    }

    fn errand(&self, request: &[&[u8]]) -> io::Result<Packet> {
        let began = Instant::now();
        let socket = open(&self.at, self.patience.min(ANSWER_TIMEOUT))?;
        call(&socket, request, None, self.patience.saturating_sub(began.elapsed()))
    }
}

/// The keeper's own words, if it was the keeper that refused.
#[must_use]
pub fn refusal(error: &io::Error) -> Option<&Refusal> {
    error.get_ref()?.downcast_ref()
}

/// The `errno` of an error, whether the keeper or this side's kernel gave it.
#[must_use]
pub fn errno(error: &io::Error) -> Option<i32> {
    error.raw_os_error().or_else(|| refusal(error).map(|refusal| refusal.errno))
}

fn open(at: &Path, timeout: Duration) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    limit(&socket, Timeout::Send, timeout)?;
    connect(&socket, &SocketAddrUnix::new(at)?).map_err(|errno| match errno {
        // The queue of those who wait to be accepted is full.
        Errno::AGAIN => lost(errno),
        errno => errno.into(),
    })?;
    Ok(socket)
}

fn call(
    socket: &OwnedFd,
    request: &[&[u8]],
    descriptor: Option<BorrowedFd<'_>>,
    timeout: Duration,
) -> io::Result<Packet> {
    let began = Instant::now();
    limit(socket, Timeout::Send, timeout)?;
    // A keeper that refuses to listen has said why before it closed the connection.
    match protocol::send(socket, &join(request), descriptor) {
        Ok(()) | Err(Errno::PIPE) => {}
        Err(errno) => return Err(lost(errno)),
    }
    limit(socket, Timeout::Recv, timeout.saturating_sub(began.elapsed()))?;
    let received = match protocol::receive(socket) {
        Err(Errno::CONNRESET) => protocol::receive(socket),
        received => received,
    };
    let packet = received.map_err(lost)?.ok_or_else(|| lost(Errno::PIPE))?;
    let mut fields = packet.bytes.splitn(3, |byte| *byte == 0);
    match (fields.next(), fields.next().map(number), fields.next()) {
        (Some(b"ok"), ..) if !packet.is_cut => Ok(packet),
        (Some(b"error"), Some(Some(errno)), Some(sentence)) => {
            Err(Refusal { errno, sentence: String::from_utf8_lossy(sentence).into_owned() }.into())
        }
        _ => Err(not_an_answer()),
    }
}

/// No time at all would be for ever.
fn limit(socket: &OwnedFd, of: Timeout, timeout: Duration) -> io::Result<()> {
    Ok(set_socket_timeout(socket, of, Some(timeout.max(Duration::from_millis(1))))?)
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// The fields after `ok`.
fn fields(packet: &Packet) -> impl Iterator<Item = &[u8]> {
    packet.bytes.split(|byte| *byte == 0).skip(1)
}

fn single(packet: &Packet) -> Option<&[u8]> {
    let mut fields = fields(packet);
    let field = fields.next()?;
    fields.next().is_none().then_some(field)
}

fn flag(packet: &Packet) -> io::Result<bool> {
    match single(packet) {
        Some(b"0") => Ok(false),
        Some(b"1") => Ok(true),
        _ => Err(not_an_answer()),
    }
}

fn hello(packet: &mut Packet) -> Option<Hello> {
    let device = packet.descriptors.pop()?;
    let fields: Vec<&[u8]> = fields(packet).collect();
    let [version, keeper_version, mount, fuse_fields @ ..] = &fields[..] else { return None };
    Some(Hello {
        version: number(version)?,
        keeper_version: String::from_utf8(keeper_version.to_vec()).ok()?,
        mount: path(mount).to_owned(),
        fuse: fuse(fuse_fields, device)?,
    })
}

fn fuse(fields: &[&[u8]], device: OwnedFd) -> Option<FuseConnection> {
    let (epoch, terms) = fields.split_first()?;
    Some(FuseConnection { epoch: number(epoch)?, agreed: Agreed::parse(terms)?, device })
}

fn lost(errno: Errno) -> io::Error {
    match errno {
        Errno::AGAIN => io::Error::new(io::ErrorKind::TimedOut, "the keeper does not answer"),
        Errno::PIPE | Errno::CONNRESET => io::Error::new(io::ErrorKind::ConnectionAborted, "the keeper is gone"),
        errno => errno.into(),
    }
}

fn not_an_answer() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "what answers is no larder-keeper")
}
