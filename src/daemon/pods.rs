//! Between the volumes of pods and the cluster that knows the pods: neither knows the other.

use async_trait::async_trait;

use crate::cluster::{PodRef, Pods};
use crate::csi::{Cluster, Pod};

/// The cluster, as volumes see it.
pub struct Told(pub Pods);

fn of(pod: &Pod) -> PodRef {
    PodRef { namespace: pod.namespace.clone(), name: pod.name.clone(), uid: pod.uid.clone() }
}

#[async_trait]
impl Cluster for Told {
    fn tell(&self, pod: &Pod, reason: &'static str, message: String) {
        self.0.tell(of(pod), reason, message);
    }

    async fn has_ended(&self, pod: &Pod) -> Option<bool> {
        self.0.has_ended(of(pod)).await
    }
}
