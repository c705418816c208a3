//! What a case is made of. Every step makes sense at every moment, so that a failing case can be
//! shortened by leaving steps out.

use std::fmt;

use proptest::prelude::*;

use crate::world::{CONTENTS, LARGE_FROM, PATHS, SOURCES, WISH_COUNT};

pub const PODS: u8 = 3;

/// A run of steps from an empty store on.
#[derive(Clone)]
pub struct Case {
    /// Whether the origin's last answer counts for an hour, or not at all.
    pub remembers: bool,
    /// Whether a caller may once wait until an origin that gives no answer is given up: that takes
    /// seconds.
    pub waits: bool,
    pub steps: Vec<Step>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "remembers: {}, waits: {}", self.remembers, self.waits)?;
        self.steps.iter().enumerate().try_for_each(|(at, step)| writeln!(f, "{at:>4} {step:?}"))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    None,
    Caller,
    Pod(u8),
    Process,
}

#[derive(Debug, Clone, Copy)]
pub struct Ask {
    pub wish: usize,
    pub fresh: bool,
    pub lease: Lease,
}

/// When a caller goes away.
#[derive(Debug, Clone, Copy)]
pub enum Cut {
    Never,
    /// After so many polls.
    Polls(u8),
    /// After so many milliseconds.
    Millis(u8),
}

/// What else happens while callers wait.
#[derive(Debug, Clone, Copy)]
pub enum Meanwhile {
    Nothing,
    Put(Put),
    Remove(usize),
    Housekeeping,
    Settle,
    Status,
    Verify,
}

/// A new content of an object, or its removal.
#[derive(Debug, Clone, Copy)]
pub struct Put {
    pub source: usize,
    pub slot: usize,
    pub number: Option<usize>,
}

impl Put {
    pub const fn path(&self) -> &'static str {
        PATHS[self.slot]
    }
}

/// What the next read of an object brings instead of its bytes.
#[derive(Debug, Clone, Copy)]
pub enum Spoiled {
    Flipped,
    Truncated,
    OtherBytes,
    Reset,
}

#[derive(Debug, Clone)]
pub enum Step {
    Ensure(Ask),
    Together(Vec<(Ask, Cut)>, Meanwhile),
    /// A connection ends.
    LetGo(usize),
    /// A lease is ended by hand.
    Release(usize),
    /// A pod comes, or goes.
    Pod(u8, bool),
    Pin(usize, bool),
    /// Pins, or unpins, a model that no source names any more.
    PinSuperseded(usize, bool),
    Remove(usize),
    RemoveSuperseded(usize),
    Put(Put),
    /// Whether the bucket answers.
    Down(bool),
    Spoil(Spoiled),
    /// KiB that others have written to the file system.
    Ballast(u32),
    /// What the daemon does every few seconds.
    Housekeeping,
    Settle,
    /// A bit of a sealed blob turns.
    Corrupt {
        blob: usize,
        at: usize,
    },
    Verify {
        mends: bool,
    },
    /// The process dies while callers wait, and leaves behind what it may.
    Crash {
        asks: Vec<Ask>,
        millis: u8,
        debris: u8,
    },
    /// The machine dies: of what was not synced, every `damaged`th blob is wrong.
    Reboot {
        damaged: u8,
        asks: Vec<Ask>,
    },
    /// Everything on the disk is looked at.
    Audit,
}

fn ask() -> impl Strategy<Value = Ask> {
    let lease = prop_oneof![
        5 => Just(Lease::None),
        3 => Just(Lease::Caller),
        2 => (0..PODS).prop_map(Lease::Pod),
        1 => Just(Lease::Process),
    ];
    (0..WISH_COUNT, prop::bool::weighted(0.3), lease).prop_map(|(wish, fresh, lease)| Ask { wish, fresh, lease })
}

fn put() -> impl Strategy<Value = Put> {
    // Mostly small ones: they take less time.
    let number = prop_oneof![3 => 0..LARGE_FROM, 1 => LARGE_FROM..CONTENTS];
    (0..SOURCES, 0..PATHS.len(), prop::option::weighted(0.75, number)).prop_map(|(source, slot, number)| Put {
        source,
        slot,
        number,
    })
}

fn cut() -> impl Strategy<Value = Cut> {
    prop_oneof![2 => Just(Cut::Never), 2 => (0_u8..8).prop_map(Cut::Polls), 1 => (0_u8..8).prop_map(Cut::Millis)]
}

fn meanwhile() -> impl Strategy<Value = Meanwhile> {
    prop_oneof![
        4 => Just(Meanwhile::Nothing),
        3 => put().prop_map(Meanwhile::Put),
        2 => (0..WISH_COUNT).prop_map(Meanwhile::Remove),
        2 => Just(Meanwhile::Housekeeping),
        1 => Just(Meanwhile::Settle),
        1 => Just(Meanwhile::Status),
        1 => Just(Meanwhile::Verify),
    ]
}

fn spoiled() -> impl Strategy<Value = Spoiled> {
    prop_oneof![Just(Spoiled::Flipped), Just(Spoiled::Truncated), Just(Spoiled::OtherBytes), Just(Spoiled::Reset)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        40 => ask().prop_map(Step::Ensure),
        14 => (prop::collection::vec((ask(), cut()), 2..=4), meanwhile()).prop_map(|(asks, meanwhile)| Step::Together(asks, meanwhile)),
        8 => (0_usize..8).prop_map(Step::LetGo),
        2 => (0_usize..8).prop_map(Step::Release),
        5 => (0..PODS, any::<bool>()).prop_map(|(pod, alive)| Step::Pod(pod, alive)),
        3 => (0..WISH_COUNT, prop::bool::weighted(0.4)).prop_map(|(wish, pinned)| Step::Pin(wish, pinned)),
        1 => (0_usize..4, prop::bool::weighted(0.3)).prop_map(|(n, pinned)| Step::PinSuperseded(n, pinned)),
        5 => (0..WISH_COUNT).prop_map(Step::Remove),
        1 => (0_usize..4).prop_map(Step::RemoveSuperseded),
        12 => put().prop_map(Step::Put),
        1 => prop::bool::weighted(0.2).prop_map(Step::Down),
        2 => spoiled().prop_map(Step::Spoil),
        3 => (0_u32..6_000).prop_map(Step::Ballast),
        2 => Just(Step::Ballast(0)),
        6 => Just(Step::Housekeeping),
        2 => Just(Step::Settle),
        3 => (any::<prop::sample::Index>(), any::<prop::sample::Index>())
            .prop_map(|(blob, at)| Step::Corrupt { blob: blob.index(64), at: at.index(4 << 20) }),
        2 => any::<bool>().prop_map(|mends| Step::Verify { mends }),
        3 => (prop::collection::vec(ask(), 0..3), 0_u8..6, any::<u8>())
            .prop_map(|(asks, millis, debris)| Step::Crash { asks, millis, debris }),
        1 => (0_u8..5, prop::collection::vec(ask(), 0..3)).prop_map(|(damaged, asks)| Step::Reboot { damaged, asks }),
        6 => Just(Step::Audit),
    ]
}

/// Cases of at most `len_max` steps, on average of half as many.
pub fn case(len_max: usize) -> impl Strategy<Value = Case> {
    // Shortening first cuts off the end, then leaves out one step after the other.
    let steps = prop::collection::vec((prop::bool::weighted(0.99), step()), len_max);
    (1..=len_max, steps, any::<bool>(), prop::bool::weighted(0.02)).prop_map(|(len, steps, remembers, waits)| {
        let taken = steps.into_iter().take(len).filter(|(taken, _)| *taken);
        Case { remembers, waits, steps: taken.map(|(_, step)| step).collect() }
    })
}
