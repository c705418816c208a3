//! What is asked of the keeper for volumes. It is another process and may hang, so it is asked in
//! lanes of its own: however many volumes wait to be mounted, others can be taken away.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use larder_keeper::{Errands, client};

use crate::cache::{ARRIVING, Mounting};
use crate::lanes::{Lane, Missed};
use crate::report::{Exit, Failure};

use super::notes::Volume;

/// Volumes that are mounted at once, and taken away at once.
const MOUNTING_MAX: usize = 16;
const ENDING_MAX: usize = 8;
/// Everything else that is asked at once.
const LOOKING_MAX: usize = 2;
/// Calls of each kind that wait.
const WAITING_MAX: usize = 1_024;
/// How long a mount may take: one of a model that arrives walks through the daemon's own mount.
const MOUNT_PATIENCE: Duration = Duration::from_mins(2);
/// How long the end of one may take: kubelet waits for two minutes, and asks again.
const END_PATIENCE: Duration = Duration::from_secs(30);
const LOOK_PATIENCE: Duration = Duration::from_secs(10);

/// The keeper, as volumes need it.
#[derive(Debug)]
pub(super) struct Keeper {
    errands: Errands,
    mounting: Lane,
    ending: Lane,
    looking: Lane,
}

impl Keeper {
    pub fn new(errands: Errands) -> Self {
        Self {
            errands,
            mounting: Lane::new("csi-mount", MOUNTING_MAX, WAITING_MAX),
            ending: Lane::new("csi-end", ENDING_MAX, WAITING_MAX),
            looking: Lane::new("csi-look", LOOKING_MAX, WAITING_MAX),
        }
    }

    /// Mounts what a volume is. Doing it twice is doing it once.
    /// It is in use from now on, whatever becomes of its lease.
    pub async fn mount(&self, volume: &Volume, mounting: Mounting) -> Result<(), Failure> {
        let Volume { digest, arriving, target, .. } = volume.clone();
        let mount = move |keeper: Errands| {
            let mounted = if arriving {
                keeper.bind(Path::new(ARRIVING).join(digest.to_string()), target)
            } else {
                keeper.publish(digest.to_string(), target)
            };
            if mounted.as_ref().err().is_none_or(|error| client::refusal(error).is_some()) {
                mounting.answered();
            }
            mounted
        };
        self.ask(&self.mounting, MOUNT_PATIENCE, "mount the model for the pod", mount).await
    }

    /// Takes away whatever of ours is mounted there.
    pub async fn unmount(&self, target: PathBuf) -> Result<bool, Failure> {
        let unmount = move |keeper: Errands| keeper.unbind(target);
        self.ask(&self.ending, END_PATIENCE, "take the model away from the pod", unmount).await
    }

    /// A socket of kubelet's directory.
    pub async fn listen(&self, path: PathBuf) -> Result<OwnedFd, Failure> {
        self.ask(&self.looking, LOOK_PATIENCE, "make a socket for kubelet", move |keeper| keeper.listen(path)).await
    }

    /// Where something of ours is mounted for pods.
    pub async fn mounts(&self) -> Result<HashSet<PathBuf>, Failure> {
        let mounts = |keeper: Errands| {
            let mounts = keeper.mounts()?;
            Ok(mounts.into_iter().map(|mounted| mounted.target).collect())
        };
        self.ask(&self.looking, LOOK_PATIENCE, "see what is mounted for pods", mounts).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        lane: &Lane,
        patience: Duration,
        what: &str,
        errand: impl FnOnce(Errands) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let errands = self.errands.clone();
        let asked = lane.call(patience, move |left| errand(errands.within(left))).await;
        let failed = |exit, why: &dyn std::fmt::Display| {
            Failure::hinted(exit, format!("cannot {what}: {why}"), "larder-keeper's log on this node says more")
        };
        match asked {
            Ok(Ok(answer)) => Ok(answer),
            // What the keeper refuses it refuses again; one that is not there comes back.
            Ok(Err(error)) if client::refusal(&error).is_some() => Err(failed(Exit::Defect, &error)),
            Ok(Err(error)) => Err(failed(Exit::Busy, &error)),
            Err(Missed::Late) => Err(failed(Exit::Busy, &"larder-keeper does not answer")),
            Err(Missed::Full) => Err(failed(Exit::Busy, &"larder-keeper does not answer, and many wait for it")),
            Err(Missed::Lost) => Err(failed(Exit::Defect, &Missed::Lost)),
        }
    }
}
