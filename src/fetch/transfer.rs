//! Moves the missing files of one listing: the coordinator of all connections.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::Error;
use super::arrivals::Arrivals;
use super::check::Check;
use super::concurrency::{Concurrency, Sample};
use super::engine::Engine;
use super::flights::{Claim, Flights, Waiter};
use super::known::{self, Have, Wanted};
use super::queue::{FileIndex, Queue, Urged, Work};
use super::room::Reservation;
use super::sink::{FileSink, PartSink};
use super::span::Span;
use super::worker::{Lane, Wire};
use crate::domain::{Checksum, ChunkIndex, Grid, INDEX_FILE_NAMES, ModelPath, Object, load_order};
use crate::remote;
use crate::store::{Hold, ObjectId, Store, WriteBack};

/// Files up to one chunk are fetched whole, in memory, and never have a partial.
const SMALL_LEN_MAX: u64 = 1 << 20;
/// Full transfers of one file before its checksum is believed to be wrong for good.
const TRANSFERS_MAX: u32 = 3;
/// How often goodput is measured.
const TICK: Duration = Duration::from_millis(250);
/// Work beyond the limit on connections that readers wait for.
const URGENT_MAX: u32 = 8;
/// A reader waits for a part that is no further than this from what it wants. Bytes.
const FAR: u64 = 8 << 20;
/// What one small file counts for in goodput: there the request is the work, not the bytes.
const SMALL_FILE_WORTH: f64 = 256.0 * 1024.0;
/// An index of shards larger than this is not read for its order.
pub const INDEX_LEN_MAX: u64 = 64 << 20;

/// What the tasks need; cheap to clone.
#[derive(Debug, Clone)]
pub struct Tools {
    pub wire: Arc<Wire>,
    pub store: Arc<Store>,
    pub write_back: Arc<WriteBack>,
    pub hold: Arc<Hold>,
    /// Room for what is missing, once that is known.
    pub reserved: Option<Arc<Reservation>>,
    flights: Arc<Flights>,
    arrivals: Arc<Arrivals>,
}

impl Tools {
    pub fn new(wire: Arc<Wire>, engine: &Engine) -> Self {
        let store = Arc::clone(engine.store());
        Self {
            wire,
            hold: Arc::new(store.hold()),
            store,
            write_back: Arc::clone(&engine.write_back),
            reserved: None,
            flights: Arc::clone(&engine.flights),
            arrivals: Arc::clone(engine.arrivals()),
        }
    }

    /// The file system counts this object's bytes from now on.
    fn taken(&self, id: &ObjectId) {
        if let Some(reserved) = &self.reserved {
            reserved.taken(id);
        }
    }
}

/// How a file's bytes compare with the origin's checksum.
enum Verdict {
    /// Sealed.
    Right(Have),
    /// Not what the origin says: `got` instead.
    Wrong { object: Object, expected: Checksum, got: Checksum },
}

/// What a task reports when it ends.
enum Done {
    Small(FileIndex, Result<Small, Error>),
    Opened(FileIndex, Result<Opened, Error>),
    Part(FileIndex, Arc<Span>, Result<Option<Verdict>, Error>),
    /// The transfer of another pull has ended.
    Released(FileIndex, Result<(), Error>),
}

enum Small {
    Moved(Verdict),
    /// It came by another pull meanwhile.
    Here(Have),
    /// Another pull moves it now.
    Elsewhere(Waiter),
}

enum Opened {
    /// Another pull moves it now.
    Elsewhere(Waiter),
    /// It is here after all: proven equal to a blob by the checksums that came with opening, or
    /// sealed by a process that died before saying so.
    Equal(Have),
    /// Every chunk was there already.
    Complete(Verdict),
    /// Chunks are missing.
    Filling(Arc<FileSink>, Object),
}

/// One transfer of a listing's missing files.
pub struct Transfer<'a> {
    tools: Tools,
    files: &'a mut Vec<Wanted>,
    sinks: Vec<Option<Arc<FileSink>>>,
    transfers: Vec<u32>,
    changed: Vec<FileIndex>,
    queue: Queue,
    /// Parts on their way.
    parts: Vec<(FileIndex, Arc<Span>)>,
    /// Where each missing file is in the list, once somebody waits for one.
    at_of: OnceCell<HashMap<ObjectId, FileIndex>>,
    tasks: JoinSet<Done>,
    /// Tasks that do more than wait for another pull.
    working: u32,
    failure: Option<Error>,
    seed: u64,
}

impl<'a> Transfer<'a> {
    pub fn new(tools: Tools, files: &'a mut Vec<Wanted>) -> Self {
        let mut queue = Queue::default();
        for (at, file) in files.iter().enumerate().filter(|(_, file)| file.have.is_none()) {
            if file.object.size <= SMALL_LEN_MAX { queue.add_small(at) } else { queue.add_large(at, file.object.size) }
        }
        let (sinks, transfers) = (files.iter().map(|_| None).collect(), vec![0; files.len()]);
        let seed = u64::from(std::process::id());
        Self {
            tools,
            files,
            sinks,
            transfers,
            changed: Vec::new(),
            queue,
            parts: Vec::new(),
            at_of: OnceCell::new(),
            tasks: JoinSet::new(),
            working: 0,
            failure: None,
            seed,
        }
    }

    /// Runs to the end. Positions of files that changed at the origin meanwhile come back; all
    /// others have their digest then.
    pub async fn run(mut self) -> Result<Vec<FileIndex>, Error> {
        self.reorder(None);
        let progress = Arc::clone(&self.tools.wire.progress);
        let mut concurrency = Concurrency::default();
        let mut meter = Meter::new(&self.tools.wire);
        let mut tick = tokio::time::interval(TICK);
        let mut calls = self.tools.arrivals.calls();
        // Somebody may have waited before this began.
        calls.mark_changed();
        loop {
            progress.connections.store(concurrency.limit(), Relaxed);
            let starved = self.start(concurrency.limit());
            if self.tasks.is_empty() {
                break;
            }
            tokio::select! {
                done = self.tasks.join_next() => match done {
                    Some(Ok(done)) => self.settle(done).await,
                    Some(Err(panic)) => self.fail(Error::Defect(panic.to_string())),
                    None => break,
                },
                Ok(()) = calls.changed() => self.urge(),
                _ = tick.tick() => concurrency.learn(meter.sample(&self.tools.wire, !starved)),
            }
        }
        match self.failure {
            Some(error) => Err(error),
            None => Ok(self.changed),
        }
    }

    /// Starts work up to the limit, and beyond it what a reader waits for; true when there was not
    /// enough of it.
    fn start(&mut self, limit: u32) -> bool {
        while self.failure.is_none() && self.working < limit + URGENT_MAX {
            let Some(work) = self.queue.next_urgent() else { break };
            self.begin(work, Lane::Urgent);
        }
        while self.failure.is_none() && self.working < limit {
            let Some(work) = self.queue.next(limit) else { return true };
            self.begin(work, Lane::Usual);
        }
        false
    }

    fn begin(&mut self, work: Work, lane: Lane) {
        self.working += 1;
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let (tools, seed) = (self.tools.clone(), self.seed);
        match work {
            Work::Small(at) => {
                let (object, id) = (self.files[at].object.clone(), self.files[at].id.clone());
                self.tasks.spawn(async move { Done::Small(at, small(tools, object, id, seed, lane).await) });
            }
            Work::Open(at) => {
                let (object, id) = (self.files[at].object.clone(), self.files[at].id.clone());
                self.tasks.spawn(async move { Done::Opened(at, open(tools, object, id).await) });
            }
            Work::Part(at, chunks) => {
                let Some(sink) = self.sinks[at].clone() else {
                    self.working -= 1;
                    return;
                };
                let object = self.files[at].object.clone();
                let first = ChunkIndex(chunks.start);
                let span = Arc::new(Span::new(chunks));
                self.parts.push((at, Arc::clone(&span)));
                self.tasks.spawn(async move {
                    let result = part(tools, object, sink, first, Arc::clone(&span), seed, lane).await;
                    Done::Part(at, span, result)
                });
            }
        }
    }

    /// Looks at what readers wait for, and moves it to the head.
    fn urge(&mut self) {
        for (id, chunks) in self.tools.arrivals.wanted() {
            let all = || self.files.iter().enumerate().map(|(at, file)| (file.id.clone(), at)).collect();
            let Some(&at) = self.at_of.get_or_init(all).get(&id) else { continue };
            if self.files[at].have.is_some() {
                continue;
            }
            for chunk in chunks {
                if self.queue.urge(at, chunk.0) == Urged::Elsewhere {
                    self.cut(at, chunk);
                }
            }
        }
    }

    /// Takes a chunk away from the part that would bring it, where that is still far from it: a
    /// reader must not wait for a whole part.
    fn cut(&mut self, at: FileIndex, chunk: ChunkIndex) {
        let Some(grid) = self.sinks[at].as_ref().map(|sink| *sink.partial.grid()) else { return };
        let far = grid.chunks_in(FAR);
        let mut of_file = self.parts.iter().filter(|(file, _)| *file == at);
        if let Some(taken) = of_file.find_map(|(_, span)| span.cut(chunk, far)) {
            self.queue.give_back(at, grid, taken);
            self.queue.urge(at, chunk.0);
        }
    }

    async fn settle(&mut self, done: Done) {
        self.working -= u32::from(!matches!(done, Done::Released(..)));
        match done {
            Done::Small(at, result) => {
                self.queue.small_done();
                match result {
                    Ok(Small::Moved(verdict)) => self.judge(at, verdict).await,
                    Ok(Small::Here(have)) => self.found(at, have),
                    Ok(Small::Elsewhere(waiter)) => self.wait(at, waiter),
                    Err(error) => self.lose(at, error),
                }
            }
            Done::Opened(at, Ok(opened)) => {
                let grid = Grid::of_size(self.files[at].object.size);
                match opened {
                    Opened::Elsewhere(waiter) => {
                        self.queue.opened(at, grid, std::iter::empty());
                        self.wait(at, waiter);
                    }
                    Opened::Equal(have) => {
                        self.queue.opened(at, grid, std::iter::empty());
                        self.found(at, have);
                    }
                    Opened::Complete(verdict) => {
                        self.queue.opened(at, grid, std::iter::empty());
                        self.judge(at, verdict).await;
                    }
                    Opened::Filling(sink, object) => {
                        self.files[at].object = object;
                        self.queue.opened(at, grid, sink.partial.missing_runs().into_iter());
                        self.sinks[at] = Some(sink);
                        self.urge();
                    }
                }
            }
            Done::Opened(at, Err(error)) => {
                self.queue.opened(at, Grid::of_size(self.files[at].object.size), std::iter::empty());
                self.lose(at, error);
            }
            Done::Part(at, span, result) => {
                self.parts.retain(|(_, other)| !Arc::ptr_eq(other, &span));
                match result {
                    Ok(None) => {}
                    Ok(Some(verdict)) => self.judge(at, verdict).await,
                    Err(error) => self.lose(at, error),
                }
            }
            Done::Released(at, Err(error)) => self.lose(at, error),
            Done::Released(at, Ok(())) => match known::here(&self.tools.store, &self.tools.hold, &self.files[at].id) {
                Some(have) => self.found(at, have),
                // It failed there, or nobody waited for it there any more: it is ours to move.
                None => self.enqueue(at),
            },
        }
    }

    fn enqueue(&mut self, at: FileIndex) {
        let size = self.files[at].object.size;
        if size <= SMALL_LEN_MAX { self.queue.add_small(at) } else { self.queue.add_large(at, size) }
    }

    /// A file that is here without a transfer of ours.
    fn found(&mut self, at: FileIndex, have: Have) {
        self.tools.wire.progress.bytes_here.fetch_add(self.files[at].object.size, Relaxed);
        self.finish(at, have);
    }

    /// Waits for another pull, and shows its progress meanwhile.
    fn wait(&mut self, at: FileIndex, waiter: Waiter) {
        let (wire, id) = (Arc::clone(&self.tools.wire), self.files[at].id.clone());
        tracing::debug!(uri = %id.uri, "another pull moves this file");
        self.tasks.spawn(async move {
            let mut borrowed = None;
            loop {
                match tokio::time::timeout(TICK, wire.cancel.guard(waiter.ended())).await {
                    Ok(ended) => {
                        if let Some(file) = &borrowed {
                            wire.progress.give_back(file);
                        }
                        return Done::Released(at, ended);
                    }
                    Err(_) if borrowed.is_none() => {
                        borrowed = waiter.progress();
                        if let Some(file) = &borrowed {
                            wire.progress.borrow(file);
                        }
                    }
                    Err(_) => {}
                }
            }
        });
    }

    async fn judge(&mut self, at: FileIndex, verdict: Verdict) {
        match verdict {
            Verdict::Right(have) => self.finish(at, have),
            Verdict::Wrong { object, expected, got } => self.again(at, object, expected, got).await,
        }
    }

    /// A file whose bytes are wrong is fetched again, a bounded number of times.
    async fn again(&mut self, at: FileIndex, object: Object, expected: Checksum, got: Checksum) {
        let progress = Arc::clone(&self.tools.wire.progress);
        progress.mismatches.fetch_add(1, Relaxed);
        self.transfers[at] += 1;
        self.close(at);
        let is_md5 = matches!(expected, Checksum::Md5(_));
        if is_md5 && !known::md5_stands(&self.tools.wire, &object).await {
            // No MD5 after all: the next transfer is checked by our own digest alone.
            self.files[at].object.claims.checksums.retain(|sum| *sum != expected);
        } else if self.transfers[at] >= TRANSFERS_MAX {
            let uri = self.files[at].id.uri.to_string();
            let attempts = self.transfers[at];
            return self.fail(Error::Integrity { uri, expected: expected.to_string(), got: got.value(), attempts });
        }
        let size = self.files[at].object.size;
        tracing::warn!(uri = %self.files[at].id.uri, %expected, got = %got.value(), "the bytes do not match the origin's checksum: fetching again");
        progress.bytes_here.fetch_sub(size.min(progress.bytes_here.load(Relaxed)), Relaxed);
        self.enqueue(at);
    }

    fn finish(&mut self, at: FileIndex, have: Have) {
        self.close(at);
        self.tools.wire.progress.files_done.fetch_add(1, Relaxed);
        let is_index = INDEX_FILE_NAMES.contains(&self.files[at].object.path.as_str());
        let index = is_index.then(|| self.tools.store.view().read_small_blob(&have.digest, INDEX_LEN_MAX)).flatten();
        self.files[at].have = Some(have);
        self.tools.arrivals.tell(&self.files[at].id);
        if index.is_some() {
            self.reorder(index.as_deref());
        }
    }

    fn close(&mut self, at: FileIndex) {
        if let Some(sink) = self.sinks[at].take() {
            self.tools.write_back.forget(&sink.partial);
            self.tools.wire.progress.end(&sink.progress);
        }
    }

    /// A file that cannot be had: changed at the origin, which a new listing mends, or lost.
    fn lose(&mut self, at: FileIndex, error: Error) {
        let changed = matches!(error, Error::Remote(remote::Error::Changed { .. } | remote::Error::NotFound { .. }));
        if !changed {
            return self.fail(error);
        }
        self.queue.drop_file(at);
        // Nobody will ask for that version again.
        if let Some(Err(error)) = self.sinks[at].as_ref().map(|sink| sink.abandon()) {
            tracing::debug!(%error, "a partial of an old version stays until it expires");
        }
        self.close(at);
        if !self.changed.contains(&at) {
            self.changed.push(at);
        }
    }

    /// The first failure ends everything else; what has arrived is kept by the tasks themselves.
    fn fail(&mut self, error: Error) {
        if self.failure.is_none() {
            self.failure = Some(error);
            self.tools.wire.cancel.cancel();
        }
    }

    fn reorder(&mut self, index: Option<&[u8]>) {
        let paths: Vec<&ModelPath> = self.files.iter().map(|file| &file.object.path).collect();
        let mut ranks = vec![0; paths.len()];
        for (rank, at) in load_order(&paths, index).into_iter().enumerate() {
            ranks[at] = rank;
        }
        // The index itself goes first: it says in which order the rest is wanted.
        let first = |at: FileIndex| usize::from(!INDEX_FILE_NAMES.contains(&self.files[at].object.path.as_str()));
        self.queue.reorder(|at| first(at) * (ranks[at] + 1));
    }
}

/// Turns the counters of a pull into rates.
struct Meter {
    at: Instant,
    moved: u64,
    files: u32,
    throttled: u32,
    requests: u32,
}

impl Meter {
    fn new(wire: &Wire) -> Self {
        let progress = &wire.progress;
        Self {
            at: Instant::now(),
            moved: progress.bytes_moved.load(Relaxed),
            files: progress.files_done.load(Relaxed),
            throttled: progress.throttled.load(Relaxed),
            requests: progress.requests.load(Relaxed),
        }
    }

    fn sample(&mut self, wire: &Wire, saturated: bool) -> Sample {
        let now = Self::new(wire);
        let seconds = now.at.duration_since(self.at).as_secs_f64().max(1e-3);
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
        let bytes = (now.moved - self.moved) as f64;
        let files = f64::from(now.files.saturating_sub(self.files));
        let sample = Sample {
            goodput: (bytes + files * SMALL_FILE_WORTH) / seconds,
            saturated: saturated && seconds > 0.1,
            throttled: now.throttled - self.throttled,
            requests: now.requests - self.requests,
        };
        *self = now;
        sample
    }
}

pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|panic| Error::Defect(panic.to_string()))?
}

async fn small(tools: Tools, mut object: Object, id: ObjectId, seed: u64, lane: Lane) -> Result<Small, Error> {
    let _claimed = match tools.flights.claim(&id) {
        Claim::Mine(claimed) => claimed,
        Claim::Theirs(waiter) => return Ok(Small::Elsewhere(waiter)),
    };
    // It may have come between the look-up and the claim.
    if let Some(have) = known::here(&tools.store, &tools.hold, &id) {
        return Ok(Small::Here(have));
    }
    known::ask_claims(&tools.wire, &mut object).await;
    let slices = tools.wire.small(&object, seed, lane).await?;
    let (store, hold, with) = (Arc::clone(&tools.store), Arc::clone(&tools.hold), tools.clone());
    let verdict = blocking(move || {
        let check = Check::new(object.claims.to_check());
        match (check.claim(), check.of_slices(&slices)) {
            (Some(expected), Some(got)) if got != expected => Ok(Verdict::Wrong { object, expected, got }),
            (checked, _) => {
                let digest = store.seal_bytes(id.clone(), &slices, checked, &object.claims, &hold)?;
                with.taken(&id);
                Ok(Verdict::Right(Have { digest, checked, equal_by: None }))
            }
        }
    })
    .await?;
    if let Verdict::Right(_) = verdict {
        // Counted when it is kept: a small file is never shown half-way.
        tools.wire.progress.bytes_moved.fetch_add(tools.size_of(&verdict), Relaxed);
    }
    Ok(Small::Moved(verdict))
}

impl Tools {
    fn size_of(&self, verdict: &Verdict) -> u64 {
        match verdict {
            Verdict::Right(have) => self.store.view().blob_len(&have.digest),
            Verdict::Wrong { object, .. } => object.size,
        }
    }
}

async fn open(tools: Tools, mut object: Object, id: ObjectId) -> Result<Opened, Error> {
    let claimed = match tools.flights.claim(&id) {
        Claim::Mine(claimed) => claimed,
        Claim::Theirs(waiter) => return Ok(Opened::Elsewhere(waiter)),
    };
    if let Some(have) = known::here(&tools.store, &tools.hold, &id) {
        return Ok(Opened::Equal(have));
    }
    known::ask_claims(&tools.wire, &mut object).await;
    blocking(move || {
        let checked = object.claims.to_check();
        if let Some(have) = known::equal(&tools.store, &tools.hold, &id, &object) {
            return Ok(Opened::Equal(have));
        }
        if let Some(digest) = tools.store.sealed_before(&id, &tools.hold)? {
            return Ok(Opened::Equal(Have { digest, checked: None, equal_by: None }));
        }
        let partial = Arc::new(tools.store.partial(id.clone(), checked.and_then(|claim| claim.crc_kind()))?);
        tools.taken(&id);
        let resumed = partial.bytes_resumed();
        tools.wire.progress.bytes_here.fetch_add(resumed, Relaxed);
        let progress = tools.wire.progress.begin(object.path.as_str(), object.size, resumed);
        claimed.show(&progress);
        let arrival = tools.arrivals.of(&id);
        arrival.opened(&partial);
        let check = Check::new(checked);
        let sink = Arc::new(FileSink { partial, check, progress, arrival, _claimed: claimed });
        if sink.partial.present().is_complete() {
            tools.wire.progress.end(&sink.progress);
            return Ok(Opened::Complete(conclude(&tools, &sink, object)?));
        }
        Ok(Opened::Filling(sink, object))
    })
    .await
}

async fn part(
    tools: Tools,
    object: Object,
    file: Arc<FileSink>,
    first: ChunkIndex,
    span: Arc<Span>,
    seed: u64,
    lane: Lane,
) -> Result<Option<Verdict>, Error> {
    let sink = PartSink::new(Arc::clone(&file), Arc::clone(&tools.write_back), Arc::clone(&tools.wire.progress), first);
    let sink = if sink.is_begun() { blocking(move || Ok(sink.go_on())).await? } else { sink };
    if !tools.wire.part(&object, sink, &span, seed, lane).await? {
        return Ok(None);
    }
    blocking(move || conclude(&tools, &file, object).map(Some)).await
}

/// Every chunk is there: compare with the origin, then seal or discard.
fn conclude(tools: &Tools, file: &FileSink, object: Object) -> Result<Verdict, Error> {
    let checked = file.check.claim();
    if let (Some(expected), Some(got)) = (checked, file.check.of_partial(&file.partial)?)
        && got != expected
    {
        file.discard()?;
        return Ok(Verdict::Wrong { object, expected, got });
    }
    let digest = tools.store.seal(&file.partial, checked, &object.claims, &tools.hold)?;
    Ok(Verdict::Right(Have { digest, checked, equal_by: None }))
}
