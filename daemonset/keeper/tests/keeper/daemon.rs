//! A daemon in a process of its own: fuser, the keeper's descriptor, and four kinds of files.

#![expect(unsafe_code, reason = "puts one descriptor in the place of another, as a daemon must")]

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request, Session, SessionACL,
};
use larder_keeper::fuse::PASSTHROUGH;
use larder_keeper::{Keeper, RESEND, init_request};
use rustix::io::{DupFlags, dup3};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::scene::PATIENCE;

/// Closing a file must not wait for a daemon: what the tests start closes what they have open.
const OPENED: FopenFlags = FopenFlags::FOPEN_NOFLUSH;
const TTL: Duration = Duration::from_hours(1);
/// A directory with the three files, and one that is found only by a daemon that does not park.
const TREE: [(u64, u64, &str); 5] =
    [(2, 1, "model"), (3, 1, "gate"), (4, 2, "passed"), (5, 2, "plain"), (6, 2, "slow")];
const FILES_FROM: u64 = 4;
const PASSED: u64 = 4;
const SLOW: u64 = 6;
const GATE: &str = "gate";

struct Tree {
    keeper: Keeper,
    epoch: u64,
    store: PathBuf,
    has_passthrough: bool,
    /// Reads of `slow` and look-ups of `gate` are never answered.
    parks: bool,
    parked: Mutex<(Vec<ReplyData>, Vec<ReplyEntry>)>,
}

fn say(text: &str) {
    let _ = io::stdout().write_all(format!("daemon: {text}\n").as_bytes());
    let _ = io::stdout().flush();
}

impl Tree {
    fn file(&self, ino: INodeNo) -> io::Result<File> {
        let name = TREE.iter().find(|(number, ..)| *number == ino.0).map_or("", |(.., name)| name);
        File::open(self.store.join(name))
    }

    fn attr(&self, ino: INodeNo) -> FileAttr {
        let size = self.file(ino).and_then(|file| file.metadata()).map_or(0, |metadata| metadata.len());
        let is_file = ino.0 >= FILES_FROM;
        FileAttr {
            ino,
            size: if is_file { size } else { 0 },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: if is_file { 0o444 } else { 0o555 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Tree {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.has_passthrough = config.capabilities().contains(InitFlags::FUSE_PASSTHROUGH);
        let offered = config.capabilities();
        config.add_capabilities(offered).map_err(|bits| io::Error::other(format!("{bits:?}")))
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if self.parks && name == GATE {
            self.parked.lock().expect("a lock").1.push(reply);
            return say("parked a look-up");
        }
        match TREE.iter().find(|(_, at, found)| *at == parent.0 && name == *found) {
            Some((ino, ..)) => reply.entry(&TTL, &self.attr(INodeNo(*ino)), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if ino.0 != PASSED || !self.has_passthrough {
            return reply.opened(FileHandle(0), OPENED.union(FopenFlags::FOPEN_KEEP_CACHE));
        }
        let id = self.file(ino).and_then(|file| self.keeper.back(self.epoch, ino.0, file));
        match id {
            Ok(id) => {
                say(&format!("backed {id}"));
                // SAFETY: the id is registered; `into_raw` leaves it so.
                let backing = unsafe { reply.wrap_backing(id) };
                reply.opened_passthrough(FileHandle(0), OPENED, &backing);
                let _ = backing.into_raw();
            }
            Err(error) => {
                say(&format!("error: {error}"));
                reply.error(Errno::EIO);
            }
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if ino.0 == PASSED && self.has_passthrough {
            // Its reads do not come here.
            return reply.error(Errno::EIO);
        }
        if ino.0 == SLOW && self.parks {
            self.parked.lock().expect("a lock").0.push(reply);
            return say("parked a read");
        }
        let mut bytes = vec![0; size as usize];
        match self.file(ino).and_then(|file| file.read_at(&mut bytes, offset)) {
            Ok(len) => reply.data(&bytes[..len]),
            Err(_) => reply.error(Errno::EIO),
        }
    }
}

/// Not a test: what `Scene::daemon` starts.
#[test]
#[ignore = "a process that tests start"]
fn daemon_process() {
    let Some(socket) = std::env::var_os("LARDER_KEEPER_TEST_SOCKET") else { return };
    let store = std::env::var_os("LARDER_KEEPER_TEST_STORE").expect("a store").into();
    let parks = std::env::var_os("LARDER_KEEPER_TEST_PARKS").is_some_and(|value| !value.is_empty());
    let (keeper, hello) = Keeper::connect(socket, PATIENCE).expect("a keeper");
    let fuse = keeper.adopted(None).expect("an answer").unwrap_or(hello.fuse);
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a pair");
    rustix::io::write(&ours, &init_request(&fuse.agreed)).expect("written");
    let tree = Tree { keeper, epoch: fuse.epoch, store, has_passthrough: false, parks, parked: Mutex::default() };
    let mut config = Config::default();
    config.n_threads = Some(2);
    let session = Session::from_fd(tree, theirs, SessionACL::All, config).expect("a handshake");
    // SAFETY: the session owns the descriptor and outlives this alias, which closes nothing.
    let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(session.as_fd().as_raw_fd()) });
    dup3(&fuse.device, &mut place, DupFlags::CLOEXEC).expect("a duplicate");
    // A kernel without RESEND says EINVAL.
    let _ = rustix::io::write(&fuse.device, &RESEND);
    say(if fuse.agreed.flags & PASSTHROUGH == 0 { "serves plainly" } else { "serves passthrough" });
    drop(fuse);
    let _ = session.run();
}
