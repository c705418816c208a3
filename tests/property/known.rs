//! Cases that failed once, shortened.

use crate::Place;
use crate::step::Lease::{Caller, None as Nobody, Pod};
use crate::step::{Ask, Case, Step};

fn ask(wish: usize, lease: crate::step::Lease) -> Ask {
    Ask { wish, fresh: false, lease }
}

fn run(remembers: bool, steps: Vec<Step>) {
    Place::new().run(&Case { remembers, waits: false, steps }).unwrap_or_else(|why| panic!("{why}"));
}

#[test]
fn a_refusal_evicts_nothing() {
    use Step::{Ballast, Ensure};
    run(
        false,
        vec![
            Ensure(ask(0, Nobody)),
            Ensure(ask(1, Pod(0))),
            Ensure(ask(0, Pod(1))),
            Step::Release(0),
            Ensure(ask(4, Nobody)),
            Ensure(ask(0, Caller)),
            Ensure(ask(1, Caller)),
            Ensure(ask(0, Nobody)),
            Ensure(ask(2, Nobody)),
            Ensure(ask(5, Nobody)),
            Ballast(1965),
            Ensure(ask(6, Nobody)),
        ],
    );
}
