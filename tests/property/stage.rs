//! The cache beside what it should be, and the rules by which one step leads to the next.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use larder::cache::{Endpoints, Granted, Owner, Ready};
use larder::domain::Digest;
use larder::store::SourceRecord;

use crate::disk::Disk;
use crate::life::Life;
use crate::walk::{identity, names};
use crate::world::{Files, World, content, manifest_of, selection};

/// With less than this, a disk is full: documents may not be written.
pub const ALMOST_NOTHING: u64 = 128 << 10;

/// What is wrong.
pub type Checked<T = ()> = Result<T, String>;

/// Fails the step where `$holds` is false.
macro_rules! check {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err(format!($($why)+));
        }
    };
}
pub(crate) use check;

/// What the cache says it keeps.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// Sources by record id: the model, if it was ever complete, and the last use.
    pub records: BTreeMap<String, (Option<Digest>, SystemTime)>,
    pub manifests: BTreeSet<Digest>,
}

impl Kept {
    pub fn model(&self, record: &str) -> Option<Digest> {
        self.records.get(record).and_then(|(model, _)| *model)
    }

    /// Record ids that name a model.
    pub fn names(&self, model: &Digest) -> impl Iterator<Item = &String> {
        self.records.iter().filter(move |(_, (named, _))| *named == Some(*model)).map(|(id, _)| id)
    }

    /// Models that no source names any more.
    pub fn superseded(&self) -> Vec<Digest> {
        self.manifests.iter().filter(|model| self.names(model).next().is_none()).copied().collect()
    }

    fn last_used(&self, model: &Digest) -> SystemTime {
        let used = self.records.values().filter(|(named, _)| *named == Some(*model)).map(|(_, used)| *used);
        used.max().unwrap_or(UNIX_EPOCH)
    }
}

/// What a step may do to what is kept.
#[derive(Debug, Default)]
pub struct Effects {
    /// Models that nobody uses or wants may go.
    pub evicts: bool,
    /// And they go in the order of their last use, but for this source, which is on its way.
    pub in_order: Option<String>,
    /// These sources go, with the models that only they name.
    pub removes: BTreeSet<String>,
    pub removes_models: BTreeSet<Digest>,
    /// Sources that may name other models after it.
    pub sets: BTreeMap<String, BTreeSet<Digest>>,
}

/// A lease of a caller that has not let go.
pub struct Held {
    pub _granted: Granted,
    pub model: Digest,
}

/// Everything of one case.
pub struct Stage<'a> {
    pub disk: &'a Disk,
    pub world: &'a mut World,
    pub kubelet: &'a Path,
    pub recheck: Duration,
    pub life: Option<Life>,
    pub held: Vec<Held>,
    /// Leases of pods and processes, and whether the owner was seen.
    pub leases: BTreeMap<(String, Digest), bool>,
    /// Record ids and digests.
    pub pins: BTreeSet<String>,
    /// By record id: whether the origin gave its last answer.
    pub answered: BTreeMap<String, bool>,
    /// By record id: whether that is so is not known.
    pub unsure: BTreeSet<String>,
    /// Inodes in which the test turned a bit, and the blobs they were.
    pub spoiled: HashMap<u64, Digest>,
    /// Of those, which somebody has found.
    pub condemned: BTreeSet<u64>,
    /// Whether damage was looked for while somebody asked: what was granted before that lacks it then.
    pub verified_meanwhile: bool,
    /// Models that lost a damaged blob, and were not whole since.
    pub broken: BTreeSet<Digest>,
    /// What was kept when the last step had ended: between steps nothing changes.
    pub last: Option<Kept>,
    /// What every model that was ever listed consists of.
    pub models: HashMap<Digest, Files>,
    /// Whether the disk was full since leases were last written down.
    pub was_full: bool,
    /// Whether there may be a wait for an origin that gives no answer.
    pub waits: bool,
}

impl Stage<'_> {
    pub fn life(&self) -> &Life {
        self.life.as_ref().expect("alive")
    }

    /// The record id of a wish.
    pub fn id(&self, wish: usize) -> String {
        let (source, selection) = (self.world.source(wish), selection(wish));
        let origin = Endpoints::at(&self.world.endpoint()).origin(&source);
        SourceRecord::id_of(&source.to_string(), &origin, selection.include(), selection.exclude())
    }

    /// The model that a wish is for, now.
    pub fn current(&mut self, wish: usize) -> Option<Digest> {
        let files = self.world.files(wish)?;
        let model = manifest_of(&files);
        self.models.insert(model, files);
        Some(model)
    }

    pub fn kept(&self) -> Checked<Kept> {
        let mut kept = Kept::default();
        for line in self.life().cache().store().view().kept().map_err(|e| e.to_string())? {
            kept.manifests.extend(line.manifest.filter(|_| line.record.is_none()));
            if let Some(record) = line.record {
                kept.records.insert(record.id(), (line.manifest, line.last_used.unwrap_or(UNIX_EPOCH)));
            }
        }
        let listed = names(&self.disk.store().join("v1/manifests"));
        kept.manifests.extend(listed.iter().filter_map(|name| name.strip_suffix(".json")?.parse::<Digest>().ok()));
        Ok(kept)
    }

    /// What was kept before a step.
    pub fn before(&self) -> Checked<Kept> {
        self.last.clone().map_or_else(|| self.kept(), Ok)
    }

    /// Blobs of which somebody has found a copy to be wrong, or missing, whether the disk took that or
    /// not.
    pub fn marked(&self) -> BTreeSet<Digest> {
        let marks = self.life().cache().store().view().marks().expect("marks");
        marks.into_iter().map(|(digest, _)| digest).collect()
    }

    /// Whether every file of a model is there.
    pub fn is_whole(&self, model: &Digest) -> bool {
        let view = self.life().cache().store().view();
        view.manifest(model).is_ok_and(|manifest| view.is_complete(&manifest, model))
    }

    /// The model of a source, if it is whole.
    pub fn resident(&self, kept: &Kept, record: &str) -> Option<Digest> {
        kept.model(record).filter(|model| self.is_whole(model))
    }

    pub fn is_leased(&self, model: &Digest) -> bool {
        self.leases.keys().any(|(_, leased)| leased == model) || self.held.iter().any(|held| held.model == *model)
    }

    pub fn is_pinned(&self, kept: &Kept, model: &Digest) -> bool {
        self.pins.contains(&model.to_string()) || kept.names(model).any(|id| self.pins.contains(id))
    }

    pub fn is_protected(&self, kept: &Kept, model: &Digest) -> bool {
        self.is_leased(model) || self.is_pinned(kept, model)
    }

    /// Fails unless what is kept now follows from what was kept before. `protected` may not go.
    pub fn follows(&mut self, before: &Kept, effects: &Effects, protected: &BTreeSet<Digest>) -> Checked {
        let after = self.kept()?;
        let may_set = |id: &str, model: &Digest| effects.sets.get(id).is_some_and(|models| models.contains(model));
        for (id, (model, _)) in &before.records {
            let Some(model) = model else { continue };
            match after.model(id) {
                Some(now) if now == *model => {}
                Some(now) => check!(may_set(id, &now), "source {id} was {model} and is {now}"),
                None => {
                    // One that named another model meanwhile may have gone with that.
                    let moved_on = effects.sets.contains_key(id) && !self.pins.contains(id);
                    let evicted = effects.evicts && (moved_on || !protected.contains(model));
                    check!(
                        evicted || effects.removes.contains(id),
                        "source {id} is gone with model {model} (protected: {}, evictions: {})",
                        protected.contains(model),
                        effects.evicts
                    );
                }
            }
        }
        for (id, (model, _)) in &after.records {
            if let Some(model) = model {
                check!(before.model(id) == Some(*model) || may_set(id, model), "source {id} is {model} out of nowhere");
            }
        }
        let mut gone = BTreeSet::new();
        for model in before.manifests.difference(&after.manifests) {
            let named = before.names(model).collect::<BTreeSet<_>>();
            let removed =
                effects.removes_models.contains(model) || named.iter().any(|id| effects.removes.contains(*id));
            // A pin is of a source, and leaves a model that the source moved on from.
            let mut pinning = named.iter().filter(|id| self.pins.contains(**id));
            let lapsed = !self.is_leased(model)
                && !self.pins.contains(&model.to_string())
                && pinning.all(|id| effects.sets.contains_key(*id));
            check!(
                removed || (effects.evicts && (lapsed || !protected.contains(model))),
                "model {model} is gone (protected: {}, evictions: {})",
                protected.contains(model),
                effects.evicts
            );
            if !removed {
                gone.insert(*model);
            }
        }
        for model in after.manifests.difference(&before.manifests) {
            let set = effects.sets.values().any(|models| models.contains(model));
            check!(set, "model {model} is here out of nowhere");
        }
        if let Some(moving) = &effects.in_order {
            let stayed = before
                .manifests
                .intersection(&after.manifests)
                .filter(|model| !protected.contains(*model) && before.names(model).all(|id| id != moving));
            let oldest_left = stayed.map(|model| (before.last_used(model), *model)).min();
            for model in &gone {
                let used = before.last_used(model);
                if let Some((left, other)) = oldest_left {
                    check!(used <= left, "model {model} was evicted, used after {other}, which stays");
                }
            }
        }
        self.keeps_promises(&after)?;
        self.last = Some(after);
        Ok(())
    }

    /// Leased and pinned models are whole, and leases are as they should be.
    fn keeps_promises(&mut self, kept: &Kept) -> Checked {
        let wanted: BTreeSet<Digest> = kept.manifests.iter().filter(|m| self.is_protected(kept, m)).copied().collect();
        let leased = self.leases.keys().map(|(_, model)| model).chain(self.held.iter().map(|held| &held.model));
        for model in leased {
            check!(kept.manifests.contains(model), "the leased model {model} is gone");
        }
        for model in wanted {
            if self.is_whole(&model) {
                self.broken.remove(&model);
            } else {
                check!(self.broken.contains(&model), "model {model} is in use and not whole");
            }
        }
        let (leases, callers) = self.actual_leases();
        let expected: BTreeSet<_> = self.leases.keys().cloned().collect();
        check!(leases == expected, "leases are {leases:?}, should be {expected:?}");
        let (total, used) = self.disk.space();
        self.was_full |= total - used < ALMOST_NOTHING;
        let unwritten = self.unwritten();
        check!(unwritten.is_empty() || self.was_full, "not written down: {unwritten:?}");
        let mut held: Vec<Digest> = self.held.iter().map(|held| held.model).collect();
        held.sort_unstable();
        check!(callers == held, "callers hold {held:?}, and the cache believes {callers:?}");
        Ok(())
    }

    /// Leases of pods and processes, and models that callers hold.
    pub fn actual_leases(&self) -> (BTreeSet<(String, Digest)>, Vec<Digest>) {
        let book = self.life().cache().residency().book();
        let (mut lasting, mut callers) = (BTreeSet::new(), Vec::new());
        for (_, lease) in book.leases() {
            if matches!(lease.owner, Owner::Connection(_)) {
                callers.push(lease.digest);
            } else {
                lasting.insert((lease.owner.to_string(), lease.digest));
            }
        }
        drop(book);
        callers.sort_unstable();
        (lasting, callers)
    }

    /// Leases that a full disk did not take: a crash loses them.
    pub fn unwritten(&self) -> BTreeSet<(String, Digest)> {
        let noted = names(&self.disk.store().join("v1/leases"));
        let book = self.life().cache().residency().book();
        let lasting = book.leases().filter(|(_, lease)| !matches!(lease.owner, Owner::Connection(_)));
        let unwritten = lasting.filter(|(id, _)| !noted.contains(id));
        unwritten.map(|(_, lease)| (lease.owner.to_string(), lease.digest)).collect()
    }

    /// Fails unless the directory of an answer holds what the model consists of, byte for byte.
    /// With `may_vanish`, nobody keeps it from being removed.
    pub fn holds(&self, ready: &Ready, may_vanish: bool) -> Checked {
        let digest: Digest = ready.digest.parse().map_err(|_| format!("`{}` is no digest", ready.digest))?;
        let Some(files) = self.models.get(&digest) else { return Err(format!("nobody ever had model {digest}")) };
        check!(ready.files == files.len() as u64, "{} files are told of {digest}", ready.files);
        let root = Path::new(&ready.path);
        match self.reads(root, files) {
            Err(_) if may_vanish && !root.exists() => Ok(()),
            other => other,
        }
    }

    fn reads(&self, root: &Path, files: &Files) -> Checked {
        let mut found = BTreeSet::new();
        list(root, "", &mut found);
        let marked = if self.verified_meanwhile { self.marked() } else { BTreeSet::new() };
        let files = || files.iter().filter(|(_, number)| !marked.contains(&content(**number).digest));
        let expected: BTreeSet<String> = files().map(|(path, _)| (*path).to_owned()).collect();
        check!(found == expected, "`{}` has {found:?}, should have {expected:?}", root.display());
        for (path, number) in files() {
            let file = root.join(path);
            let metadata = file.metadata().map_err(|error| format!("{}: {error}", file.display()))?;
            let inode = identity(&metadata);
            check!(!self.condemned.contains(&inode), "`{}` is known to be wrong", file.display());
            if self.spoiled.contains_key(&inode) {
                continue;
            }
            let bytes = fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
            check!(bytes == content(*number).bytes, "`{}` has other bytes than its origin had", file.display());
        }
        Ok(())
    }
}

fn list(directory: &Path, prefix: &str, found: &mut BTreeSet<String>) {
    for name in names(directory) {
        let path = directory.join(&name);
        if path.is_dir() {
            list(&path, &format!("{prefix}{name}/"), found);
        } else {
            found.insert(format!("{prefix}{name}"));
        }
    }
}
