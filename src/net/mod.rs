//! Connections of every listener: how many there may be, who goes when there are too many, and how
//! long a peer may be silent or deaf.
//!
//! A connection is *at work* while a call on it is being answered, else *idle*, whoever is waited
//! for. A full table gives the place of the connection that has been idle longest to the next one;
//! one where all are at work turns the next one away, says so, and is no longer healthy.

mod accept;
mod patient;
mod slots;

pub use accept::{Accept, accept};
pub use patient::Patient;
pub use slots::{Silence, Slot, Slots, Why, Work};
