//! Answers that cost a look at the whole store: made one at a time, and shared by all who have asked
//! before the look began.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::report::{Exit, Failure};

/// One kind of answer.
#[derive(Debug, Default)]
pub struct Shared {
    turn: Arc<tokio::sync::Mutex<()>>,
    begun: AtomicU64,
    waiting: AtomicU64,
    /// The last answer, and which look it came of: for as long as somebody waits.
    last: Mutex<Option<(u64, Bytes)>>,
}

impl Shared {
    /// The answer of a look that began after this call. `look` is made by one of those who wait.
    ///
    /// # Errors
    /// Those of `look`, which only its own caller hears: the next one looks again.
    pub async fn get<F>(self: &Arc<Self>, look: impl FnOnce() -> F) -> Result<Bytes, Failure>
    where
        F: Future<Output = Result<Bytes, Failure>> + Send + 'static,
    {
        let before = self.begun.load(Relaxed);
        let _waits = Waits::new(self);
        let turn = Arc::clone(&self.turn).lock_owned().await;
        if let Some((of, answer)) = self.last.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
            && *of > before
        {
            return Ok(answer.clone());
        }
        let of = self.begun.fetch_add(1, Relaxed) + 1;
        let (shared, look) = (Arc::clone(self), look());
        // In a task of its own: who goes away ends neither the look nor its turn.
        let looking = tokio::spawn(async move {
            let answer = look.await;
            if let Ok(answer) = &answer
                && shared.waiting.load(Relaxed) > 1
            {
                *shared.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((of, answer.clone()));
            }
            drop(turn);
            answer
        });
        looking.await.map_err(|panic| Failure::new(Exit::Defect, panic.to_string()))?
    }
}

/// Somebody waits.
struct Waits<'a>(&'a Shared);

impl<'a> Waits<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.waiting.fetch_add(1, Relaxed);
        Self(shared)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Relaxed) == 1 {
            // Nobody is left who could take it.
            self.0.last.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what `tokio::test` makes of a test enters a runtime")]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_during_a_look_share_the_next_one() {
        let shared = Arc::new(Shared::default());
        let looks = Arc::new(AtomicU64::new(0));
        let ask = || {
            let (shared, looks) = (Arc::clone(&shared), Arc::clone(&looks));
            tokio::spawn(async move {
                let look = || async move {
                    let look = looks.fetch_add(1, Relaxed) + 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Ok(Bytes::from(look.to_string()))
                };
                shared.get(look).await.expect("an answer")
            })
        };
        let first = ask();
        while looks.load(Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..8).map(|_| ask()).collect();
        assert_eq!(first.await.expect("a task"), "1");
        for other in others {
            assert_eq!(other.await.expect("a task"), "2", "none is given what was looked at before it asked");
        }
        assert_eq!(ask().await.expect("a task"), "3");
        assert!(shared.last.lock().expect("not poisoned").is_none());
        // Who goes away leaves the turn to others.
        let gone = ask();
        tokio::task::yield_now().await;
        gone.abort();
        assert_eq!(ask().await.expect("a task").len(), 1);
    }
}
