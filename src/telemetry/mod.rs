//! What the daemon counts, and how a scrape reads it.
//!
//! Names, kinds, units and labels are in one table, [`TABLE`]; [`Metrics`] is registered from it and the Grafana
//! dashboard is tested against it. Every series is there from the first scrape, at zero: a rate
//! over a series that begins with its first event misses that event.
//!
//! Counting takes an atomic addition or a short lock; nothing here waits, and nothing grows.

mod gauges;
mod labels;
mod metrics;
mod split;
mod table;

#[cfg(test)]
mod promql;
#[cfg(test)]
mod tests;

pub use gauges::{Gauges, Inodes, Mount};
pub use labels::{Cause, Cut, Label, Listener, Outcome, Socket, Where, Write, Written};
pub use metrics::{CONTENT_TYPE, Metrics, Totals};
pub use table::{Kind, Metric, TABLE, Unit};
