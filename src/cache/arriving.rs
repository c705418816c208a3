//! Reading a model while it arrives.
//!
//! A listing is kept coming for as long as somebody has a lease of it or reads it: flights are
//! started again when they fail. A read waits for its bytes, never for the whole.

use std::collections::HashMap;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, watch};

use super::book::Lease;
use super::ensure::{LeaseWish, Wish};
use super::flight::Seat;
use super::owner::Life;
use super::repair::elsewhere;
use super::{Cache, blocking, lock};
use crate::domain::{Digest, Source};
use crate::fetch::{Selection, TakeBack};
use crate::report::{Exit, Failure, named};
use crate::store::{self, ObjectId, SourceRecord};

/// A listing nobody has a lease of is kept coming for this long after the last read.
const LINGER: Duration = Duration::from_mins(1);
/// Pause after a flight that failed, doubling from the first to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// Listings that are kept coming at once, each with all its names in memory. Who asks beyond waits for
/// the whole model.
const COMING_MAX: usize = 512;

/// Before a listing that nobody brings any more is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Listings that are kept coming.
#[derive(Debug, Default)]
pub(super) struct Coming {
    now: Mutex<HashMap<Digest, Arc<One>>>,
}

#[derive(Debug)]
struct One {
    read: Mutex<Instant>,
    /// On a flight that is under way, for the next try: somebody who leaves it has left it here.
    seat: Mutex<Option<Seat>>,
    state: watch::Sender<State>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Flying,
    /// The last flight failed; the next one starts in a while.
    Waiting(String),
    /// Every file is here.
    Here,
    /// What is missing cannot come any more.
    Lost(String),
}

/// Why a read got no bytes.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// They did not come in time.
    #[error("the bytes did not arrive in time: {0}")]
    TooLate(String),
    /// They cannot come.
    #[error("the bytes cannot arrive any more: {0}")]
    Lost(String),
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] store::Error),
}

impl Cache {
    /// What a listing names, where it may be read: one that is kept, or of a source that has not
    /// arrived. Blocking.
    ///
    /// # Errors
    /// The disk's.
    pub fn listing(&self, id: &Digest) -> Result<Option<Arc<SourceRecord>>, store::Error> {
        for flight in self.board.flights() {
            if let Some(record) = flight.listed.borrow().as_ref().filter(|record| record.listing() == *id) {
                return Ok(Some(Arc::clone(record)));
            }
        }
        if let Some(record) = self.store().view().listing(id)? {
            return Ok(Some(Arc::new(record)));
        }
        let mut found = None;
        self.store().view().each_source(&mut |record, _| {
            if found.is_none() && record.listing() == *id {
                found = Some(Arc::new(record));
            }
        })?;
        Ok(found)
    }

    /// Hears of objects whose bytes were not what they should be: what readers were given of them is
    /// wrong.
    #[must_use]
    pub fn discards(&self) -> broadcast::Receiver<ObjectId> {
        self.engine.arrivals().discards()
    }

    /// Lets no read of an object wait, while what readers were given of it is taken back.
    #[must_use]
    pub fn take_back(&self, object: &ObjectId) -> TakeBack {
        self.engine.arrivals().of(object).take_back()
    }

    /// Whether one more listing may be kept coming.
    pub(super) fn has_room_to_come(&self) -> bool {
        lock(&self.coming.now).len() < COMING_MAX
    }

    /// Keeps a listing coming from now on. `seat` is on the flight that brings it, which would end
    /// if it was given up before another was taken.
    pub(super) fn keep_coming(self: &Arc<Self>, record: &Arc<SourceRecord>, seat: Option<Seat>) {
        drop(self.coming(record.listing(), record, seat));
    }

    /// Goes on with what leases of an earlier life wait for.
    ///
    /// # Errors
    /// The disk's.
    pub async fn resume_arriving(self: &Arc<Self>) -> Result<(), Failure> {
        let cache = Arc::clone(self);
        let records = blocking(move || {
            let view = cache.store().view();
            let ids = view.listings()?.into_iter().filter(|id| cache.residency.book().is_leased(id));
            let records: Result<Vec<_>, _> = ids.map(|id| view.listing(&id)).collect();
            Ok(records?.into_iter().flatten().map(Arc::new).collect::<Vec<_>>())
        })
        .await?;
        records.iter().for_each(|record| self.keep_coming(record, None));
        Ok(())
    }

    fn coming(self: &Arc<Self>, id: Digest, record: &Arc<SourceRecord>, seat: Option<Seat>) -> watch::Receiver<State> {
        let mut now = lock(&self.coming.now);
        if let Some(one) = now.get(&id) {
            *lock(&one.read) = Instant::now();
            // Else it has a seat on that flight itself.
            if seat.is_some() && matches!(*one.state.borrow(), State::Waiting(_)) {
                *lock(&one.seat) = seat;
            }
            return one.state.subscribe();
        }
        let (read, state) = (Mutex::new(Instant::now()), watch::Sender::new(State::Flying));
        let one = Arc::new(One { read, seat: Mutex::new(seat), state });
        now.insert(id, Arc::clone(&one));
        let (cache, record, state) = (Arc::clone(self), Arc::clone(record), one.state.subscribe());
        tokio::spawn(named("arriving", async move { cache.keep(id, &record, &one).await }));
        state
    }

    async fn keep(self: Arc<Self>, id: Digest, record: &Arc<SourceRecord>, one: &Arc<One>) {
        let wish = match elsewhere(record, self.endpoints()).map_or_else(|| wish_of(record), Err) {
            Ok(wish) => wish,
            Err(failure) => {
                one.state.send_replace(State::Lost(failure.message));
                lock(&self.coming.now).remove(&id);
                return;
            }
        };
        let key = self.record_id(&wish.source, &wish.selection);
        let mut pause = PAUSE_FIRST;
        loop {
            if self.is_here(record).await {
                one.state.send_replace(State::Here);
                break;
            }
            if self.stopping.load(Relaxed) {
                break;
            }
            let _marked = self.residency.moving(&key);
            let left_here = lock(&one.seat).take();
            let seat = left_here.unwrap_or_else(|| self.board(&wish, &key).0);
            one.state.send_replace(State::Flying);
            let landing = tokio::select! {
                landing = seat.landed() => landing,
                () = self.unread(&id, one) => {
                    if self.rest(&id, one) { return }
                    continue;
                }
            };
            match landing.result {
                Ok(_) if self.is_here(record).await => {
                    one.state.send_replace(State::Here);
                    break;
                }
                Ok(_) => {
                    one.state.send_replace(State::Lost(format!("`{}` has changed at its origin", record.source)));
                    break;
                }
                Err(failure) if !landing.unanswered && failure.exit == Exit::NotFound => {
                    one.state.send_replace(State::Lost(failure.message));
                    break;
                }
                Err(_) if self.stopping.load(Relaxed) => break,
                Err(failure) => {
                    tracing::warn!(source = %record.source, error = %failure.message, "readers wait for a model, and its pull failed: it is tried again");
                    one.state.send_replace(State::Waiting(failure.message));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.unread(&id, one) => if self.rest(&id, one) { return },
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
        if let Err(failure) = self.hand_over(id, key).await {
            tracing::warn!(source = %record.source, error = %failure.message, "leases of a model that has arrived stay with its listing");
        }
        lock(&self.coming.now).remove(&id);
    }

    /// Leases of the listing become leases of the model too.
    async fn hand_over(self: &Arc<Self>, listing: Digest, key: String) -> Result<(), Failure> {
        let cache = Arc::clone(self);
        let waiting = blocking(move || {
            let residency = &cache.residency;
            let Some(resident) = residency.resident(&key)? else { return Ok(None) };
            if resident.listing != listing {
                return Ok(None);
            }
            let book = residency.book();
            let waiting = book.leases().filter(|(_, lease)| lease.digest == listing);
            let waiting: Vec<(String, Lease)> = waiting.map(|(id, lease)| (id.clone(), lease.clone())).collect();
            Ok(Some((resident, waiting)))
        });
        let Some((resident, waiting)) = waiting.await? else { return Ok(()) };
        let lives = self.residency.lives(waiting.iter().map(|(_, lease)| lease.owner.clone())).await;
        let is_left = |lease: &Lease| lease.seen && lives.get(&lease.owner) == Some(&Life::Gone);
        let left = waiting.iter().filter(|(_, lease)| is_left(lease)).map(|(id, _)| id.clone()).collect();
        let cache = Arc::clone(self);
        blocking(move || {
            let residency = &cache.residency;
            let leased = residency.book().lease_also(&residency.store, &left, &listing, resident.digest);
            leased.map_err(|refused| Failure::new(Exit::Busy, refused.to_string()))
        })
        .await
    }

    /// Waits until nobody has read, or leased, the listing for a while.
    async fn unread(&self, id: &Digest, one: &One) {
        loop {
            let left = LINGER.saturating_sub(lock(&one.read).elapsed());
            if left.is_zero() {
                let (residency, id) = (Arc::clone(&self.residency), *id);
                if blocking(move || Ok(!residency.book().is_used(&id))).await.unwrap_or(false) {
                    return;
                }
            }
            tokio::time::sleep(left.max(Duration::from_secs(1))).await;
        }
    }

    /// Lets the listing rest, unless somebody has just come to read it.
    fn rest(&self, id: &Digest, one: &One) -> bool {
        let mut now = lock(&self.coming.now);
        let is_unread = lock(&one.read).elapsed() >= LINGER;
        if is_unread {
            now.remove(id);
        }
        is_unread
    }

    async fn is_here(self: &Arc<Self>, record: &Arc<SourceRecord>) -> bool {
        let (cache, record) = (Arc::clone(self), Arc::clone(record));
        let all = move || Ok(record.files.iter().all(|file| cache.store().known(&record.object(file)).is_some()));
        blocking(all).await.unwrap_or(false)
    }

    /// Reads bytes of a file of a listing, all of them, and waits until `deadline` for those that
    /// are missing. What lies beyond the end of the file is not asked for.
    ///
    /// # Errors
    /// Every [`ReadError`].
    pub async fn read_arriving(
        self: &Arc<Self>,
        listing: Digest,
        record: &Arc<SourceRecord>,
        file: &ObjectId,
        offset: u64,
        len: usize,
        deadline: Instant,
    ) -> Result<Vec<u8>, ReadError> {
        let arrival = self.engine.arrivals().of(file);
        let mut news = arrival.news();
        let mut waiting = None;
        loop {
            news.mark_unchanged();
            if arrival.is_taken_back() {
                return Err(ReadError::Lost("what had arrived was wrong, and is fetched again".into()));
            }
            let (cache, looked, id) = (Arc::clone(self), Arc::clone(&arrival), file.clone());
            let read = tokio::task::spawn_blocking(move || {
                let mut buffer = vec![0; len];
                if let Some(known) = cache.store().known(&id) {
                    let bytes = cache.store().view().open_blob(&known.digest, id.size)?;
                    match bytes.read_exact_at(&mut buffer, offset) {
                        Ok(()) => return Ok(Some(buffer)),
                        // It comes again, and then these bytes too.
                        Err(error) if cache.read_failed(&known.digest, &error) => {}
                        Err(source) => {
                            let path = std::path::PathBuf::from(known.digest.to_string());
                            return Err(store::Error::Io { action: "read", path, source });
                        }
                    }
                }
                Ok::<_, store::Error>(looked.read(cache.store(), offset, &mut buffer)?.then_some(buffer))
            });
            match read.await {
                Ok(Ok(Some(bytes))) => return Ok(bytes),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(panic) => return Err(ReadError::Lost(panic.to_string())),
            }
            let Some((want, coming)) = &mut waiting else {
                let want = arrival.want(offset..offset + len as u64);
                let mut coming = self.coming(listing, record, None);
                coming.mark_unchanged();
                waiting = Some((want, coming));
                // The bytes may have come between the look and the wish.
                continue;
            };
            let state = coming.borrow().clone();
            if let State::Lost(why) = state {
                return Err(ReadError::Lost(why));
            }
            tokio::select! {
                () = want.arrived() => {}
                changed = news.changed() => if changed.is_err() { return Err(ReadError::Lost("its transfer is gone".into())) },
                changed = coming.changed() => if changed.is_err() {
                    waiting = None;
                    // While the daemon stops, nobody brings anything: the next one is asked again.
                    tokio::time::sleep(LOOK_AGAIN).await;
                },
                () = tokio::time::sleep_until(deadline.into()) => {
                    return Err(ReadError::TooLate(match state {
                        State::Waiting(why) => why,
                        _ => "the origin is slow".into(),
                    }));
                }
            }
        }
    }
}

fn wish_of(record: &SourceRecord) -> Result<Wish, Failure> {
    let source = Source::parse(&record.source)?;
    let selection = Selection::new(&record.include, &record.exclude)?;
    Ok(Wish::new(source, selection, true, LeaseWish::None))
}
