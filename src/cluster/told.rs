//! What a `NodeCache` says, and when it is written anew. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::asked::Asked;
use super::attempts::around;
use super::objects::{ModelState, ModelStatus, NodeCacheStatus};
use crate::cache::{Progressing, Standing};
use crate::report::text;

/// Models that are listed.
const MODELS_MAX: usize = 256;
/// Characters of a message: some errors bring a page of HTML.
const MESSAGE_LEN_MAX: usize = 1_000;
/// Between two writes, give or take a fifth.
const GAP: Duration = Duration::from_secs(10);
/// Between two writes that only say how far models are.
const PROGRESS_GAP: Duration = Duration::from_secs(30);
/// After so long it is written although nothing has changed, so that its age says who is away.
const REPEAT_AFTER: Duration = Duration::from_mins(10);

/// Bytes of the store's file system.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// Free.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// What is to be said now. `before` was said last, and knows since when things stand as they do.
#[must_use]
pub fn status(
    asked: &[Asked],
    standings: &[Standing],
    space: Space,
    before: &NodeCacheStatus,
    now: &Time,
) -> NodeCacheStatus {
    let known: HashMap<&str, &ModelStatus> = before.models.iter().map(|model| (model.name.as_str(), model)).collect();
    let standings: HashMap<&str, &Standing> = standings.iter().map(|s| (s.record_id.as_str(), s)).collect();
    let mut models: Vec<ModelStatus> = asked
        .iter()
        .map(|asked| {
            let mut model = model(asked, &standings, now.clone());
            if let Some(known) = known.get(model.name.as_str())
                && (known.state, &known.source) == (model.state, &model.source)
            {
                model.since = known.since.clone();
            }
            model
        })
        .collect();
    models.sort_by(|a, b| a.name.cmp(&b.name));
    let ready = models.iter().filter(|model| model.state == ModelState::Ready).count();
    let failed = models.iter().filter(|model| model.state == ModelState::Failed).count();
    let wanted = models.len();
    let message = (wanted > MODELS_MAX).then(|| format!("the first {MODELS_MAX} of {wanted} models are listed"));
    models.truncate(MODELS_MAX);
    NodeCacheStatus {
        models,
        ready: count(ready as u64),
        failed: count(failed as u64),
        wanted: count(wanted as u64),
        message,
        store_free: format!("{} of {}", text::bytes(space.free), text::bytes(space.total)),
        store_bytes_free: count(space.free),
        store_bytes_total: count(space.total),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        updated: Some(now.clone()),
    }
}

fn model(asked: &Asked, standings: &HashMap<&str, &Standing>, now: Time) -> ModelStatus {
    let mut told = ModelStatus {
        name: asked.name.clone(),
        source: asked.source.clone(),
        state: ModelState::Waiting,
        digest: None,
        bytes_done: 0,
        bytes_total: 0,
        message: None,
        since: now,
    };
    match &asked.model {
        Err(why) => (told.state, told.message) = (ModelState::Failed, Some(cut(why))),
        Ok(model) => {
            let Some(standing) = standings.get(model.record_id.as_str()) else { return told };
            told.state = match standing.state {
                Progressing::Waiting | Progressing::Evicted => ModelState::Waiting,
                Progressing::Moving => ModelState::Moving,
                Progressing::Ready => ModelState::Ready,
                Progressing::Failed => ModelState::Failed,
            };
            told.message = standing.message.as_deref().map(cut);
            told.digest = standing.digest.map(|digest| digest.to_string());
            (told.bytes_done, told.bytes_total) = (count(standing.bytes_done), count(standing.bytes_total));
        }
    }
    told
}

fn cut(message: &str) -> String {
    if message.chars().count() <= MESSAGE_LEN_MAX {
        return message.to_owned();
    }
    message.chars().take(MESSAGE_LEN_MAX).chain(['…']).collect()
}

fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// When the `NodeCache` is written: at changes, and never often.
#[derive(Debug, Default)]
pub struct Rhythm {
    written: Option<(Instant, NodeCacheStatus)>,
}

impl Rhythm {
    /// What was written, and when.
    pub fn wrote(&mut self, status: NodeCacheStatus, at: Instant) {
        self.written = Some((at, status));
    }

    /// What was written last.
    #[must_use]
    pub fn last(&self) -> Option<&NodeCacheStatus> {
        self.written.as_ref().map(|(_, status)| status)
    }

    /// When `next` may be written. `chance` is from 0 to 1, and the same until it has been.
    #[must_use]
    pub fn due(&self, next: &NodeCacheStatus, now: Instant, chance: f64) -> Instant {
        let Some((at, last)) = &self.written else { return now };
        let gap = if without_bytes(last) != without_bytes(next) {
            GAP
        } else if last.models != next.models {
            PROGRESS_GAP
        } else {
            // What others write to the same disk is no news of larder.
            REPEAT_AFTER
        };
        *at + around(gap, chance)
    }
}

/// What is news at once.
fn without_bytes(status: &NodeCacheStatus) -> NodeCacheStatus {
    let mut status = NodeCacheStatus {
        store_free: String::new(),
        store_bytes_free: 0,
        store_bytes_total: 0,
        updated: None,
        ..status.clone()
    };
    for model in &mut status.models {
        (model.bytes_done, model.bytes_total) = (0, 0);
    }
    status
}

#[cfg(test)]
mod tests {
    use super::super::asked;
    use super::super::objects::CachedModelSpec;
    use super::*;

    const SPACE: Space = Space { free: 40, total: 100 };

    fn time(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).expect("a time"))
    }

    fn asked(name: &str) -> Asked {
        let spec = CachedModelSpec { source: format!("s3://models/{name}/"), ..CachedModelSpec::default() };
        asked::read(name, Ok(&spec), &|_| name != "refused", &|source, _| source.to_string())
    }

    fn standing(name: &str, state: Progressing, bytes_done: u64) -> Standing {
        let record_id = asked(name).model.expect("a model").record_id;
        Standing { record_id, state, message: None, digest: None, bytes_done, bytes_total: 10 }
    }

    fn said(standings: &[Standing], names: &[&str], before: &NodeCacheStatus, second: i64) -> NodeCacheStatus {
        let asked: Vec<Asked> = names.iter().map(|name| asked(name)).collect();
        status(&asked, standings, SPACE, before, &time(second))
    }

    #[test]
    fn every_state_is_said() {
        let standings = [
            standing("a", Progressing::Ready, 10),
            standing("b", Progressing::Moving, 3),
            standing("c", Progressing::Evicted, 0),
        ];
        let status = said(&standings, &["c", "refused", "a", "b", "d"], &NodeCacheStatus::default(), 7);
        let states: Vec<_> = status.models.iter().map(|model| (model.name.as_str(), model.state)).collect();
        let expected = [
            ("a", ModelState::Ready),
            ("b", ModelState::Moving),
            ("c", ModelState::Waiting),
            ("d", ModelState::Waiting),
            ("refused", ModelState::Failed),
        ];
        assert_eq!(states, expected);
        assert_eq!((status.ready, status.wanted, status.failed, status.store_bytes_free), (1, 5, 1, 40));
        assert_eq!(status.store_free, "40 B of 100 B");
        assert!(status.models[4].message.as_deref().is_some_and(|why| why.contains("`sources`")));
        assert_eq!(status.message, None);
    }

    #[test]
    fn since_is_when_the_state_began() {
        let first = said(&[standing("a", Progressing::Moving, 1)], &["a"], &NodeCacheStatus::default(), 1);
        let second = said(&[standing("a", Progressing::Moving, 2)], &["a"], &first, 2);
        let third = said(&[standing("a", Progressing::Ready, 10)], &["a"], &second, 3);
        let since = [first, second, third].map(|status| status.models[0].since.clone());
        assert_eq!(since, [time(1), time(1), time(3)]);
    }

    #[test]
    fn a_list_that_is_cut_says_so() {
        let names: Vec<String> = (0..300).map(|at| format!("m{at:03}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let status = said(&[], &names, &NodeCacheStatus::default(), 1);
        assert_eq!((status.models.len(), status.wanted), (256, 300));
        assert!(status.message.is_some_and(|message| message.contains("256 of 300")));
        assert_eq!(cut(&"ä".repeat(5_000)).chars().count(), MESSAGE_LEN_MAX + 1);
    }

    #[test]
    fn it_is_written_at_changes_and_never_often() {
        let now = Instant::now();
        let mut rhythm = Rhythm::default();
        let moving = said(&[standing("a", Progressing::Moving, 1)], &["a"], &NodeCacheStatus::default(), 1);
        assert_eq!(rhythm.due(&moving, now, 0.5), now, "the first at once");
        rhythm.wrote(moving.clone(), now);
        let after = |next: &NodeCacheStatus, chance| rhythm.due(next, now, chance).duration_since(now);
        let same = NodeCacheStatus { updated: Some(time(99)), store_bytes_free: 7, ..moving.clone() };
        assert_eq!(after(&same, 0.5), REPEAT_AFTER);
        let further = said(&[standing("a", Progressing::Moving, 2)], &["a"], &moving, 2);
        assert_eq!(after(&further, 0.5), PROGRESS_GAP);
        let ready = said(&[standing("a", Progressing::Ready, 10)], &["a"], &moving, 3);
        assert_eq!([after(&ready, 0.0), after(&ready, 1.0)].map(|gap| gap.as_millis()), [8_000, 12_000]);
    }
}
