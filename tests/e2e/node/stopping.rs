//! The daemon goes when it is told, and nobody who waits is let down.

use std::time::Duration;

use larder_origins::{Checksums, Fault};
use serde_json::{Value, json};

use super::Node;
use crate::support::{origin_with_model, read_tree, wait};

/// As an operator sees "at once".
const AT_ONCE: Duration = Duration::from_secs(2);

#[test]
fn told_to_stop_during_a_pull_it_goes_at_once_and_its_callers_come_again() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(2 << 20)));
    let mut node = Node::started(&origin);
    let dest = node.path("dest");
    let pod = node.spawn_init(&["s3://models/m/", dest.to_str().expect("text")]);
    let events = node.ensuring(&json!({"source": "s3://models/m/", "progress_ms": 100}));
    let half = model.len() / 2;
    node.until("half of it is here", |status| status["moving"][0]["bytes_done"].as_u64() >= Some(half));
    let (code, elapsed) = node.terminate();
    assert_eq!(code, Some(0), "{}", node.log());
    assert!(elapsed < AT_ONCE, "{elapsed:?}");
    let last = events.last().expect("a last word");
    assert_eq!((&last["event"], &last["exit_code"]), (&json!("error"), &json!(130)), "{last}");
    assert!(last["message"].is_string() && last["hint"].is_string(), "{last}");

    origin.behave();
    origin.forget_seen();
    node.start();
    let ran = wait(pod);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(read_tree(&dest.canonicalize().expect("a link")) == model.files);
    assert!(origin.bytes_sent() < model.len(), "{} of {} came again", origin.bytes_sent(), model.len());
}

/// Those who hold a lease by their connection are let go too.
#[test]
fn told_to_stop_with_nothing_on_its_way_it_goes_at_once() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let mut node = Node::started(&origin);
    let mut held = node.ensuring(&json!({"source": "s3://models/m/config.json", "lease": "connection"}));
    assert_eq!(held.next().expect("an event")["event"], "ready");
    let (code, elapsed) = node.terminate();
    assert_eq!(code, Some(0), "{}", node.log());
    assert!(elapsed < AT_ONCE, "{elapsed:?}");
    assert_eq!(held.next(), None::<Value>);
    assert!(node.log().contains("stopped"));
}

/// An origin that neither answers nor refuses does not hold it up.
#[test]
fn told_to_stop_while_the_origin_is_silent_it_goes_at_once() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    origin.misbehave(|_| Some(Fault::Late(Duration::from_secs(10))));
    let mut node = Node::started(&origin);
    let events = node.ensuring(&json!({"source": "s3://models/m/"}));
    node.until("somebody waits", |status| status["moving"][0]["waiters"] == 1);
    let (code, elapsed) = node.terminate();
    assert_eq!(code, Some(0), "{}", node.log());
    assert!(elapsed < AT_ONCE, "{elapsed:?}");
    assert_eq!(events.last().expect("a last word")["exit_code"], 130);
}
