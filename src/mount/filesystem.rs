//! What the kernel asks, answered.
//!
//! Nothing here waits for the network but reads of what is still arriving, and those wait in tasks
//! of their own: a thread that waited would keep everybody waiting, and a look-up or an open that
//! waits cannot be killed.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use fuser::{
    Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, Notifier,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};

use larder_keeper::fuse::WANTED;

use super::backing::{Backed, Backing};
use super::counts::Counts;
use super::directories::{Directories, Entries};
use super::lock;
use super::node::{Node, Sealed, nothing};
use super::opens::{NO_SLOT, Opens};
use super::tree::{Entry, Lasts, Missing, Tree};
use crate::cache::{Cache, ReadError};
use crate::domain::Digest;

const FOREVER: Duration = Duration::from_hours(24 * 3650);
const MOMENT: Duration = Duration::from_secs(1);
/// Reads of what is arriving are background requests to the kernel: with few allowed, those that
/// wait would keep all others waiting (`fs/fuse/dev.c`).
const BACKGROUND_MAX: u16 = 8192;
/// Bytes of one read request: what the mount option `max_read` says too.
pub const READ_LEN_MAX: u32 = 1 << 20;
/// Reads that may wait at once. Each is a task and, once its bytes are there, a buffer.
const WAITING_MAX: u64 = 16_384;
/// The name under which a file's BLAKE3 digest can be asked for (getxattr(2)).
const DIGEST_ATTRIBUTE: &str = "user.larder.blake3";
/// How often failed reads are told of.
const TELL_INTERVAL: Duration = Duration::from_secs(5);

/// One mount's answers.
#[derive(Debug)]
pub struct Answers {
    cache: Arc<Cache>,
    pub(super) tree: Tree,
    opens: Opens,
    pub(super) backing: Backing,
    counts: Arc<Counts>,
    /// Whether sealed files are passed through. Decided by the kernel, and by the first open.
    pub(super) passes: AtomicBool,
    /// Why not.
    pub(super) why_not: Mutex<Option<String>>,
    pub(super) notifier: OnceLock<Notifier>,
    runtime: tokio::runtime::Handle,
    patience: Duration,
    /// Whether any inode has a backing id: from then on it must stay so.
    backed: AtomicBool,
    /// Inodes that have none, though others have, and may be open.
    unbacked: Mutex<HashSet<u64>>,
    /// Inodes with a backing id, by what they are.
    numbers: Mutex<HashMap<Digest, HashSet<u64>>>,
    /// Sealed files that are open and not passed through, by handle.
    files: Mutex<HashMap<u64, Arc<File>>>,
    directories: Directories,
    told: Mutex<Option<Instant>>,
}

/// The file system that fuser serves: shared with those who tell the kernel what goes.
#[derive(Debug)]
pub struct Mounted(pub Arc<Answers>);

impl Answers {
    pub fn new(
        cache: Arc<Cache>,
        opens: Opens,
        backing: Backing,
        counts: Arc<Counts>,
        runtime: tokio::runtime::Handle,
        patience: Duration,
    ) -> Self {
        // Whoever has a file open from an earlier life keeps its model.
        for part in opens.all() {
            cache.residency().book().opened(part);
        }
        Self {
            tree: Tree::new(Arc::clone(&cache)),
            cache,
            opens,
            backing,
            counts,
            passes: AtomicBool::new(false),
            why_not: Mutex::default(),
            notifier: OnceLock::new(),
            runtime,
            patience,
            backed: AtomicBool::new(false),
            unbacked: Mutex::default(),
            numbers: Mutex::default(),
            files: Mutex::default(),
            directories: Directories::default(),
            told: Mutex::default(),
        }
    }

    fn node(&self, number: INodeNo) -> Result<Node, Errno> {
        // The kernel looks the path up again when it hears that.
        self.tree.node(number.0).ok_or(Errno::ESTALE)
    }

    fn no_passthrough(&self, why: String) {
        tracing::warn!(why, "sealed files are not passed through: reads of them cost more");
        *lock(&self.why_not) = Some(why);
        self.passes.store(false, Relaxed);
    }

    fn open_sealed(self: &Arc<Self>, unique: u64, number: INodeNo, sealed: &Sealed, reply: ReplyOpen) {
        let (handle, _) = self.opened(unique, sealed.digest);
        let close = || self.closed(handle, || Some(sealed.digest));
        let open = || self.cache.store().view().open_blob(&sealed.digest, sealed.size).map_err(io::Error::other);
        // Also where it has an id already: a file that is gone, or known to be damaged, must not be
        // opened. The kernel looks its name up again.
        if !self.is_here(sealed) {
            self.tree.forget_all();
            close();
            return reply.error(Errno::ESTALE);
        }
        if let Some(backed) = self.back(number.0, sealed, handle, &reply, open) {
            if !self.keep_id(sealed, number.0) {
                close();
                return reply.error(Errno::ESTALE);
            }
            self.counts.passed.fetch_add(1, Relaxed);
            return backed.answer(reply, handle);
        }
        let Ok(file) = open() else {
            close();
            return reply.error(Errno::ESTALE);
        };
        // Opens without a slot have one handle for all: their files are opened for each read.
        if handle != NO_SLOT {
            lock(&self.files).insert(handle, Arc::new(file));
        }
        self.counts.cached.fetch_add(1, Relaxed);
        reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
    }

    /// The id of an inode that the kernel is to read by itself, for the open that has this handle. The
    /// kernel lets no inode be both that and cached, so while one that has no id is open, whoever opens
    /// it goes without.
    fn back(
        &self,
        number: u64,
        sealed: &Sealed,
        handle: u64,
        reply: &ReplyOpen,
        open: impl FnOnce() -> io::Result<File>,
    ) -> Option<Backed> {
        if !self.passes.load(Relaxed) {
            return None;
        }
        if let Some(backed) = self.backing.known(number) {
            return Some(backed);
        }
        // Held while the keeper is asked: of two that open a file at once both go with an id, or neither.
        let mut unbacked = lock(&self.unbacked);
        if unbacked.contains(&number) && !self.opens.is_only(handle, &sealed.digest) {
            return None;
        }
        match self.backing.back(number, reply, open) {
            Ok(backed) => {
                unbacked.remove(&number);
                self.backed.store(true, Relaxed);
                Some(backed)
            }
            Err(error) if !self.backed.load(Relaxed) && self.backing.is_answer(&error) => {
                self.no_passthrough(format!("the kernel takes no backing file: {error}"));
                None
            }
            Err(error) => {
                if unbacked.insert(number) {
                    tracing::warn!(%error, "a file is not passed through: reads of it cost more");
                }
                None
            }
        }
    }

    /// What is open since an earlier life and has no id goes on without, until it is closed. To be asked
    /// before the first open of this one.
    pub fn recall_opens(&self) {
        for digest in self.opens.all() {
            let Some(metadata) = self.cache.store().view().copy_of_blob(&digest) else { continue };
            let sealed = Sealed::new(digest, &metadata);
            let number = Node::Sealed(sealed).number();
            if !self.is_backed(&sealed, INodeNo(number)) {
                lock(&self.unbacked).insert(number);
            }
        }
    }

    /// What is open, once for each time.
    pub fn open_parts(&self) -> Vec<Digest> {
        self.opens.all()
    }

    /// Nothing is open: the mount is new.
    pub fn forget_opens(&self) {
        self.opens.clear().iter().for_each(|part| self.cache.residency().book().closed(part));
    }

    /// Notes that a request opened `part`. The handle to give out, and whether nobody else has that
    /// part open.
    fn opened(&self, unique: u64, part: Digest) -> (u64, bool) {
        let (handle, is_news) = self.opens.opened(unique, part);
        (handle, is_news && self.cache.residency().book().opened(part))
    }

    /// Notes the end of an open. `part` says what it was of where its handle does not.
    fn closed(&self, handle: u64, part: impl FnOnce() -> Option<Digest>) {
        lock(&self.files).remove(&handle);
        if let Some(part) = self.opens.closed(handle, part) {
            self.cache.residency().book().closed(&part);
        }
    }

    /// Whether this copy of a blob is still in the store.
    fn is_here(&self, sealed: &Sealed) -> bool {
        let metadata = self.cache.store().view().blob_metadata(&sealed.digest, sealed.size);
        metadata.is_ok_and(|metadata| Sealed::new(sealed.digest, &metadata) == *sealed)
    }

    /// Notes the id of an inode, or gives it back where the file is gone: nobody else would any more. Says
    /// whether it is kept. First noted, then looked for: what goes meanwhile is found by whoever says that
    /// it went.
    fn keep_id(&self, sealed: &Sealed, number: u64) -> bool {
        lock(&self.numbers).entry(sealed.digest).or_default().insert(number);
        let is_here = self.is_here(sealed);
        if !is_here {
            self.backing.drop_id(number);
        }
        is_here
    }

    /// Says that a read failed, not every time.
    fn tell(&self, what: &str) {
        self.counts.failed.fetch_add(1, Relaxed);
        let mut told = lock(&self.told);
        if told.is_none_or(|at| at.elapsed() > TELL_INTERVAL) {
            *told = Some(Instant::now());
            tracing::warn!("a reader of the mount got an error: {what}");
        }
    }

    async fn read_sealed(self: Arc<Self>, sealed: Sealed, handle: u64, offset: u64, len: usize, reply: ReplyData) {
        let this = Arc::clone(&self);
        let read = tokio::task::spawn_blocking(move || {
            let known = lock(&this.files).get(&handle).cloned();
            let file = match known {
                Some(file) => file,
                None => Arc::new(
                    this.cache.store().view().open_blob(&sealed.digest, sealed.size).map_err(io::Error::other)?,
                ),
            };
            let mut buffer = vec![0; len];
            let read = file.read_exact_at(&mut buffer, offset).map(|()| buffer);
            if let Err(error) = &read {
                this.cache.read_failed(&sealed.digest, error);
            }
            read
        });
        match read.await.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            Ok(bytes) => self.give(&bytes, reply),
            Err(error) => {
                self.tell(&error.to_string());
                reply.error(Errno::EIO);
            }
        }
    }

    fn give(&self, bytes: &[u8], reply: ReplyData) {
        self.counts.bytes.fetch_add(bytes.len() as u64, Relaxed);
        reply.data(bytes);
    }

    fn keep_listing(&self, listing: Digest) {
        let kept = self.tree.record(listing).map(|record| self.cache.store().keep_listing(&record));
        if !matches!(kept, Ok(Ok(_))) {
            tracing::warn!(listing = %listing.short(), "a listing that is read could not be written down: it is lost if its source is listed anew");
        }
    }

    /// Whether an inode has a backing id: then whoever has it open is passed through.
    fn is_backed(&self, sealed: &Sealed, number: INodeNo) -> bool {
        lock(&self.numbers).get(&sealed.digest).is_some_and(|numbers| numbers.contains(&number.0))
    }

    /// Of a file that is passed through the kernel asks here only when somebody advises to read
    /// ahead (`posix_fadvise(2)`): what came back would be copied into pages that nobody reads. So the
    /// blob itself is read ahead, which is what was meant. Those pages stay until memory is wanted:
    /// to take them away would be to wait for the kernel, where not even SIGKILL ends a wait.
    fn read_ahead(&self, sealed: &Sealed, offset: u64, len: usize, reply: ReplyData) {
        if let Ok(file) = self.cache.store().view().open_blob(&sealed.digest, sealed.size) {
            let _ =
                rustix::fs::fadvise(&file, offset, std::num::NonZeroU64::new(len as u64), rustix::fs::Advice::WillNeed);
        }
        // Nobody hears of it: an advice has no result.
        reply.error(Errno::EAGAIN);
    }

    async fn read_partial(self: Arc<Self>, node: Node, offset: u64, len: usize, reply: ReplyData) {
        let Node::Partial { listing, file } = node else { return reply.error(Errno::EIO) };
        let deadline = Instant::now() + self.patience;
        let record = if let Some(record) = self.tree.record_at_hand(listing) {
            Ok(Ok(record))
        } else {
            let this = Arc::clone(&self);
            tokio::task::spawn_blocking(move || this.tree.record(listing)).await
        };
        let read = match record {
            Ok(Ok(record)) => {
                let _waits = self.counts.wait();
                self.cache.read_arriving(listing, &record, &file, offset, len, deadline).await
            }
            Ok(Err(_)) => Err(ReadError::Lost(format!("nobody knows what `{}` belongs to any more", file.uri))),
            Err(panic) => Err(ReadError::Lost(panic.to_string())),
        };
        match read {
            Ok(bytes) => self.give(&bytes, reply),
            Err(error) => {
                self.tell(&format!("`{}`: {error}", file.uri));
                reply.error(Errno::EIO);
            }
        }
    }

    /// A blob is gone: what kept its space for it goes too. What has it open keeps it.
    pub fn forget_blob(&self, digest: &Digest) {
        for number in lock(&self.numbers).remove(digest).unwrap_or_default() {
            self.backing.drop_id(number);
        }
    }

    /// What readers were given of a file that is arriving was wrong. Waits for the kernel, which
    /// waits for reads of that file: none of them may wait for us meanwhile.
    pub fn forget_bytes(&self, file: crate::store::ObjectId) {
        let node = Node::Partial { listing: Digest::of(b""), file: Arc::new(file) };
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(INodeNo(node.number()), 0, 0)
        {
            tracing::warn!(%error, "the kernel does not forget wrong bytes");
        }
    }

    /// Gives back the ids of files that went while nobody was here.
    pub fn drop_stale_ids(&self) {
        let numbers = match self.backing.numbers() {
            Ok(numbers) => numbers,
            Err(error) => return tracing::warn!(%error, "the keeper does not say which files it holds"),
        };
        self.backed.store(!numbers.is_empty(), Relaxed);
        for number in numbers {
            match self.tree.node(number) {
                Some(Node::Sealed(sealed)) => {
                    self.keep_id(&sealed, number);
                }
                _ => self.backing.drop_id(number),
            }
        }
    }
}

fn errno(missing: &Missing) -> Errno {
    match missing {
        Missing::Name(_) => Errno::ENOENT,
        Missing::Stale => Errno::ESTALE,
        Missing::Disk(error) => {
            tracing::warn!(%error, "the mount cannot answer");
            Errno::EIO
        }
    }
}

const fn lasting(lasts: Lasts) -> Duration {
    match lasts {
        Lasts::Forever => FOREVER,
        Lasts::Moment => MOMENT,
    }
}

impl Filesystem for Mounted {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // As the keeper has it, but that passthrough needs a word more.
        let mut wanted = InitFlags::from_bits_truncate(WANTED) - InitFlags::FUSE_PASSTHROUGH;
        if !rustix::process::geteuid().is_root() {
            // With it the kernel says of no request whose it is (since Linux 6.12), and fuser, which lets
            // nobody but the user of a user's mount in, refuses them all.
            wanted -= InitFlags::FUSE_ALLOW_IDMAP;
        }
        let offered = config.capabilities();
        let _ = config.add_capabilities(wanted & offered);
        let passes = offered.contains(InitFlags::FUSE_PASSTHROUGH)
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok();
        self.0.passes.store(passes, Relaxed);
        if !passes {
            self.0.no_passthrough("the kernel has no passthrough, which came with Linux 6.9".to_owned());
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_max_write(READ_LEN_MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.0.node(parent).and_then(|parent| match self.0.tree.lookup(&parent, name) {
            // In a directory that never changes, that a name is not there may be remembered too.
            Err(Missing::Name(Lasts::Forever)) => Ok(None),
            Err(missing) => Err(errno(&missing)),
            Ok(entry) => Ok(Some(entry)),
        });
        match found {
            Ok(Some(Entry { node, lasts, .. })) => {
                self.0.tree.remember(&node);
                reply.entry_with_ttls(&FOREVER, &lasting(lasts), &node.attributes(), Generation(0));
            }
            Ok(None) => reply.entry(&FOREVER, &nothing(), Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.node(ino) {
            Ok(node) => reply.attr(&FOREVER, &node.attributes()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.0.node(ino) {
            Ok(Node::Link { target, .. }) => reply.data(target.as_bytes()),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.0.node(ino) {
            Ok(Node::Sealed(sealed)) => self.0.open_sealed(request.unique().0, ino, &sealed, reply),
            Ok(Node::Partial { listing, .. }) => {
                let (handle, is_first) = self.0.opened(request.unique().0, listing);
                if is_first {
                    // Its source may be listed anew while this is open.
                    let answers = Arc::clone(&self.0);
                    self.0.runtime.spawn_blocking(move || answers.keep_listing(listing));
                }
                self.0.counts.arriving.fetch_add(1, Relaxed);
                // Cached: mapped files need it, and what has arrived never changes.
                reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
            }
            Ok(Node::Link { .. }) => reply.error(Errno::ELOOP),
            Ok(_) => reply.error(Errno::EISDIR),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let node = match self.0.node(ino) {
            Ok(node) => node,
            Err(errno) => return reply.error(errno),
        };
        let total = match &node {
            Node::Sealed(sealed) => sealed.size,
            Node::Partial { file, .. } => file.size,
            _ => return reply.error(Errno::EISDIR),
        };
        // Whole or not at all: the kernel takes a short answer for the end of the file.
        let len = u64::from(size.min(READ_LEN_MAX)).min(total.saturating_sub(offset));
        let Ok(len) = usize::try_from(len) else { return reply.error(Errno::EIO) };
        if len == 0 {
            return reply.data(&[]);
        }
        let answers = Arc::clone(&self.0);
        match node {
            Node::Sealed(sealed) if self.0.is_backed(&sealed, ino) => {
                self.0.runtime.spawn_blocking(move || answers.read_ahead(&sealed, offset, len, reply));
            }
            Node::Sealed(sealed) => {
                self.0.runtime.spawn(answers.read_sealed(sealed, handle.0, offset, len, reply));
            }
            _ if self.0.counts.waiting.load(Relaxed) >= WAITING_MAX => {
                self.0.tell("too many reads wait already");
                reply.error(Errno::EAGAIN);
            }
            node => {
                self.0.runtime.spawn(answers.read_partial(node, offset, len, reply));
            }
        }
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.closed(handle.0, || match self.0.tree.node(ino.0) {
            Some(Node::Sealed(sealed)) => Some(sealed.digest),
            Some(Node::Partial { listing, .. }) => Some(listing),
            _ => None,
        });
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let flags = match self.0.node(ino) {
            Ok(Node::Directory { key, .. }) if self.0.tree.is_whole(key) => {
                FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE
            }
            Ok(_) => FopenFlags::empty(),
            Err(errno) => return reply.error(errno),
        };
        let handle = self.0.directories.open();
        reply.opened(FileHandle(handle), flags);
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.0.directories.close(handle.0);
        reply.ok();
    }

    fn readdir(&self, _: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = match self.0.listed(ino, handle, offset) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        for (at, (name, node, _)) in entries.iter().enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            let attributes = node.attributes();
            if reply.add(attributes.ino, at as u64 + 1, attributes.kind, OsStr::new(name.as_ref())) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let entries = match self.0.listed(ino, handle, offset) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        for (at, (name, node, lasts)) in entries.iter().enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX))
        {
            let attributes = node.attributes();
            let name = OsStr::new(name.as_ref());
            if reply.add(attributes.ino, at as u64 + 1, name, &lasting(*lasts), &attributes, Generation(0)) {
                break;
            }
            self.0.tree.remember(node);
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // What there is room for is a question about the store.
        match rustix::fs::statvfs(self.0.cache.store().view().directory()) {
            Ok(stat) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                u32::try_from(stat.f_bsize).unwrap_or(u32::MAX),
                255,
                u32::try_from(stat.f_frsize).unwrap_or(u32::MAX),
            ),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.0.node(ino) {
            Ok(Node::Sealed(sealed)) if name == DIGEST_ATTRIBUTE => {
                attribute(sealed.digest.to_string().as_bytes(), size, reply);
            }
            Ok(_) => reply.error(Errno::NO_XATTR),
            Err(errno) => reply.error(errno),
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.0.node(ino) {
            Ok(Node::Sealed(_)) => attribute(format!("{DIGEST_ATTRIBUTE}\0").as_bytes(), size, reply),
            Ok(_) => attribute(b"", size, reply),
            Err(errno) => reply.error(errno),
        }
    }
}

impl Answers {
    /// The entries that an open directory is read from: the same ones from its beginning to its end.
    fn listed(&self, number: INodeNo, handle: FileHandle, offset: u64) -> Result<Arc<Entries>, Errno> {
        if offset > 0
            && let Some(entries) = self.directories.entries(handle.0)
        {
            return Ok(entries);
        }
        let entries = Arc::new(self.entries(&self.node(number)?)?);
        self.directories.keep(handle.0, &entries);
        Ok(entries)
    }

    /// A directory with the two names that every directory has.
    fn entries(&self, directory: &Node) -> Result<Entries, Errno> {
        let entries = self.tree.list(directory).map_err(|missing| match missing {
            Missing::Name(_) => Errno::ENOTDIR,
            other => errno(&other),
        })?;
        let dots = [".", ".."].map(|name| (Arc::from(name), directory.clone(), Lasts::Moment));
        Ok(dots.into_iter().chain(entries.into_iter().map(|entry| (entry.name, entry.node, entry.lasts))).collect())
    }
}

fn attribute(value: &[u8], size: u32, reply: ReplyXattr) {
    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    match size {
        0 => reply.size(len),
        size if size < len => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}
