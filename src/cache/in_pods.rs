//! What is mounted for pods: in use, whatever is written down about it.
//!
//! The kernel knows it, and who sees the kernel's table is asked. An answer is true of the moment it
//! was asked for. What this daemon has mounted since counts as well, so an old answer keeps too much
//! and never too little. Before the first answer of this life everything may be mounted.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::book::Book;
use super::lock;
use super::owner::Pods;
use super::residency::Residency;
use crate::domain::Digest;

/// Models and listings that are mounted, each with where, for people.
pub type Mounts = HashMap<Digest, String>;

/// How long an eviction waits for an answer before it goes by the one before.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// An answer older than this is asked for again even when nothing is to be evicted.
const AGE_MAX: Duration = Duration::from_secs(30);
/// A mount that nobody said the end of comes within this time, or never.
const OUTCOME_WITHIN: Duration = Duration::from_mins(3);

/// What may be mounted, as far as is known.
#[derive(Debug, Default)]
pub(super) struct InPods {
    answer: Answer,
    /// Mounted, or about to be, since the answer was asked for.
    since: HashMap<Digest, Since>,
    /// Why the last question got no answer.
    unanswered: Option<String>,
}

#[derive(Debug, Default)]
enum Answer {
    /// Nobody here mounts anything for pods.
    #[default]
    Needless,
    /// None in this life.
    Missing,
    Given(Mounts),
}

#[derive(Debug)]
struct Since {
    running: u32,
    /// An answer that was asked for after this knows of it.
    over: Instant,
}

impl InPods {
    /// Before the first answer.
    pub fn unasked() -> Self {
        Self { answer: Answer::Missing, ..Self::default() }
    }

    /// Whether it is mounted, or nobody can tell.
    pub fn may_have(&self, digest: &Digest) -> bool {
        let is_there = match &self.answer {
            Answer::Needless => false,
            Answer::Missing => true,
            Answer::Given(mounted) => mounted.contains_key(digest),
        };
        is_there || self.since.contains_key(digest)
    }

    /// Where it is mounted; or why it may be.
    pub fn place(&self, digest: &Digest) -> Option<String> {
        match &self.answer {
            Answer::Missing => Some("larder-keeper has not said yet what is mounted for pods".to_owned()),
            Answer::Given(mounted) if mounted.contains_key(digest) => {
                mounted.get(digest).map(|place| format!("it is mounted at `{place}`"))
            }
            _ => self.since.contains_key(digest).then(|| "it was just mounted for a pod".to_owned()),
        }
    }

    /// Why nothing, or less than might, is evicted.
    pub fn unseen(&self) -> Option<String> {
        let why = self.unanswered.as_deref();
        match (&self.answer, why) {
            (Answer::Needless, _) | (Answer::Given(_), None) => None,
            (Answer::Missing, why) => Some(format!(
                "nothing is evicted until larder-keeper has said what is mounted for pods: {}",
                why.unwrap_or("it is being asked")
            )),
            (Answer::Given(_), Some(why)) => Some(format!(
                "larder-keeper does not say what is mounted for pods, so what was mounted when it last did stays: {why}"
            )),
        }
    }

    /// Takes an answer to a question that was asked at `asked`; whether something may go now that
    /// might not before.
    fn learn(&mut self, asked: Instant, answer: io::Result<Mounts>) -> bool {
        match answer {
            Ok(mounted) => {
                if self.unanswered.take().is_some() {
                    tracing::info!("larder-keeper says again what is mounted for pods");
                }
                let may_have = |digest: &Digest| mounted.contains_key(digest);
                let before = match &self.answer {
                    Answer::Given(before) => before.keys().all(may_have),
                    _ => false,
                };
                let count = self.since.len();
                self.since.retain(|_, since| since.running > 0 || since.over >= asked);
                let frees = !before || self.since.len() < count;
                self.answer = Answer::Given(mounted);
                frees
            }
            Err(error) => {
                let why = error.to_string();
                if self.unanswered.replace(why).is_none() {
                    tracing::warn!(%error, "larder-keeper does not say what is mounted for pods: what may be stays");
                }
                false
            }
        }
    }

    fn mounting(&mut self, digest: Digest) {
        let since = self.since.entry(digest).or_insert(Since { running: 0, over: Instant::now() });
        since.running += 1;
    }

    fn mounted(&mut self, digest: &Digest, over: Instant) {
        if let Some(since) = self.since.get_mut(digest) {
            since.running -= 1;
            since.over = since.over.max(over);
        }
    }
}

/// A mount for a pod that is being made. Until its outcome is known it may be there.
#[derive(Debug)]
pub struct Mounting {
    residency: Arc<Residency>,
    digest: Digest,
    over: Option<Instant>,
}

impl Mounting {
    /// The keeper has said what came of it.
    pub fn answered(mut self) {
        self.over = Some(Instant::now());
    }
}

impl Drop for Mounting {
    fn drop(&mut self) {
        let over = self.over.unwrap_or_else(|| Instant::now() + OUTCOME_WITHIN);
        self.residency.book().in_pods.mounted(&self.digest, over);
    }
}

/// Asks what is mounted: one question at a time, on a thread of its own, since it may hang.
#[derive(Debug, Default)]
pub(super) struct Asker {
    state: Arc<(Mutex<Asking>, Condvar)>,
}

#[derive(Debug, Default)]
struct Asking {
    /// When the question was asked whose answer is waited for.
    now: Option<Instant>,
    last: Option<Instant>,
}

/// Ends a question with its thread, whatever became of it.
struct Question(Arc<(Mutex<Asking>, Condvar)>);

impl Drop for Question {
    fn drop(&mut self) {
        lock(&self.0.0).now = None;
        self.0.1.notify_all();
    }
}

impl Asker {
    /// Asks, and waits so long for what comes of it; for a question that has waited that long
    /// already, not at all.
    fn ask(&self, pods: &Arc<Pods>, book: &Arc<Mutex<Book>>, patience: Duration) {
        let (state, ended) = &*self.state;
        let mut asking = lock(state);
        if asking.now.is_none() {
            let asked = Instant::now();
            let (pods, book, state) = (Arc::clone(pods), Arc::clone(book), Arc::clone(&self.state));
            let thread = std::thread::Builder::new().name("pod-mounts".into()).spawn(move || {
                let _question = Question(state);
                let answer = pods.mounts();
                let mut book = lock(&book);
                if book.in_pods.learn(asked, answer) {
                    book.tell_ended();
                }
            });
            if let Err(error) = thread {
                tracing::warn!(%error, "cannot ask what is mounted for pods");
                return;
            }
            (asking.now, asking.last) = (Some(asked), Some(asked));
        }
        let asked = asking.now;
        let left = patience.saturating_sub(asked.map_or(Duration::ZERO, |asked| asked.elapsed()));
        drop(ended.wait_timeout_while(asking, left, |asking| asking.now == asked));
    }

    fn is_stale(&self) -> bool {
        lock(&self.state.0).last.is_none_or(|last| last.elapsed() > AGE_MAX)
    }
}

impl Residency {
    /// Looks what is mounted for pods, for so long. To be called before anything goes, and not under
    /// the lock of the book. Blocking.
    pub(super) fn see_pods(&self, patience: Duration) {
        if self.pods.have_mounts() {
            self.asker.ask(&self.pods, &self.book, patience);
        }
    }

    /// Has what is mounted for pods asked where that was long ago, and waits for nothing.
    pub fn see_pods_again(&self) {
        if self.asker.is_stale() || self.book().in_pods.unseen().is_some() {
            self.see_pods(Duration::ZERO);
        }
    }

    /// Says that a model or a listing is about to be mounted for a pod. It is in use from now on.
    pub fn mounting(self: &Arc<Self>, digest: Digest) -> Mounting {
        self.book().in_pods.mounting(digest);
        Mounting { residency: Arc::clone(self), digest, over: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(mounted: &[Digest]) -> Mounts {
        mounted.iter().map(|digest| (*digest, "/p".to_owned())).collect()
    }

    #[test]
    fn without_an_answer_everything_may_be_mounted() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert!(!InPods::default().may_have(&a), "nobody mounts here");
        let mut pods = InPods::unasked();
        pods.learn(Instant::now(), Err(io::Error::other("away")));
        assert!(pods.may_have(&a) && pods.unseen().is_some_and(|why| why.contains("away")));
        assert!(pods.learn(Instant::now(), Ok(answer(&[a]))), "others may go now");
        assert!(pods.may_have(&a) && !pods.may_have(&b) && pods.unseen().is_none());
        pods.learn(Instant::now(), Err(io::Error::other("away")));
        assert!(pods.may_have(&a) && !pods.may_have(&b) && pods.unseen().is_some(), "the last answer counts");
        assert!(!pods.learn(Instant::now(), Ok(answer(&[a, b]))) && pods.learn(Instant::now(), Ok(answer(&[a]))));
    }

    #[test]
    fn what_was_mounted_since_the_question_counts() {
        let a = Digest::of(b"a");
        let mut pods = InPods::unasked();
        let begin = Instant::now();
        pods.learn(begin, Ok(answer(&[])));
        pods.mounting(a);
        pods.mounting(a);
        pods.mounted(&a, begin + Duration::from_secs(2));
        pods.learn(begin + Duration::from_secs(9), Ok(answer(&[])));
        assert!(pods.may_have(&a), "one is still being made");
        pods.mounted(&a, begin + Duration::from_secs(5));
        pods.learn(begin + Duration::from_secs(4), Ok(answer(&[])));
        assert!(pods.may_have(&a), "asked before its end");
        assert!(pods.learn(begin + Duration::from_secs(6), Ok(answer(&[]))) && !pods.may_have(&a));
    }
}
