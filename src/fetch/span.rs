//! The chunks that one connection brings, while they can still be cut.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::domain::ChunkIndex;

/// A part on its way. Whoever brings it enters chunk by chunk; what it has not entered yet can be
/// taken away from it, so no chunk is ever written by two.
#[derive(Debug)]
pub struct Span {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The first chunk that was not entered.
    reached: u32,
    end: u32,
}

impl Span {
    /// A part that nobody has begun.
    pub fn new(chunks: Range<u32>) -> Self {
        Self { state: Mutex::new(State { reached: chunks.start, end: chunks.end }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first chunk that is not its own.
    pub fn end(&self) -> u32 {
        self.state().end
    }

    /// Enters a chunk; false when it was taken away.
    pub fn enter(&self, chunk: ChunkIndex) -> bool {
        let mut state = self.state();
        if chunk.0 >= state.end {
            return false;
        }
        state.reached = state.reached.max(chunk.0 + 1);
        true
    }

    /// Takes away a chunk and all behind it, if the chunk is further than `far` chunks from the one
    /// it stands in.
    pub fn cut(&self, chunk: ChunkIndex, far: u32) -> Option<Range<u32>> {
        let mut state = self.state();
        if chunk.0 >= state.end || chunk.0 < state.reached.saturating_add(far) {
            return None;
        }
        let taken = chunk.0..state.end;
        state.end = chunk.0;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_entered_can_be_taken_away_once() {
        let span = Span::new(10..30);
        assert!(span.enter(ChunkIndex(10)));
        assert_eq!(span.cut(ChunkIndex(10), 0), None, "entered");
        assert_eq!(span.cut(ChunkIndex(18), 8), None, "near");
        assert_eq!(span.cut(ChunkIndex(19), 8), Some(19..30));
        assert_eq!((span.cut(ChunkIndex(25), 0), span.end()), (None, 19));
        assert!(span.enter(ChunkIndex(18)) && !span.enter(ChunkIndex(19)));
        assert_eq!(span.cut(ChunkIndex(18), 0), None);
    }
}
