//! What this node keeps, for whom, and for how long: the only owner of what is kept.
//!
//! [`Cache::ensure`] is the one way to a model: found here, on its way already, or pulled now.
//! `residency` decides what stays and what goes, `book` knows who uses and who wants what.

mod arriving;
mod book;
mod change;
mod ending;
mod ensure;
mod event;
pub mod eviction;
mod expiry;
mod flight;
mod heal;
mod herald;
mod in_pods;
pub mod listing;
mod look;
mod mend;
mod mounted;
pub mod named;
mod origins;
mod owner;
mod rate;
mod repair;
mod residency;
mod scrub;
mod status;
mod verify;
mod wanted;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::domain::Source;
use crate::fetch::{Engine, Room, Selection};
use crate::remote;
use crate::report::{Exit, Failure};
use crate::store::{self, SourceRecord, Store};
use crate::telemetry::Metrics;

pub use crate::remote::Endpoints;
pub use arriving::ReadError;
pub use book::{Book, Lease, Refused};
pub use change::HOLDER;
pub use ensure::{Granted, LeaseWish, Waits, Wish};
pub use event::{Event, Moving, MovingFile, Ready, Waiting};
pub use herald::Herald;
pub use in_pods::{Mounting, Mounts};
pub use mounted::{ARRIVING, MountStatus};
pub use owner::{Owner, OwnerError, Pods};
pub use rate::Rate;
pub use repair::{Damage, Puller, counted, repair};
pub use residency::{Pressure, Watermarks};
pub use status::{DamageStatus, Disk, DiskInodes, LeaseStatus, ScrubStatus, Status, TotalsStatus, UnreadableStatus};
pub use verify::{Tell, VerifyEvent, verify};
pub use wanted::{List, Progressing, Standing, Want, WantedState};

/// How a cache behaves.
#[derive(Debug)]
pub struct Settings {
    /// How full the file system may be.
    pub watermarks: Watermarks,
    /// How long the origin's last answer counts.
    pub recheck: Duration,
    /// How it is seen whether a pod is still there.
    pub pods: Pods,
    /// How origins are reached.
    pub origin: remote::Options,
    /// Whether a refusal for room waits a moment while use of what is kept is ending.
    pub waits_for_room: bool,
}

/// The models of a node.
#[derive(Debug)]
pub struct Cache {
    engine: Arc<Engine>,
    residency: Arc<residency::Residency>,
    board: Arc<flight::Board>,
    origins: origins::Origins,
    answers: ensure::Answers,
    coming: arriving::Coming,
    mounted: mounted::Mounted,
    recheck: Duration,
    metrics: Arc<Metrics>,
    wanted: wanted::Wanted,
    scrubbed: scrub::Scrubbed,
    healing: heal::Healing,
    expiry: expiry::Expiry,
    connections: AtomicU64,
    stopping: AtomicBool,
    /// Where pulls run, if not where they are asked for.
    pulls: OnceLock<tokio::runtime::Handle>,
    /// Whether what another boot left unproven has been hashed.
    proven: watch::Sender<bool>,
}

impl Cache {
    /// Takes charge of a store. Blocking: reads leases and pins.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn open(store: Arc<Store>, settings: Settings, metrics: Arc<Metrics>) -> Result<Arc<Self>, store::Error> {
        let Settings { watermarks, recheck, pods, origin, waits_for_room } = settings;
        let residency =
            residency::Residency::open(Arc::clone(&store), watermarks, pods, waits_for_room, Arc::clone(&metrics))?;
        let residency = Arc::new(residency);
        let room: Arc<dyn Room> = Arc::clone(&residency) as _;
        Ok(Arc::new(Self {
            engine: Arc::new(Engine::new(store, room)),
            residency,
            board: Arc::default(),
            origins: origins::Origins::new(origin),
            answers: ensure::Answers::default(),
            coming: arriving::Coming::default(),
            mounted: mounted::Mounted::default(),
            recheck,
            metrics,
            wanted: wanted::Wanted::default(),
            scrubbed: scrub::Scrubbed::default(),
            healing: heal::Healing::default(),
            expiry: expiry::Expiry::default(),
            connections: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            pulls: OnceLock::new(),
            proven: watch::Sender::new(false),
        }))
    }

    /// What is kept, and the rules for it.
    #[must_use]
    pub const fn residency(&self) -> &Arc<residency::Residency> {
        &self.residency
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        self.engine.store()
    }

    /// The servers of buckets.
    #[must_use]
    pub const fn endpoints(&self) -> &Endpoints {
        self.origins.endpoints()
    }

    /// The id of the record that a source and a selection of its files have in the store.
    #[must_use]
    pub fn record_id(&self, source: &Source, selection: &Selection) -> String {
        let origin = self.endpoints().origin(source);
        SourceRecord::id_of(&source.to_string(), &origin, selection.include(), selection.exclude())
    }

    /// How the file system of the store stands. Blocking.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn space(&self) -> Result<store::Space, store::Error> {
        self.store().space()
    }

    /// Has pulls run in a runtime of their own: a disk or an origin that hangs takes its threads, and
    /// none of those that answer. The first one stays.
    pub fn set_pulls(&self, runtime: tokio::runtime::Handle) {
        let _ = self.pulls.set(runtime);
    }

    fn spawn_pull(&self, pull: impl Future<Output = ()> + Send + 'static) {
        match self.pulls.get() {
            Some(runtime) => drop(runtime.spawn(pull)),
            None => drop(tokio::spawn(pull)),
        }
    }

    /// Says that what another boot left unproven has been hashed.
    pub fn set_proven(&self) {
        self.proven.send_replace(true);
    }

    async fn proven(&self) {
        // The sender lives as long as this cache.
        let _ = self.proven.subscribe().wait_for(|proven| *proven).await;
    }

    /// Whether a pod is not on this node any more, by the word of whoever sees pods.
    pub async fn is_pod_gone(&self, uid: &str) -> bool {
        self.residency.life(&Owner::Pod(uid.to_owned())).await == owner::Life::Gone
    }

    fn next_connection(&self) -> ending::Connected {
        self.residency.connected(self.connections.fetch_add(1, Relaxed))
    }

    /// Whether no pull is on its way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.board.flights().is_empty()
    }

    /// Ends every pull that is on its way: those who wait are told to ask again, what has arrived
    /// stays.
    pub fn interrupt(&self) {
        self.stopping.store(true, Relaxed);
        for flight in self.board.flights() {
            flight.cancel.cancel();
        }
    }
}

/// A panic of whoever held the lock is no reason to stop: what is behind these locks stays right.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs what waits for the disk off the runtime's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|panic| Failure::new(Exit::Defect, panic.to_string()))?
}

/// A cache below a directory, for tests of the layers above, which know no store.
#[cfg(test)]
pub(crate) fn cache_in(directory: &std::path::Path) -> Arc<Cache> {
    let settings = Settings {
        watermarks: Watermarks { high: 100, low: 100 },
        waits_for_room: true,
        recheck: Duration::from_secs(10),
        pods: Pods::Directory(directory.join("kubelet/pods")),
        origin: remote::Options::default(),
    };
    let store = Arc::new(Store::open(&directory.join("store")).expect("a store"));
    Cache::open(store, settings, Arc::new(Metrics::new("1"))).expect("a cache")
}
