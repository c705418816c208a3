//! Waiting: for another command that owns the store, and for an origin that goes away.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use larder_origins::{Checksums, Fault, Noise, Origin};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::node::Node;
use crate::support::{Larder, origin_with_model, wait};

const MODEL: &str = "s3://models/m/";

/// A command that pulls for as long as the origin is slow.
fn slow_pull(origin: &Origin, larder: &Larder) -> Child {
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(1 << 20)));
    let child = larder.spawn(&["prefetch", "-q", MODEL]);
    while origin.reads() == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

#[test]
fn a_second_writer_waits_its_turn_and_says_for_whom() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.bucket().put("n/weights", Noise::new(3).bytes(1 << 20), Checksums::multipart());
    let larder = Larder::at(&origin);
    let first = slow_pull(&origin, &larder);
    let owner = format!("pid {} (`larder prefetch`)", first.id());

    let mut second = larder.spawn(&["prefetch", "s3://models/n/"]);
    let mut told = BufReader::new(second.stderr.take().expect("a pipe"));
    let mut line = String::new();
    told.read_line(&mut line).expect("text");
    assert_eq!(line, format!("waiting for {owner}, which owns the store `{}`\n", larder.store().display()));
    // Every command that writes does.
    let others: Vec<Child> = [["verify", "--json"], ["pin", MODEL], ["unpin", MODEL], ["rm", "s3://models/n/"]]
        .iter()
        .map(|args| larder.spawn(args))
        .collect();
    // Whoever would rather not is told at once; looking needs no turn.
    for args in [&["prefetch", "s3://models/n/"][..], &["verify"], &["pin", MODEL], &["unpin", MODEL], &["rm", MODEL]] {
        let refused = larder.fails(75, &[args, &["--no-wait"]].concat());
        assert!(refused.contains(&format!("is in use by {owner}")), "{args:?}: {refused}");
    }
    larder.ok(&["ls"]);
    let interrupted = larder.spawn(&["rm", MODEL]);
    std::thread::sleep(Duration::from_millis(300));
    kill_process(Pid::from_child(&interrupted), Signal::INT).expect("a signal");
    assert_eq!(wait(interrupted).code, Some(130));

    origin.behave();
    assert_eq!(wait(first).code, Some(0));
    let mut rest = String::new();
    told.read_to_string(&mut rest).expect("text");
    assert_eq!(second.wait().expect("a child").code(), Some(0), "{rest}");
    for (at, child) in others.into_iter().enumerate() {
        let ran = wait(child);
        // In whatever order: a model that is not here yet, or gone again, is not found.
        assert!(matches!(ran.code, Some(0 | 66)), "{at}: {ran:?}");
        if at == 0 {
            let event = &ran.events()[0];
            assert_eq!((&event["event"], &event["owner"]), (&json!("waiting"), &json!(owner)), "{event}");
        }
    }
    larder.holds(MODEL, &model.files);
}

/// A store whose owner turns out to be a daemon is asked for, not waited for.
#[test]
fn who_waits_for_a_command_asks_the_daemon_that_comes_after_it() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let mut node = Node::at(&origin);
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(1 << 20)));
    let mut first = node.command(&["prefetch", "-q", MODEL]).spawn().expect("larder starts");
    while origin.reads() == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut second = node.command(&["prefetch", MODEL]).spawn().expect("larder starts");
    let mut told = BufReader::new(second.stderr.take().expect("a pipe"));
    told.read_line(&mut String::new()).expect("text");
    // Stopped, it does not take the store before the daemon does.
    kill_process(Pid::from_child(&second), Signal::STOP).expect("a signal");
    origin.behave();
    first.kill().expect("a child");
    first.wait().expect("a child");
    node.start();
    kill_process(Pid::from_child(&second), Signal::CONT).expect("a signal");
    let mut rest = String::new();
    told.read_to_string(&mut rest).expect("text");
    assert_eq!(second.wait().expect("a child").code(), Some(0), "{rest}");
    assert_eq!(node.status()["totals"]["pulls"], 1, "{rest}");
}

#[test]
fn a_daemon_waits_for_a_command_and_then_serves() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let mut node = Node::at(&origin);
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(1 << 20)));
    let mut first = node.command(&["prefetch", "-q", MODEL]).spawn().expect("larder starts");
    while origin.reads() == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    // One that is told to stop before its turn ends as any other does.
    let mut second = node.daemon_command().stderr(Stdio::piped()).spawn().expect("larder starts");
    let mut line = String::new();
    BufReader::new(second.stderr.take().expect("a pipe")).read_line(&mut line).expect("text");
    let owner = format!("pid {} (`larder prefetch`)", first.id());
    assert!(line.contains(&format!("waiting for {owner}, which owns the store")), "{line}");
    kill_process(Pid::from_child(&second), Signal::TERM).expect("a signal");
    assert_eq!(second.wait().expect("a child").code(), Some(0));

    let freed = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        origin.behave();
        assert_eq!(first.wait().expect("a child").code(), Some(0));
        origin
    });
    node.start();
    let _origin = freed.join().expect("no panic");
    let listed = node.ready(&json!({"source": MODEL}));
    assert_eq!(listed["files"], model.files.len(), "{listed}");
    assert_eq!(node.status()["totals"]["pulls"], 0);
}

#[test]
fn a_second_daemon_gives_up_on_the_first_in_the_time_that_it_may_take_to_stop() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let mut node = Node::at(&origin);
    node.set("stop_within", "\"1s\"");
    node.start();
    let ran = node.daemon_command().output().expect("larder runs");
    let told = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(75), "{told}");
    assert!(told.contains(&format!("is in use by pid {} (`larder daemon`)", node.pid())), "{told}");
    node.status();
}

/// An origin that gives the first reads, and nothing while it is away.
fn with_outage(origin: &Origin, away: &Arc<AtomicBool>) {
    let away = Arc::clone(away);
    origin.misbehave_on_reads(move |number, _| match number {
        0..=2 => Some(Fault::Truncate(1 << 20)),
        _ => away.load(Relaxed).then_some(Fault::Reset(0)),
    });
}

#[test]
fn a_pull_that_had_bytes_waits_for_its_origin_and_says_why() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let away = Arc::new(AtomicBool::new(true));
    with_outage(&origin, &away);
    let larder = Larder::at(&origin);
    let mut child = larder.spawn(&["prefetch", "--json", MODEL]);
    let mut waited = None;
    for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
        let event: Value = serde_json::from_str(&line.expect("text")).expect("an event");
        if event["waiting"]["seconds"].as_u64() >= Some(2) {
            away.store(false, Relaxed);
            waited = Some(event["waiting"].clone());
        }
    }
    assert_eq!(child.wait().expect("a child").code(), Some(0));
    let waited = waited.expect("an event that says that it waits");
    assert!(waited["why"].as_str().is_some_and(|why| why.contains("`s3://models/m/")), "{waited}");
    let left = waited["seconds_left"].as_u64().expect("seconds");
    assert!((200..=300).contains(&left), "minutes: {waited}");
    larder.holds(MODEL, &model.files);
}

#[test]
fn how_long_an_origin_is_waited_for_can_be_said() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    with_outage(&origin, &Arc::new(AtomicBool::new(true)));
    let larder = Larder::at(&origin);
    let started = Instant::now();
    let told = larder.fails(69, &["prefetch", "--retry-for", "2s", MODEL]);
    assert!(told.contains("attempts in 2 s without a byte of progress"), "{told}");
    assert!(started.elapsed() >= Duration::from_secs(2));
    let told = larder.fails(64, &["prefetch", "--retry-for", "soon", MODEL]);
    assert!(told.contains("want a duration from 0s to 24h, such as 30s, 5m or 2h"), "{told}");
}

/// The daemon waits as well, tells it to whoever looks, and decides by itself for how long.
#[test]
fn a_daemon_says_what_it_waits_for() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let away = Arc::new(AtomicBool::new(true));
    with_outage(&origin, &away);
    let node = Node::started(&origin);
    let refused = node.larder(&["prefetch", "--retry-for", "1h", MODEL]);
    assert_eq!(refused.code, Some(64), "{refused:?}");
    assert!(refused.stderr.contains("hint: it asks for 5 min"), "{refused:?}");
    let child = node.command(&["prefetch", "--json", MODEL]).spawn().expect("larder starts");
    node.until("it waits", |status| status["moving"][0]["waiting"]["seconds"].as_u64() >= Some(3));
    let shown = node.larder(&["status"]).stdout;
    assert!(shown.contains("waiting for the origin, "), "{shown}");
    away.store(false, Relaxed);
    let ran = wait(child);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.events().iter().any(|event| event["waiting"]["why"].is_string()), "{ran:?}");
}

/// A copy that is here is given out, however patient the pull of what is new is.
#[test]
fn who_has_a_copy_does_not_wait_for_an_origin_that_goes_away() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let mut node = Node::at(&origin);
    node.set("recheck", "\"0s\"");
    node.start();
    let old = node.ready(&json!({"source": MODEL}));
    origin.bucket().put("m/model-00002-of-00003.safetensors", Noise::new(5).bytes(6 << 20), Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(Fault::Reset(0)));
    let started = Instant::now();
    let given = node.ready(&json!({"source": MODEL}));
    assert_eq!(given["digest"], old["digest"]);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}
