//! What each step does, and what must come of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::sync::Arc;
use std::time::Duration;

use larder::cache::VerifyEvent;
use larder::domain::Digest;
use larder::report::{Exit, Failure};
use larder_origins::Fault;

use crate::life::{self, Answer, HIGH, Life};
use crate::stage::{ALMOST_NOTHING, Checked, Effects, Held, Kept, Stage, check};
use crate::step::{Ask, Cut, Lease, Meanwhile, Spoiled, Step};
use crate::walk::{Walk, names};
use crate::world::{by_digest, content};

/// What the store writes beside blobs: documents, journals, and the tmpfs's own.
const SMALL_CHANGE: u64 = 512 << 10;
const PAGE: u64 = 4096;
/// What keeps waiting for an origin that is down goes away after this.
const DOWN_CUT: Cut = Cut::Millis(20);

/// What a lone ask must come to.
#[derive(Debug)]
enum Due {
    Hit(Digest),
    Pulled(Digest),
    Stale(Digest),
    /// The same, once the caller has waited for an answer in vain.
    StaleAtLast(Digest),
    NotFound,
    /// An origin that does not answer, and nothing to stand in for it.
    Silence,
    /// Whichever of these, as it is not known whether the cache remembers an answer.
    Either(Digest, Option<Digest>),
}

fn granted(answer: &Answer) -> String {
    match &answer.result {
        None => "went away".to_owned(),
        Some(Ok(granted)) => format!("ready with {} ({} stale)", granted.ready.digest, answer.stale_warnings),
        Some(Err(failure)) => format!("failed: {failure:?}"),
    }
}

impl Stage<'_> {
    pub fn take(&mut self, step: &Step) -> Checked {
        self.was_full |= self.is_full();
        match step {
            Step::Ensure(ask) => self.ensure(ask),
            Step::Together(asks, meanwhile) => self.together(asks, *meanwhile),
            Step::LetGo(number) => self.let_go(*number),
            Step::Release(number) => self.release(*number),
            Step::Pod(number, alive) => {
                let pod = self.kubelet.join("pods").join(life::pod(*number));
                let _ = if *alive { fs::create_dir_all(pod) } else { fs::remove_dir_all(pod) };
                Ok(())
            }
            Step::Pin(wish, pinned) => self.pin(*wish, *pinned),
            Step::PinSuperseded(number, pinned) => self.pin_superseded(*number, *pinned),
            Step::Remove(wish) => self.remove(*wish),
            Step::RemoveSuperseded(number) => self.remove_superseded(*number),
            Step::Put(put) => {
                self.world.put(put.source, put.path(), put.number);
                Ok(())
            }
            Step::Down(down) => {
                self.world.set_down(*down);
                Ok(())
            }
            Step::Spoil(spoiled) => {
                self.world.spoil_next_read(match spoiled {
                    Spoiled::Flipped => Fault::Flip(0),
                    Spoiled::Truncated => Fault::Truncate(10),
                    Spoiled::OtherBytes => Fault::OtherBytes,
                    Spoiled::Reset => Fault::Reset(1000),
                });
                Ok(())
            }
            Step::Ballast(kibibytes) => {
                self.disk.set_ballast(*kibibytes);
                Ok(())
            }
            Step::Housekeeping => self.housekeeping(),
            Step::Settle => self.settle(),
            Step::Corrupt { blob, at } => {
                self.corrupt(*blob, *at);
                Ok(())
            }
            Step::Verify { mends } => self.verify(*mends),
            Step::Crash { asks, millis, debris } => self.crash(asks, *millis, *debris),
            Step::Reboot { damaged, asks } => self.reboot(*damaged, asks),
            Step::Audit => self.audit(false),
        }
    }

    fn quiesce(&mut self) -> Checked {
        self.life().quiesce(self.held.len())?;
        self.heed_marks();
        Ok(())
    }

    /// What was proven wrong meanwhile is known to be: by a verification, or by a pull, which hashes
    /// the index of the shards that it reads.
    fn heed_marks(&mut self) {
        let marked = self.marked();
        let found = self.spoiled.iter().filter(|(_, digest)| marked.contains(digest)).map(|(inode, _)| *inode);
        self.condemned.extend(found);
        let broken =
            self.models.iter().filter(|(_, files)| files.values().any(|n| marked.contains(&content(*n).digest)));
        self.broken.extend(broken.map(|(model, _)| *model));
    }

    pub fn protected(&self, kept: &Kept) -> BTreeSet<Digest> {
        kept.manifests.iter().filter(|model| self.is_protected(kept, model)).copied().collect()
    }

    fn due(&mut self, kept: &Kept, ask: &Ask) -> Due {
        let (id, current) = (self.id(ask.wish), self.current(ask.wish));
        let resident = self.resident(kept, &id).filter(|_| !ask.fresh);
        if let Some(model) = resident {
            let pinned = self.pins.contains(&id) || self.pins.contains(&model.to_string());
            let answered = self.answered.get(&id).filter(|_| !self.recheck.is_zero());
            match answered {
                _ if pinned => return Due::Hit(model),
                Some(true) => return Due::Hit(model),
                Some(false) => return Due::Stale(model),
                None if self.unsure.contains(&id) => {
                    self.world.set_down(false);
                    return Due::Either(model, current);
                }
                None => {}
            }
        }
        if self.world.is_silent(ask.wish) {
            match resident {
                None => return Due::Silence,
                Some(model) if std::mem::take(&mut self.waits) => return Due::StaleAtLast(model),
                Some(_) => self.world.set_down(false),
            }
        }
        current.map_or(Due::NotFound, Due::Pulled)
    }

    /// Notes the lease of a grant, and keeps it where a caller holds it.
    fn note(&mut self, ask: &Ask, granted: larder::cache::Granted) -> Checked {
        let model: Digest = granted.ready.digest.parse().map_err(|_| "a digest".to_owned())?;
        check!(granted.ready.lease.is_some() == (ask.lease != Lease::None), "a lease: {:?}", granted.ready.lease);
        match ask.lease {
            Lease::None => {}
            Lease::Caller => self.held.push(Held { _granted: granted, model }),
            lease => {
                let owner = life::owner(lease).expect("an owner");
                self.leases.insert((owner.to_string(), model), self.is_seen(lease));
            }
        }
        Ok(())
    }

    fn is_seen(&self, lease: Lease) -> bool {
        match lease {
            Lease::Pod(number) => self.kubelet.join("pods").join(life::pod(number)).is_dir(),
            _ => true,
        }
    }

    fn ensure(&mut self, ask: &Ask) -> Checked {
        let before = self.before()?;
        let due = self.due(&before, ask);
        let protected = self.protected(&before);
        let id = self.id(ask.wish);
        let missing = self.bytes_of(ask.wish);
        // Of what was begun before, the room was taken then, whatever others have taken since.
        let is_begun = !names(&self.disk.store().join("v1/partial")).is_empty();
        let cut = if matches!(due, Due::Silence) { DOWN_CUT } else { Cut::Never };
        let wish = life::wish(self.world, ask);
        let cache = Arc::clone(self.life().cache());
        let answer = self.life().runtime().block_on(life::ask(cache, wish, cut));
        let told = granted(&answer);
        let stale = answer.stale_warnings;
        let mut effects = Effects::default();
        match (&due, answer.result) {
            (Due::Hit(model), Some(Ok(granted))) if stale == 0 && granted.ready.digest == model.to_string() => {
                check!(granted.ready.bytes_moved == 0, "{} bytes moved for a hit", granted.ready.bytes_moved);
                self.holds(&granted.ready, false)?;
                self.note(ask, granted)?;
            }
            (Due::Stale(model), Some(Ok(granted))) if stale == 1 && granted.ready.digest == model.to_string() => {
                self.holds(&granted.ready, false)?;
                self.note(ask, granted)?;
            }
            (Due::StaleAtLast(model), Some(Ok(granted))) if stale == 1 && granted.ready.digest == model.to_string() => {
                self.holds(&granted.ready, false)?;
                self.note(ask, granted)?;
                // The flight goes on, and brings what there is now.
                self.world.set_down(false);
                effects.evicts = true;
                effects.sets.insert(id.clone(), self.current(ask.wish).into_iter().collect());
                self.forget_answers(ask.wish);
            }
            (Due::Pulled(model), Some(Ok(granted))) if stale == 0 && granted.ready.digest == model.to_string() => {
                self.holds(&granted.ready, false)?;
                self.answered.insert(id.clone(), true);
                let moved = granted.ready.bytes_moved;
                self.note(ask, granted)?;
                effects = Effects { evicts: moved > 0, in_order: Some(id.clone()), ..effects };
                effects.sets.insert(id.clone(), [*model].into());
                let (total, used) = self.disk.space();
                let high = total / 100 * u64::from(HIGH) + SMALL_CHANGE;
                check!(
                    moved == 0 || is_begun || !self.disk.is_small() || used <= high,
                    "{used} bytes are in use of {total}"
                );
            }
            (Due::Either(model, current), Some(Ok(granted))) => {
                let now: Digest = granted.ready.digest.parse().map_err(|_| "a digest".to_owned())?;
                check!(now == *model || (Some(now) == *current && stale == 0), "{ask:?} should be {due:?}, but {told}");
                self.holds(&granted.ready, false)?;
                effects = Effects { evicts: granted.ready.bytes_moved > 0, in_order: Some(id.clone()), ..effects };
                effects.sets.insert(id.clone(), [now].into());
                self.note(ask, granted)?;
                self.answered.insert(id.clone(), stale == 0);
                self.unsure.remove(&id);
            }
            (Due::Either(..), Some(Err(failure))) if failure.exit == Exit::NotFound => {}
            (Due::Pulled(_) | Due::Either(..), Some(Err(failure))) if failure.exit == Exit::Disk => {
                self.quiesce()?;
                if self.needs_nothing(ask.wish) && failure.message.contains("No space left") && self.is_full() {
                    // No room was asked for, and there was none for a document.
                    effects.evicts = true;
                    effects.sets.insert(id.clone(), self.current(ask.wish).into_iter().collect());
                } else {
                    self.refusal_is_right(&failure, &before, &id, missing)?;
                }
            }
            (Due::NotFound, Some(Err(failure))) if failure.exit == Exit::NotFound => {}
            // One that was asked for before may have been on its way, as a silent origin tells only later.
            (Due::Silence, None) => {}
            _ => return Err(format!("{ask:?} should be {due:?}, but {told}")),
        }
        self.quiesce()?;
        self.follows(&before, &effects, &protected).map_err(|why| format!("{told}: {why}"))
    }

    /// Bytes that a pull of this wish writes at most.
    fn bytes_of(&self, wish: usize) -> u64 {
        let numbers = self.world.files(wish).unwrap_or_default().into_values();
        numbers.map(|number| (content(number).bytes.len() as u64).next_multiple_of(PAGE)).sum()
    }

    /// Whether every file of a wish is here, or may have its room already as one that was begun.
    fn needs_nothing(&self, wish: usize) -> bool {
        let walk = Walk::of(&self.disk.store());
        let mut contents = self.world.files(wish).unwrap_or_default().into_values().map(content);
        contents.all(|content| {
            let is_begun = content.bytes.len() > 1 << 20 && !walk.partials.is_empty();
            content.bytes.is_empty() || is_begun || walk.blobs.contains_key(&content.digest)
        })
    }

    /// Fails where there was room after all.
    fn refusal_is_right(&self, failure: &Failure, before: &Kept, id: &str, missing: u64) -> Checked {
        for word in ["needed", "free", "evictable", "pinned", "in use"] {
            check!(failure.message.contains(word), "a refusal without `{word}`: {}", failure.message);
        }
        // What came of a pinned source that is unfinished stays too, and is known from its objects only.
        if before.records.iter().any(|(id, (model, _))| model.is_none() && self.pins.contains(id)) {
            return Ok(());
        }
        let stays = |model: &&Digest| self.is_protected(before, model) || before.names(model).any(|name| name == id);
        let files = before.manifests.iter().filter(stays).filter_map(|model| self.models.get(model));
        let numbers: BTreeSet<usize> = files.flat_map(|files| files.values().copied()).collect();
        let staying: u64 =
            numbers.iter().map(|number| (content(*number).bytes.len() as u64).next_multiple_of(PAGE)).sum();
        let (total, used) = self.disk.space();
        let others = used.saturating_sub(Walk::of(&self.disk.store()).bytes());
        let high = total / 100 * u64::from(HIGH);
        check!(
            others + staying + missing + SMALL_CHANGE > high,
            "refused, with {others} bytes of others, {staying} that stay and {missing} to come below {high}: {}",
            failure.message
        );
        Ok(())
    }

    fn together(&mut self, asks: &[(Ask, Cut)], meanwhile: Meanwhile) -> Checked {
        let before = self.before()?;
        let protected = self.protected(&before);
        let mut allowed: BTreeMap<String, BTreeSet<Digest>> = BTreeMap::new();
        let mut may_be_missing = BTreeSet::new();
        let mut look = |stage: &mut Self| {
            for (ask, _) in asks {
                match stage.current(ask.wish) {
                    Some(model) => drop(allowed.entry(stage.id(ask.wish)).or_default().insert(model)),
                    None => drop(may_be_missing.insert(ask.wish)),
                }
            }
        };
        look(self);
        if let Meanwhile::Put(put) = meanwhile {
            self.world.has_put(put.source, put.path(), put.number);
            look(self);
        }
        let was_answered = if self.recheck.is_zero() { BTreeMap::new() } else { self.answered.clone() };
        let (answers, removed) = self.run_together(asks, meanwhile)?;
        self.verified_meanwhile = matches!(meanwhile, Meanwhile::Verify);
        self.heed_marks();
        let mut effects = Effects { evicts: true, ..Effects::default() };
        effects.sets.clone_from(&allowed);
        let old_leases: BTreeSet<(String, Digest)> = self.leases.keys().cloned().collect();
        let mut possible = old_leases.clone();
        for ((ask, cut), answer) in asks.iter().zip(answers) {
            let id = self.id(ask.wish);
            let mut models = allowed.get(&id).cloned().unwrap_or_default();
            let resident = before.model(&id).filter(|_| !ask.fresh);
            let pinned =
                self.pins.contains(&id) || resident.is_some_and(|model| self.pins.contains(&model.to_string()));
            let old = resident.filter(|_| {
                pinned || self.world.is_down || self.unsure.contains(&id) || was_answered.contains_key(&id)
            });
            models.extend(old);
            if let Some(owner) = life::owner(ask.lease) {
                possible.extend(models.iter().map(|model| (owner.to_string(), *model)));
            }
            let told = granted(&answer);
            match answer.result {
                Some(Ok(granted)) => {
                    let model: Digest = granted.ready.digest.parse().map_err(|_| "a digest".to_owned())?;
                    check!(models.contains(&model), "{ask:?} {told}, and should be one of {models:?}");
                    self.holds(&granted.ready, ask.lease == Lease::None)?;
                    self.note(ask, granted)?;
                }
                Some(Err(failure)) => {
                    let fits = match failure.exit {
                        Exit::Disk => true,
                        Exit::NotFound => may_be_missing.contains(&ask.wish),
                        Exit::Origin => self.world.is_down,
                        _ => false,
                    };
                    check!(fits, "{ask:?} {told}");
                }
                None => check!(!matches!(cut, Cut::Never) || self.world.is_silent(ask.wish), "{ask:?} has no answer"),
            }
        }
        self.quiesce()?;
        // What the origins said last is known to those who were there only.
        for (ask, _) in asks {
            self.forget_answers(ask.wish);
        }
        if let Some(wish) = removed {
            let id = self.id(wish);
            self.pins.remove(&id);
            effects.removes = [id].into();
        }
        let (leases, _) = self.actual_leases();
        let ended = matches!(meanwhile, Meanwhile::Housekeeping);
        for lease in &leases {
            check!(possible.contains(lease), "{lease:?} is a lease out of nowhere");
        }
        for (lease, seen) in self.leases.clone() {
            if !leases.contains(&lease) {
                let gone = seen && !self.is_owner_alive(&lease.0);
                check!(ended && gone, "{lease:?} is no lease any more");
                self.leases.remove(&lease);
            }
        }
        self.note_leases(asks, leases, &old_leases);
        let protected: BTreeSet<Digest> =
            protected.into_iter().filter(|model| self.is_protected(&before, model)).collect();
        self.follows(&before, &effects, &protected)
    }

    /// Asked for again, a lease is noted anew, unless the owner is there now as before.
    fn note_leases(
        &mut self,
        asks: &[(Ask, Cut)],
        leases: impl IntoIterator<Item = (String, Digest)>,
        old_leases: &BTreeSet<(String, Digest)>,
    ) {
        for lease in leases {
            let seen = self.is_owner_alive(&lease.0);
            if !old_leases.contains(&lease) {
                self.leases.insert(lease, seen);
            } else if asks
                .iter()
                .any(|(ask, _)| life::owner(ask.lease).is_some_and(|owner| owner.to_string() == lease.0))
            {
                let actual = self.actually_seen(&lease);
                self.leases.insert(lease, actual);
            }
        }
    }

    fn actually_seen(&self, wanted: &(String, Digest)) -> bool {
        let book = self.life().cache().residency().book();
        book.leases().any(|(_, lease)| lease.owner.to_string() == wanted.0 && lease.digest == wanted.1 && lease.seen)
    }

    fn is_owner_alive(&self, owner: &str) -> bool {
        owner.strip_prefix("pod:").is_none_or(|pod| self.kubelet.join("pods").join(pod).is_dir())
    }

    /// From now on the test does not know whether the cache remembers an answer.
    fn forget_answers(&mut self, wish: usize) {
        let id = self.id(wish);
        if !self.recheck.is_zero() {
            self.answered.remove(&id);
            self.unsure.insert(id);
        }
    }

    fn run_together(&self, asks: &[(Ask, Cut)], meanwhile: Meanwhile) -> Checked<(Vec<Answer>, Option<usize>)> {
        let life = self.life();
        life.runtime().block_on(async {
            let asking: Vec<_> = asks
                .iter()
                .map(|(ask, cut)| {
                    let cut = if self.world.is_silent(ask.wish) { DOWN_CUT } else { *cut };
                    tokio::spawn(life::ask(Arc::clone(life.cache()), life::wish(self.world, ask), cut))
                })
                .collect();
            tokio::task::yield_now().await;
            let removed = self.meanwhile(life, meanwhile).await?;
            let mut answers = Vec::new();
            for task in asking {
                answers.push(task.await.map_err(|panic| format!("an ask panicked: {panic}"))?);
            }
            Ok((answers, removed))
        })
    }

    async fn meanwhile(&self, life: &Life, meanwhile: Meanwhile) -> Checked<Option<usize>> {
        let cache = Arc::clone(life.cache());
        let panicked = |panic: tokio::task::JoinError| panic.to_string();
        match meanwhile {
            Meanwhile::Nothing => {}
            Meanwhile::Put(put) => self.world.putter(put.source)(put.path(), put.number),
            Meanwhile::Remove(wish) => match cache.remove(vec![self.world.name(wish)]).await {
                Ok(_) => return Ok(Some(wish)),
                Err(failure) => {
                    let fits = matches!(failure.exit, Exit::Busy | Exit::NotFound);
                    check!(fits, "a removal failed: {failure:?}");
                }
            },
            Meanwhile::Housekeeping => {
                cache.residency().end_leases().await.map_err(|failure| failure.message)?;
                let kept = tokio::task::spawn_blocking(move || {
                    cache.residency().tidy().and_then(|()| cache.residency().keep_below())
                });
                kept.await.map_err(panicked)?.map_err(|error| error.to_string())?;
            }
            Meanwhile::Settle => drop(cache.settle(true).await.map_err(|failure| failure.message)?),
            Meanwhile::Status => {
                let looked = tokio::task::spawn_blocking(move || cache.status().map(drop));
                looked.await.map_err(panicked)?.map_err(|error| error.to_string())?;
            }
            Meanwhile::Verify => cache.verify(None, false, &mut |_| {}).await.map_err(|failure| failure.message)?,
        }
        Ok(None)
    }

    fn let_go(&mut self, number: usize) -> Checked {
        let before = self.before()?;
        if !self.held.is_empty() {
            let at = number % self.held.len();
            drop(self.held.swap_remove(at));
        }
        self.quiesce()?;
        self.follows(&before, &Effects::default(), &BTreeSet::new())
    }

    fn release(&mut self, number: usize) -> Checked {
        let before = self.before()?;
        let chosen = {
            let book = self.life().cache().residency().book();
            let mut lasting: Vec<_> = book
                .leases()
                .filter(|(_, lease)| !matches!(lease.owner, larder::cache::Owner::Connection(_)))
                .map(|(id, lease)| (id.clone(), (lease.owner.to_string(), lease.digest)))
                .collect();
            lasting.sort();
            if lasting.is_empty() { None } else { Some(lasting.swap_remove(number % lasting.len())) }
        };
        if let Some((id, lease)) = chosen {
            let cache = Arc::clone(self.life().cache());
            let released = self.life().runtime().block_on(cache.release(id));
            check!(matches!(released, Ok(1..)), "{released:?}");
            self.leases.remove(&lease);
        }
        self.follows(&before, &Effects::default(), &BTreeSet::new())
    }

    fn pin(&mut self, wish: usize, pinned: bool) -> Checked {
        let before = self.before()?;
        let id = Some(self.id(wish)).filter(|id| before.records.contains_key(id));
        let cache = Arc::clone(self.life().cache());
        let named = self.life().runtime().block_on(cache.set_pinned(self.world.name(wish), pinned));
        match named {
            Ok(names) => check!(names.len() == 1 && id.is_some(), "{names:?} were meant, not {id:?}"),
            Err(failure) if failure.exit == Exit::Disk && self.is_full() => return self.adopt_pins(&before),
            Err(failure) => check!(id.is_none() && failure.exit == Exit::NotFound, "{failure:?}"),
        }
        if let Some(id) = id {
            if pinned {
                self.pins.insert(id)
            } else {
                self.pins.remove(&id)
            };
        }
        self.follows(&before, &Effects::default(), &BTreeSet::new())
    }

    fn is_full(&self) -> bool {
        let (total, used) = self.disk.space();
        total - used < ALMOST_NOTHING
    }

    /// Pins that a full disk took in part only.
    fn adopt_pins(&mut self, before: &Kept) -> Checked {
        self.pins = Walk::of(&self.disk.store()).pins;
        self.follows(before, &Effects::default(), &BTreeSet::new())
    }

    fn pin_superseded(&mut self, number: usize, pinned: bool) -> Checked {
        let before = self.before()?;
        let superseded = before.superseded();
        if superseded.is_empty() {
            return Ok(());
        }
        let name = superseded[number % superseded.len()].to_string();
        let cache = Arc::clone(self.life().cache());
        let named = self.life().runtime().block_on(cache.set_pinned(by_digest(&name), pinned));
        if named.is_err() && self.is_full() {
            return self.adopt_pins(&before);
        }
        check!(named.is_ok(), "{named:?}");
        if pinned {
            self.pins.insert(name)
        } else {
            self.pins.remove(&name)
        };
        self.follows(&before, &Effects::default(), &BTreeSet::new())
    }

    fn remove(&mut self, wish: usize) -> Checked {
        let before = self.before()?;
        let id = Some(self.id(wish)).filter(|id| before.records.contains_key(id));
        let model = id.as_ref().and_then(|id| before.model(id));
        let in_use = model.is_some_and(|model| self.is_leased(&model) || self.pins.contains(&model.to_string()));
        let refused = in_use || id.as_ref().is_some_and(|id| self.pins.contains(id));
        let cache = Arc::clone(self.life().cache());
        let removed = self.life().runtime().block_on(cache.remove(vec![self.world.name(wish)]));
        let mut effects = Effects::default();
        match removed {
            Ok(_) if !refused && id.is_some() => {
                effects.removes = id.into_iter().collect();
                self.follows(&before, &effects, &BTreeSet::new())?;
                return self.audit(true);
            }
            Err(failure) if failure.exit == Exit::Busy && refused => {}
            Err(failure) if failure.exit == Exit::NotFound && id.is_none() => {}
            other => return Err(format!("removing {id:?} with {model:?} (in use: {refused}): {other:?}")),
        }
        self.follows(&before, &effects, &BTreeSet::new())
    }

    fn remove_superseded(&mut self, number: usize) -> Checked {
        let before = self.before()?;
        let superseded = before.superseded();
        if superseded.is_empty() {
            return Ok(());
        }
        let model = superseded[number % superseded.len()];
        let cache = Arc::clone(self.life().cache());
        let removed = self.life().runtime().block_on(cache.remove(vec![by_digest(&model.to_string())]));
        let mut effects = Effects::default();
        match (removed, self.is_protected(&before, &model)) {
            (Ok(_), false) => drop(effects.removes_models.insert(model)),
            (Err(failure), true) if failure.exit == Exit::Busy => {}
            (other, used) => return Err(format!("removing {model} (in use: {used}): {other:?}")),
        }
        self.follows(&before, &effects, &BTreeSet::new())
    }

    fn housekeeping(&mut self) -> Checked {
        let before = self.before()?;
        let alive: Vec<_> = self.leases.keys().map(|(owner, _)| self.is_owner_alive(owner)).collect();
        let mut alive = alive.into_iter();
        let before_count = self.leases.len();
        self.leases.retain(|_, seen| alive.next() == Some(true) || !*seen);
        let residency = Arc::clone(self.life().cache().residency());
        let ended = self.life().runtime().block_on(residency.end_leases()).map_err(|failure| failure.message)?;
        residency.tidy().map_err(|error| error.to_string())?;
        check!(
            ended == before_count - self.leases.len(),
            "{ended} leases were ended of {before_count}, {:?} stay",
            self.leases
        );
        if !self.is_full() {
            self.was_full = false;
        }
        let protected = self.protected(&before);
        let before = self.kept()?;
        let (total, used) = self.disk.space();
        let high = total / 100 * u64::from(HIGH) + total % 100 * u64::from(HIGH) / 100;
        let pressure = residency.keep_below().map_err(|error| error.to_string())?;
        let (_, now) = self.disk.space();
        if pressure == larder::cache::Pressure::None {
            check!(now <= high, "no pressure with {now} bytes in use, {high} are the high mark");
        }
        let effects = Effects { evicts: used > high, in_order: Some(String::new()), ..Effects::default() };
        self.follows(&before, &effects, &protected)
    }

    fn settle(&mut self) -> Checked {
        let before = self.before()?;
        let cache = Arc::clone(self.life().cache());
        let settled = self.life().runtime().block_on(cache.settle(true));
        check!(settled.is_ok(), "{settled:?}");
        // A copy that is known to be damaged is never made durable.
        let view = cache.store().view();
        let walk = Walk::of(&self.disk.store());
        let fresh = walk.blobs.iter().filter(|(digest, blob)| !blob.is_settled && view.has_blob(digest)).count();
        check!(fresh == 0, "{fresh} blobs are not settled");
        self.follows(&before, &Effects::default(), &BTreeSet::new())
    }

    fn corrupt(&mut self, blob: usize, at: usize) {
        let walk = Walk::of(&self.disk.store());
        let filled: Vec<_> = walk.blobs.into_iter().filter(|(_, blob)| blob.len > 0).collect();
        if filled.is_empty() {
            return;
        }
        let (digest, blob) = &filled[blob % filled.len()];
        // A bit that is turned twice is right again.
        if self.spoiled.insert(blob.inode, *digest).is_none() {
            turn_a_bit(&blob.path, at as u64 % blob.len);
        }
    }

    /// Models that have one of these are not whole from now on, until it comes again.
    fn break_models(&mut self, before: &Kept, damaged: &BTreeSet<Digest>) {
        let hit = before.manifests.iter().filter(|model| {
            self.models
                .get(model)
                .is_some_and(|files| files.values().any(|number| damaged.contains(&content(*number).digest)))
        });
        let hit: Vec<Digest> = hit.copied().collect();
        self.broken.extend(hit);
    }

    fn verify(&mut self, mends: bool) -> Checked {
        let before = self.before()?;
        if mends {
            self.world.set_down(false);
        }
        let walk = Walk::of(&self.disk.store());
        let of_models: BTreeSet<Digest> = before
            .manifests
            .iter()
            .filter_map(|model| self.models.get(model))
            .flat_map(|files| files.values().map(|number| content(*number).digest))
            .collect();
        let is_damaged =
            |digest: &&Digest| walk.blobs.get(digest).is_none_or(|blob| self.spoiled.contains_key(&blob.inode));
        let damaged: BTreeSet<Digest> = of_models.iter().filter(is_damaged).copied().collect();
        let protected = self.protected(&before);
        let mut effects = Effects { evicts: mends && !damaged.is_empty(), ..Effects::default() };
        if mends {
            for wish in 0..crate::world::WISH_COUNT {
                if let Some(model) = self.current(wish) {
                    effects.sets.insert(self.id(wish), [model].into());
                }
            }
        }
        self.break_models(&before, &damaged);
        let (mut found, mut failures) = (BTreeSet::new(), Vec::new());
        let cache = Arc::clone(self.life().cache());
        let verified = self.life().runtime().block_on(cache.verify(None, mends, &mut |event| match event {
            VerifyEvent::Damaged { digest, .. } => drop(found.insert(digest)),
            VerifyEvent::DamagedManifest { .. } => failures.push(format!("{event:?}")),
            VerifyEvent::Error { exit_code, .. } if ![Exit::NotFound as u8, Exit::Disk as u8].contains(&exit_code) => {
                failures.push(format!("{event:?}"));
            }
            _ => {}
        }));
        drop(cache);
        check!(verified.is_ok(), "{verified:?}");
        check!(failures.is_empty(), "{failures:?}");
        check!(found == damaged, "found {found:?} damaged, should be {damaged:?}");
        self.quiesce()?;
        let found = self.spoiled.iter().filter(|(_, digest)| damaged.contains(digest)).map(|(inode, _)| *inode);
        self.condemned.extend(found);
        if mends && !damaged.is_empty() {
            let walk = Walk::of(&self.disk.store());
            let left: BTreeSet<u64> = walk.blobs.values().map(|blob| blob.inode).collect();
            let marked = self.marked();
            let stays = |(inode, digest): (&u64, &Digest)| left.contains(inode) && !marked.contains(digest);
            check!(
                !self.spoiled.iter().filter(|(_, digest)| damaged.contains(digest)).any(stays),
                "a damaged blob stayed"
            );
            self.spoiled.retain(|inode, _| left.contains(inode));
            for wish in 0..crate::world::WISH_COUNT {
                self.forget_answers(wish);
            }
        }
        self.follows(&before, &effects, &protected)
    }

    /// What asks that nobody waits for to the end may do.
    fn effects_of(&mut self, asks: &[Ask]) -> Effects {
        let mut effects = Effects { evicts: !asks.is_empty(), ..Effects::default() };
        for ask in asks {
            if let Some(model) = self.current(ask.wish) {
                effects.sets.entry(self.id(ask.wish)).or_default().insert(model);
            }
        }
        effects
    }

    fn crash(&mut self, asks: &[Ask], millis: u8, debris: u8) -> Checked {
        let before = self.before()?;
        let effects = self.effects_of(asks);
        self.lose_unwritten();
        let protected = self.protected(&before);
        let life = self.life.take().expect("alive");
        for ask in asks {
            let asked = life::ask(Arc::clone(life.cache()), life::wish(self.world, ask), Cut::Never);
            drop(life.runtime().spawn(asked));
        }
        std::thread::sleep(Duration::from_millis(millis.into()));
        life.crash();
        self.held.clear();
        self.begin()?;
        // Threads of the life before are surely done now, as this one has the store.
        drop(self.life.take());
        leave(&self.disk.store(), debris);
        self.begin()?;
        self.prove()?;
        self.heed_marks();
        self.adopt_leases(&before, asks)?;
        self.follows(&before, &effects, &still(&protected, self, &before))?;
        self.audit(false)
    }

    fn reboot(&mut self, damaged: u8, asks: &[Ask]) -> Checked {
        let before = self.before()?;
        let effects = self.effects_of(asks);
        self.lose_unwritten();
        let protected = self.protected(&before);
        self.life.take().expect("alive").crash();
        self.held.clear();
        self.begin()?;
        drop(self.life.take());
        let (mut dropped, mut proven) = (BTreeSet::new(), BTreeSet::new());
        let walk = Walk::of(&self.disk.store());
        for (at, (digest, blob)) in walk.blobs.iter().filter(|(_, blob)| !blob.is_settled).enumerate() {
            if damaged > 0
                && blob.len > 0
                && at % usize::from(damaged) == 0
                && self.spoiled.insert(blob.inode, *digest).is_none()
            {
                turn_a_bit(&blob.path, blob.len / 2);
            }
            let is_right = !self.spoiled.contains_key(&blob.inode);
            if is_right {
                proven.insert(*digest)
            } else {
                dropped.insert(*digest)
            };
        }
        let fresh = self.disk.store().join("v1/fresh");
        for boot in names(&fresh) {
            fs::rename(fresh.join(boot), fresh.join("00000000-0000-0000-0000-000000000000")).expect("a rename");
        }
        self.begin()?;
        let hit = before.manifests.iter().filter(|model| {
            self.models
                .get(model)
                .is_some_and(|files| files.values().any(|number| dropped.contains(&content(*number).digest)))
        });
        let hit: Vec<Digest> = hit.copied().collect();
        self.broken.extend(hit);
        let asking: Vec<_> = asks
            .iter()
            .map(|ask| {
                let cut = if self.world.is_down { DOWN_CUT } else { Cut::Never };
                let asked = life::ask(Arc::clone(self.life().cache()), life::wish(self.world, ask), cut);
                self.life().runtime().spawn(asked)
            })
            .collect();
        let recovered = self.prove()?;
        check!(recovered.0 == dropped, "{:?} were dropped, should be {dropped:?}", recovered.0);
        check!(recovered.1 == proven, "{:?} were proven, should be {proven:?}", recovered.1);
        self.adopt_asks(asks, asking)?;
        self.adopt_leases(&before, asks)?;
        self.quiesce()?;
        self.follows(&before, &effects, &still(&protected, self, &before))?;
        self.audit(false)
    }

    /// What a full disk did not take goes with the life.
    fn lose_unwritten(&mut self) {
        let written = Walk::of(&self.disk.store()).marked;
        let spoiled = &self.spoiled;
        self.condemned.retain(|inode| spoiled.get(inode).is_some_and(|digest| written.contains(digest)));
        let unwritten = self.unwritten();
        self.leases.retain(|lease, _| !unwritten.contains(lease));
    }

    fn adopt_asks(&mut self, asks: &[Ask], asking: Vec<tokio::task::JoinHandle<Answer>>) -> Checked {
        for (ask, task) in asks.iter().zip(asking) {
            let answer = self.life().runtime().block_on(task).map_err(|panic| panic.to_string())?;
            let told = granted(&answer);
            match answer.result {
                Some(Ok(granted)) => {
                    self.holds(&granted.ready, ask.lease == Lease::None)?;
                    self.note(ask, granted)?;
                }
                Some(Err(failure)) => check!(matches!(failure.exit, Exit::Disk | Exit::NotFound), "{ask:?} {told}"),
                None => {}
            }
            self.forget_answers(ask.wish);
        }
        Ok(())
    }

    /// Leases that asks may have taken before they were cut off are the test's from now on.
    fn adopt_leases(&mut self, before: &Kept, asks: &[Ask]) -> Checked {
        let (leases, _) = self.actual_leases();
        for (lease, seen) in self.leases.clone() {
            check!(leases.contains(&lease), "{lease:?} is lost");
            let asked = asks.iter().any(|ask| life::owner(ask.lease).is_some_and(|owner| owner.to_string() == lease.0));
            let noted = self.actually_seen(&lease);
            // A full disk kept an older note of it.
            check!(noted == seen || asked || self.was_full, "{lease:?} was seen: {noted}, should be {seen}");
            self.leases.insert(lease, noted);
        }
        for lease in leases {
            let asked =
                asks.iter().filter(|ask| life::owner(ask.lease).is_some_and(|owner| owner.to_string() == lease.0));
            let mut wishes: BTreeSet<usize> = asked.map(|ask| ask.wish).collect();
            if wishes.is_empty() {
                check!(self.leases.contains_key(&lease), "{lease:?} is a lease out of nowhere");
                continue;
            }
            let fits = |stage: &mut Self, wish: usize| {
                stage.current(wish) == Some(lease.1) || before.model(&stage.id(wish)) == Some(lease.1)
            };
            wishes.retain(|wish| fits(self, *wish));
            check!(!wishes.is_empty() || self.leases.contains_key(&lease), "{lease:?} is of another model");
            let seen = self.actually_seen(&lease);
            self.leases.insert(lease, seen);
        }
        Ok(())
    }

    pub fn begin(&mut self) -> Checked {
        let life = Life::begin(&self.disk.store(), self.kubelet, &self.world.endpoint(), self.recheck)?;
        self.life = Some(life);
        self.answered.clear();
        self.unsure.clear();
        Ok(())
    }

    /// What was dropped and what was proven.
    pub fn prove(&self) -> Checked<(BTreeSet<Digest>, BTreeSet<Digest>)> {
        let cache = self.life().cache();
        let recovered = cache.store().prove().map_err(|error| error.to_string())?;
        cache.set_proven();
        check!(recovered.unreadable.is_empty(), "{:?} cannot be read", recovered.unreadable);
        Ok((recovered.dropped.into_iter().collect(), recovered.proven.into_iter().collect()))
    }
}

/// Of what was protected, what still is: callers are gone with their connection.
fn still(protected: &BTreeSet<Digest>, stage: &Stage<'_>, before: &Kept) -> BTreeSet<Digest> {
    protected.iter().filter(|model| stage.is_protected(before, model)).copied().collect()
}

fn turn_a_bit(path: &std::path::Path, at: u64) {
    let sealed = path.metadata().expect("a file").permissions();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("a file");
    let file = fs::File::options().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("a byte");
    fs::set_permissions(path, sealed).expect("a file");
}

/// What a process that is killed may leave, one bit of `debris` each; less on a full disk.
fn leave(store: &std::path::Path, debris: u8) {
    let root = store.join("v1");
    let has = |bit: u8| debris >> bit & 1 == 1;
    let write = |name: &str, bytes: &[u8]| drop(fs::write(root.join(name), bytes));
    if has(0) {
        write("scratch/1-1", b"half a docu");
    }
    if has(1) {
        let _ = fs::create_dir_all(root.join("scratch/1-2/sub"));
        write("scratch/1-2/sub/w", b"half a tree");
    }
    if has(5) {
        write("partial/00000000000000000000000000000000.bytes", &[0; 5000]);
    }
    let catalog = fs::File::options().read(true).append(true).open(root.join("catalog.log")).expect("a catalog");
    if has(2) {
        let _ = (&catalog).write_all(b"half a li");
    }
    if has(3) && has(4) {
        let len = catalog.metadata().expect("a file").len();
        catalog.set_len(len.saturating_sub(10)).expect("a file");
    }
}
