//! Bringing a volume's model, and mounting it where kubelet says; and taking it away again.
//!
//! kubelet asks for two minutes and then again. The work goes on in between: a call finds the work
//! of the call before it, or what has become of it. What is mounted is noted, so that a volume is
//! the same model for as long as its pod lives, whoever restarts meanwhile.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use larder_keeper::client;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::Plugin;
use super::volume::{self, Asked, Pod};
use crate::cache::{ARRIVING, Event, LeaseWish, Moving, Owner, Wish};
use crate::domain::Digest;
use crate::report::{Exit, Failure, text};
use crate::store::{self, Shelf, Store};

/// More volumes than the pods of a node have.
const VOLUMES_MAX: usize = 4096;
/// Volumes that are being brought at once.
const WORKS_MAX: usize = 512;
/// How often it is looked whether the pod is still there while its model comes.
const POD_INTERVAL: Duration = Duration::from_secs(30);
/// How often work says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// How long a volume that is taken away waits for the end of the work on it.
const END_PATIENCE: Duration = Duration::from_mins(1);

/// A volume that is mounted, or about to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Volume {
    target: PathBuf,
    pod: Pod,
    source: String,
    /// The model; of one that was read while it arrived, its listing.
    digest: Digest,
    arriving: bool,
    /// Seconds since 1970.
    since: u64,
}

/// All volumes of this node by their ids, as they are noted in the store.
#[derive(Debug)]
pub(super) struct Volumes {
    store: Arc<Store>,
    known: HashMap<String, Volume>,
}

impl Volumes {
    pub fn open(store: &Arc<Store>) -> Result<Self, store::Error> {
        let known = store.notes(Shelf::Volumes)?.into_iter().take(VOLUMES_MAX).collect();
        Ok(Self { store: Arc::clone(store), known })
    }

    /// A full disk is no reason to keep a model that is here from a pod: then it is remembered for
    /// as long as this process lives.
    fn note(&mut self, id: &str, volume: Volume) {
        if let Err(error) = self.store.note(Shelf::Volumes, id, &volume) {
            tracing::warn!(pod = volume.pod.name, %error, "a volume could not be written down: it is forgotten with a restart");
        }
        self.known.insert(id.to_owned(), volume);
    }

    fn forget(&mut self, id: &str) -> Option<Volume> {
        if let Err(error) = self.store.remove_note(Shelf::Volumes, id) {
            tracing::warn!(%error, "what is noted of a volume could not be removed");
        }
        self.known.remove(id)
    }
}

/// The work on one volume.
#[derive(Debug)]
pub(super) struct Work {
    state: watch::Sender<State>,
    leave: watch::Sender<bool>,
}

#[derive(Debug, Clone)]
enum State {
    Moving(Box<Moving>),
    Ended(Result<(), Failure>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Plugin {
    /// Mounts a model for a pod. Waits for it at most so long; the work goes on without a caller.
    ///
    /// # Errors
    /// What the pod's event is to say. [`Exit::Busy`] says how far it is.
    pub(super) async fn publish(self: &Arc<Self>, asked: Asked, patience: Duration) -> Result<(), Failure> {
        let source = asked.source.to_string();
        // What a pod has it keeps: kubelet asks for it again after its own restart, and would take a
        // refusal for the end of a volume that is in use.
        if self.noted(&asked).is_none() {
            (self.allows)(&asked.pod, &asked.source)?;
        }
        let mut state = self.work(asked)?;
        // The sender is gone only after it has said the end.
        let _ = tokio::time::timeout(patience, state.wait_for(|state| matches!(state, State::Ended(_)))).await;
        match &*state.borrow() {
            State::Ended(result) => result.clone(),
            State::Moving(moving) => {
                Err(Failure::hinted(Exit::Busy, far(&source, moving), "kubelet asks again until it is here"))
            }
        }
    }

    /// The work on a volume, begun now if there is none.
    fn work(self: &Arc<Self>, asked: Asked) -> Result<watch::Receiver<State>, Failure> {
        let mut works = lock(&self.works);
        if let Some(work) = works.get(&asked.id) {
            return Ok(work.state.subscribe());
        }
        if works.len() >= WORKS_MAX {
            return Err(Failure::new(Exit::Busy, format!("{WORKS_MAX} volumes are on their way to this node already")));
        }
        let work = Arc::new(Work {
            state: watch::Sender::new(State::Moving(Box::default())),
            leave: watch::Sender::new(false),
        });
        works.insert(asked.id.clone(), Arc::clone(&work));
        let (plugin, state) = (Arc::clone(self), work.state.subscribe());
        tokio::spawn(async move {
            let own = Arc::clone(&plugin);
            let (id, source) = (asked.id.clone(), asked.source.clone());
            let doing = Arc::clone(&work);
            // In a task of its own: those who wait must hear of a panic too.
            let result = tokio::spawn(async move { own.bring(&asked, &doing).await }).await;
            let result = result.unwrap_or_else(|panic| Err(Failure::new(Exit::Defect, panic.to_string())));
            if let Err(failure) = &result {
                tracing::warn!(%source, why = failure.message, "a volume could not be brought");
            }
            // First gone, then ended: who asks after the end begins anew.
            lock(&plugin.works).remove(&id);
            work.state.send_replace(State::Ended(result));
        });
        Ok(state)
    }

    async fn bring(self: &Arc<Self>, asked: &Asked, work: &Arc<Work>) -> Result<(), Failure> {
        if let Some(volume) = self.noted(asked)
            && self.is_kept(&volume).await
        {
            // kubelet has restarted, or lost our answer: the pod keeps the model that it has.
            return self.attach(&volume, &asked.target).await;
        }
        let wish = Wish {
            lazy: asked.lazy,
            keys: asked.keys.clone(),
            progress_every: PROGRESS_INTERVAL,
            ..Wish::new(asked.source.clone(), asked.selection.clone(), asked.fresh, LeaseWish::Owner(asked.owner()))
        };
        let mut tell = |event| match event {
            Event::Progress(moving) => drop(work.state.send_replace(State::Moving(Box::new(moving)))),
            Event::Warning { message } => {
                tracing::warn!(pod = asked.pod.name, namespace = asked.pod.namespace, message, "a pod's volume");
            }
            Event::Ready(_) | Event::Error { .. } => {}
        };
        let mut left = work.leave.subscribe();
        let granted = tokio::select! {
            granted = self.cache.ensure(&wish, &mut tell) => granted?,
            _ = left.wait_for(|left| *left) => return Err(gone()),
            () = self.pod_gone(&asked.pod) => return Err(gone()),
        };
        let mounted = self.mount(asked, &granted.ready.digest, granted.ready.arriving).await;
        if mounted.is_err() {
            self.let_go(asked.id.clone()).await;
        }
        mounted
    }

    /// What is noted of a volume, if it is what is asked for.
    fn noted(&self, asked: &Asked) -> Option<Volume> {
        let known = lock(&self.volumes).known.get(&asked.id).cloned();
        known.filter(|volume| volume.source == asked.source.to_string())
    }

    async fn mount(self: &Arc<Self>, asked: &Asked, digest: &str, arriving: bool) -> Result<(), Failure> {
        let digest = digest.parse().map_err(|_| Failure::new(Exit::Defect, "a model without a digest"))?;
        let volume = Volume {
            target: asked.target.clone(),
            pod: asked.pod.clone(),
            source: asked.source.to_string(),
            digest,
            arriving,
            since: text::unix(SystemTime::now()),
        };
        // Noted before it is mounted: what is mounted and not noted would stay.
        let (plugin, id, noted) = (Arc::clone(self), asked.id.clone(), volume.clone());
        let note = move || lock(&plugin.volumes).note(&id, noted);
        tokio::task::spawn_blocking(note).await.map_err(|panic| Failure::new(Exit::Defect, panic.to_string()))?;
        self.attach(&volume, &asked.target).await?;
        let Pod { namespace, name, .. } = &volume.pod;
        tracing::info!(source = volume.source, %namespace, pod = name, model = %digest.short(), arriving, "a pod has its model");
        Ok(())
    }

    /// Mounts what a volume is at a directory of its pod. Doing it twice is doing it once.
    async fn attach(&self, volume: &Volume, target: &Path) -> Result<(), Failure> {
        let Volume { digest, arriving, .. } = *volume;
        let target = target.to_owned();
        self.errand("mount the model for the pod", move |keeper| {
            if arriving {
                keeper.bind(Path::new(ARRIVING).join(digest.to_string()), target)
            } else {
                keeper.publish(digest.to_string(), target)
            }
        })
        .await
    }

    async fn errand<T: Send + 'static>(
        &self,
        what: &str,
        errand: impl FnOnce(larder_keeper::Errands) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let keeper = self.keeper.clone();
        let done = tokio::task::spawn_blocking(move || errand(keeper)).await;
        let done = done.map_err(|panic| Failure::new(Exit::Defect, panic.to_string()))?;
        done.map_err(|error| {
            // What the keeper refuses it refuses again; one that is not there comes back.
            let exit = if client::refusal(&error).is_some() { Exit::Defect } else { Exit::Busy };
            Failure::hinted(exit, format!("cannot {what}: {error}"), "larder-keeper's log on this node says more")
        })
    }

    /// Whether a volume's model can still be given to its pod.
    async fn is_kept(self: &Arc<Self>, volume: &Volume) -> bool {
        let (cache, Volume { digest, arriving, .. }) = (Arc::clone(&self.cache), volume.clone());
        let kept = move || {
            let view = cache.store().view();
            let is_leased = cache.residency().book().is_leased(&digest);
            is_leased
                && if arriving {
                    view.listing(&digest).is_ok_and(|listing| listing.is_some())
                } else {
                    view.tree(&digest).is_dir()
                }
        };
        tokio::task::spawn_blocking(kept).await.unwrap_or(false)
    }

    /// Waits until kubelet has removed the pod.
    async fn pod_gone(&self, pod: &Pod) {
        loop {
            tokio::time::sleep(POD_INTERVAL).await;
            if self.cache.is_pod_gone(&pod.uid).await {
                return;
            }
        }
    }

    /// Takes a volume away; of one that is not known, whatever is mounted there.
    ///
    /// # Errors
    /// When the keeper is away, or something else is mounted there.
    pub(super) async fn unpublish(self: &Arc<Self>, volume_id: &str, target: &str) -> Result<(), Failure> {
        let (id, target) = (volume::id(volume_id)?, volume::target(target)?);
        let work = lock(&self.works).get(&id).cloned();
        if let Some(work) = work {
            work.leave.send_replace(true);
            let mut state = work.state.subscribe();
            let ended = state.wait_for(|state| matches!(state, State::Ended(_)));
            if tokio::time::timeout(END_PATIENCE, ended).await.is_err() {
                return Err(Failure::new(Exit::Busy, "the volume is just being mounted"));
            }
        }
        self.take_away(id, target).await
    }

    async fn take_away(self: &Arc<Self>, id: String, target: PathBuf) -> Result<(), Failure> {
        self.errand("take the model away from the pod", move |keeper| keeper.unbind(target)).await?;
        if let Some(Volume { source, pod, .. }) = self.let_go(id).await {
            tracing::info!(source, namespace = pod.namespace, pod = pod.name, "a pod is done with its model");
        }
        Ok(())
    }

    /// Forgets a volume and ends its leases; what was noted of it.
    async fn let_go(self: &Arc<Self>, id: String) -> Option<Volume> {
        let plugin = Arc::clone(self);
        let let_go = move || {
            let volume = lock(&plugin.volumes).forget(&id);
            let of_volume = |owner: &Owner| matches!(owner, Owner::Volume { id: of, .. } if *of == id);
            if let Err(error) = plugin.cache.residency().release_all(of_volume) {
                tracing::warn!(%error, "the leases of a volume could not be ended: they end with its pod");
            }
            volume
        };
        tokio::task::spawn_blocking(let_go).await.ok().flatten()
    }

    fn known(&self) -> Vec<(String, Volume)> {
        lock(&self.volumes).known.iter().map(|(id, volume)| (id.clone(), volume.clone())).collect()
    }

    /// Puts what pods read while it arrives out of a new mount: containers that start from now on
    /// find it there.
    pub(super) async fn remount(self: &Arc<Self>) {
        for (_, volume) in self.known().into_iter().filter(|(_, volume)| volume.arriving) {
            if !self.cache.is_pod_gone(&volume.pod.uid).await
                && let Err(failure) = self.attach(&volume, &volume.target).await
            {
                let Pod { namespace, name, .. } = &volume.pod;
                tracing::warn!(%namespace, pod = name, why = failure.message, "a volume is not in the new mount");
            }
        }
    }

    /// Takes away what pods left behind of whose end kubelet did not tell.
    pub(super) async fn sweep_once(self: &Arc<Self>) {
        for (id, Volume { pod, target, .. }) in self.known() {
            if self.cache.is_pod_gone(&pod.uid).await
                && let Err(failure) = self.take_away(id, target).await
            {
                tracing::warn!(pod = pod.name, why = failure.message, "what a pod left behind cannot be taken away");
            }
        }
    }
}

fn gone() -> Failure {
    Failure::new(Exit::Interrupted, "the pod is gone")
}

/// How far a model is, for an event that people read once every few minutes.
fn far(source: &str, moving: &Moving) -> String {
    if moving.bytes_total == 0 {
        return format!("`{source}` is being looked up");
    }
    let (done, total) = (text::bytes(moving.bytes_done), text::bytes(moving.bytes_total));
    let rate = text::rate(moving.bytes_per_second, Duration::from_secs(1));
    let left = moving.seconds_left.map(|left| format!(", {} left", text::duration(Duration::from_secs(left))));
    format!("`{source}` is on its way: {done} of {total}, {rate}{}", left.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_how_far_it_is() {
        assert_eq!(far("s3://b/k/", &Moving::default()), "`s3://b/k/` is being looked up");
        let moving = Moving {
            bytes_done: 42 << 30,
            bytes_total: 130 << 30,
            bytes_per_second: 1 << 30,
            seconds_left: Some(88),
            ..Moving::default()
        };
        let said = far("s3://b/k/", &moving);
        assert!(said.contains("42.0 GiB of 130.0 GiB, 1.0 GiB/s, 1 min 28 s left"), "{said}");
    }
}
