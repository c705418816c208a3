//! What goes when room is wanted. Pure: a choice over a snapshot.
//!
//! Least recently used first; never what somebody uses, has pinned, or is on its way. What a model
//! frees are the blobs that nothing that stays has too, with their inodes, and what is its alone.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use crate::domain::Digest;
use crate::store::Amount;

/// Something that can go as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Victim {
    /// A complete model.
    Model(Digest),
    /// A source whose first pull is not finished, by its record's id.
    Unfinished(String),
    /// A file left half-way, by its file name.
    Partial(String),
    /// Blobs that nothing names any more.
    Strays,
}

/// Why something stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stays {
    /// It is on its way, or somebody waits for it.
    Moving,
    /// Somebody uses it.
    Leased,
    /// Somebody wants it kept.
    Pinned,
}

/// One thing in the store.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// What it is.
    pub victim: Victim,
    /// Its blobs.
    pub blobs: Vec<Digest>,
    /// What is its alone and no blob's: a partial's bytes, directories, documents.
    pub own: Amount,
    /// When it was last used.
    pub last_used: SystemTime,
    /// Why it must stay, if it must.
    pub stays: Option<Stays>,
}

/// The store as it was a moment ago.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Everything.
    pub candidates: Vec<Candidate>,
    /// What each blob takes on disk.
    pub blobs: HashMap<Digest, Amount>,
}

/// What should go, in order, and what that frees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// The least recently used first.
    pub victims: Vec<Victim>,
    /// What becomes free with them.
    pub frees: Amount,
}

/// What is here by what can be done with it. Each blob counts once, for the strongest reason to stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shares {
    /// May go.
    pub evictable: Amount,
    /// Somebody wants it kept.
    pub pinned: Amount,
    /// Somebody uses it.
    pub leased: Amount,
}

impl Snapshot {
    /// What is here by what can be done with it.
    #[must_use]
    pub fn shares(&self) -> Shares {
        let mut reason: HashMap<Digest, Option<Stays>> = HashMap::new();
        let mut shares = Shares::default();
        for candidate in &self.candidates {
            for blob in &candidate.blobs {
                let slot = reason.entry(*blob).or_default();
                *slot = (*slot).max(candidate.stays);
            }
            shares.add(candidate.stays, candidate.own);
        }
        for (blob, stays) in reason {
            shares.add(stays, self.blobs.get(&blob).copied().unwrap_or_default());
        }
        shares
    }

    /// What to evict to free `enough` or more, of both bytes and inodes. Where not even everything that may go frees
    /// `least`, nothing is chosen: evicting models for a pull that is refused anyway helps nobody.
    #[must_use]
    pub fn choose(&self, least: Amount, enough: Amount) -> Option<Choice> {
        let mut users: HashMap<Digest, u32> = HashMap::new();
        for blob in self.candidates.iter().flat_map(|candidate| candidate.blobs.iter().collect::<HashSet<_>>()) {
            *users.entry(*blob).or_default() += 1;
        }
        let mut may_go: Vec<&Candidate> = self.candidates.iter().filter(|c| c.stays.is_none()).collect();
        may_go.sort_by_key(|candidate| candidate.last_used);
        let mut choice = Choice::default();
        for candidate in may_go {
            if choice.frees.covers(enough) {
                break;
            }
            for blob in candidate.blobs.iter().collect::<HashSet<_>>() {
                if let Some(left) = users.get_mut(blob) {
                    *left -= 1;
                    if *left == 0 {
                        choice.frees += self.blobs.get(blob).copied().unwrap_or_default();
                    }
                }
            }
            choice.frees += candidate.own;
            choice.victims.push(candidate.victim.clone());
        }
        choice.frees.covers(least).then_some(choice)
    }
}

impl Shares {
    fn add(&mut self, stays: Option<Stays>, amount: Amount) {
        let share = match stays {
            None => &mut self.evictable,
            Some(Stays::Pinned) => &mut self.pinned,
            Some(Stays::Leased | Stays::Moving) => &mut self.leased,
        };
        *share += amount;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn blob(number: u8) -> Digest {
        Digest::of(&[number])
    }

    fn model(number: u8, blobs: &[u8], used: u64, stays: Option<Stays>) -> Candidate {
        Candidate {
            victim: Victim::Model(Digest::of(&[number, number])),
            blobs: blobs.iter().map(|number| blob(*number)).collect(),
            own: OWN,
            last_used: SystemTime::UNIX_EPOCH + Duration::from_secs(used),
            stays,
        }
    }

    /// A manifest, a source, a directory.
    const OWN: Amount = Amount::new(0, 3);

    fn snapshot(candidates: Vec<Candidate>) -> Snapshot {
        // Blob n has n bytes and two files.
        let blobs = (0..=u8::MAX).map(|number| (blob(number), Amount::new(u64::from(number), 2))).collect();
        Snapshot { candidates, blobs }
    }

    const fn bytes(count: u64) -> Amount {
        Amount::new(count, 0)
    }

    #[test]
    fn the_least_recently_used_goes_and_shared_blobs_free_nothing_until_the_last() {
        let snapshot =
            snapshot(vec![model(1, &[10, 50], 3, None), model(2, &[50, 20], 1, None), model(3, &[30], 2, None)]);
        let choice = snapshot.choose(bytes(15), bytes(15)).expect("possible");
        assert_eq!(choice, Choice { victims: vec![snapshot.candidates[1].victim.clone()], frees: Amount::new(20, 5) });
        let choice = snapshot.choose(bytes(51), bytes(51)).expect("possible");
        assert_eq!(choice.victims.len(), 3);
        assert_eq!(choice.frees, Amount::new(110, 17));
    }

    #[test]
    fn inodes_are_evicted_for_as_bytes_are() {
        let snapshot =
            snapshot(vec![model(1, &[200], 1, None), model(2, &[1, 2, 3], 2, None), model(3, &[4], 3, None)]);
        let goes = |amount| snapshot.choose(amount, amount).map(|choice| choice.victims.len());
        assert_eq!(goes(Amount::new(100, 5)), Some(1));
        assert_eq!(goes(Amount::new(100, 6)), Some(2), "the first has bytes enough, and too few files");
        assert_eq!(goes(Amount::new(0, 19)), Some(3));
        assert_eq!(goes(Amount::new(0, 20)), None);
    }

    #[test]
    fn what_is_in_use_stays_and_an_impossible_wish_evicts_nothing() {
        let snapshot = snapshot(vec![
            model(1, &[10], 1, Some(Stays::Leased)),
            model(2, &[20], 2, Some(Stays::Pinned)),
            model(3, &[30, 10], 3, None),
        ]);
        assert_eq!(snapshot.choose(bytes(31), bytes(31)), None);
        assert_eq!(snapshot.choose(bytes(30), bytes(1000)).map(|choice| choice.frees), Some(Amount::new(30, 5)));
        let (evictable, pinned) = (Amount::new(30, 5), Amount::new(20, 5));
        assert_eq!(snapshot.shares(), Shares { evictable, pinned, leased: Amount::new(10, 5) });
    }

    proptest! {
        #[test]
        fn a_choice_frees_what_it_says_and_touches_nothing_that_stays(
            models in prop::collection::vec((prop::collection::vec(0_u8..20, 1..6), 0_u64..10, 0_u8..4), 0..12),
            least in (0_u64..80, 0_u64..20),
            more in (0_u64..80, 0_u64..20),
        ) {
            let (least, more) = (Amount::new(least.0, least.1), Amount::new(more.0, more.1));
            let stays = |code: u8| [None, Some(Stays::Leased), Some(Stays::Pinned), None][usize::from(code)];
            let candidates: Vec<Candidate> = models
                .iter()
                .zip(0_u8..)
                .map(|((blobs, used, code), number)| model(number, blobs, *used, stays(*code)))
                .collect();
            let snapshot = snapshot(candidates);
            let goes = |choice: &Choice| -> Amount {
                let left: HashSet<Digest> = snapshot.candidates.iter()
                    .filter(|c| !choice.victims.contains(&c.victim)).flat_map(|c| c.blobs.clone()).collect();
                let all: HashSet<Digest> = snapshot.candidates.iter().flat_map(|c| c.blobs.clone()).collect();
                let own: Amount = choice.victims.iter().map(|_| OWN).sum();
                own + all.difference(&left).map(|blob| snapshot.blobs[blob]).sum()
            };
            if let Some(choice) = snapshot.choose(least, least + more) {
                prop_assert_eq!(goes(&choice), choice.frees);
                prop_assert!(choice.frees.covers(least));
                for victim in &choice.victims {
                    let chosen = snapshot.candidates.iter().find(|c| c.victim == *victim).expect("a candidate");
                    prop_assert_eq!(chosen.stays, None);
                }
            } else {
                let everything = snapshot.choose(Amount::default(), Amount::ALL).expect("always possible");
                prop_assert!(!everything.frees.covers(least));
            }
            let shares = snapshot.shares();
            let blobs: HashSet<Digest> = snapshot.candidates.iter().flat_map(|c| c.blobs.clone()).collect();
            let all: Amount = blobs.iter().map(|blob| snapshot.blobs[blob]).sum();
            let own: Amount = snapshot.candidates.iter().map(|_| OWN).sum();
            prop_assert_eq!(shares.evictable + shares.pinned + shares.leased, all + own);
        }
    }
}
