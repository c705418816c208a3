//! The mount: models as a file system, adapted to the kernel's questions.
//!
//! `tree` says which name leads where, `filesystem` answers, `session` gets the questions. What
//! outlives the daemon is in `opens`, and with the keeper (see `daemonset/keeper`).

mod backing;
mod counts;
mod directories;
mod filesystem;
mod links;
mod node;
mod opens;
mod probe;
mod session;
mod tree;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::cache::{Cache, MountStatus};
use crate::domain::Digest;
use crate::store::{ObjectId, Observer};
use backing::Backing;
use counts::Counts;
use filesystem::{Answers, Mounted};
use fuser::Session;
use larder_keeper::{FuseConnection, Hello, Keeper, client};
use opens::Opens;
use probe::Probe;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;

/// How long a keeper may take to answer.
const KEEPER_PATIENCE: Duration = Duration::from_secs(10);
/// How often an absent keeper is tried again, and a present one looked after.
const KEEPER_INTERVAL: Duration = Duration::from_millis(250);

/// All mounts of a process: one, and those before it that somebody still reads from.
#[derive(Debug)]
pub struct Mounts {
    cache: Arc<Cache>,
    counts: Arc<Counts>,
    runtime: tokio::runtime::Handle,
    patience: Duration,
    now: Mutex<Now>,
    /// What may be open from an earlier life, until there is a connection.
    supposed: Mutex<Vec<Digest>>,
    keeper: Mutex<Option<Arc<Keeper>>>,
    probe: Probe,
    /// How many mounts there have been.
    count: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Now {
    live: Vec<Live>,
    current: Option<Arc<Answers>>,
    directory: Option<PathBuf>,
    /// Which of the keepers' mounts it is.
    epoch: Option<u64>,
    /// Whether this process mounted it.
    own: bool,
}

/// A mount that is served: the one that anybody new finds, or one that somebody still has.
#[derive(Debug)]
struct Live {
    answers: Weak<Answers>,
    /// Where its questions come from, if a keeper made it.
    fuse: Option<Arc<FuseConnection>>,
}

/// What the table of open files of a keeper's mount is called.
fn table_of(epoch: u64) -> String {
    format!("{epoch:016x}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what turns out to be wrong out of the kernel, for as long as there are mounts.
fn forget(mut discards: broadcast::Receiver<ObjectId>, of: &Weak<Mounts>) {
    loop {
        match discards.blocking_recv() {
            Ok(object) => {
                let Some(mounts) = of.upgrade() else { return };
                let _taken_back = mounts.cache.take_back(&object);
                mounts.live().iter().for_each(|answers| answers.forget_bytes(object.clone()));
            }
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "the kernel may remember wrong bytes of files that are fetched again");
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// Asks whether the mount answers, for as long as there are mounts.
fn probe(of: &Weak<Mounts>) {
    while let Some(mounts) = of.upgrade() {
        let directory = lock(&mounts.now).directory.clone();
        if let Some(directory) = directory {
            mounts.probe.ask(&directory);
        }
        drop(mounts);
        std::thread::sleep(probe::INTERVAL);
    }
}

impl Mounts {
    /// No mount yet. `patience` is how long a read waits for bytes that do not come.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new(cache: &Arc<Cache>, runtime: tokio::runtime::Handle, patience: Duration) -> std::io::Result<Arc<Self>> {
        let mounts = Arc::new(Self {
            cache: Arc::clone(cache),
            counts: Arc::default(),
            runtime,
            patience,
            now: Mutex::default(),
            supposed: Mutex::default(),
            keeper: Mutex::default(),
            probe: Probe::default(),
            count: watch::Sender::new(0),
        });
        mounts.suppose_open()?;
        let of = Arc::downgrade(&mounts);
        cache.expect_mount(Box::new(move || of.upgrade().map(|mounts| mounts.status()).unwrap_or_default()));
        cache.store().observe(Arc::clone(&mounts) as Arc<dyn Observer>);
        let (discards, of) = (cache.discards(), Arc::downgrade(&mounts));
        let probed = Arc::downgrade(&mounts);
        std::thread::Builder::new().name("mount-forget".into()).spawn(move || forget(discards, &of))?;
        std::thread::Builder::new().name("mount-probe".into()).spawn(move || probe(&probed))?;
        Ok(mounts)
    }

    fn live(&self) -> Vec<Arc<Answers>> {
        lock(&self.now).live.iter().filter_map(|live| live.answers.upgrade()).collect()
    }

    /// Those that keepers made, this one's and those of keepers before.
    fn kept(&self) -> Vec<(Arc<Answers>, Arc<FuseConnection>)> {
        lock(&self.now).live.iter().filter_map(|live| live.answers.upgrade().zip(live.fuse.clone())).collect()
    }

    /// What is to answer for a mount, of a keeper's or this process's own connection. It hears what goes
    /// from here on, before it looks what there is.
    fn answers(
        &self,
        table: &str,
        backing: Backing,
        fuse: Option<Arc<FuseConnection>>,
    ) -> std::io::Result<Arc<Answers>> {
        let opens = Opens::open(&self.cache.store().view().mount_directory().join(table))?;
        let (cache, counts, runtime) = (Arc::clone(&self.cache), Arc::clone(&self.counts), self.runtime.clone());
        let answers = Arc::new(Answers::new(cache, opens, backing, counts, runtime, self.patience));
        let mut now = lock(&self.now);
        now.live.retain(|live| live.answers.strong_count() > 0);
        now.live.push(Live { answers: Arc::downgrade(&answers), fuse });
        Ok(answers)
    }

    /// All mounts that there are have their answers now: so what is open is known, and what others
    /// remembered is of no use to anybody.
    fn know_opens(&self, tables: &[String]) -> std::io::Result<()> {
        for table in std::fs::read_dir(self.cache.store().view().mount_directory())?.flatten() {
            if !tables.iter().any(|known| table.file_name() == known.as_str()) {
                let _ = std::fs::remove_file(table.path());
            }
        }
        let supposed = std::mem::take(&mut *lock(&self.supposed));
        supposed.iter().for_each(|part| self.cache.residency().book().closed(part));
        Ok(())
    }

    /// What earlier mounts had open, which may be there still: nothing of it may go before that is
    /// known.
    fn suppose_open(&self) -> std::io::Result<()> {
        for table in std::fs::read_dir(self.cache.store().view().mount_directory())?.flatten() {
            let parts = Opens::open(&table.path())?.all();
            for part in &parts {
                self.cache.residency().book().opened(*part);
            }
            lock(&self.supposed).extend(parts);
        }
        Ok(())
    }

    /// Serves a session in the background: of the mount at `directory`, or of one that is not where
    /// anybody new could find it. `epoch` says which of the keepers' it is.
    fn serve(
        self: &Arc<Self>,
        session: Session<Mounted>,
        answers: &Arc<Answers>,
        epoch: Option<u64>,
        directory: Option<&Path>,
    ) -> std::io::Result<()> {
        let _ = answers.notifier.set(session.notifier());
        if let Some(directory) = directory {
            let mut now = lock(&self.now);
            now.current = Some(Arc::clone(answers));
            now.directory = Some(directory.to_owned());
            now.epoch = epoch;
            drop(now);
            self.cache.set_mount(directory.to_owned());
            self.count.send_modify(|count| *count += 1);
        }
        let (mounts, answers) = (Arc::clone(self), Arc::clone(answers));
        std::thread::Builder::new().name("mount".into()).spawn(move || {
            if let Err(error) = session.run() {
                tracing::warn!(%error, "the mount ended with an error");
            }
            // The connection is gone, and with it every open: nobody will say so one by one.
            answers.forget_opens();
            let mut now = lock(&mounts.now);
            now.live.retain(|live| !std::ptr::eq(live.answers.as_ptr(), Arc::as_ptr(&answers)));
            if now.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &answers)) {
                (now.current, now.directory, now.epoch) = (None, None, None);
            }
        })?;
        Ok(())
    }

    /// Mounts at a directory. The mount ends with this process.
    ///
    /// # Errors
    /// The kernel's, or fusermount3's.
    pub fn mount(self: &Arc<Self>, directory: &Path) -> std::io::Result<Unmount> {
        const TABLE: &str = "own";
        let answers = self.answers(TABLE, Backing::own(), None)?;
        self.know_opens(&[TABLE.to_owned()])?;
        // Nobody can have anything open from an earlier life: that mount is gone.
        answers.forget_opens();
        let session = session::own(Mounted(Arc::clone(&answers)), directory)?;
        self.serve(session, &answers, None, Some(directory))?;
        lock(&self.now).own = true;
        tracing::info!(directory = %directory.display(), "mounted");
        Ok(Unmount(directory.to_owned()))
    }

    /// Follows a keeper: serves its mount, and the next one when there is another keeper. Blocks
    /// for as long as the process lives.
    pub fn follow(self: &Arc<Self>, socket: &Path) {
        let mut told = false;
        loop {
            match Keeper::connect(socket, KEEPER_PATIENCE) {
                Ok((keeper, hello)) => {
                    told = false;
                    if let Err(error) = self.resume(&Arc::new(keeper), hello) {
                        tracing::error!(%error, "the keeper's mount cannot be served");
                    }
                }
                Err(error) if !told => {
                    told = true;
                    tracing::warn!(%error, socket = %socket.display(), "no keeper answers, so there is no mount yet: it is tried again");
                }
                Err(_) => {}
            }
            std::thread::sleep(KEEPER_INTERVAL);
        }
    }

    fn resume(self: &Arc<Self>, keeper: &Arc<Keeper>, hello: Hello) -> std::io::Result<()> {
        let Hello { mount, fuse, keeper_version, .. } = hello;
        let epoch = fuse.epoch;
        self.hand_over(keeper, epoch);
        self.take_up(keeper, fuse, &mount)?;
        *lock(&self.keeper) = Some(Arc::clone(keeper));
        tracing::info!(directory = %mount.display(), keeper = keeper_version, "serving the keeper's mount");
        let is_served = || lock(&self.now).epoch == Some(epoch);
        // Without its keeper the mount works on for those who have it; the next keeper makes another.
        while is_served() && !keeper.closed() {
            std::thread::sleep(KEEPER_INTERVAL);
        }
        *lock(&self.keeper) = None;
        tracing::warn!("the keeper is gone: files that are open stay readable, a new keeper brings a new mount");
        Ok(())
    }

    /// What is served already goes on with this keeper, which keeps the mounts of keepers before, too.
    fn hand_over(&self, keeper: &Arc<Keeper>, epoch: u64) {
        for (answers, fuse) in self.kept() {
            let is_before = fuse.epoch != epoch;
            let kept = if is_before { keeper.adopt(&fuse).map(drop) } else { Ok(()) };
            match kept.and_then(|()| answers.backing.follow(keeper, is_before)) {
                Ok(()) => answers.drop_stale_ids(),
                // Nobody has it any more.
                Err(error) if client::errno(&error) == Some(rustix::io::Errno::NOTCONN.raw_os_error()) => {}
                Err(error) => {
                    tracing::warn!(%error, "a mount that pods have from a keeper before ends with this daemon: restart those containers first");
                }
            }
        }
    }

    /// Serves what this process does not serve yet: the keeper's mount, at `directory`, and those of
    /// keepers before that pods still have.
    fn take_up(
        self: &Arc<Self>,
        keeper: &Arc<Keeper>,
        current: FuseConnection,
        directory: &Path,
    ) -> std::io::Result<()> {
        let epoch = current.epoch;
        let mut all = vec![current];
        let mut last = None;
        while let Some(before) = keeper.adopted(last)? {
            last = Some(before.epoch);
            all.push(before);
        }
        let served = self.kept();
        let tables: Vec<String> =
            all.iter().chain(served.iter().map(|(_, fuse)| &**fuse)).map(|fuse| table_of(fuse.epoch)).collect();
        // A second session beside one that runs would count every open again.
        all.retain(|fuse| !served.iter().any(|(_, served)| served.epoch == fuse.epoch));
        let mut begun = Vec::new();
        for fuse in all {
            let backing = Backing::kept(fuse.epoch, Arc::clone(keeper));
            let fuse = Arc::new(fuse);
            let answers = self.answers(&table_of(fuse.epoch), backing, Some(Arc::clone(&fuse)))?;
            begun.push((Begun { mounts: self, answers, is_served: false }, fuse));
        }
        self.know_opens(&tables)?;
        for (mut begun, fuse) in begun {
            let answers = Arc::clone(&begun.answers);
            let directory = (fuse.epoch == epoch).then_some(directory);
            answers.drop_stale_ids();
            answers.recall_opens();
            let session = session::resume(Mounted(Arc::clone(&answers)), &fuse);
            match session.and_then(|session| self.serve(session, &answers, Some(fuse.epoch), directory)) {
                Ok(()) => {
                    begun.is_served = true;
                    if directory.is_none() {
                        tracing::info!("serving a mount that pods have from a keeper before");
                    }
                }
                Err(error) if directory.is_none() => {
                    answers.forget_opens();
                    tracing::warn!(%error, "a mount that pods have from a keeper before is not served");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// How many mounts there have been, for those who have to do something with each.
    #[must_use]
    pub fn count(&self) -> watch::Receiver<u64> {
        self.count.subscribe()
    }

    /// How it is.
    pub fn status(&self) -> MountStatus {
        let now = lock(&self.now);
        // Between two keepers there is none that anybody new could find.
        let (kept, own) = (lock(&self.keeper).is_some(), now.own);
        let is_held = (kept || own) && self.probe.answers();
        let passes = now.current.as_ref().is_some_and(|answers| answers.passes.load(Relaxed));
        MountStatus {
            directory: now.directory.as_ref().filter(|_| is_held).map(|directory| directory.display().to_string()),
            sealed: if passes { "passthrough" } else { "cached" }.to_owned(),
            why_not: now.current.as_ref().and_then(|answers| lock(&answers.why_not).clone()),
            kept,
            opens_passed: self.counts.passed.load(Relaxed),
            opens_cached: self.counts.cached.load(Relaxed),
            opens_arriving: self.counts.arriving.load(Relaxed),
            reads_waiting: self.counts.waiting.load(Relaxed),
            reads_failed: self.counts.failed.load(Relaxed),
            bytes_read: self.counts.bytes.load(Relaxed),
        }
    }
}

/// Answers that are to serve a mount, and count what is open in it. Where they do not, it may be open
/// still: it is supposed to be, until the next ones count it.
struct Begun<'m> {
    mounts: &'m Mounts,
    answers: Arc<Answers>,
    is_served: bool,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if !self.is_served {
            lock(&self.mounts.supposed).extend(self.answers.open_parts());
        }
    }
}

/// Ends a mount of this process.
#[derive(Debug)]
pub struct Unmount(PathBuf);

impl Unmount {
    /// Takes the mount away; what is open stays readable where it was passed through.
    pub fn unmount(self) {
        session::detach(&self.0);
    }
}

impl Observer for Mounts {
    fn blob_went(&self, digest: &Digest) {
        self.live().iter().for_each(|answers| answers.forget_blob(digest));
    }

    fn model_went(&self, digest: &Digest) {
        self.live().iter().for_each(|answers| answers.tree.forget(digest));
    }

    fn model_changed(&self, digest: &Digest) {
        self.model_went(digest);
    }
}
