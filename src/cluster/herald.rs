//! Takes the labels of models away before the models go.

use std::collections::HashSet;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::cache::Herald;

/// How long an eviction waits for the API server.
const PATIENCE: Duration = Duration::from_secs(2);
/// After a wait that came to nothing, evictions do not wait for so long.
const DISTRUST: Duration = Duration::from_mins(1);
/// Evictions that wait at once. There is one at a time, and removals by hand.
const WAITING_MAX: usize = 16;

/// Answered when the labels are right; dropped when they could not be made so.
pub type Answer = SyncSender<()>;

/// Between the evictions and the task that writes labels.
#[derive(Debug)]
pub struct Crier {
    labelled: Mutex<HashSet<String>>,
    requests: mpsc::Sender<Answer>,
    failed: Mutex<Option<Instant>>,
}

impl Crier {
    /// And where its requests come out.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Answer>) {
        let (requests, received) = mpsc::channel(WAITING_MAX);
        (Self { labelled: Mutex::default(), requests, failed: Mutex::default() }, received)
    }

    /// Says which records have a label, or may have one in a moment.
    pub fn set_labelled(&self, record_ids: HashSet<String>) {
        *lock(&self.labelled) = record_ids;
    }

    fn distrusts(&self) -> bool {
        lock(&self.failed).is_some_and(|at| at.elapsed() < DISTRUST)
    }
}

impl Herald for Crier {
    fn leaving(&self, record_ids: &[String]) {
        if !record_ids.iter().any(|id| lock(&self.labelled).contains(id)) {
            return;
        }
        let (answer, answered) = sync_channel(1);
        // Without a wait too: the labels are put right as soon as that is possible.
        if self.requests.try_send(answer).is_err() || self.distrusts() {
            return;
        }
        let is_done = answered.recv_timeout(PATIENCE).is_ok();
        if !is_done {
            tracing::warn!("the API server does not take the label of a model that is evicted: it goes nevertheless");
        }
        *lock(&self.failed) = (!is_done).then(Instant::now);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crier(labelled: &str) -> (Crier, mpsc::Receiver<Answer>) {
        let (crier, requests) = Crier::new();
        crier.set_labelled([labelled.to_owned()].into());
        (crier, requests)
    }

    #[test]
    fn what_has_no_label_goes_at_once() {
        let (crier, mut requests) = crier("a");
        crier.leaving(&["b".to_owned()]);
        assert!(requests.try_recv().is_err());
    }

    #[test]
    fn an_eviction_waits_for_the_answer() {
        let (crier, mut requests) = crier("a");
        let answering = std::thread::spawn(move || {
            let answer = requests.blocking_recv().expect("a request");
            std::thread::sleep(Duration::from_millis(50));
            answer.send(()).expect("somebody waits");
        });
        let started = Instant::now();
        crier.leaving(&["a".to_owned()]);
        assert!(started.elapsed() >= Duration::from_millis(50));
        answering.join().expect("answered");
        assert!(!crier.distrusts());
    }

    #[test]
    fn an_api_server_that_is_away_is_waited_for_once() {
        let (crier, mut requests) = crier("a");
        let started = Instant::now();
        crier.leaving(&["a".to_owned()]);
        assert!((PATIENCE..PATIENCE * 2).contains(&started.elapsed()));
        let started = Instant::now();
        (0..100).for_each(|_| crier.leaving(&["a".to_owned()]));
        assert!(started.elapsed() < Duration::from_millis(500));
        assert!(requests.try_recv().is_ok(), "it is asked for nevertheless");
    }

    #[test]
    fn nobody_who_answers_stops_nothing() {
        let (crier, requests) = crier("a");
        drop(requests);
        let started = Instant::now();
        crier.leaving(&["a".to_owned()]);
        assert!(started.elapsed() < Duration::from_millis(500));
    }
}
