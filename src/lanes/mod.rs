//! Threads for calls that may wait for what never answers: another process, a disk, a file system
//! whose server is gone.
//!
//! The runtime's blocking threads are for everybody, so whoever waits there for something that hangs
//! stops everything else. A [`Lane`] has a few threads and a short queue of its own: what hangs in it
//! costs those who ask for the same.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// A thread without work ends after this long.
const IDLE: Duration = Duration::from_secs(10);

type Task = Box<dyn FnOnce() + Send>;

/// Why a call has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Missed {
    /// As many calls as may wait do so already.
    #[error("too many calls wait for it already")]
    Full,
    /// The time is up.
    #[error("no answer in time")]
    Late,
    /// It panicked.
    #[error("it ended without an answer")]
    Lost,
}

/// Some threads, and those who wait for one. Clones are the same lane.
#[derive(Debug, Clone)]
pub struct Lane(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: &'static str,
    threads_max: usize,
    waiting_max: usize,
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Arc<Slot>>,
    threads: usize,
    idle: usize,
}

/// A task until somebody takes it: a thread to do it, or whoever asked, to leave it undone.
struct Slot(Mutex<Option<Task>>);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slot")
    }
}

impl Slot {
    fn take(&self) -> Option<Task> {
        lock(&self.0).take()
    }

    fn is_taken(&self) -> bool {
        lock(&self.0).is_none()
    }
}

/// What was not begun when its caller goes is not done.
struct Place(Arc<Slot>);

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.0.take());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane {
    /// At most so many threads, which are started when they are needed, and so many calls that wait
    /// for one.
    #[must_use]
    pub fn new(name: &'static str, threads_max: usize, waiting_max: usize) -> Self {
        Self(Arc::new(Shared {
            name,
            threads_max: threads_max.max(1),
            waiting_max,
            state: Mutex::default(),
            news: Condvar::new(),
        }))
    }

    /// Makes a call that keeps the time it is given: what is left of `patience` when a thread takes
    /// it. What has begun is waited for, what has not begun by then is not done.
    ///
    /// # Errors
    /// [`Missed`].
    pub async fn call<T: Send + 'static>(
        &self,
        patience: Duration,
        call: impl FnOnce(Duration) -> T + Send + 'static,
    ) -> Result<T, Missed> {
        let deadline = Instant::now() + patience;
        let (answer, mut answered) = oneshot::channel();
        let task = move || drop(answer.send(call(deadline.saturating_duration_since(Instant::now()))));
        let place = self.queue(Box::new(task))?;
        match tokio::time::timeout_at(deadline.into(), &mut answered).await {
            Ok(answer) => answer.map_err(|_| Missed::Lost),
            Err(_) if place.0.take().is_some() => Err(Missed::Late),
            Err(_) => answered.await.map_err(|_| Missed::Lost),
        }
    }

    /// Makes a call that only looks, and may hang: when the time is up its answer is not waited for.
    ///
    /// # Errors
    /// [`Missed`].
    pub async fn look<T: Send + 'static>(
        &self,
        patience: Duration,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Missed> {
        let (answer, answered) = oneshot::channel();
        let _place = self.queue(Box::new(move || drop(answer.send(look()))))?;
        match tokio::time::timeout(patience, answered).await {
            Ok(answer) => answer.map_err(|_| Missed::Lost),
            Err(_) => Err(Missed::Late),
        }
    }

    fn queue(&self, task: Task) -> Result<Place, Missed> {
        let slot = Arc::new(Slot(Mutex::new(Some(task))));
        let mut state = lock(&self.0.state);
        if state.waiting.len() >= self.0.waiting_max + state.idle {
            state.waiting.retain(|slot| !slot.is_taken());
        }
        let busy = state.threads == self.0.threads_max && state.idle == 0;
        if busy && state.waiting.len() >= self.0.waiting_max {
            return Err(Missed::Full);
        }
        state.waiting.push_back(Arc::clone(&slot));
        if state.waiting.len() > state.idle && state.threads < self.0.threads_max {
            let shared = Arc::clone(&self.0);
            let spawned = std::thread::Builder::new().name(self.0.name.into()).spawn(move || shared.work());
            if spawned.is_ok() {
                state.threads += 1;
            } else if state.threads == 0 {
                state.waiting.pop_back();
                return Err(Missed::Full);
            }
        }
        drop(state);
        self.0.news.notify_one();
        Ok(Place(slot))
    }
}

impl Shared {
    /// The life of a thread.
    fn work(&self) {
        while let Some(task) = self.next() {
            // Whoever waits hears of a panic by the end of its channel.
            let _ = catch_unwind(AssertUnwindSafe(task));
        }
    }

    fn next(&self) -> Option<Task> {
        let mut state = lock(&self.state);
        loop {
            while let Some(slot) = state.waiting.pop_front() {
                if let Some(task) = slot.take() {
                    return Some(task);
                }
            }
            state.idle += 1;
            let waited = self.news.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            state.idle -= 1;
            if waited.1.timed_out() && state.waiting.is_empty() {
                state.threads -= 1;
                return None;
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what `tokio::test` makes of a test enters a runtime")]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    fn threads(lane: &Lane) -> usize {
        lock(&lane.0.state).threads
    }

    #[tokio::test]
    async fn what_hangs_costs_its_own_lane() {
        let (stuck, other) = (Lane::new("stuck", 2, 1), Lane::new("other", 1, 1));
        let (go, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let hang = || {
            let (lane, gate) = (stuck.clone(), Arc::clone(&gate));
            tokio::spawn(async move {
                let hang = move |_| lock(&gate).recv_timeout(LONG).is_ok();
                lane.call(LONG, hang).await
            })
        };
        let hanging = [hang(), hang()];
        while threads(&stuck) < 2 || !lock(&stuck.0.state).waiting.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let moment = Duration::from_millis(20);
        assert_eq!(stuck.call(moment, |_| ()).await, Err(Missed::Late));
        let waits = hang();
        while lock(&stuck.0.state).waiting.iter().all(|slot| slot.is_taken()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(stuck.call(moment, |_| ()).await, Err(Missed::Full));
        assert_eq!(other.call(LONG, |left| left <= LONG).await, Ok(true));
        (0..3).for_each(|_| go.send(()).expect("somebody waits"));
        for hanging in hanging.into_iter().chain([waits]) {
            assert_eq!(hanging.await.expect("no panic"), Ok(true));
        }
        assert_eq!(threads(&stuck), 2);
    }

    #[tokio::test]
    async fn what_was_not_begun_in_time_is_not_done() {
        let lane = Lane::new("one", 1, 4);
        let (go, gate) = mpsc::channel::<()>();
        let first = lane.call(LONG, move |_| gate.recv_timeout(LONG).is_ok());
        let (done, was_done) = mpsc::channel::<&str>();
        let say = |what| {
            let done = done.clone();
            move || done.send(what).is_ok()
        };
        let late = async {
            let said = say("late");
            assert_eq!(lane.call(Duration::from_millis(10), move |_| said()).await, Err(Missed::Late));
            assert_eq!(lane.look(Duration::from_millis(10), say("looked")).await, Err(Missed::Late));
            go.send(()).expect("it hangs");
        };
        assert_eq!(tokio::join!(first, late).0, Ok(true));
        assert_eq!(lane.look(LONG, say("last")).await, Ok(true));
        drop(done);
        assert_eq!(was_done.iter().collect::<Vec<_>>(), ["last"]);
    }

    #[tokio::test]
    async fn a_look_that_hangs_is_left_and_a_panic_is_heard() {
        let lane = Lane::new("look", 1, 1);
        let (go, gate) = mpsc::channel::<()>();
        let hang = move || gate.recv_timeout(LONG).is_ok();
        assert_eq!(lane.look(Duration::from_millis(10), hang).await, Err(Missed::Late));
        go.send(()).expect("it hangs still");
        assert_eq!(lane.look(LONG, || panic!("of a test")).await, Err::<(), _>(Missed::Lost));
        assert_eq!(lane.look(LONG, || 7).await, Ok(7));
    }
}
