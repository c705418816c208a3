//! Pods of this node: what they are told while a model comes for them, and whether they are still
//! wanted.
//!
//! Both by name, one at a time: the daemon may read no list of pods, and asks for no more of one than
//! its metadata. Where there is no API server, or it may not, nobody is told and nothing is known.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, GetParams, PostParams};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::attempts::{Attempts, Trouble};
use super::{REMEDY, written};
use crate::telemetry::{Metrics, Write};

/// Events that wait to be written; what comes beyond is not told.
const EVENTS_WAITING_MAX: usize = 128;
/// Events in a row, and how often another one may follow.
const BURST: u32 = 16;
const EVENT_INTERVAL: Duration = Duration::from_millis(500);
/// Questions that wait, and those that are asked at once.
const QUESTIONS_WAITING_MAX: usize = 512;
const QUESTIONS_AT_ONCE: usize = 4;
/// How long one question may take, and its answer be waited for.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);
const QUESTION_PATIENCE: Duration = Duration::from_secs(4);
/// Bytes of an event's message (kubelet's own recorder cuts there).
const MESSAGE_LEN_MAX: usize = 1_024;
/// Who speaks.
const COMPONENT: &str = "larder";

/// A pod, as the API server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: another pod may have the name by now.
    pub uid: String,
}

#[derive(Debug)]
struct Told {
    pod: PodRef,
    reason: &'static str,
    message: String,
}

#[derive(Debug)]
struct Question {
    pod: PodRef,
    answer: oneshot::Sender<bool>,
}

/// Tells pods, and asks for them.
#[derive(Debug, Clone)]
pub struct Pods {
    events: mpsc::Sender<Told>,
    questions: mpsc::Sender<Question>,
}

/// The other end, which [`follow`](super::follow) works at.
#[derive(Debug)]
pub struct PodWork {
    events: mpsc::Receiver<Told>,
    questions: mpsc::Receiver<Question>,
}

impl Pods {
    /// And where it comes out.
    #[must_use]
    pub fn new() -> (Self, PodWork) {
        let (events, told) = mpsc::channel(EVENTS_WAITING_MAX);
        let (questions, asked) = mpsc::channel(QUESTIONS_WAITING_MAX);
        (Self { events, questions }, PodWork { events: told, questions: asked })
    }

    /// An event of a pod, if there is time for one. Waits for nothing.
    pub fn tell(&self, pod: PodRef, reason: &'static str, message: String) {
        if self.events.try_send(Told { pod, reason, message }).is_err() {
            tracing::debug!("an event of a pod is left out: too many wait already");
        }
    }

    /// Whether a pod is deleted, or about to be; `None` where nobody can say so in a few seconds.
    pub async fn has_ended(&self, pod: PodRef) -> Option<bool> {
        let (answer, answered) = oneshot::channel();
        self.questions.try_send(Question { pod, answer }).ok()?;
        tokio::time::timeout(QUESTION_PATIENCE, answered).await.ok()?.ok()
    }
}

impl PodWork {
    /// Works for as long as it is polled.
    pub(super) async fn run(self, client: &Client, node: &str, metrics: &Metrics) {
        tokio::join!(tell(self.events, client, node, metrics), answer(self.questions, client));
    }
}

async fn tell(mut events: mpsc::Receiver<Told>, client: &Client, node: &str, metrics: &Metrics) {
    let mut attempts = Attempts::new("telling pods how far their models are", REMEDY);
    let mut budget = Budget { left: BURST, since: Instant::now() };
    let mut not_before = Instant::now();
    let numbers = AtomicU64::new(u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or_default());
    while let Some(told) = events.recv().await {
        // After a refusal what was to be told meanwhile is too old to be.
        if Instant::now() < not_before {
            continue;
        }
        tokio::time::sleep_until(budget.next(Instant::now())).await;
        let event = event(&told, node, numbers.fetch_add(1, Relaxed), SystemTime::now());
        let api = Api::<Event>::namespaced(client.clone(), &told.pod.namespace);
        match written(metrics, Write::Event, api.create(&PostParams::default(), &event)).await {
            Ok(_) => attempts.worked(),
            // Of a namespace that is gone or is going.
            Err(error) if is_of_the_pod(&error) => {}
            Err(error) => not_before = Instant::now() + attempts.failed(Trouble::of(&error), &error),
        }
    }
}

/// Whether a refusal says something of one pod's namespace, and nothing of others.
fn is_of_the_pod(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    match status.code {
        404 | 422 => true,
        403 => status.message.contains("being terminated"),
        _ => false,
    }
}

/// So many at once, and then one now and then.
struct Budget {
    left: u32,
    since: Instant,
}

impl Budget {
    /// When the next one may go.
    fn next(&mut self, now: Instant) -> Instant {
        let earned = now.duration_since(self.since).as_millis() / EVENT_INTERVAL.as_millis();
        let earned = u32::try_from(earned).unwrap_or(BURST);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(BURST);
            self.since = now;
        }
        if self.left > 0 {
            self.left -= 1;
            return now;
        }
        self.since += EVENT_INTERVAL;
        self.since
    }
}

fn event(told: &Told, node: &str, number: u64, now: SystemTime) -> Event {
    let PodRef { namespace, name, uid } = &told.pod;
    let time = Time(Timestamp::try_from(now).unwrap_or(Timestamp::UNIX_EPOCH));
    let mut message = told.message.clone();
    message.truncate(message.floor_char_boundary(MESSAGE_LEN_MAX));
    Event {
        metadata: ObjectMeta {
            // As kubelet names them; a pod's name may be as long as a name can be.
            name: Some(format!("{}.{number:016x}", &name[..name.floor_char_boundary(230)])),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(namespace.clone()),
            name: Some(name.clone()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        },
        reason: Some(told.reason.into()),
        message: Some(message),
        type_: Some("Normal".into()),
        count: Some(1),
        first_timestamp: Some(time.clone()),
        last_timestamp: Some(time),
        source: Some(EventSource { component: Some(COMPONENT.into()), host: Some(node.into()) }),
        reporting_component: Some(COMPONENT.into()),
        reporting_instance: Some(node.into()),
        ..Event::default()
    }
}

async fn answer(questions: mpsc::Receiver<Question>, client: &Client) {
    let attempts =
        tokio::sync::Mutex::new((Attempts::new("asking whether pods are still there", REMEDY), Instant::now()));
    let questions = futures::stream::unfold(questions, |mut questions| async move {
        questions.recv().await.map(|question| (question, questions))
    });
    questions
        .for_each_concurrent(QUESTIONS_AT_ONCE, |Question { pod, answer }| {
            let attempts = &attempts;
            async move {
                // While it is refused nobody is kept waiting for the next refusal.
                if answer.is_closed() || Instant::now() < attempts.lock().await.1 {
                    return;
                }
                let asked = has_ended(client, &pod);
                let asked = tokio::time::timeout(ANSWER_PATIENCE, asked).await;
                let mut attempts = attempts.lock().await;
                match asked.unwrap_or_else(|elapsed| Err(kube::Error::Service(elapsed.into()))) {
                    Ok(ended) => {
                        attempts.0.worked();
                        let _ = answer.send(ended);
                    }
                    Err(error) => attempts.1 = Instant::now() + attempts.0.failed(Trouble::of(&error), &error),
                }
            }
        })
        .await;
}

async fn has_ended(client: &Client, pod: &PodRef) -> kube::Result<bool> {
    let pods = Api::<Pod>::namespaced(client.clone(), &pod.namespace);
    // What an API server remembers costs it nothing. That a pod is on its way out stays true.
    let mut params = GetParams::any();
    loop {
        let known = pods.get_metadata_opt_with(&pod.name, &params).await?;
        let known = known.filter(|known| known.metadata.uid.as_ref() == Some(&pod.uid));
        match known {
            Some(known) => return Ok(known.metadata.deletion_timestamp.is_some()),
            // One that lags may not have seen it yet.
            None if params.resource_version.is_some() => params = GetParams::default(),
            None => return Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_bursts_and_then_slowly() {
        let began = Instant::now();
        let mut budget = Budget { left: BURST, since: began };
        let at = |budget: &mut Budget, now: Instant| budget.next(now) - began;
        (0..BURST).for_each(|_| assert_eq!(at(&mut budget, began), Duration::ZERO));
        assert_eq!(at(&mut budget, began), EVENT_INTERVAL);
        assert_eq!(at(&mut budget, began + EVENT_INTERVAL), EVENT_INTERVAL * 2);
        let later = began + Duration::from_mins(5);
        (0..BURST).for_each(|_| assert_eq!(budget.next(later), later));
        assert!(budget.next(later) > later);
    }

    #[test]
    fn an_event_is_the_pods() {
        let pod = PodRef { namespace: "team".into(), name: "x".repeat(253), uid: "u1".into() };
        let told = Told { pod, reason: "PullingModel", message: "\u{e9}".repeat(1_000) };
        let event = event(&told, "n1", 1, SystemTime::UNIX_EPOCH);
        assert!(event.metadata.name.expect("a name").len() <= 253);
        assert_eq!(event.message.expect("a message").len(), MESSAGE_LEN_MAX);
        assert_eq!(
            (event.involved_object.uid.as_deref(), event.metadata.namespace.as_deref()),
            (Some("u1"), Some("team"))
        );
    }
}
