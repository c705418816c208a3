//! Having a model: from what is here, from a pull that is on its way, or from a pull of its own.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::book::Refused;
use super::ending::Connected;
use super::event::{Event, Ready};
use super::flight::{Flight, Landing, Seat};
use super::owner::{Life, Owner};
use super::residency::Resident;
use super::{ARRIVING, Cache, blocking};
use crate::domain::Source;
use crate::fetch::{self, Outcome, Pull, Selection};
use crate::remote::{self, Keys};
use crate::report::{Exit, Failure, named, text};
use crate::store::SourceRecord;
use crate::telemetry;

/// A caller hears something this often, unless it asks for another rhythm.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);
/// How long the origin may take to list a model that is here, before what is here is given out.
const ORIGIN_PATIENCE: Duration = Duration::from_secs(3);
/// How often a caller looks whether the origin has gone, while a copy could stand in.
const ORIGIN_LOOK: Duration = Duration::from_secs(1);
/// A model may be evicted between its pull and its lease; so often is believable.
const ROUNDS_MAX: u32 = 4;
/// Sources whose last answer is remembered.
const ANSWERS_MAX: usize = 10_000;
/// Characters of why an origin gave no answer: an origin writes them.
const WHY_LEN_MAX: usize = 500;

/// What somebody asks for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The source.
    pub source: Source,
    /// Which of its files.
    pub selection: Selection,
    /// Rather fail than give out a copy that the origin could not be asked about.
    pub fresh: bool,
    /// Do not wait for the bytes: where there is a mount, the model may be read as soon as its
    /// files are known.
    pub lazy: bool,
    /// Credentials of whoever asks, in place of the daemon's. Bytes are shared, permission is not:
    /// what is here is given out only after the origin has said yes to these.
    pub keys: Option<Keys>,
    /// Who will use it.
    pub lease: LeaseWish,
    /// How often to say how far it is.
    pub progress_every: Duration,
    /// What is waited for meanwhile, for whoever looks.
    pub waits: Waits,
}

/// What somebody who asks for a model waits for at the moment, where that is not its origin. Clones
/// show the same.
#[derive(Debug, Clone, Default)]
pub struct Waits(Arc<Mutex<&'static str>>);

impl Waits {
    /// In words; empty for its origin.
    #[must_use]
    pub fn now(&self) -> &'static str {
        *super::lock(&self.0)
    }

    async fn on<T>(&self, what: &'static str, wait: impl Future<Output = T>) -> T {
        *super::lock(&self.0) = what;
        let come = wait.await;
        *super::lock(&self.0) = "";
        come
    }
}

const DISK: &str = "the disk of this node";
const MOUNT: &str = "larder's mount on this node";
const KEEPER: &str = "larder-keeper to say whether the pod is there";

/// Who will use a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseWish {
    /// Nobody we know of: it may be evicted at once.
    None,
    /// Whoever holds what [`Cache::ensure`] returns.
    Caller,
    /// An owner of its own.
    Owner(Owner),
}

impl Wish {
    /// A wish with progress in the usual rhythm.
    #[must_use]
    pub fn new(source: Source, selection: Selection, fresh: bool, lease: LeaseWish) -> Self {
        let (progress_every, waits) = (PROGRESS_INTERVAL, Waits::default());
        Self { source, selection, fresh, lazy: false, keys: None, lease, progress_every, waits }
    }

    /// Which flights and answers serve it: those of the same record, asked for by the same person.
    fn flight_key(&self, record_id: &str) -> String {
        let fingerprint = self.keys.as_ref().map(|keys| format!(" {}", keys.fingerprint()));
        record_id.to_owned() + &fingerprint.unwrap_or_default()
    }
}

/// A model, and the lease that ends with this value where the caller is its owner.
#[derive(Debug)]
pub struct Granted {
    /// The model.
    pub ready: Ready,
    _caller: Option<Connected>,
}

/// Who a lease will be for.
struct For {
    owner: Owner,
    /// Whether it is seen.
    seen: bool,
    /// Where it is the caller: until its end.
    caller: Option<Connected>,
}

impl For {
    fn split(self) -> ((Owner, bool), Option<Connected>) {
        ((self.owner, self.seen), self.caller)
    }
}

/// When origins were last asked, and whether they answered.
#[derive(Debug, Default)]
pub(super) struct Answers {
    last: Mutex<HashMap<String, (Instant, Answer)>>,
}

#[derive(Debug, Clone)]
enum Answer {
    Given,
    /// Why not.
    Missing(String),
}

impl Answers {
    fn note(&self, key: &str, answer: Answer) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() >= ANSWERS_MAX {
            last.clear();
        }
        let answer = match answer {
            Answer::Missing(why) => Answer::Missing(why.chars().take(WHY_LEN_MAX).collect()),
            given @ Answer::Given => given,
        };
        last.insert(key.to_owned(), (Instant::now(), answer));
    }

    fn within(&self, key: &str, window: Duration) -> Option<Answer> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.get(key).filter(|(at, _)| at.elapsed() < window).map(|(_, answer)| answer.clone())
    }
}

/// How one wait for a flight ended.
enum Wait {
    Landed(Landing),
    /// What the model is, is known, and some of it is missing.
    Listed(Arc<SourceRecord>),
    /// The origin takes too long to say what the model is now, or to bring it: why.
    OutOfPatience(String),
}

impl Cache {
    /// Brings a model here, or finds it, and takes its lease. `tell` hears progress and warnings.
    ///
    /// # Errors
    /// In words for the caller, with an exit code.
    pub async fn ensure(
        self: &Arc<Self>,
        wish: &Wish,
        tell: &mut (dyn FnMut(Event) + Send),
    ) -> Result<Granted, Failure> {
        let started = Instant::now();
        let result = self.ensure_within(wish, tell, started).await;
        let outcome = match &result {
            Ok((_, outcome)) => *outcome,
            Err(_) => telemetry::Outcome::Error,
        };
        self.metrics.ensured(outcome, started.elapsed());
        result.map(|(granted, _)| granted)
    }

    async fn ensure_within(
        self: &Arc<Self>,
        wish: &Wish,
        tell: &mut (dyn FnMut(Event) + Send),
        started: Instant,
    ) -> Result<(Granted, telemetry::Outcome), Failure> {
        wish.waits.on(MOUNT, self.mounted()).await?;
        let id = self.record_id(&wish.source, &wish.selection);
        let key = wish.flight_key(&id);
        let _marked = self.residency.moving(&id);
        for _ in 0..ROUNDS_MAX {
            if self.stopping.load(Relaxed) {
                return Err(fetch::Error::Interrupted.into());
            }
            // Before the look: an answer that comes between the two may have brought another model.
            let answer = self.answers.within(&key, self.recheck);
            let (here, pinned) = wish.waits.on(DISK, self.find(&id)).await?;
            let unwritable = self.store().unwritable();
            if let (Some(why), Some(resident), false) = (&unwritable, &here, wish.fresh || wish.keys.is_some()) {
                // What its origin has by now could not be kept.
                let message =
                    format!("`{}` is given as it is here: nothing newer can be kept, because {why}", wish.source);
                tell(Event::Warning { message });
                if let Some(granted) = self.grant(wish, resident, None, started, tell).await? {
                    return Ok((granted, telemetry::Outcome::Stale));
                }
            }
            // Where the origin does not answer, nobody knows what somebody's own credentials are good for.
            let stand_in = here.as_ref().filter(|_| !wish.fresh && wish.keys.is_none());
            if let Some(resident) = here.as_ref().filter(|_| !wish.fresh) {
                let pinned = pinned && wish.keys.is_none();
                match answer {
                    Some(Answer::Missing(_)) if stand_in.is_none() => {}
                    Some(Answer::Missing(why)) if !pinned => {
                        warn(tell, &wish.source, &why);
                        if let Some(granted) = self.grant(wish, resident, None, started, tell).await? {
                            return Ok((granted, telemetry::Outcome::Stale));
                        }
                    }
                    answer if pinned || answer.is_some() => {
                        if let Some(granted) = self.grant(wish, resident, None, started, tell).await? {
                            return Ok((granted, telemetry::Outcome::Hit));
                        }
                    }
                    _ => {}
                }
            }
            let (seat, joined) = self.board(wish, &key);
            let lazy = wish.lazy && self.mount().is_some() && self.has_room_to_come();
            let (why, failure) = match Self::wait(&seat, wish, lazy, stand_in.is_some(), tell).await {
                Wait::Landed(Landing { result: Ok(outcome), .. }) => {
                    // Evicted since, if it is not here: the next round pulls it again.
                    let (Some(resident), _) = wish.waits.on(DISK, self.find(&id)).await? else { continue };
                    let flown = Flown { outcome: &outcome, flight: seat.flight() };
                    let Some(granted) = self.grant(wish, &resident, Some(flown), started, tell).await? else {
                        continue;
                    };
                    let label = match (outcome.bytes_moved, joined) {
                        (0, _) => telemetry::Outcome::Hit,
                        (_, true) => telemetry::Outcome::Join,
                        (_, false) => telemetry::Outcome::Pull,
                    };
                    return Ok((granted, label));
                }
                Wait::Listed(record) => {
                    let granted = self.grant_arriving(wish, record, seat, started, tell).await?;
                    return Ok((granted, telemetry::Outcome::Lazy));
                }
                Wait::Landed(Landing { result: Err(failure), unanswered: true }) => (failure.message.clone(), failure),
                Wait::Landed(Landing { result: Err(failure), .. }) => return Err(self.with_damage(&id, failure).await),
                Wait::OutOfPatience(why) => {
                    // The flight goes on, or a slow origin's news would never arrive.
                    tokio::spawn(async move { seat.landed().await });
                    (why.clone(), Failure::new(Exit::Origin, why))
                }
            };
            self.answers.note(&key, Answer::Missing(why.clone()));
            let Some(resident) = stand_in else {
                let failure = if here.is_none() { self.with_damage(&id, failure).await } else { failure };
                return Err(not_fresh(failure, wish.fresh && here.is_some()));
            };
            warn(tell, &wish.source, &why);
            if let Some(granted) = self.grant(wish, resident, None, started, tell).await? {
                return Ok((granted, telemetry::Outcome::Stale));
            }
        }
        Err(Failure::hinted(
            Exit::Disk,
            format!("`{}` was evicted each time before it could be used", wish.source),
            "the models in use need more room than the store has: `larder status` shows them",
        ))
    }

    /// The complete model of a source, and whether it is pinned.
    async fn find(self: &Arc<Self>, key: &str) -> Result<(Option<Arc<Resident>>, bool), Failure> {
        let (cache, key) = (Arc::clone(self), key.to_owned());
        let find = move || {
            let resident = cache.residency.resident(&key)?;
            // Whoever writes down a lease has this lock while it waits for the disk.
            let book = cache.residency.book();
            let is_pinned = |resident: &Arc<Resident>| book.is_pinned(&resident.digest.to_string());
            let pinned = book.is_pinned(&key) || resident.as_ref().is_some_and(is_pinned);
            drop(book);
            Ok((resident, pinned))
        };
        blocking(find).await
    }

    /// Why a model that is here does not stand in, where that is because it is damaged.
    async fn with_damage(self: &Arc<Self>, key: &str, failure: Failure) -> Failure {
        let (cache, key) = (Arc::clone(self), key.to_owned());
        let named = blocking(move || {
            let view = cache.store().view();
            let Some(digest) = view.source(&key)?.and_then(|record| record.manifest) else { return Ok(None) };
            let manifest = view.manifest(&digest)?;
            let lacking: Vec<&str> = view.lacking(&manifest, &digest).map(|file| file.path.as_str()).collect();
            Ok((!lacking.is_empty()).then(|| text::some(&lacking)))
        });
        match named.await {
            Ok(Some(files)) => {
                let message =
                    format!("{}; the copy that is here is damaged: {files} is wrong or missing", failure.message);
                Failure { message, ..failure }
            }
            _ => failure,
        }
    }

    /// Waits for a flight and tells how far it is. Where a copy could stand in, the origin must say
    /// in time what the model is now; the transfer itself may take as long as it takes, but not as
    /// long as the origin may be away.
    async fn wait(seat: &Seat, wish: &Wish, lazy: bool, stand_in: bool, tell: &mut (dyn FnMut(Event) + Send)) -> Wait {
        let (landed, listed) = (seat.landed(), seat.listed());
        tokio::pin!(landed, listed);
        let mut patience = stand_in.then(|| Box::pin(tokio::time::sleep(ORIGIN_PATIENCE)));
        let mut tick = tokio::time::interval(wish.progress_every);
        // Said at once only where there is something to wait for.
        tick.tick().await;
        loop {
            tokio::select! {
                biased;
                landing = &mut landed => return Wait::Landed(landing),
                record = &mut listed, if lazy => return Wait::Listed(record),
                () = async { if let Some(patience) = &mut patience { patience.await } else { std::future::pending().await } } => {
                    let progress = &seat.flight().progress;
                    if progress.files_total.load(Relaxed) == 0 {
                        return Wait::OutOfPatience(format!("no listing within {} s", ORIGIN_PATIENCE.as_secs()));
                    }
                    match progress.waiting() {
                        Some(waiting) if waiting.since.elapsed() >= ORIGIN_PATIENCE => {
                            return Wait::OutOfPatience(waiting.why);
                        }
                        _ => patience = Some(Box::pin(tokio::time::sleep(ORIGIN_LOOK))),
                    }
                }
                _ = tick.tick() => tell(Event::Progress(seat.flight().moving())),
            }
        }
    }

    /// Takes the lease and says what there is. `None` where the model is being evicted.
    async fn grant(
        self: &Arc<Self>,
        wish: &Wish,
        resident: &Arc<Resident>,
        flown: Option<Flown<'_>>,
        started: Instant,
        tell: &mut (dyn FnMut(Event) + Send),
    ) -> Result<Option<Granted>, Failure> {
        let owner = wish.waits.on(KEEPER, self.owner_of(wish, tell)).await?;
        let (cache, taken) = (Arc::clone(self), Arc::clone(resident));
        let take = blocking(move || {
            let residency = &cache.residency;
            let (owner, caller) = owner.map(For::split).unzip();
            let lease = {
                let mut book = residency.book();
                let lease = |(owner, seen)| book.lease(&residency.store, seen, owner, taken.digest);
                // Under the book's lock: it may have been evicted since it was found, or found damaged.
                if residency.is_still(&taken) { owner.map(lease).transpose() } else { Err(Refused::Leaving) }
            };
            if lease.is_ok() {
                residency.store.view().touch_id(&taken.record_id);
            }
            // The caller may have gone by now: then this is dropped, and with it the lease.
            Ok(lease.map(|id| (id, caller.flatten())))
        });
        let (id, caller) = match wish.waits.on(DISK, take).await? {
            Ok(lease) => lease,
            Err(Refused::Leaving) => return Ok(None),
            Err(Refused::TooMany) => {
                return Err(Failure::hinted(
                    Exit::Busy,
                    format!("no lease on `{}`: {}", wish.source, Refused::TooMany),
                    "`larder status` shows who holds them",
                ));
            }
        };
        let mut ready = ready(wish, resident, self.mount(), started);
        if let Some(Flown { outcome, flight }) = flown {
            let named = |map: &std::collections::BTreeMap<&'static str, usize>| {
                map.iter().map(|(name, count)| ((*name).to_owned(), *count as u64)).collect()
            };
            ready.bytes_moved = outcome.bytes_moved;
            ready.bytes_here = outcome.bytes_total.saturating_sub(outcome.bytes_moved);
            ready.verified = named(&outcome.verified);
            ready.equal_by = named(&outcome.equal_by);
            let moving = flight.moving();
            ready.retries = moving.retries;
            ready.throttled = moving.throttled;
            ready.stalls = moving.stalls;
            ready.mismatches = moving.mismatches;
        }
        self.metrics.served_from_cache(ready.bytes_here);
        ready.lease = id;
        Ok(Some(Granted { ready, _caller: caller }))
    }

    /// Who the lease will be for, and whether they are seen.
    async fn owner_of(
        self: &Arc<Self>,
        wish: &Wish,
        tell: &mut (dyn FnMut(Event) + Send),
    ) -> Result<Option<For>, Failure> {
        let owner = match &wish.lease {
            LeaseWish::None => return Ok(None),
            LeaseWish::Caller => {
                let caller = self.next_connection();
                return Ok(Some(For { owner: caller.owner(), seen: true, caller: Some(caller) }));
            }
            LeaseWish::Owner(owner) => owner.clone(),
        };
        let seen = self.residency.life(&owner).await == Life::Alive;
        if let Some(uid) = owner.pod().filter(|_| !seen) {
            let pods = &self.residency.pods;
            let message =
                format!("no pod `{uid}` is there {pods}, so its lease cannot end with it and is kept for a day");
            tell(Event::Warning { message });
        }
        Ok(Some(For { owner, seen, caller: None }))
    }

    /// Lets a reader in before the bytes are here: a lease of the listing, which keeps them coming.
    async fn grant_arriving(
        self: &Arc<Self>,
        wish: &Wish,
        record: Arc<SourceRecord>,
        seat: Seat,
        started: Instant,
        tell: &mut (dyn FnMut(Event) + Send),
    ) -> Result<Granted, Failure> {
        let owner = wish.waits.on(KEEPER, self.owner_of(wish, tell)).await?;
        let (cache, kept) = (Arc::clone(self), Arc::clone(&record));
        let take = blocking(move || {
            let residency = &cache.residency;
            // The caller's end takes the lock of the book, and so is no part of what is under it.
            let (owner, caller) = owner.map(For::split).unzip();
            let mut book = residency.book();
            // Under the lock: without a lease of it, housekeeping forgets it.
            let listing = residency.store.keep_listing(&kept)?;
            let lease = owner.map(|(owner, seen)| book.lease(&residency.store, seen, owner, listing));
            drop(book);
            let id = lease.transpose().map_err(|refused| Failure::new(Exit::Busy, refused.to_string()))?;
            Ok((listing, (id, caller.flatten())))
        });
        let (listing, (id, caller)) = wish.waits.on(DISK, take).await?;
        let moving = seat.flight().moving();
        // The flight goes on for as long as the lease does.
        self.keep_coming(&record, Some(seat));
        let mut ready = Ready {
            source: wish.source.to_string(),
            digest: listing.to_string(),
            arriving: true,
            files: record.files.len() as u64,
            bytes_total: record.size(),
            bytes_here: moving.bytes_done,
            seconds: started.elapsed().as_secs_f64(),
            lease: id,
            ..Ready::default()
        };
        if let Some(mount) = self.mount() {
            ready.path = mount.join(ARRIVING).join(&ready.digest).display().to_string();
            ready.root = mount.display().to_string();
        }
        Ok(Granted { ready, _caller: caller })
    }

    pub(super) fn board(self: &Arc<Self>, wish: &Wish, key: &str) -> (Seat, bool) {
        self.board.board(key, &wish.source.to_string(), |flight| {
            let (cache, wish, key) = (Arc::clone(self), wish.clone(), key.to_owned());
            self.spawn_pull(async move { cache.fly(wish, key, flight).await });
        })
    }

    async fn fly(self: Arc<Self>, wish: Wish, key: String, flight: Arc<Flight>) {
        let id = self.record_id(&wish.source, &wish.selection);
        // In a task of its own, because those who wait must hear of a panic too.
        let pull = {
            let (cache, flight, id) = (Arc::clone(&self), Arc::clone(&flight), id.clone());
            tokio::spawn(named("pull", async move { cache.pull(&wish, &id, &flight).await }))
        };
        let abort = pull.abort_handle();
        let measured = flight.measure(|bytes| self.metrics.origin_bytes(bytes));
        let result = tokio::select! {
            result = pull => result.unwrap_or_else(|panic| Err(fetch::Error::Defect(panic.to_string()))),
            () = measured => { abort.abort(); Err(fetch::Error::Defect("the measuring of a pull ended".into())) }
        };
        self.count(&flight, result.is_ok());
        self.residency.forget_known_of(&id);
        let landing = match result {
            Ok(outcome) => {
                self.answers.note(&key, Answer::Given);
                Landing { result: Ok(Arc::new(outcome)), unanswered: false }
            }
            Err(error) => {
                let unanswered = is_unanswered(&error);
                Landing { result: Err(error.into()), unanswered }
            }
        };
        self.board.land(&key, &flight, landing);
    }

    async fn pull(&self, wish: &Wish, id: &str, flight: &Arc<Flight>) -> Result<Outcome, fetch::Error> {
        self.store().check_writable()?;
        if self.residency.store.has_unproven()
            && let Some(record) = self.residency.store.view().source(id)?
            && self.residency.store.is_unproven(&record)
        {
            // Its bytes may be here: hashing them costs less than fetching them again.
            flight.cancel.guard(self.proven()).await?;
        }
        let remote = flight.cancel.guard(self.origins.open(&wish.source, wish.keys.as_ref())).await??;
        let pull = Pull {
            engine: Arc::clone(&self.engine),
            remote,
            source: wish.source.clone(),
            selection: wish.selection.clone(),
            progress: Arc::clone(&flight.progress),
            cancel: flight.cancel.clone(),
            listed: flight.listed.clone(),
        };
        pull.run().await
    }

    fn count(&self, flight: &Flight, done: bool) {
        use crate::telemetry::{Cause, Where};
        self.metrics.origin_bytes(flight.untold());
        let moving = flight.moving();
        let other = moving.retries.saturating_sub(moving.throttled).saturating_sub(moving.stalls);
        for (cause, count) in [
            (Cause::Throttled, moving.throttled),
            (Cause::Stalled, moving.stalls),
            (Cause::Mismatch, moving.mismatches),
            (Cause::Other, other),
        ] {
            self.metrics.retried(cause, u64::from(count));
        }
        (0..moving.mismatches).for_each(|_| self.metrics.verification_failure(Where::Transfer));
        if done && moving.bytes_moved > 0 {
            self.metrics.pulled(flight.started.elapsed());
        }
    }
}

/// What a flight brought, for whoever was on it.
struct Flown<'a> {
    outcome: &'a Outcome,
    flight: &'a Flight,
}

fn ready(wish: &Wish, resident: &Resident, mount: Option<&std::path::Path>, started: Instant) -> Ready {
    let absolute = |path: &std::path::Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let tree = mount.map_or_else(|| absolute(&resident.tree), |mount| mount.join(resident.digest.to_string()));
    Ready {
        source: wish.source.to_string(),
        digest: resident.digest.to_string(),
        root: tree.parent().unwrap_or(&tree).display().to_string(),
        path: tree.display().to_string(),
        files: resident.files,
        bytes_total: resident.bytes,
        bytes_here: resident.bytes,
        seconds: started.elapsed().as_secs_f64(),
        ..Ready::default()
    }
}

fn warn(tell: &mut (dyn FnMut(Event) + Send), source: &Source, why: &str) {
    let message =
        format!("`{source}` is given as it was when its origin last answered, because now it does not: {why}");
    tracing::warn!("{message}");
    tell(Event::Warning { message });
}

fn not_fresh(failure: Failure, is_here: bool) -> Failure {
    if !is_here {
        return failure;
    }
    let hint = "a complete copy is here: without `fresh` it is given out, with a warning".to_owned();
    Failure { hint: Some(hint), ..failure }
}

/// Whether the origin could not be asked, which says nothing about the model. A refusal and "not
/// found" are answers.
const fn is_unanswered(error: &fetch::Error) -> bool {
    use crate::fetch::Error as E;
    matches!(
        error,
        E::GaveUp { .. }
            | E::Remote(
                remote::Error::Unavailable { .. }
                    | remote::Error::Throttled { .. }
                    | remote::Error::BadAnswer { .. }
                    | remote::Error::Credentials { .. }
            )
    )
}
