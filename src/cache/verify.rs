//! Hashing what is kept once more, and saying what is not what its name says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::blocking;
use super::event::{Event, Moving, Ready};
use super::named::{Name, matching, name_of};
use super::repair::Damage;
use crate::domain::{ChunkIndex, Digest, Grid};
use crate::fetch::Cancel;
use crate::remote::Endpoints;
use crate::report::{Exit, Failure};
use crate::store::{self, Kept, Store};

/// Whoever waits hears something at least this often.
const HASHING_INTERVAL: Duration = Duration::from_secs(1);

/// What is said while models are hashed and repaired, as it goes over the socket and to `--json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum VerifyEvent {
    /// How far the hashing is, in bytes; once a second.
    Hashing {
        /// Hashed.
        bytes_done: u64,
        /// To hash.
        bytes_total: u64,
    },
    /// A manifest is missing, or not what its name says.
    DamagedManifest {
        /// The model.
        digest: Digest,
        /// What it is called.
        models: Vec<String>,
        /// Whether there is none.
        missing: bool,
        /// Why it cannot be read, where it is neither missing nor damaged.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A blob is missing, or not what its name says.
    Damaged {
        /// The blob.
        digest: Digest,
        /// `source: path`, of every model that has it.
        files: Vec<String>,
        /// Whether there is none.
        missing: bool,
        /// Bytes that are wrong, each from the first to behind the last.
        ranges: Vec<(u64, u64)>,
        /// Its length, where that is wrong too.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        length: Option<u64>,
    },
    /// Everything was hashed. The last event but for a repair.
    Verified {
        /// Blobs hashed.
        blobs: usize,
        /// Their bytes.
        bytes: u64,
        /// Blobs that are damaged or missing.
        damaged: usize,
        /// Manifests that are damaged or missing.
        damaged_manifests: usize,
        /// Sources that are here only in part, and were left out.
        unfinished: usize,
    },
    /// How far a pull is that brings something again.
    Progress(Moving),
    /// Something to know of that pull.
    Warning {
        /// One sentence.
        message: String,
    },
    /// That pull is done.
    Done(Ready),
    /// That pull failed, the others go on; before [`VerifyEvent::Verified`] it is the last event.
    Error {
        /// What happened.
        message: String,
        /// What to do next.
        hint: Option<String>,
        /// As a process would exit.
        exit_code: u8,
    },
    /// A model stays damaged, because no source leads to it.
    NotRepairable {
        /// The model.
        digest: Digest,
        /// Files that it lacks; 0 where it lacks its manifest.
        #[serde(default)]
        files: usize,
    },
    /// The repair is over: the last event of one.
    Repaired {
        /// Blobs that were damaged or missing.
        damaged: usize,
        /// Manifests that were.
        damaged_manifests: usize,
        /// 0 if all of them are whole now; else as a process would exit.
        exit_code: u8,
    },
}

impl From<Event> for VerifyEvent {
    fn from(event: Event) -> Self {
        match event {
            Event::Progress(moving) => Self::Progress(moving),
            Event::Warning { message } => Self::Warning { message },
            Event::Ready(ready) => Self::Done(ready),
            Event::Error { message, hint, exit_code } => Self::Error { message, hint, exit_code },
        }
    }
}

impl From<&Failure> for VerifyEvent {
    fn from(failure: &Failure) -> Self {
        let (message, hint) = (failure.message.clone(), failure.hint.clone());
        Self::Error { message, hint, exit_code: failure.exit as u8 }
    }
}

/// Whoever hears events.
pub type Tell<'a> = &'a mut (dyn FnMut(VerifyEvent) + Send);

#[derive(Debug)]
struct Blob {
    size: u64,
    /// `source: path`, for each model that has it.
    names: Vec<String>,
    /// The models.
    models: Vec<Digest>,
}

/// What there is to hash.
#[derive(Debug, Default)]
struct Plan {
    blobs: BTreeMap<Digest, Blob>,
    /// Manifests that are missing or not what their name says, with the models they stand for.
    manifests: BTreeMap<Digest, (store::Error, Vec<String>)>,
    /// Sources that are here only in part.
    unfinished: usize,
}

impl Plan {
    /// The blobs of the chosen models. Those of a model without a manifest are known by its source.
    fn of(store: &Store, kept: &[Kept], usual: &Endpoints) -> Self {
        let mut plan = Self::default();
        for kept in kept {
            let Some(model) = kept.manifest else {
                plan.unfinished += 1;
                continue;
            };
            let name = name_of(kept, Some(usual));
            let mut add = |digest: Digest, size: u64, path: &dyn std::fmt::Display| {
                let empty = || Blob { size, names: Vec::new(), models: Vec::new() };
                let blob = plan.blobs.entry(digest).or_insert_with(empty);
                blob.names.push(format!("{name}: {path}"));
                blob.models.push(model);
            };
            match store.view().manifest(&model) {
                Ok(manifest) => manifest.files().iter().for_each(|file| add(file.digest, file.size, &file.path)),
                Err(error) => {
                    for file in kept.record.iter().flat_map(|record| &record.files) {
                        if let Some(digest) = file.digest {
                            add(digest, file.size, &file.path);
                        }
                    }
                    plan.manifests.entry(model).or_insert_with(|| (error, Vec::new())).1.push(name);
                }
            }
        }
        plan
    }

    fn bytes(&self) -> u64 {
        self.blobs.values().map(|blob| blob.size).fold(0, u64::saturating_add)
    }

    /// Whether every model that has the blob was removed since the plan was made.
    fn is_gone(&self, store: &Store, blob: &Blob) -> bool {
        let removed = |model: &Digest| {
            !self.manifests.contains_key(model) && matches!(store.view().manifest(model), Err(store::Error::Absent(_)))
        };
        blob.models.iter().all(removed)
    }
}

/// What is under a blob's name.
enum Found {
    /// The blob, but for these chunks.
    Bad(Vec<ChunkIndex>),
    OtherSize(u64),
    Nothing,
}

impl Found {
    fn is_right(&self) -> bool {
        matches!(self, Self::Bad(chunks) if chunks.is_empty())
    }

    /// The bytes that are bad, neighbours joined.
    fn ranges(&self, size: u64) -> Vec<(u64, u64)> {
        let chunks = match self {
            Self::Bad(chunks) => chunks,
            Self::OtherSize(_) => return vec![(0, size)],
            Self::Nothing => return Vec::new(),
        };
        let grid = Grid::of_size(size);
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for range in chunks.iter().map(|chunk| grid.chunk_range(*chunk)) {
            match ranges.last_mut() {
                Some((_, end)) if *end == range.start => *end = range.end,
                _ => ranges.push((range.start, range.end)),
            }
        }
        ranges
    }
}

/// Hashes every blob of the models of that name once, or of all models, past the page cache where
/// that can be, and says what is wrong: that is handed out by nobody from then on. Repairs nothing.
///
/// # Errors
/// As [`matching`]; [`Exit::Interrupted`] when `cancel` says so, after at most one chunk.
pub async fn verify(
    store: &Arc<Store>,
    name: Option<Name>,
    usual: &Endpoints,
    cancel: &Cancel,
    tell: Tell<'_>,
) -> Result<Damage, Failure> {
    let (planned, usual) = (Arc::clone(store), usual.clone());
    let plan = blocking(move || {
        let kept = match name {
            Some(name) => matching(planned.view(), &name)?,
            None => planned.view().kept()?,
        };
        Ok(Plan::of(&planned, &kept, &usual))
    })
    .await?;
    let mut damage = Damage::default();
    for (digest, (error, names)) in &plan.manifests {
        damage.manifests.insert(*digest);
        tell(VerifyEvent::DamagedManifest {
            digest: *digest,
            models: names.clone(),
            missing: matches!(error, store::Error::Absent(_)),
            reason: match error {
                store::Error::Absent(_) | store::Error::Damaged { .. } => None,
                other => Some(other.to_string()),
            },
        });
    }
    let mut hashing = Hashing::of(plan.bytes());
    let mut failed = None;
    for (digest, blob) in &plan.blobs {
        let found = match scrub(store, *digest, blob.size, cancel, &mut hashing, tell).await {
            Err(failure) if failure.exit != Exit::Interrupted => {
                // Says nothing of all others, which are hashed first.
                if let Some(later) = failed.replace(failure) {
                    tell(VerifyEvent::from(&later));
                }
                continue;
            }
            other => other?,
        };
        if found.is_right() {
            continue;
        }
        if matches!(found, Found::Nothing) {
            if plan.is_gone(store, blob) {
                continue;
            }
            // Whoever brings it again brings it to all who lack it.
            let (at, lacked) = (Arc::clone(store), *digest);
            blocking(move || Ok(at.condemn(&lacked)?)).await?;
        }
        damage.blobs.insert(*digest);
        tell(VerifyEvent::Damaged {
            digest: *digest,
            files: blob.names.clone(),
            missing: matches!(found, Found::Nothing),
            ranges: found.ranges(blob.size),
            length: if let Found::OtherSize(length) = found { Some(length) } else { None },
        });
    }
    tell(VerifyEvent::Verified {
        blobs: plan.blobs.len(),
        bytes: plan.bytes(),
        damaged: damage.blobs.len(),
        damaged_manifests: damage.manifests.len(),
        unfinished: plan.unfinished,
    });
    failed.map_or(Ok(damage), Err)
}

/// How far the hashing is.
struct Hashing {
    /// Of the blobs before.
    bytes_done: u64,
    bytes_total: u64,
    tick: Interval,
}

impl Hashing {
    fn of(bytes_total: u64) -> Self {
        let mut tick = interval_at(Instant::now() + HASHING_INTERVAL, HASHING_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { bytes_done: 0, bytes_total, tick }
    }
}

/// Ends the hashing of a blob that nobody waits for any more.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

async fn scrub(
    store: &Arc<Store>,
    digest: Digest,
    size: u64,
    cancel: &Cancel,
    hashing: &mut Hashing,
    tell: Tell<'_>,
) -> Result<Found, Failure> {
    let (stop, read) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let _stop = Stop(Arc::clone(&stop));
    let (store, cancel, reading) = (Arc::clone(store), cancel.clone(), Arc::clone(&read));
    let scrubbing = blocking(move || {
        let Some(len) = store.blob_len_of_any(&digest) else { return Ok(Some(Found::Nothing)) };
        if len != size {
            store.condemn(&digest)?;
            return Ok(Some(Found::OtherSize(len)));
        }
        let scrubbed = store.scrub(&digest, &mut |bytes| {
            reading.store(bytes, Relaxed);
            !cancel.is_cancelled() && !stop.load(Relaxed)
        });
        match scrubbed {
            Err(store::Error::Absent(_)) => Ok(Some(Found::Nothing)),
            other => Ok(other?.map(Found::Bad)),
        }
    });
    tokio::pin!(scrubbing);
    let found = loop {
        tokio::select! {
            biased;
            found = &mut scrubbing => break found?,
            _ = hashing.tick.tick() => {
                let bytes_done = hashing.bytes_done.saturating_add(read.load(Relaxed));
                tell(VerifyEvent::Hashing { bytes_done, bytes_total: hashing.bytes_total });
            }
        }
    };
    hashing.bytes_done = hashing.bytes_done.saturating_add(size);
    found.ok_or_else(|| {
        Failure::interrupted("what was found is marked, nothing else was changed: the same command starts anew")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Exit;

    #[test]
    fn events_are_the_lines_that_scripts_know() {
        let digest = Digest::of(b"");
        let told = |event: &VerifyEvent| {
            let line = serde_json::to_string(event).expect("JSON").replace(&digest.to_string(), "DIGEST");
            let parsed: VerifyEvent = serde_json::from_str(&line.replace("DIGEST", &digest.to_string())).expect("back");
            assert_eq!(parsed, *event);
            line
        };
        let manifest = VerifyEvent::DamagedManifest { digest, models: vec!["m".into()], missing: true, reason: None };
        insta::assert_snapshot!(told(&manifest), @r#"{"event":"damaged_manifest","digest":"DIGEST","models":["m"],"missing":true}"#);
        let damaged = VerifyEvent::Damaged {
            digest,
            files: vec!["m: w".into()],
            missing: false,
            ranges: vec![(0, 1)],
            length: None,
        };
        insta::assert_snapshot!(told(&damaged), @r#"{"event":"damaged","digest":"DIGEST","files":["m: w"],"missing":false,"ranges":[[0,1]]}"#);
        let done = VerifyEvent::Verified { blobs: 1, bytes: 2, damaged: 3, damaged_manifests: 4, unfinished: 5 };
        insta::assert_snapshot!(told(&done), @r#"{"event":"verified","blobs":1,"bytes":2,"damaged":3,"damaged_manifests":4,"unfinished":5}"#);
        let repaired = VerifyEvent::Repaired { damaged: 1, damaged_manifests: 0, exit_code: Exit::Integrity as u8 };
        insta::assert_snapshot!(told(&repaired), @r#"{"event":"repaired","damaged":1,"damaged_manifests":0,"exit_code":65}"#);
        assert!(told(&VerifyEvent::Done(Ready::default())).starts_with(r#"{"event":"done","source":"""#));
    }

    #[test]
    fn neighbouring_bad_chunks_are_one_range() {
        let size = 10 << 20;
        let bad = Found::Bad([1, 2, 4, 9].map(ChunkIndex).to_vec());
        let mib = |from: u64, to: u64| (from << 20, to << 20);
        assert_eq!(bad.ranges(size), [mib(1, 3), mib(4, 5), mib(9, 10)]);
        assert_eq!(Found::OtherSize(1).ranges(size), [mib(0, 10)]);
        assert!(Found::Nothing.ranges(size).is_empty() && Found::Bad(Vec::new()).is_right());
    }
}
