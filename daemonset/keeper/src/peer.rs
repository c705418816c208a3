//! Who is answered, and what.
//!
//! Each connection has a thread of its own. The one that said `hello` last is the daemon's, and
//! only it may speak of backing files; the others are errands that name a path. Of all requests
//! only `bind` waits for a daemon, perhaps for the next one, so binds are counted apart: however
//! many of them wait, the next daemon is heard.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use larder_keeper::fuse::Agreed;
use larder_keeper::protocol::{self, Packet, Refusal, join, number, path};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};

use crate::args::Settings;
use crate::connection::{Adopted, Connection};
use crate::mount::Mount;
use crate::socket::{Kept, Own};
use crate::{EXIT_KERNEL, bind, mounts, place, say, sys};

/// One daemon needs one, and one more for each errand.
const CONNECTIONS_MAX: usize = 256;
/// Of those, how many may wait for a daemon in a bind.
const BINDS_MAX: usize = 64;
/// Of those, how many may wait for the disk in a publish: it is never in the way of an end.
const PUBLISHES_MAX: usize = 64;
/// How often it is looked whether the keeper's socket still has its name.
const LOOK_INTERVAL: Timespec = Timespec { tv_sec: 3, tv_nsec: 0 };
/// Who connects and says nothing is no daemon of ours. The daemon itself may be silent for days,
/// but not deaf.
const TALK_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failure of accept(2), which may be that descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections share.
#[derive(Debug)]
pub struct Desk {
    settings: Settings,
    mount: Mount,
    adopted: Adopted,
    sockets: Kept,
    /// The daemon's connection.
    daemon: Mutex<Option<Arc<OwnedFd>>>,
    connections: AtomicUsize,
    binds: AtomicUsize,
    publishes: AtomicUsize,
}

/// One of a bounded number.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize, max: usize) -> Option<Self> {
        // Counted before it is known, so that two at a time are not both the last one.
        let counted = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < max).then_some(counted)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A message, and perhaps a descriptor.
type Answer = (Vec<u8>, Option<Arc<OwnedFd>>);

fn ok(fields: &[&[u8]]) -> Answer {
    (join(&[&[b"ok".as_slice()], fields].concat()), None)
}

impl Desk {
    /// For the life of the process: threads that wait in a bind may outlive everything else.
    pub fn open(settings: Settings, mount: Mount) -> &'static Self {
        let (daemon, adopted, sockets) = (Mutex::default(), Adopted::default(), Kept::default());
        Box::leak(Box::new(Self {
            settings,
            mount,
            adopted,
            sockets,
            daemon,
            connections: AtomicUsize::new(0),
            binds: AtomicUsize::new(0),
            publishes: AtomicUsize::new(0),
        }))
    }

    /// Accepts connections until told to end.
    pub fn serve(&'static self, mut own: Own, told_to_end: &OwnedFd) -> Result<(), Refusal> {
        loop {
            let mut polled = [PollFd::new(told_to_end, PollFlags::IN), PollFd::new(&own.listener, PollFlags::IN)];
            let came = retry_on_intr(|| poll(&mut polled, Some(&LOOK_INTERVAL)))
                .map_err(|errno| Refusal::kernel(errno, "wait for the daemon"))?;
            if !polled[0].revents().is_empty() {
                self.sockets.remove_all(&self.settings.listen_below);
                return Ok(());
            }
            if came == 0 {
                own.look();
                continue;
            }
            match accept_with(&own.listener, SocketFlags::CLOEXEC) {
                Ok(connection) => self.take(connection),
                // Gone again already.
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => {
                    say(&format!("cannot accept a connection: {errno}"));
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Gives a connection its thread, if it is the peer's.
    fn take(&'static self, connection: OwnedFd) {
        let uid = match sys::peer_uid(&connection) {
            Ok(uid) if uid == 0 || uid == self.settings.peer_uid => uid,
            Ok(uid) => return refuse(&connection, &Refusal::new(Errno::PERM, format!("user {uid} is not the peer"))),
            Err(error) => {
                let sentence = format!("cannot tell who connects: {error}");
                return refuse(&connection, &Refusal::new(Errno::PERM, sentence));
            }
        };
        let Some(counted) = Counted::new(&self.connections, CONNECTIONS_MAX) else {
            return refuse(&connection, &Refusal::new(Errno::BUSY, "there are too many connections"));
        };
        let connection = Arc::new(connection);
        let spawned = thread::Builder::new().spawn(move || {
            let _counted = counted;
            self.converse(&connection, uid);
        });
        if let Err(error) = spawned {
            say(&format!("cannot start a thread: {error}"));
        }
    }

    /// Answers until the other side is done.
    fn converse(&'static self, connection: &Arc<OwnedFd>, uid: u32) {
        let limit = |of| set_socket_timeout(connection, of, Some(TALK_TIMEOUT));
        if limit(Timeout::Recv).and_then(|()| limit(Timeout::Send)).is_err() {
            return;
        }
        while let Ok(Some(packet)) = protocol::receive(connection) {
            let (message, descriptor) = match self.answer(connection, uid, packet) {
                Ok(answer) => answer,
                Err(refusal) if refusal.errno == Errno::PROTO.raw_os_error() => {
                    refuse(connection, &refusal);
                    break;
                }
                Err(refusal) => {
                    say(&refusal.sentence);
                    (refusal.message(), None)
                }
            };
            if protocol::send(connection, &message, descriptor.as_ref().map(AsFd::as_fd)).is_err() {
                break;
            }
        }
        let mut daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        if daemon.as_ref().is_some_and(|daemon| Arc::ptr_eq(daemon, connection)) {
            *daemon = None;
            say(&format!("the daemon is gone: user {uid}"));
        }
    }

    /// Every verb there is.
    fn answer(&'static self, connection: &Arc<OwnedFd>, uid: u32, packet: Packet) -> Result<Answer, Refusal> {
        let malformed = || Refusal::new(Errno::PROTO, format!("user {uid} sent something that is no request"));
        let key = |field: &[u8]| number::<u64>(field).ok_or_else(malformed);
        let above = |field: &[u8]| if field.is_empty() { Ok(None) } else { key(field).map(Some) };
        let Packet { bytes, mut descriptors, is_cut } = packet;
        let fields: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
        if is_cut || descriptors.len() != usize::from(matches!(fields[0], b"back" | b"adopt")) {
            return Err(malformed());
        }
        let is_daemon = || {
            let refusal =
                || Refusal::new(Errno::PERM, format!("user {uid} has not said hello, or another one has since"));
            if self.is_daemon(connection) { Ok(()) } else { Err(refusal()) }
        };
        let fuse = |of: &[u8]| key(of).and_then(|epoch| is_daemon().and_then(|()| self.fuse(epoch)));
        let Settings { bind_below, listen_below, .. } = &self.settings;
        match (fields[..].as_ref(), descriptors.pop()) {
            ([b"hello", version], _) => self.hello(connection, uid, number(version).ok_or_else(malformed)?),
            ([b"back", of, name], Some(file)) => {
                let id = fuse(of)?.back(key(name)?, &file)?;
                Ok(ok(&[id.to_string().as_bytes()]))
            }
            ([b"unback", of, name], _) => fuse(of)?.unback(key(name)?).map(flag),
            ([b"keys", of, after], _) => Ok(texts(&fuse(of)?.backing().keys(above(after)?))),
            ([b"adopt", of, terms @ ..], Some(device)) => {
                let (epoch, agreed) = (key(of)?, Agreed::parse(terms).ok_or_else(malformed)?);
                is_daemon()?;
                self.adopt(epoch, agreed, device).map(flag)
            }
            ([b"adopted", after], _) => {
                let after = above(after)?;
                is_daemon()?;
                Ok(self
                    .adopted
                    .next(after)
                    .map_or_else(|| ok(&[]), |fuse| (texts(&fuse.fields()).0, Some(Arc::clone(&fuse.device)))))
            }
            ([b"remember", of, name, id], _) => {
                let id = number(id).ok_or_else(malformed)?;
                fuse(of)?.backing().remember(key(name)?, id)?;
                Ok(ok(&[]))
            }
            ([b"bind", source, target], _) => {
                let (source, target) = (path(source), path(target));
                self.bind(source, target, connection)?;
                say(&format!("bound `{}` to `{}`", source.display(), target.display()));
                Ok(ok(&[]))
            }
            ([b"publish", name, target], _) => {
                let (name, target) = (path(name), path(target));
                let Some(_counted) = Counted::new(&self.publishes, PUBLISHES_MAX) else {
                    let sentence = format!("{PUBLISHES_MAX} models are being published already");
                    return Err(Refusal::new(Errno::BUSY, sentence));
                };
                bind::publish(&self.settings, name, target, &|| waits(connection))?;
                say(&format!("published `{}` at `{}`", name.display(), target.display()));
                Ok(ok(&[]))
            }
            ([b"there", at], _) => place::there(bind_below, path(at)).map(flag),
            ([b"mounts", after], _) => Ok((mounts::page(&self.settings, above(after)?)?, None)),
            ([b"unbind", target], _) => {
                let was_bound = bind::unbind(&self.settings, path(target), &|| waits(connection))?;
                say(&format!("unbound `{}`", path(target).display()));
                Ok(flag(was_bound))
            }
            ([b"listen", at], _) => {
                let socket = self.sockets.listen(listen_below, path(at))?;
                Ok((ok(&[]).0, Some(socket)))
            }
            ([b"unlisten", at], _) => {
                self.sockets.unlisten(listen_below, path(at))?;
                say(&format!("removed `{}`", path(at).display()));
                Ok(ok(&[]))
            }
            _ => Err(malformed()),
        }
    }

    fn hello(&self, connection: &Arc<OwnedFd>, uid: u32, version: u32) -> Result<Answer, Refusal> {
        if version != protocol::VERSION {
            let sentence = format!("user {uid} speaks protocol {version}, this keeper {}", protocol::VERSION);
            return Err(Refusal::new(Errno::PROTONOSUPPORT, sentence));
        }
        if self.mount.fuse.is_aborted() {
            say("the FUSE connection was aborted: ends here, so that the next keeper mounts again");
            std::process::exit(EXIT_KERNEL.into());
        }
        set_socket_timeout(connection, Timeout::Recv, None).map_err(|errno| Refusal::kernel(errno, "wait longer"))?;
        let before = self.daemon.lock().unwrap_or_else(PoisonError::into_inner).replace(Arc::clone(connection));
        if let Some(before) = before.filter(|before| !Arc::ptr_eq(before, connection)) {
            let _ = shutdown(&before, Shutdown::Both);
        }
        say(&format!("the daemon is here: user {uid}"));
        let (version, fuse) = (protocol::VERSION.to_string(), self.mount.fuse.fields());
        let package = env!("CARGO_PKG_VERSION").as_bytes();
        let mut said = vec![version.as_bytes(), package, self.settings.mount.as_os_str().as_bytes()];
        said.extend(fuse.iter().map(String::as_bytes));
        Ok((ok(&said).0, Some(Arc::clone(&self.mount.fuse.device))))
    }

    /// The connection with this epoch: of the mount, or adopted.
    fn fuse(&self, epoch: u64) -> Result<Arc<Connection>, Refusal> {
        let own = &self.mount.fuse;
        let found = if own.epoch == epoch { Some(Arc::clone(own)) } else { self.adopted.with(epoch) };
        found.ok_or_else(|| Refusal::new(Errno::NOTCONN, format!("there is no connection {epoch}")))
    }

    fn adopt(&self, epoch: u64, agreed: Agreed, device: OwnedFd) -> Result<bool, Refusal> {
        if epoch == self.mount.fuse.epoch {
            return Ok(false);
        }
        let is_news = self.adopted.take(Connection::handed_over(epoch, agreed, device)?)?;
        if is_news {
            say(&format!("keeps a mount of a keeper before, connection {epoch}"));
        }
        Ok(is_news)
    }

    fn is_daemon(&self, connection: &Arc<OwnedFd>) -> bool {
        let daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        daemon.as_ref().is_some_and(|daemon| Arc::ptr_eq(daemon, connection))
    }

    fn bind(&'static self, source: &Path, target: &Path, connection: &OwnedFd) -> Result<(), Refusal> {
        let Some(_counted) = Counted::new(&self.binds, BINDS_MAX) else {
            return Err(Refusal::new(Errno::BUSY, format!("{BINDS_MAX} binds wait for the daemon already")));
        };
        // The walk has let go of the connection, so it asks here whether anybody waits.
        let (ask, asked) = mpsc::channel::<mpsc::Sender<bool>>();
        let walk = move || {
            sys::keep_only(&self.mount.root)
                .map_err(|error| Refusal::new(Errno::NOSYS, format!("cannot let go of /dev/fuse: {error}")))?;
            let waits = || {
                let (answer, answered) = mpsc::channel();
                ask.send(answer).is_ok() && answered.recv() == Ok(true)
            };
            bind::bind(&self.mount, &self.settings, source, target, &waits)
        };
        let walked = thread::scope(|scope| {
            let walking = thread::Builder::new().spawn_scoped(scope, walk)?;
            for answer in asked {
                let _ = answer.send(waits(connection));
            }
            std::io::Result::Ok(walking.join())
        });
        match walked {
            Ok(Ok(result)) => result,
            _ => Err(Refusal::new(Errno::AGAIN, "the thread of a bind did not start or did not end well")),
        }
    }
}

/// Whether the other side is still there for an answer.
fn waits(connection: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(connection, PollFlags::RDHUP)];
    !matches!(poll(&mut polled, Some(&Timespec::default())), Ok(1..))
}

fn texts(fields: &[String]) -> Answer {
    ok(&fields.iter().map(String::as_bytes).collect::<Vec<_>>())
}

fn flag(is_so: bool) -> Answer {
    ok(&[if is_so { b"1" } else { b"0" }])
}

/// A last word to a connection that is about to be closed.
fn refuse(connection: &OwnedFd, refusal: &Refusal) {
    say(&refusal.sentence);
    let _ = protocol::send(connection, &refusal.message(), None);
}
