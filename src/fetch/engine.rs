//! What all pulls of one process share: the store, and the limits that belong to the machine.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::arrivals::Arrivals;
use super::concurrency::LIMIT_MAX;
use super::flights::Flights;
use super::retry::RETRY_FOR;
use super::room::{FreeSpace, Room};
use crate::store::{Store, WriteBack, dirty_budget};

/// Bytes between the network and the disk, over all connections.
pub const BYTES_IN_FLIGHT_MAX: usize = 32 << 20;
/// What one permit of [`Engine::memory`] stands for.
pub const PERMIT_LEN: usize = 64 << 10;

/// They share the connections and the memory; more of them would only hold more reservations
/// half-filled. Fewer would let some origins that hang keep the others waiting.
const PULLS_MAX: usize = 32;
/// Listings that are asked for and looked up at once: how long each is, is known only then. Fewer would
/// let origins that hang keep the others waiting.
const LISTINGS_MAX: usize = 256;
/// Permits for all listings that pulls hold in memory, those that wait for their turn among them:
/// 256 MiB.
const LISTING_PERMITS: u32 = 4096;

/// Connections beside the others for bytes that a reader waits for.
const CONNECTIONS_URGENT_MAX: usize = 16;

/// The permits of [`Engine::listing_memory`] for a listing of so many bytes. The longest takes half of
/// all, so that others go on beside it.
pub fn listing_permits(bytes: u64) -> u32 {
    let permits = bytes.div_ceil(PERMIT_LEN as u64);
    u32::try_from(permits).unwrap_or(u32::MAX).clamp(1, LISTING_PERMITS / 2)
}

/// One for each process.
#[derive(Debug)]
pub struct Engine {
    store: Arc<Store>,
    pub(super) room: Arc<dyn Room>,
    pub(super) flights: Arc<Flights>,
    arrivals: Arc<Arrivals>,
    pub(super) write_back: Arc<WriteBack>,
    /// How long an origin may be away that a pull has reached before.
    pub(super) retry_for: Duration,
    /// Taken after a connection, never before: the other way round, files that wait for a
    /// connection could hold all the memory that the connections wait for.
    pub(super) memory: Arc<Semaphore>,
    /// Pulls that move bytes at once; the others wait with their listing.
    pub(super) pulls: Arc<Semaphore>,
    /// Taken to list a source, until its size is known and counted in [`Self::listing_memory`].
    pub(super) listings: Arc<Semaphore>,
    /// One permit for each [`PERMIT_LEN`] of a listing, for as long as its pull runs.
    pub(super) listing_memory: Arc<Semaphore>,
    /// A pull finds its own number of connections; all together have no more than these.
    pub(super) connections: Arc<Semaphore>,
    /// Beside those.
    pub(super) connections_urgent: Arc<Semaphore>,
}

impl Engine {
    /// An engine that pulls into `store`, where `room` decides whether it may.
    #[must_use]
    pub fn new(store: Arc<Store>, room: Arc<dyn Room>) -> Self {
        Self {
            store,
            room,
            flights: Arc::default(),
            arrivals: Arc::default(),
            write_back: Arc::new(WriteBack::new(dirty_budget())),
            retry_for: RETRY_FOR,
            memory: Arc::new(Semaphore::new(BYTES_IN_FLIGHT_MAX / PERMIT_LEN)),
            pulls: Arc::new(Semaphore::new(PULLS_MAX)),
            listings: Arc::new(Semaphore::new(LISTINGS_MAX)),
            listing_memory: Arc::new(Semaphore::new(LISTING_PERMITS as usize)),
            connections: Arc::new(Semaphore::new(LIMIT_MAX as usize)),
            connections_urgent: Arc::new(Semaphore::new(CONNECTIONS_URGENT_MAX)),
        }
    }

    /// An engine that may fill the disk and evicts nothing.
    #[must_use]
    pub fn of_store(store: Arc<Store>) -> Self {
        Self::new(store, Arc::new(FreeSpace::default()))
    }

    /// The same, which waits so long for an origin that goes away under a pull.
    #[must_use]
    pub const fn with_retry_for(mut self, retry_for: Duration) -> Self {
        self.retry_for = retry_for;
        self
    }

    /// Objects that are read while they arrive.
    #[must_use]
    pub const fn arrivals(&self) -> &Arc<Arrivals> {
        &self.arrivals
    }

    /// The store.
    #[must_use]
    pub const fn store(&self) -> &Arc<Store> {
        &self.store
    }
}
