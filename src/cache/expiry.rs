//! Which records of sources go: those that name nothing that is here whole, once they are old or too
//! many. The choice is pure.
//!
//! Whoever asks makes a record for each source and selection, so there is no end of them: their
//! number is bounded for each source, so that one cannot push out those of others, and in all.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use super::{Cache, lock};
use crate::domain::Digest;
use crate::store;

/// What nobody has gone on with for this long is not waited for any more; partials last as long.
const AGE_MAX: Duration = Duration::from_hours(14 * 24);
/// Records of one source that name no model of their own.
const OF_SOURCE_MAX: usize = 32;
/// Such records of all sources.
const IN_ALL_MAX: usize = 512;

/// So many more than the last time are reason to look again, or so much time.
const GROWTH: usize = 16;
const INTERVAL: Duration = Duration::from_hours(1);

/// A record, as far as the choice looks at it.
#[derive(Debug, Clone)]
struct Record {
    /// Its id.
    id: String,
    /// Its source.
    source: String,
    /// When it was last used.
    used: SystemTime,
    /// Its model, once it is complete.
    model: Option<Digest>,
    /// Whether somebody waits for it, uses it or wants it kept.
    stays: bool,
}

/// The ids of those that go, the oldest first. Of the records of a complete model the youngest stays:
/// that goes by eviction.
fn expired(mut records: Vec<Record>, now: SystemTime) -> Vec<String> {
    // The youngest first: those beyond a bound are the oldest.
    records.sort_by(|a, b| (b.used, &b.id).cmp(&(a.used, &a.id)));
    let (mut of_source, mut in_all): (HashMap<&str, usize>, usize) = (HashMap::new(), 0);
    let (mut named, mut goes) = (HashSet::new(), Vec::new());
    for record in &records {
        if record.model.is_some_and(|model| named.insert(model)) {
            continue;
        }
        let count = of_source.entry(record.source.trim_end_matches('/')).or_default();
        let is_old = record.model.is_none() && now.duration_since(record.used).is_ok_and(|age| age > AGE_MAX);
        if !record.stays && (is_old || *count >= OF_SOURCE_MAX || in_all >= IN_ALL_MAX) {
            goes.push(record.id.clone());
        } else {
            *count += 1;
            in_all += 1;
        }
    }
    goes.reverse();
    goes
}

impl Cache {
    /// Forgets records that name nothing of their own and are old, or too many; how many. Blocking:
    /// reads them all, so it is done when there are more of them than after the last time, or long
    /// after it.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn expire_records(&self) -> Result<usize, store::Error> {
        let store = self.store();
        let count = store.view().source_count()?;
        if !self.expiry.is_due(count) {
            return Ok(0);
        }
        let mut records = Vec::new();
        let mut listings = HashMap::new();
        store.view().each_source(&mut |record, used| {
            let (id, model) = (record.id(), record.manifest);
            if model.is_none() {
                listings.insert(id.clone(), record.listing());
            }
            let stays = self.is_record_wanted(&id, listings.get(&id));
            records.push(Record { id, source: record.source, used, model, stays });
        })?;
        let mut gone = expired(records, SystemTime::now());
        {
            // Asked for since they were looked at, some of them.
            let book = self.residency.book();
            gone.retain(|id| {
                let is_used = listings.get(id).is_some_and(|listing| book.is_used(listing));
                !is_used && !book.is_pinned(id) && !self.residency.is_moving(id)
            });
        }
        for id in &gone {
            self.residency.forget_known_of(id);
        }
        if !gone.is_empty() {
            store.forget(&gone, &[])?;
            self.residency.changed();
            tracing::info!(records = gone.len(), "forgot what was asked for and is not here");
        }
        self.expiry.done(count - gone.len().min(count));
        Ok(gone.len())
    }

    /// Whether a record stays whatever its age.
    fn is_record_wanted(&self, id: &str, listing: Option<&Digest>) -> bool {
        let book = self.residency.book();
        listing.is_some_and(|listing| book.is_used(listing))
            || book.is_pinned(id)
            || self.residency.is_moving(id)
            || self.wanted.is_listed(id)
    }
}

/// When records were last looked at.
#[derive(Debug, Default)]
pub(super) struct Expiry(Mutex<Option<(Instant, usize)>>);

impl Expiry {
    fn is_due(&self, count: usize) -> bool {
        lock(&self.0).is_none_or(|(at, before)| count > before + GROWTH || at.elapsed() > INTERVAL)
    }

    fn done(&self, left: usize) {
        *lock(&self.0) = Some((Instant::now(), left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;

    fn record(source: &str, number: u64) -> Record {
        let used = SystemTime::UNIX_EPOCH + Duration::from_secs(100 * DAY + number);
        Record { id: format!("{source} {number}"), source: source.into(), used, model: None, stays: false }
    }

    fn goes(records: Vec<Record>, days: u64) -> Vec<String> {
        expired(records, SystemTime::UNIX_EPOCH + Duration::from_secs((100 + days) * DAY))
    }

    #[test]
    fn of_one_source_the_oldest_go_and_others_keep_theirs() {
        let asked = || (0..800).map(|number| record("s3://b/m", number));
        let gone = goes(asked().chain([record("s3://b/other", 0)]).collect(), 1);
        let oldest: Vec<String> = (0..768).map(|number| format!("s3://b/m {number}")).collect();
        assert_eq!(gone, oldest);
        // `s3://b/m/` is the same model to a person.
        let both = asked().enumerate().map(|(at, record)| {
            let slash = if at % 2 == 0 { "s3://b/m" } else { "s3://b/m/" };
            Record { source: slash.into(), ..record }
        });
        assert_eq!(goes(both.collect(), 1).len(), 768);
        let many = (0..600).map(|number| record(&format!("s3://b/{number}"), number));
        assert_eq!(goes(many.collect(), 1).len(), 88);
    }

    #[test]
    fn what_is_wanted_stays_and_what_is_old_does_not() {
        let stays = |number| Record { stays: true, ..record("s3://b/m", number) };
        assert_eq!(goes((0..600).map(stays).collect(), 1000), Vec::<String>::new());
        assert_eq!(goes(vec![record("s3://b/m", 0), stays(1)], 15), ["s3://b/m 0"]);
        assert_eq!(goes(vec![record("s3://b/m", 0)], 13), Vec::<String>::new());
        // A complete model is no matter of age, and is named by one at least.
        let of = |number: u64, model: u64| {
            let model = Some(Digest::of(&model.to_le_bytes()));
            Record { model, ..record("s3://b/m", number) }
        };
        assert_eq!(goes((0..600).map(|number| of(number, number)).collect(), 1000), Vec::<String>::new());
        let gone = goes((0..100).map(|number| of(number, 0)).collect(), 1000);
        assert_eq!((gone.len(), gone[0].as_str()), (67, "s3://b/m 0"));
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "what `tokio::test` makes of a test enters a runtime")]
    async fn what_strangers_ask_for_without_end_is_forgotten_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = super::super::cache_in(directory.path());
        let ask = |number: u32| {
            let globs = vec![format!("{number}*")];
            let record = store::SourceRecord::new("s3://b/m/".into(), "o".into(), globs, Vec::new());
            cache.store().announce(&record).expect("written");
            record.id()
        };
        let waited_for = ask(0);
        let _marked = cache.residency.moving(&waited_for);
        let pinned = ask(1);
        cache.residency.book().pin(cache.store(), &pinned, "somebody").expect("pinned");
        (2..100).for_each(|number| drop(ask(number)));
        assert_eq!(cache.expire_records().expect("looked"), 66);
        assert_eq!(cache.store().view().source_count().expect("counted"), OF_SOURCE_MAX + 2);
        for id in [&waited_for, &pinned] {
            assert!(cache.store().view().source(id).expect("read").is_some());
        }
        assert_eq!(cache.expire_records().expect("looked"), 0);
    }
}
