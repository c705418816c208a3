//! One pull that any number of callers wait for.
//!
//! The last one to leave ends it; what came so far stays. The pull runs in a task of its own, so
//! no caller's end can cut it off at a wrong place.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::event::Moving;
use super::lock;
use super::rate::Rate;
use crate::fetch::{Cancel, Listed, Outcome, Progress};
use crate::report::Failure;
use crate::store::SourceRecord;

/// How often the rate is taken.
pub(super) const RATE_INTERVAL: Duration = Duration::from_secs(1);

/// How a flight ended.
#[derive(Debug, Clone)]
pub(super) struct Landing {
    pub result: Result<Arc<Outcome>, Failure>,
    /// The origin gave no answer, so a copy that is here may stand in for it.
    pub unanswered: bool,
}

/// One pull.
#[derive(Debug)]
pub(super) struct Flight {
    pub source: String,
    pub progress: Arc<Progress>,
    pub cancel: Cancel,
    pub started: Instant,
    /// What the source names, once that is known and there is room for it.
    pub listed: Listed,
    landing: watch::Sender<Option<Landing>>,
    rate: AtomicU64,
    /// Bytes moved that [`Flight::untold`] has told of.
    told: AtomicU64,
    waiters: Mutex<u32>,
}

/// The pulls on their way, by record id.
#[derive(Debug, Default)]
pub(super) struct Board {
    flights: Mutex<HashMap<String, Arc<Flight>>>,
}

/// A place on a flight; leaves when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    board: Arc<Board>,
    key: String,
    flight: Arc<Flight>,
}

impl Board {
    /// Takes a seat on the flight of that key, which `depart` starts where there is none. True
    /// when it was there already.
    pub fn board(self: &Arc<Self>, key: &str, source: &str, depart: impl FnOnce(Arc<Flight>)) -> (Seat, bool) {
        let mut flights = lock(&self.flights);
        let known = flights.get(key).cloned();
        let joined = known.is_some();
        let flight = known.unwrap_or_else(|| {
            let flight = Arc::new(Flight {
                source: source.to_owned(),
                progress: Arc::default(),
                cancel: Cancel::default(),
                started: Instant::now(),
                listed: Listed::new(None),
                landing: watch::Sender::new(None),
                rate: AtomicU64::new(0),
                told: AtomicU64::new(0),
                waiters: Mutex::new(0),
            });
            flights.insert(key.to_owned(), Arc::clone(&flight));
            depart(Arc::clone(&flight));
            flight
        });
        *lock(&flight.waiters) += 1;
        (Seat { board: Arc::clone(self), key: key.to_owned(), flight }, joined)
    }

    /// Tells everybody on the flight how it ended; whoever comes from now on starts a new one.
    pub fn land(&self, key: &str, flight: &Arc<Flight>, landing: Landing) {
        self.remove(&mut lock(&self.flights), key, flight);
        flight.landing.send_replace(Some(landing));
    }

    #[expect(clippy::unused_self, reason = "of the board that is locked")]
    fn remove(&self, flights: &mut HashMap<String, Arc<Flight>>, key: &str, flight: &Arc<Flight>) {
        if flights.get(key).is_some_and(|other| Arc::ptr_eq(other, flight)) {
            flights.remove(key);
        }
    }

    /// The flight of that key, if there is one.
    pub fn flight(&self, key: &str) -> Option<Arc<Flight>> {
        lock(&self.flights).get(key).cloned()
    }

    /// All flights now, the oldest first.
    pub fn flights(&self) -> Vec<Arc<Flight>> {
        let mut flights: Vec<_> = lock(&self.flights).values().cloned().collect();
        flights.sort_by_key(|flight| flight.started);
        flights
    }
}

impl Seat {
    pub fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    /// Waits for a listing of which something is missing.
    pub async fn listed(&self) -> Arc<SourceRecord> {
        let mut listed = self.flight.listed.subscribe();
        // The sender lives as long as this seat.
        let record = listed.wait_for(Option::is_some).await.ok().and_then(|record| record.clone());
        match record {
            Some(record) if record.files.iter().any(|file| file.digest.is_none()) => record,
            // Everything is here: the landing is near.
            _ => std::future::pending().await,
        }
    }

    /// Waits for the end.
    pub async fn landed(&self) -> Landing {
        let mut landing = self.flight.landing.subscribe();
        let lost = || Landing { result: Err(lost_flight()), unanswered: false };
        // The sender lives as long as this seat.
        landing.wait_for(Option::is_some).await.map_or_else(|_| lost(), |landing| landing.clone().unwrap_or_else(lost))
    }
}

fn lost_flight() -> Failure {
    Failure::new(crate::report::Exit::Defect, "a pull ended without a word")
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut flights = lock(&self.board.flights);
        let mut waiters = lock(&self.flight.waiters);
        *waiters -= 1;
        // Nobody can board meanwhile: that takes the lock on the board too.
        if *waiters == 0 && self.flight.landing.borrow().is_none() {
            self.flight.cancel.cancel();
            self.board.remove(&mut flights, &self.key, &self.flight);
        }
    }
}

impl Flight {
    /// Callers that wait for it.
    pub fn waiters(&self) -> u32 {
        *lock(&self.waiters)
    }

    /// Measures the rate, and tells `moved` of bytes as they come, until dropped.
    pub async fn measure(&self, moved: impl Fn(u64)) {
        let mut rate = Rate::default();
        loop {
            tokio::time::sleep(RATE_INTERVAL).await;
            moved(self.untold());
            self.rate.store(rate.per_second(self.progress.bytes_moved.load(Relaxed)), Relaxed);
        }
    }

    /// Bytes moved since this was last asked.
    pub fn untold(&self) -> u64 {
        let moved = self.progress.bytes_moved.load(Relaxed);
        moved.saturating_sub(self.told.swap(moved, Relaxed))
    }

    /// How far it is.
    pub fn moving(&self) -> Moving {
        let rate = self.rate.load(Relaxed);
        Moving::of(&self.source, &self.progress, rate, self.waiters(), self.started.elapsed())
    }
}
