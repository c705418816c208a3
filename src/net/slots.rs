//! The table of a listener's connections.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::telemetry::{Cut, Listener, Metrics};

/// A table that stays full is complained of this often.
const COMPLAINT_INTERVAL: Duration = Duration::from_mins(1);

/// How long a connection may be idle.
#[derive(Debug, Clone, Copy)]
pub struct Silence {
    /// Before its first call.
    pub first: Duration,
    /// After any.
    pub between: Duration,
}

/// Why a connection is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Another one needs its place.
    Displaced,
    /// It was idle for too long.
    Silent,
}

/// The connections of one listener.
#[derive(Debug)]
pub struct Slots {
    listener: Listener,
    most: usize,
    silence: Silence,
    metrics: Arc<Metrics>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    /// By the order in which they came.
    open: BTreeMap<u64, Seat>,
    /// Since when all are at work and others are turned away.
    full: Option<Instant>,
    complaint: Complaint,
}

#[derive(Debug)]
struct Seat {
    /// Calls that are being answered.
    calls: usize,
    /// Whether there ever was one.
    has_called: bool,
    idle_since: Instant,
    leave: watch::Sender<bool>,
}

/// Says the same at most once in a while.
#[derive(Debug, Default)]
struct Complaint {
    last: Option<Instant>,
    cut: u64,
}

impl Complaint {
    /// How many there were since the last time, where it is time to say so.
    fn another(&mut self, now: Instant) -> Option<u64> {
        self.cut += 1;
        if self.last.is_some_and(|last| now.duration_since(last) < COMPLAINT_INTERVAL) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.cut))
    }
}

impl Slots {
    /// Room for so many connections.
    #[must_use]
    pub fn new(listener: Listener, most: usize, silence: Silence, metrics: Arc<Metrics>) -> Arc<Self> {
        metrics.connections_max(listener, most);
        Arc::new(Self { listener, most, silence, metrics, table: Mutex::default() })
    }

    /// How many connections there may be.
    #[must_use]
    pub const fn most(&self) -> usize {
        self.most
    }

    /// What connects there.
    #[must_use]
    pub const fn listener(&self) -> Listener {
        self.listener
    }

    /// A place for a new connection, if need be that of the one that has been idle longest. `None`
    /// where all are at work.
    #[must_use]
    pub fn take(self: &Arc<Self>) -> Option<Slot> {
        let now = Instant::now();
        let mut table = self.table();
        if table.open.len() >= self.most && !self.displace(&mut table, now) {
            self.metrics.connection_cut(self.listener, Cut::Refused);
            table.full.get_or_insert(now);
            if let Some(times) = table.complaint.another(now) {
                tracing::warn!(
                    listener = self.listener.as_str(),
                    most = self.most,
                    times,
                    "all connections are at work: whoever comes now is turned away"
                );
            }
            return None;
        }
        let (leave, left) = watch::channel(false);
        let number = table.next;
        table.next += 1;
        table.open.insert(number, Seat { calls: 0, has_called: false, idle_since: now, leave });
        drop(table);
        self.metrics.connection_opened(self.listener);
        Some(Slot { slots: Arc::clone(self), number, left })
    }

    /// Takes the place of the connection that has been idle longest.
    fn displace(&self, table: &mut Table, now: Instant) -> bool {
        let idle = table.open.iter().filter(|(_, seat)| seat.calls == 0);
        let Some((&oldest, _)) = idle.min_by_key(|(_, seat)| seat.idle_since) else { return false };
        if let Some(seat) = table.open.remove(&oldest) {
            seat.leave.send_replace(true);
        }
        self.metrics.connection_cut(self.listener, Cut::Displaced);
        if let Some(times) = table.complaint.another(now) {
            tracing::warn!(
                listener = self.listener.as_str(),
                most = self.most,
                times,
                "there are too many connections: the one that is idle longest makes way for the next"
            );
        }
        true
    }

    /// Whether there is no place for another connection, not even an idle one's.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let table = self.table();
        table.open.len() >= self.most && table.open.values().all(|seat| seat.calls > 0)
    }

    /// For how long others have been turned away, without a break.
    #[must_use]
    pub fn turns_away_for(&self) -> Option<Duration> {
        self.table().full.map(|since| since.elapsed())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection, which is another's when this is dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    number: u64,
    left: watch::Receiver<bool>,
}

impl Slot {
    /// A call is being answered until the value is dropped. `None` where the connection is to end.
    #[must_use]
    pub fn work(&self) -> Option<Work> {
        self.slots.table().open.get_mut(&self.number).map(|seat| {
            seat.calls += 1;
            seat.has_called = true;
        })?;
        Some(Work { slots: Arc::clone(&self.slots), number: self.number })
    }

    /// Waits until the connection is to end.
    pub async fn leaves(&self) -> Why {
        let mut left = self.left.clone();
        loop {
            let Some(until) = self.idle_until() else { return Why::Displaced };
            tokio::select! {
                // The sender is gone only with its seat.
                _ = left.wait_for(|left| *left) => return Why::Displaced,
                () = tokio::time::sleep_until(until) => {
                    if self.idle_until().is_some_and(|until| until <= Instant::now()) {
                        self.slots.metrics.connection_cut(self.slots.listener, Cut::Silent);
                        return Why::Silent;
                    }
                }
            }
        }
    }

    /// When its silence is too long. While it is at work that is looked at again later.
    fn idle_until(&self) -> Option<Instant> {
        let Silence { first, between } = self.slots.silence;
        self.slots.table().open.get(&self.number).map(|seat| match seat {
            seat if seat.calls > 0 => Instant::now() + between,
            Seat { has_called: true, idle_since, .. } => *idle_since + between,
            seat => seat.idle_since + first,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut table = self.slots.table();
        table.open.remove(&self.number);
        if table.open.len() < self.slots.most {
            table.full = None;
        }
        drop(table);
        self.slots.metrics.connection_closed(self.slots.listener);
    }
}

/// A call that is being answered.
#[derive(Debug)]
pub struct Work {
    slots: Arc<Slots>,
    number: u64,
}

impl Drop for Work {
    fn drop(&mut self) {
        let mut table = self.slots.table();
        if let Some(seat) = table.open.get_mut(&self.number) {
            seat.calls = seat.calls.saturating_sub(1);
            seat.idle_since = Instant::now();
            let is_idle = seat.calls == 0;
            if is_idle {
                table.full = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Silence = Silence { first: Duration::from_mins(5), between: Duration::from_mins(5) };

    fn slots(most: usize, silence: Silence) -> Arc<Slots> {
        Slots::new(Listener::Csi, most, silence, Arc::new(Metrics::new("1")))
    }

    #[test]
    fn the_longest_idle_one_makes_way() {
        let slots = slots(3, LONG);
        let held: Vec<Slot> = (0..3).filter_map(|_| slots.take()).collect();
        let at_work = held[0].work().expect("at work");
        // It has called since, so the third is the one that is idle longest.
        drop(held[1].work());
        let fourth = slots.take().expect("a place");
        assert_eq!(held.iter().map(|slot| *slot.left.borrow()).collect::<Vec<_>>(), [false, false, true]);
        assert!(held[2].work().is_none(), "it is to end");
        assert!(!slots.is_full() && slots.turns_away_for().is_none());
        let _work = [held[1].work(), fourth.work()];
        assert!(slots.is_full());
        assert!(slots.take().is_none(), "all are at work");
        assert!(slots.turns_away_for().is_some());
        drop(at_work);
        assert!(!slots.is_full() && slots.turns_away_for().is_none());
        assert!(slots.take().is_some());
    }

    #[test]
    fn a_place_is_free_when_its_connection_has_ended() {
        let slots = slots(1, LONG);
        for _ in 0..100 {
            let slot = slots.take().expect("a place");
            let _work = slot.work().expect("at work");
            assert!(slots.take().is_none());
        }
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "what the attribute makes of it")]
    async fn silence_ends_a_connection_and_work_does_not() {
        let short = Duration::from_millis(30);
        let slots = slots(2, Silence { first: short, between: short });
        assert_eq!(slots.take().expect("a place").leaves().await, Why::Silent);
        let slot = slots.take().expect("a place");
        let work = slot.work();
        assert!(tokio::time::timeout(4 * short, slot.leaves()).await.is_err());
        drop(work);
        assert_eq!(slot.leaves().await, Why::Silent);
    }

    #[test]
    fn complaints_are_rare() {
        let (mut complaint, now) = (Complaint::default(), Instant::now());
        assert_eq!(complaint.another(now), Some(1));
        assert_eq!(complaint.another(now), None);
        assert_eq!(complaint.another(now + COMPLAINT_INTERVAL), Some(2));
    }
}
