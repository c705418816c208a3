//! How many calls of a kind are answered at once. What may take long, or hang, takes no place that
//! what must answer needs.

use std::sync::Arc;

use http::{Response, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::{self, Body};
use super::api::Rights;
use crate::report::{Exit, Failure};

/// Kinds of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Those that wait for bytes: `ensure` and `verify`.
    Stream,
    /// Those that change something.
    Change,
    /// Lists and models.
    Look,
    /// How the daemon is.
    Status,
}

/// The gates of one listener. Together fewer than it has connections, so that there is a place for
/// who is yet to say what it wants.
#[derive(Debug)]
pub struct Gates([(Arc<Semaphore>, usize); 4]);

impl Gates {
    const fn most(rights: Rights) -> [usize; 4] {
        match rights {
            Rights::Use => [1536, 0, 256, 128],
            Rights::Admin => [48, 24, 16, 16],
        }
    }

    /// All open.
    #[must_use]
    pub fn new(rights: Rights) -> Self {
        Self(Self::most(rights).map(|most| (Arc::new(Semaphore::new(most)), most)))
    }

    /// Lets one call in, until the value is dropped.
    ///
    /// # Errors
    /// The answer, where too many are in.
    pub fn enter(&self, kind: Kind) -> Result<OwnedSemaphorePermit, Box<Response<Body>>> {
        let (gate, most) = &self.0[kind as usize];
        Arc::clone(gate).try_acquire_owned().map_err(|_| {
            let message = format!("there are {most} open calls of this kind already");
            let failure = Failure::hinted(Exit::Busy, message, "ask again in a moment");
            Box::new(answer::refusal(StatusCode::SERVICE_UNAVAILABLE, &failure))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_kind_takes_no_place_of_another() {
        for rights in [Rights::Use, Rights::Admin] {
            let gates = Gates::new(rights);
            let held: Vec<_> = std::iter::from_fn(|| gates.enter(Kind::Stream).ok()).collect();
            assert_eq!(held.len(), Gates::most(rights)[0]);
            assert!(gates.enter(Kind::Stream).is_err_and(|answer| answer.status() == 503));
            assert!(gates.enter(Kind::Status).is_ok() && gates.enter(Kind::Look).is_ok());
            drop(held);
            assert!(gates.enter(Kind::Stream).is_ok());
        }
    }
}
