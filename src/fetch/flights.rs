//! Which objects are on their way in this process: one transfer each, however many want it.
//!
//! Whoever claims an object fills it; everybody else waits until the claim ends, well or badly,
//! and then looks whether the bytes are here, or claims it in turn.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::watch;

use super::progress::FileProgress;
use crate::store::ObjectId;

/// The objects on their way.
#[derive(Debug, Default)]
pub struct Flights {
    claimed: Mutex<HashMap<ObjectId, Arc<Flight>>>,
}

#[derive(Debug)]
struct Flight {
    ended: watch::Sender<bool>,
    progress: OnceLock<Arc<FileProgress>>,
}

/// The answer to a claim.
pub enum Claim {
    /// The caller fills it, until the value is dropped.
    Mine(Claimed),
    /// Somebody else does.
    Theirs(Waiter),
}

/// The right to fill an object.
#[derive(Debug)]
pub struct Claimed {
    flights: Arc<Flights>,
    id: ObjectId,
    flight: Arc<Flight>,
}

/// A wait for somebody else's transfer.
#[derive(Debug)]
pub struct Waiter {
    flight: Arc<Flight>,
}

impl Flights {
    fn claimed(&self) -> MutexGuard<'_, HashMap<ObjectId, Arc<Flight>>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims an object, or says whom to wait for.
    pub fn claim(self: &Arc<Self>, id: &ObjectId) -> Claim {
        let mut claimed = self.claimed();
        if let Some(flight) = claimed.get(id) {
            return Claim::Theirs(Waiter { flight: Arc::clone(flight) });
        }
        let flight = Arc::new(Flight { ended: watch::Sender::new(false), progress: OnceLock::new() });
        claimed.insert(id.clone(), Arc::clone(&flight));
        Claim::Mine(Claimed { flights: Arc::clone(self), id: id.clone(), flight })
    }
}

impl Claimed {
    /// Shows those who wait how far it is.
    pub fn show(&self, progress: &Arc<FileProgress>) {
        // Shown once: a claim fills one file.
        let _ = self.flight.progress.set(Arc::clone(progress));
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.flights.claimed().remove(&self.id);
        self.flight.ended.send_replace(true);
    }
}

impl Waiter {
    /// Waits for the end of the claim.
    pub async fn ended(&self) {
        // The sender lives in the flight that this waiter holds, so this ends only with the claim.
        let _ = self.flight.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// How far it is, once that is known.
    pub fn progress(&self) -> Option<Arc<FileProgress>> {
        self.flight.progress.get().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Version;

    fn id(uri: &str) -> ObjectId {
        ObjectId { origin: "o".into(), uri: uri.into(), version: Version::Generation(1), size: 1 }
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "what the attribute makes of it")]
    async fn one_fills_and_the_others_wait_for_the_end() {
        let flights = Arc::new(Flights::default());
        let Claim::Mine(claimed) = flights.claim(&id("a")) else { panic!("nobody has it") };
        assert!(matches!(flights.claim(&id("b")), Claim::Mine(_)));
        let waiters: Vec<Waiter> = (0..3)
            .map(|_| match flights.claim(&id("a")) {
                Claim::Theirs(waiter) => waiter,
                Claim::Mine(_) => panic!("claimed twice"),
            })
            .collect();
        let waiting = tokio::spawn(async move {
            for waiter in &waiters {
                waiter.ended().await;
            }
        });
        assert!(!waiting.is_finished());
        drop(claimed);
        waiting.await.expect("all hear of it");
        assert!(matches!(flights.claim(&id("a")), Claim::Mine(_)), "free again");
    }
}
