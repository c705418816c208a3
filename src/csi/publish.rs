//! Bringing a volume's model, and mounting it where kubelet says.
//!
//! kubelet asks for two minutes and then again. The work goes on in between: a call finds the work
//! of the call before it, or what has become of it. What is mounted is noted, so that a volume is
//! the same model for as long as its pod lives, whoever restarts meanwhile.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use super::Plugin;
use super::notes::{Turn, Volume};
use super::volume::{Asked, Pod};
use crate::cache::{Event, LeaseWish, Moving, Waits, Wish};
use crate::report::{Exit, Failure, named, text};

/// Volumes that are being brought at once.
const WORKS_MAX: usize = 512;
/// How often it is looked whether the pod is still wanted while its model comes: the cluster is asked,
/// and now and then the keeper, for the pod's directory.
const ENDED_INTERVAL: Duration = Duration::from_secs(3);
const POD_INTERVAL: Duration = Duration::from_secs(30);
/// When a pod that waits hears for what, counted from the beginning, and how often after that. kubelet
/// says nothing before a call of its own has ended, which takes two minutes.
const TOLD_AFTER: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(15), Duration::from_mins(1)];
const TOLD_INTERVAL: Duration = Duration::from_mins(2);
/// What events of a pod are of.
const PULLING: &str = "PullingModel";
const PULLED: &str = "PulledModel";
/// How often work says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// How long the disk may take to say whether a model is still here.
const LOOK_PATIENCE: Duration = Duration::from_secs(20);

/// What is being brought, by target.
#[derive(Debug, Default)]
pub(super) struct Works(Mutex<HashMap<PathBuf, Arc<Work>>>);

/// The work on one volume.
#[derive(Debug)]
pub(super) struct Work {
    asked: Asked,
    /// What the cache waits for.
    waits: Waits,
    state: watch::Sender<State>,
    leave: watch::Sender<bool>,
}

#[derive(Debug, Clone)]
enum State {
    Coming(Box<Moving>),
    /// The keeper is asked to mount it.
    Mounting(Instant),
    Ended(Result<(), Failure>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Works {
    /// What is being done for a target.
    pub fn at(&self, target: &Path) -> Option<Arc<Work>> {
        lock(&self.0).get(target).cloned()
    }
}

impl Work {
    /// Has it end: its pod is gone. Waits for that as long as said; whether it has.
    pub async fn leave(&self, patience: Duration) -> Result<(), Failure> {
        self.leave.send_replace(true);
        let mut state = self.state.subscribe();
        let ended = state.wait_for(|state| matches!(state, State::Ended(_)));
        if tokio::time::timeout(patience, ended).await.is_ok() {
            return Ok(());
        }
        Err(Failure::new(Exit::Busy, format!("the volume is just being mounted: {}", self.told())))
    }

    fn is_left(&self) -> bool {
        *self.leave.borrow()
    }

    /// What it waits for, for an event that people read once every few minutes.
    fn told(&self) -> String {
        match &*self.state.borrow() {
            State::Coming(moving) => far(&self.asked.source.to_string(), moving, self.waits.now()),
            State::Mounting(since) => mounting(&self.asked.source.to_string(), since.elapsed()),
            State::Ended(_) => format!("`{}` has ended", self.asked.source),
        }
    }
}

impl Plugin {
    /// Mounts a model for a pod. Waits for it at most so long; the work goes on without a caller.
    ///
    /// # Errors
    /// What the pod's event is to say. [`Exit::Busy`] says what it waits for.
    pub(super) async fn publish(self: &Arc<Self>, asked: Asked, patience: Duration) -> Result<(), Failure> {
        // What a pod has it keeps: kubelet asks for it again after its own restart, and would take a
        // refusal for the end of a volume that is in use.
        if self.notes.at(&asked.target).is_none_or(|noted| !noted.volume.is(&asked)) {
            (self.allows)(&asked.pod, &asked.source)?;
        }
        let work = self.work(asked)?;
        let mut state = work.state.subscribe();
        // The sender is gone only after it has said the end.
        let _ = tokio::time::timeout(patience, state.wait_for(|state| matches!(state, State::Ended(_)))).await;
        if let State::Ended(result) = &*state.borrow() {
            return result.clone();
        }
        Err(Failure::hinted(Exit::Busy, work.told(), "kubelet asks again until it is here"))
    }

    /// The work on a volume, begun now if there is none.
    fn work(self: &Arc<Self>, asked: Asked) -> Result<Arc<Work>, Failure> {
        let mut works = lock(&self.works.0);
        if let Some(work) = works.get(&asked.target) {
            // An answer is of whoever asked.
            if !work.asked.is_same(&asked) {
                return Err(Failure::new(Exit::Busy, "something else is just being mounted there for another pod"));
            }
            return Ok(Arc::clone(work));
        }
        if works.len() >= WORKS_MAX {
            return Err(Failure::new(Exit::Busy, format!("{WORKS_MAX} volumes are on their way to this node already")));
        }
        let target = asked.target.clone();
        let work = Arc::new(Work {
            asked,
            waits: Waits::default(),
            state: watch::Sender::new(State::Coming(Box::default())),
            leave: watch::Sender::new(false),
        });
        works.insert(target.clone(), Arc::clone(&work));
        let (plugin, doing) = (Arc::clone(self), Arc::clone(&work));
        tokio::spawn(async move {
            let (own, work) = (Arc::clone(&plugin), Arc::clone(&doing));
            // In a task of its own: those who wait must hear of a panic too.
            let result = tokio::spawn(named("volume", async move { own.bring(&work).await })).await;
            let result = result.unwrap_or_else(|panic| Err(Failure::new(Exit::Defect, panic.to_string())));
            if let Err(failure) = &result {
                tracing::warn!(source = %doing.asked.source, why = failure.message, "a volume could not be brought");
            }
            // First gone, then ended: who asks after the end begins anew.
            lock(&plugin.works.0).remove(&target);
            doing.state.send_replace(State::Ended(result));
        });
        Ok(work)
    }

    async fn bring(self: &Arc<Self>, work: &Work) -> Result<(), Failure> {
        let asked = &work.asked;
        if self.keep(work).await? {
            return Ok(());
        }
        let wish = Wish {
            lazy: asked.lazy,
            keys: asked.keys.clone(),
            progress_every: PROGRESS_INTERVAL,
            waits: work.waits.clone(),
            ..Wish::new(asked.source.clone(), asked.selection.clone(), asked.fresh, LeaseWish::Owner(asked.owner()))
        };
        let mut tell = |event| match event {
            Event::Progress(moving) => drop(work.state.send_replace(State::Coming(Box::new(moving)))),
            Event::Warning { message } => {
                tracing::warn!(pod = asked.pod.name, namespace = asked.pod.namespace, message, "a pod's volume");
            }
            Event::Ready(_) | Event::Error { .. } => {}
        };
        let mut left = work.leave.subscribe();
        let (began, told) = (Instant::now(), AtomicBool::new(false));
        let granted = tokio::select! {
            granted = self.cache.ensure(&wish, &mut tell) => granted?,
            _ = left.wait_for(|left| *left) => return Err(gone()),
            () = self.pod_gone(&asked.pod) => return Err(gone()),
            never = self.tell(work, &told) => match never {},
        };
        if let (true, ready) = (told.load(Relaxed), &granted.ready) {
            let (bytes, after) = (text::bytes(ready.bytes_total), text::duration(began.elapsed()));
            let how = if ready.arriving { "can be read while it arrives" } else { "is here" };
            self.cluster.tell(&asked.pod, PULLED, format!("`{}` {how} after {after}: {bytes}", asked.source));
        }
        let turn = self.notes.turn(&asked.target).await;
        if work.is_left() {
            // Whoever takes it away has its turn after this one, and ends the lease too.
            return Err(gone());
        }
        let mounted = self.mount(&turn, work, &granted.ready.digest, granted.ready.arriving).await;
        // What cannot be told may be mounted, and stays noted: kubelet asks again, or takes it away.
        // After a refusal it does neither.
        if mounted.as_ref().is_err_and(|failure| failure.exit != Exit::Busy) {
            self.let_go(&turn, &asked.target, &asked.id).await;
        }
        mounted
    }

    /// Gives a pod what it has already, if that is what is asked for and it is still here; whether it
    /// is. What is of a pod that has gone makes way.
    async fn keep(self: &Arc<Self>, work: &Work) -> Result<bool, Failure> {
        let asked = &work.asked;
        let turn = self.notes.turn(&asked.target).await;
        let Some(noted) = self.notes.at(&asked.target) else { return Ok(false) };
        if work.is_left() {
            return Err(gone());
        }
        if noted.volume.is(asked) {
            if !self.is_kept(&noted.volume).await? {
                return Ok(false);
            }
            // kubelet has restarted, or lost our answer: the pod keeps the model that it has.
            self.attach(&turn, work, &noted.volume).await?;
            return Ok(true);
        }
        let Volume { pod, source, .. } = &noted.volume;
        if !self.cache.is_pod_gone(&pod.uid).await {
            let (Pod { namespace, name, .. }, exit) = (pod, Exit::Denied);
            let message =
                format!("pod `{namespace}/{name}` has `{source}` there, in a volume of another kind or owner");
            return Err(Failure::hinted(exit, message, "it must be taken away first"));
        }
        self.take_away(&turn, &asked.target, &noted.id).await?;
        Ok(false)
    }

    async fn mount(
        self: &Arc<Self>,
        turn: &Turn<'_>,
        work: &Work,
        digest: &str,
        arriving: bool,
    ) -> Result<(), Failure> {
        let asked = &work.asked;
        let digest = digest.parse().map_err(|_| Failure::new(Exit::Defect, "a model without a digest"))?;
        let volume = Volume {
            target: asked.target.clone(),
            pod: asked.pod.clone(),
            source: asked.source.to_string(),
            selection: Some((asked.selection.include().to_vec(), asked.selection.exclude().to_vec())),
            digest,
            arriving,
            since: text::unix(SystemTime::now()),
            ended: false,
        };
        // Noted before it is mounted: what is mounted and not noted would stay.
        self.notes.note(turn, asked.id.clone(), volume.clone()).await.map_err(|why| {
            let message = format!(
                "this volume of the pod has ended before, and that it is there again cannot be written down: {why}"
            );
            Failure::hinted(Exit::Busy, message, "kubelet asks again; look at the disk of the store")
        })?;
        self.attach(turn, work, &volume).await?;
        let Pod { namespace, name, .. } = &volume.pod;
        tracing::info!(source = volume.source, %namespace, pod = name, model = %digest.short(), arriving, "a pod has its model");
        Ok(())
    }

    async fn attach(&self, _turn: &Turn<'_>, work: &Work, volume: &Volume) -> Result<(), Failure> {
        work.state.send_replace(State::Mounting(Instant::now()));
        self.keeper.mount(volume, self.cache.residency().mounting(volume.digest)).await
    }

    /// Whether a volume's model can still be given to its pod.
    async fn is_kept(self: &Arc<Self>, volume: &Volume) -> Result<bool, Failure> {
        let (cache, Volume { digest, arriving, .. }) = (Arc::clone(&self.cache), volume.clone());
        let kept = move || {
            let view = cache.store().view();
            let is_used = cache.residency().book().is_used(&digest);
            is_used
                && if arriving {
                    view.listing(&digest).is_ok_and(|listing| listing.is_some())
                } else {
                    view.tree(&digest).is_dir()
                }
        };
        self.disk.look(LOOK_PATIENCE, kept).await.map_err(|missed| {
            Failure::new(
                Exit::Busy,
                format!("waiting for the disk of this node to say whether the model is here: {missed}"),
            )
        })
    }

    /// Waits until the pod is not wanted any more. kubelet does not say so before its call has ended, and
    /// keeps the pod's directory until then.
    async fn pod_gone(&self, pod: &Pod) {
        let deleted = async {
            loop {
                tokio::time::sleep(ENDED_INTERVAL).await;
                if self.cluster.has_ended(pod).await == Some(true) {
                    return;
                }
            }
        };
        let removed = async {
            loop {
                tokio::time::sleep(POD_INTERVAL).await;
                if self.cache.is_pod_gone(&pod.uid).await {
                    return;
                }
            }
        };
        tokio::select! {
            () = deleted => {}
            () = removed => {}
        }
    }

    /// Tells a pod what it waits for, now and then.
    async fn tell(&self, work: &Work, told: &AtomicBool) -> Infallible {
        let began = tokio::time::Instant::now();
        let later = (1_u32..).map(|count| TOLD_AFTER[TOLD_AFTER.len() - 1] + TOLD_INTERVAL * count);
        for after in TOLD_AFTER.into_iter().chain(later) {
            tokio::time::sleep_until(began + after).await;
            told.store(true, Relaxed);
            self.cluster.tell(&work.asked.pod, PULLING, work.told());
        }
        std::future::pending().await
    }
}

fn gone() -> Failure {
    Failure::new(Exit::Busy, "the pod is gone")
}

/// How far a model is, or what keeps it.
fn far(source: &str, moving: &Moving, waits: &str) -> String {
    if !waits.is_empty() && moving.bytes_done >= moving.bytes_total {
        return format!("`{source}` is waiting for {waits}");
    }
    let (done, total) = (text::bytes(moving.bytes_done), text::bytes(moving.bytes_total));
    if let Some(waiting) = &moving.waiting {
        let so_far = if moving.bytes_total == 0 { String::new() } else { format!(", with {done} of {total} here") };
        let since = text::duration(Duration::from_secs(waiting.seconds));
        return format!("`{source}` waits for its origin{so_far}, since {since}: {}", waiting.why);
    }
    if moving.bytes_total == 0 {
        return format!("`{source}` is being looked up");
    }
    let rate = text::rate(moving.bytes_per_second, Duration::from_secs(1));
    let left = moving.seconds_left.map(|left| format!(", {} left", text::duration(Duration::from_secs(left))));
    format!("`{source}` is on its way: {done} of {total}, {rate}{}", left.unwrap_or_default())
}

fn mounting(source: &str, since: Duration) -> String {
    format!("`{source}` is here: waiting for larder-keeper to mount it, for {}", text::duration(since))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Waiting;

    #[test]
    fn an_event_says_how_far_it_is() {
        assert_eq!(far("s3://b/k/", &Moving::default(), ""), "`s3://b/k/` is being looked up");
        let said = far("s3://b/k/", &Moving::default(), "the disk of this node");
        assert_eq!(said, "`s3://b/k/` is waiting for the disk of this node");
        let moving = Moving {
            bytes_done: 42 << 30,
            bytes_total: 130 << 30,
            bytes_per_second: 1 << 30,
            seconds_left: Some(88),
            ..Moving::default()
        };
        let said = far("s3://b/k/", &moving, "");
        assert!(said.contains("42.0 GiB of 130.0 GiB, 1.0 GiB/s, 1 min 28 s left"), "{said}");
        let waiting = Some(Waiting { why: "connection refused".into(), seconds: 70, seconds_left: 230 });
        let said = far("s3://b/k/", &Moving { waiting, ..moving }, "");
        assert_eq!(
            said,
            "`s3://b/k/` waits for its origin, with 42.0 GiB of 130.0 GiB here, since 1 min 10 s: connection refused"
        );
        let said = mounting("s3://b/k/", Duration::from_secs(61));
        assert!(said.contains("waiting for larder-keeper to mount it, for 1 min 1 s"), "{said}");
    }
}
