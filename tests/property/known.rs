//! Cases that failed once, shortened by hand.

use crate::Place;
use crate::step::Lease::{Caller, None as Nobody, Pod};
use crate::step::Step::{Audit, Ballast, Ensure, Put, Together};
use crate::step::{self, Ask, Case, Cut, Lease, Meanwhile, Step};

fn ask(wish: usize, lease: Lease) -> Ask {
    Ask { wish, fresh: false, lease }
}

fn put(source: usize, slot: usize, number: usize) -> Step {
    Put(step::Put { source, slot, number: Some(number) })
}

fn run(remembers: bool, steps: Vec<Step>) {
    Place::new().run(&Case { remembers, waits: false, steps }).unwrap_or_else(|why| panic!("{why}"));
}

/// The disk was beyond the mark already: by how much was not counted, so too little was evicted,
/// and the pull refused after all.
#[test]
fn what_is_beyond_the_mark_must_go_too() {
    let before = [ask(1, Pod(0)), ask(0, Caller), ask(2, Nobody), ask(5, Nobody)];
    let steps = before.into_iter().map(Ensure).chain([Ballast(1965), Ensure(ask(6, Nobody)), Audit]);
    run(false, steps.collect());
}

/// A blob that the pull itself had found here was counted as if it went with the model that it was
/// found in.
#[test]
fn what_a_pull_has_found_here_frees_nothing() {
    for ballast in (600..1_400).step_by(50) {
        let before = [ask(0, Nobody), ask(5, Nobody), ask(6, Pod(0))];
        let steps = before.into_iter().map(Ensure).chain([
            Ballast(ballast),
            put(2, 3, 10),
            put(2, 2, 12),
            put(2, 1, 13),
            Ensure(ask(2, Nobody)),
            Audit,
        ]);
        run(false, steps.collect());
    }
}

/// Who went away while the lease was taken left it behind for ever.
#[test]
fn the_lease_of_a_caller_goes_with_the_caller() {
    let asks = |polls: u8| vec![(ask(0, Caller), Cut::Polls(polls)), (ask(0, Caller), Cut::Polls(polls + 1))];
    let together = (0..60).map(|round| Together(asks(round % 6), Meanwhile::Nothing));
    run(true, [Ensure(ask(0, Nobody))].into_iter().chain(together).collect());
}
