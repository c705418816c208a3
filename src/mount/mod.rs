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
use larder_keeper::{Hello, Keeper};
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
    live: Vec<Weak<Answers>>,
    current: Option<Arc<Answers>>,
    directory: Option<PathBuf>,
    /// Which of the keepers' mounts it is.
    epoch: Option<u64>,
    /// Whether this process mounted it.
    own: bool,
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
        let mut now = lock(&self.now);
        now.live.retain(|answers| answers.strong_count() > 0);
        now.live.iter().filter_map(Weak::upgrade).collect()
    }

    fn answers(&self, connection: &str, backing: Backing) -> std::io::Result<Arc<Answers>> {
        let directory = self.cache.store().view().mount_directory();
        let table = directory.join(connection);
        // What earlier connections remembered is of no use to anybody.
        for other in std::fs::read_dir(&directory)?.flatten() {
            if other.path() != table {
                let _ = std::fs::remove_file(other.path());
            }
        }
        let (cache, counts, runtime) = (Arc::clone(&self.cache), Arc::clone(&self.counts), self.runtime.clone());
        let answers = Answers::new(cache, Opens::open(&table)?, backing, counts, runtime, self.patience);
        // What is open is known now; until here it was what might be.
        let supposed = std::mem::take(&mut *lock(&self.supposed));
        supposed.iter().for_each(|part| self.cache.residency().book().closed(part));
        Ok(Arc::new(answers))
    }

    /// What the last connection had open, which may be the next one: nothing of it may go before
    /// that is known.
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

    /// Serves a session in the background.
    fn serve(
        self: &Arc<Self>,
        session: Session<Mounted>,
        answers: &Arc<Answers>,
        directory: &Path,
        epoch: Option<u64>,
    ) -> std::io::Result<()> {
        let _ = answers.notifier.set(session.notifier());
        {
            let mut now = lock(&self.now);
            now.live.push(Arc::downgrade(answers));
            now.current = Some(Arc::clone(answers));
            now.directory = Some(directory.to_owned());
            now.epoch = epoch;
        }
        self.cache.set_mount(directory.to_owned());
        self.count.send_modify(|count| *count += 1);
        let mounts = Arc::clone(self);
        let of = Arc::downgrade(answers);
        std::thread::Builder::new().name("mount".into()).spawn(move || {
            if let Err(error) = session.run() {
                tracing::warn!(%error, "the mount ended with an error");
            }
            // The connection is gone, and with it every open: nobody will say so one by one.
            if let Some(answers) = of.upgrade() {
                answers.forget_opens();
            }
            let mut now = lock(&mounts.now);
            if now.current.as_ref().is_some_and(|current| std::ptr::eq(Arc::as_ptr(current), of.as_ptr())) {
                (now.current, now.directory, now.epoch) = (None, None, None);
            }
        })?;
        answers.drop_stale_ids();
        Ok(())
    }

    /// Mounts at a directory. The mount ends with this process.
    ///
    /// # Errors
    /// The kernel's, or fusermount3's.
    pub fn mount(self: &Arc<Self>, directory: &Path) -> std::io::Result<Unmount> {
        let answers = self.answers("own", Backing::own())?;
        // Nobody can have anything open from an earlier life: that mount is gone.
        answers.forget_opens();
        let session = session::own(Mounted(Arc::clone(&answers)), directory)?;
        self.serve(session, &answers, directory, None)?;
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
                    if let Err(error) = self.resume(&Arc::new(keeper), &hello) {
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

    fn resume(self: &Arc<Self>, keeper: &Arc<Keeper>, hello: &Hello) -> std::io::Result<()> {
        let known = {
            let now = lock(&self.now);
            now.current.clone().filter(|_| now.epoch == Some(hello.epoch))
        };
        let answers = if let Some(answers) = known {
            // It is the mount that is served already: only the connection to the keeper was lost.
            // A second session beside the first would count every open again.
            answers.backing.follow(Arc::clone(keeper));
            answers.drop_stale_ids();
            answers
        } else {
            let answers = self.answers(&format!("{:016x}", hello.epoch), Backing::kept(Arc::clone(keeper)))?;
            let session = session::resume(Mounted(Arc::clone(&answers)), hello)?;
            self.serve(session, &answers, &hello.mount, Some(hello.epoch))?;
            answers
        };
        *lock(&self.keeper) = Some(Arc::clone(keeper));
        tracing::info!(directory = %hello.mount.display(), keeper = hello.keeper_version, "serving the keeper's mount");
        let is_served = || lock(&self.now).current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &answers));
        // Without its keeper the mount works on for those who have it; the next keeper makes another.
        while is_served() && !keeper.closed() {
            std::thread::sleep(KEEPER_INTERVAL);
        }
        *lock(&self.keeper) = None;
        tracing::warn!("the keeper is gone: files that are open stay readable, a new keeper brings a new mount");
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
}
