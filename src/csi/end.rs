//! The end of volumes: by kubelet's word, with a pod that is gone without it, and of what is mounted
//! that nobody knows of. And what is mounted anew where the mount is another one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;

use super::Plugin;
use super::notes::{Noted, Turn, Volume};
use super::volume::{self, Pod};
use crate::cache::Owner;
use crate::report::{Exit, Failure};

/// How long a volume that is taken away waits for the end of the work on it, and then for its turn.
const WORK_PATIENCE: Duration = Duration::from_secs(40);
const TURN_PATIENCE: Duration = Duration::from_secs(20);
/// How long the disk may take over the end of a lease. After that it ends with its pod.
const LEASE_PATIENCE: Duration = Duration::from_secs(20);
/// Volumes that are looked after at once.
const AT_ONCE: usize = 8;

impl Plugin {
    /// Takes a volume away; of one that is not known, whatever is mounted there.
    ///
    /// # Errors
    /// When the keeper is away, or something else is mounted there.
    pub(super) async fn unpublish(self: &Arc<Self>, volume_id: &str, target: &str) -> Result<(), Failure> {
        let target = volume::target(target)?;
        let id = volume::id(volume_id, &target)?;
        if let Some(work) = self.works.at(&target) {
            work.leave(WORK_PATIENCE).await?;
        }
        let turn = tokio::time::timeout(TURN_PATIENCE, self.notes.turn(&target)).await;
        let turn = turn.map_err(|_| {
            Failure::new(
                Exit::Busy,
                "the volume is just being mounted again: waiting for larder-keeper to have done so",
            )
        })?;
        self.take_away(&turn, &target, &id).await.map(drop)
    }

    /// Takes away what is mounted at a target, and then what is noted of it.
    /// Whether anything was.
    pub(super) async fn take_away(self: &Arc<Self>, turn: &Turn<'_>, target: &Path, id: &str) -> Result<bool, Failure> {
        // Noted first, so that whoever is killed in between has begun no more than this.
        let noted = self.notes.end(turn, target).await;
        let was_mounted = self.keeper.unmount(target.to_owned()).await?;
        self.release(id, noted.as_ref()).await;
        if let Some(Noted { volume: Volume { source, pod, .. }, .. }) = noted {
            tracing::info!(source, namespace = pod.namespace, pod = pod.name, "a pod is done with its model");
        }
        Ok(was_mounted)
    }

    /// Forgets a volume of which nothing is mounted, and ends its leases.
    pub(super) async fn let_go(self: &Arc<Self>, turn: &Turn<'_>, target: &Path, id: &str) {
        let noted = self.notes.at(target);
        self.notes.forget(turn, target).await;
        self.release(id, noted.as_ref()).await;
    }

    /// Ends the leases of a volume.
    async fn release(self: &Arc<Self>, id: &str, noted: Option<&Noted>) {
        // A volume that an earlier version noted has another id.
        let ids = [Some(id.to_owned()), noted.map(|noted| noted.id.clone())];
        let plugin = Arc::clone(self);
        let end = move || {
            let of_volume =
                |owner: &Owner| matches!(owner, Owner::Volume { id, .. } if ids.iter().flatten().any(|of| of == id));
            plugin.cache.residency().release_all(of_volume)
        };
        let ended = self.disk.look(LEASE_PATIENCE, end).await;
        let ended =
            ended.map_err(|missed| missed.to_string()).and_then(|ended| ended.map_err(|error| error.to_string()));
        if let Err(why) = ended {
            tracing::warn!(why, "the leases of a volume could not be ended: they end with its pod");
        }
    }

    /// Puts what pods read while it arrives out of a new mount: containers that start from now on
    /// find it there.
    pub(super) async fn remount(self: &Arc<Self>) {
        let arriving = self.notes.all().into_iter().filter(|noted| noted.volume.arriving);
        futures::stream::iter(arriving)
            .for_each_concurrent(AT_ONCE, |Noted { volume: Volume { target, .. }, .. }| async move {
                let turn = self.notes.turn(&target).await;
                // As it is noted now: the volume may have ended since it was listed.
                let Some(Noted { volume, .. }) = self.notes.at(&target).filter(|noted| noted.volume.arriving) else {
                    return;
                };
                if self.cache.is_pod_gone(&volume.pod.uid).await {
                    return;
                }
                if let Err(failure) = self.keeper.mount(&volume, self.cache.residency().mounting(volume.digest)).await {
                    let Pod { namespace, name, .. } = &volume.pod;
                    tracing::warn!(%namespace, pod = name, why = failure.message, "a volume is not in the new mount");
                }
                drop(turn);
            })
            .await;
    }

    /// Takes away what pods left behind of whose end kubelet did not tell.
    pub(super) async fn sweep_once(self: &Arc<Self>) {
        for Noted { volume: Volume { target, pod, .. }, .. } in self.notes.all() {
            if !self.cache.is_pod_gone(&pod.uid).await {
                continue;
            }
            let turn = self.notes.turn(&target).await;
            let Some(noted) = self.notes.at(&target).filter(|noted| noted.volume.pod.uid == pod.uid) else { continue };
            if let Err(failure) = self.take_away(&turn, &target, &noted.id).await {
                tracing::warn!(pod = pod.name, why = failure.message, "what a pod left behind cannot be taken away");
            }
        }
    }

    /// Takes away what is mounted of volumes that have ended, whoever mounted it, and forgets those of
    /// which nothing is. What is mounted and was never noted here stays: its pod may run, and kubelet
    /// takes it away when it has ended.
    pub(super) async fn take_strays(self: &Arc<Self>) {
        let mounted = match self.keeper.mounts().await {
            Ok(mounted) => mounted,
            Err(failure) => {
                tracing::warn!(why = failure.message, "what is mounted for pods is not known");
                return;
            }
        };
        for Noted { id, volume: Volume { target, pod, .. } } in self.notes.ended() {
            let turn = self.notes.turn(&target).await;
            // It may have been asked for once more.
            if self.notes.at(&target).is_some() {
                continue;
            }
            if !mounted.contains(&target) {
                self.notes.forget(&turn, &target).await;
                continue;
            }
            match self.take_away(&turn, &target, &id).await {
                Ok(false) => {}
                Ok(true) => {
                    let Pod { namespace, name, .. } = &pod;
                    tracing::warn!(%namespace, pod = name, "a volume that had ended was mounted: it is taken away");
                }
                Err(failure) => {
                    tracing::warn!(
                        pod = pod.name,
                        why = failure.message,
                        "what was mounted after its end stays mounted"
                    );
                }
            }
        }
    }
}
