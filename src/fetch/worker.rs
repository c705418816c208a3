//! One connection's work: ask for a range, hand slices to the disk, go on from the last good byte.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::Error;
use super::arrivals::Arrival;
use super::cancel::Cancel;
use super::engine::{BYTES_IN_FLIGHT_MAX, Engine, PERMIT_LEN};
use super::lock;
use super::pace::Pace;
use super::progress::Progress;
use super::retry::Patience;
use super::sink::PartSink;
use super::span::Span;
use crate::domain::{Grid, Object};
use crate::remote::{self, Body, Remote};

/// Slices are handed to the disk when this many bytes have gathered: fewer hand-overs cost less
/// CPU, and 512 KiB still fit a core's second-level cache.
const BATCH_LEN: usize = 512 << 10;
/// And when these have gathered of a chunk that somebody waits for.
const BATCH_LEN_WANTED: usize = 64 << 10;

/// Which connections a request may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Those that all work shares.
    Usual,
    /// Those kept for bytes that a reader waits for.
    Urgent,
}

/// What all workers of a pull share.
#[derive(Debug)]
pub struct Wire {
    pub remote: Arc<dyn Remote>,
    pub progress: Arc<Progress>,
    pub cancel: Cancel,
    memory: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    connections_urgent: Arc<Semaphore>,
    retry_for: Duration,
    /// Whether the origin has answered this pull.
    reached: AtomicBool,
    heads: Mutex<Pace>,
    gaps: Mutex<Pace>,
    started: Instant,
    /// Milliseconds since `started` when any connection last received a byte.
    last_byte: AtomicU64,
    busy: AtomicU32,
}

impl Wire {
    pub fn new(engine: &Engine, remote: Arc<dyn Remote>, progress: Arc<Progress>, cancel: Cancel) -> Self {
        Self {
            remote,
            progress,
            cancel,
            memory: Arc::clone(&engine.memory),
            connections: Arc::clone(&engine.connections),
            connections_urgent: Arc::clone(&engine.connections_urgent),
            retry_for: engine.retry_for,
            reached: AtomicBool::new(false),
            heads: Mutex::new(Pace::new(Duration::from_secs(1), Duration::from_secs(20))),
            gaps: Mutex::new(Pace::new(Duration::from_millis(300), Duration::from_secs(15))),
            started: Instant::now(),
            last_byte: AtomicU64::new(0),
            busy: AtomicU32::new(0),
        }
    }

    /// The patience of one request.
    pub fn patience(&self, seed: u64) -> Patience {
        Patience::new(self.retry_for, seed)
    }

    /// The origin has answered: nothing is waited for any more, and when it is away it will be back.
    pub fn note_answer(&self) {
        // Looked at first: this is said for every slice, by every connection.
        if !self.reached.load(Relaxed) {
            self.reached.store(true, Relaxed);
        }
        self.progress.goes_on();
    }

    fn note_byte(&self) {
        self.note_answer();
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_byte.store(now, Relaxed);
    }

    fn since_last_byte(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.last_byte.load(Relaxed)))
    }

    /// Sends a ranged GET and waits for its head.
    async fn ask(&self, object: &Object, range: Range<u64>) -> Result<Body, remote::Error> {
        let asked = Instant::now();
        let patience = lock(&self.heads).too_long();
        let answer = tokio::time::timeout(patience, self.remote.get(object, range)).await;
        self.progress.requests.fetch_add(1, Relaxed);
        match answer {
            Ok(Ok(body)) => {
                lock(&self.heads).learn(asked.elapsed());
                Ok(body)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => {
                self.progress.stalls.fetch_add(1, Relaxed);
                Err(self.unavailable(object, format!("no answer within {:.1} s", patience.as_secs_f64())))
            }
        }
    }

    /// The next slice. A connection is stalled when it is silent for too long by the measure of
    /// the others; when all are silent together it is the network, and the ceiling applies.
    async fn slice(&self, object: &Object, body: &mut Body) -> Result<Option<Bytes>, remote::Error> {
        let asked = Instant::now();
        loop {
            let (patience, ceiling) = {
                let gaps = lock(&self.gaps);
                (gaps.too_long(), gaps.ceiling())
            };
            // The lone connection at the end of a pull has nobody to be compared with.
            let patience = if self.busy.load(Relaxed) < 2 { (patience * 2).min(ceiling) } else { patience };
            let left = patience.saturating_sub(asked.elapsed()).max(Duration::from_millis(10));
            match tokio::time::timeout(left, body.next()).await {
                Ok(Some(Ok(slice))) => {
                    lock(&self.gaps).learn(asked.elapsed());
                    self.note_byte();
                    return Ok(Some(slice));
                }
                Ok(Some(Err(error))) => return Err(error),
                Ok(None) => return Ok(None),
                Err(_) => {
                    let silent = asked.elapsed();
                    let all_silent = self.busy.load(Relaxed) >= 2 && self.since_last_byte() > silent / 2;
                    if silent >= ceiling || (silent >= patience && !all_silent) {
                        self.progress.stalls.fetch_add(1, Relaxed);
                        return Err(
                            self.unavailable(object, format!("the answer stalled for {:.1} s", silent.as_secs_f64()))
                        );
                    }
                }
            }
        }
    }

    fn unavailable(&self, object: &Object, detail: String) -> remote::Error {
        remote::Error::Unavailable { uri: self.remote.source().object_uri(&object.key), detail }
    }

    fn too_much(&self, object: &Object) -> remote::Error {
        let detail = "more bytes than were asked for".to_owned();
        remote::Error::BadAnswer { uri: self.remote.source().object_uri(&object.key), detail }
    }

    async fn connection(&self, lane: Lane) -> Result<SemaphorePermit<'_>, Error> {
        let connections = match lane {
            Lane::Usual => &self.connections,
            Lane::Urgent => &self.connections_urgent,
        };
        let permit = self.cancel.guard(connections.acquire()).await?;
        permit.map_err(|e| Error::Defect(e.to_string()))
    }

    /// Pauses after a failure, or returns the final error.
    pub async fn pause(&self, patience: &mut Patience, error: remote::Error) -> Result<(), Error> {
        tracing::debug!(%error, "a request failed");
        if matches!(error, remote::Error::Throttled { .. }) {
            self.progress.throttled.fetch_add(1, Relaxed);
        }
        let why = error.to_string();
        let again = patience.after(error, Instant::now(), self.reached.load(Relaxed))?;
        self.progress.retries.fetch_add(1, Relaxed);
        self.progress.waits(why, Instant::now(), again.left);
        self.cancel.sleep(again.pause).await
    }

    /// Fetches a whole small file into memory.
    pub async fn small(&self, object: &Object, seed: u64, lane: Lane) -> Result<Vec<Bytes>, Error> {
        let _connection = self.connection(lane).await?;
        let permits =
            u32::try_from(usize::try_from(object.size).unwrap_or(usize::MAX).div_ceil(PERMIT_LEN)).unwrap_or(u32::MAX);
        let _memory = self
            .cancel
            .guard(self.memory.acquire_many(permits.max(1)))
            .await?
            .map_err(|e| Error::Defect(e.to_string()))?;
        let _busy = Busy::new(&self.busy);
        let mut patience = self.patience(seed);
        let mut slices: Vec<Bytes> = Vec::new();
        let mut len = 0_u64;
        while len < object.size {
            let before = len;
            let outcome = self.cancel.guard(self.append(object, &mut slices, &mut len)).await?;
            if len > before {
                patience.progress();
            }
            if let Err(error) = outcome {
                self.pause(&mut patience, error).await?;
            }
        }
        Ok(slices)
    }

    async fn append(&self, object: &Object, slices: &mut Vec<Bytes>, len: &mut u64) -> Result<(), remote::Error> {
        let mut body = self.ask(object, *len..object.size).await?;
        while *len < object.size {
            let Some(slice) = self.slice(object, &mut body).await? else {
                return Err(self.unavailable(object, "the body ended early".into()));
            };
            if slice.len() as u64 > object.size - *len {
                return Err(self.too_much(object));
            }
            *len += slice.len() as u64;
            slices.push(slice);
        }
        Ok(())
    }

    /// Fetches the chunks of `span` into `sink`. True when the file became complete with it.
    pub async fn part(
        &self,
        object: &Object,
        sink: PartSink,
        span: &Span,
        seed: u64,
        lane: Lane,
    ) -> Result<bool, Error> {
        let _connection = self.connection(lane).await?;
        let _busy = Busy::new(&self.busy);
        let mut patience = self.patience(seed);
        let mut disk = Disk::new(sink, Arc::clone(&self.memory));
        loop {
            let before = disk.position;
            let outcome = self.cancel.guard(self.stream(object, &mut disk, span)).await;
            // Whatever happened, the disk keeps what arrived.
            disk.flush().await?;
            let outcome = outcome?;
            if disk.position > before {
                patience.progress();
            }
            match outcome {
                Ok(()) => return Ok(disk.complete),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Wire(error)) => self.pause(&mut patience, error).await?,
            }
        }
    }

    async fn stream(&self, object: &Object, disk: &mut Disk, span: &Span) -> Result<(), Failure> {
        let grid = disk.grid;
        let end = grid.byte_range(0..span.end()).end;
        if disk.position >= end {
            return Ok(());
        }
        let mut body = self.ask(object, disk.position..end).await.map_err(Failure::Wire)?;
        let mut entered = None;
        while disk.position < end {
            let Some(mut slice) = self.slice(object, &mut body).await.map_err(Failure::Wire)? else {
                let missing = end - disk.position;
                return Err(Failure::Wire(self.unavailable(object, format!("the body ended {missing} bytes early"))));
            };
            if slice.len() as u64 > end - disk.position {
                return Err(Failure::Wire(self.too_much(object)));
            }
            while !slice.is_empty() {
                let chunk = grid.chunk_at(disk.position);
                if entered != Some(chunk) && !span.enter(chunk) {
                    // Somebody waits for it, and it comes by another connection.
                    return Ok(());
                }
                entered = Some(chunk);
                let left = usize::try_from(grid.chunk_range(chunk).end - disk.position).unwrap_or(usize::MAX);
                disk.push(slice.split_to(left.min(slice.len()))).await.map_err(Failure::Final)?;
            }
        }
        Ok(())
    }
}

enum Failure {
    Wire(remote::Error),
    Final(Error),
}

/// Counts a connection while it works.
struct Busy<'a>(&'a AtomicU32);

impl<'a> Busy<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

type Written = (PartSink, Result<bool, crate::store::Error>);

/// The bridge to the blocking pool: one batch is written while the next one gathers.
struct Disk {
    sink: Option<PartSink>,
    writing: Option<tokio::task::JoinHandle<Written>>,
    batch: Vec<Bytes>,
    batch_len: usize,
    /// The next byte wanted from the network.
    position: u64,
    complete: bool,
    /// A write failed: the sink's hashes are ahead of its bytes, so nothing more may be recorded.
    broken: bool,
    grid: Grid,
    arrival: Arc<Arrival>,
    memory: Arc<Semaphore>,
}

impl Disk {
    fn new(sink: PartSink, memory: Arc<Semaphore>) -> Self {
        let position = sink.position();
        Self {
            grid: *sink.file().partial.grid(),
            arrival: Arc::clone(&sink.file().arrival),
            sink: Some(sink),
            writing: None,
            batch: Vec::new(),
            batch_len: 0,
            position,
            complete: false,
            broken: false,
            memory,
        }
    }

    async fn push(&mut self, slice: Bytes) -> Result<(), Error> {
        self.position += slice.len() as u64;
        self.batch_len += slice.len();
        self.batch.push(slice);
        let is_enough = self.batch_len >= BATCH_LEN
            || (self.batch_len >= BATCH_LEN_WANTED && self.arrival.is_wanted_at(&self.grid, self.position - 1));
        if is_enough { self.write().await } else { Ok(()) }
    }

    /// Hands the batch over, once the batch before it is written.
    async fn write(&mut self) -> Result<(), Error> {
        self.join().await?;
        if self.batch.is_empty() || self.broken {
            return Ok(());
        }
        let permits =
            u32::try_from(self.batch_len.div_ceil(PERMIT_LEN).min(BYTES_IN_FLIGHT_MAX / PERMIT_LEN)).unwrap_or(1);
        let memory =
            Arc::clone(&self.memory).acquire_many_owned(permits).await.map_err(|e| Error::Defect(e.to_string()))?;
        let batch = std::mem::take(&mut self.batch);
        self.batch_len = 0;
        let mut sink = self.sink.take().ok_or_else(|| Error::Defect("the sink of a part is gone".into()))?;
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let taken = sink.take(&batch);
            drop((batch, memory));
            (sink, taken)
        }));
        Ok(())
    }

    async fn join(&mut self) -> Result<(), Error> {
        // The handle stays in place while it is awaited, so a cancelled wait loses nothing.
        let Some(writing) = &mut self.writing else { return Ok(()) };
        let written = writing.await;
        self.writing = None;
        let taken = match written {
            Ok((sink, taken)) => {
                self.sink = Some(sink);
                taken.map_err(Error::from)
            }
            // It panicked, or the process ends: the sink is lost with it.
            Err(error) => Err(Error::Defect(error.to_string())),
        };
        self.broken |= taken.is_err();
        self.complete |= taken?;
        Ok(())
    }

    /// Everything gathered is written when this returns.
    async fn flush(&mut self) -> Result<(), Error> {
        self.write().await?;
        self.join().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Version;
    use crate::fetch::arrivals::Arrivals;
    use crate::store::ObjectId;

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "what the attribute makes of it")]
    async fn a_write_that_is_lost_is_said_once_and_nothing_follows_it() {
        let writing = tokio::spawn(std::future::pending::<Written>());
        writing.abort();
        let id = ObjectId { origin: "o".into(), uri: "u".into(), version: Version::Generation(1), size: 4 };
        let mut disk = Disk {
            sink: None,
            writing: Some(writing),
            batch: vec![Bytes::from_static(b"more")],
            batch_len: 4,
            position: 4,
            complete: false,
            broken: false,
            grid: Grid::of_size(4),
            arrival: Arc::new(Arrivals::default()).of(&id),
            memory: Arc::new(Semaphore::new(1)),
        };
        assert!(matches!(disk.join().await, Err(Error::Defect(_))));
        assert!(disk.flush().await.is_ok(), "said already");
        assert!(disk.broken && !disk.complete);
    }
}
