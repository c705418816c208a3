//! Many pods, one transfer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use larder_origins::{Checksums, Fault, Front, Noise, Origin, SampleModel};
use serde_json::{Value, json};

use super::{Node, PATIENCE};
use crate::support::{origin_with_model, read_tree, upload, wait};

const MIB: u64 = 1 << 20;
/// What a kill may cost per connection: the chunk being filled, two batches on their way to the
/// disk or gathering, and what a server that trickles has in the socket.
const LOSS_PER_CONNECTION_MAX: u64 = 5 * MIB / 2;

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("text")
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn the_second_of_two_pods_moves_nothing() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let node = Node::started(&origin);
    node.begin_pod("a");
    node.begin_pod("b");
    let first = node.init(&["s3://models/m/", text(&node.path("a")), "--pod-uid", "a"]);
    assert_eq!(first.code, Some(0), "{first:?}");
    let reads = origin.reads();
    let second = node.init(&["s3://models/m/", text(&node.path("b")), "--pod-uid", "b"]);
    assert_eq!(second.code, Some(0), "{second:?}");
    assert_eq!(origin.reads(), reads, "the second moved something");
    assert!(read_tree(&node.path("a")) == model.files && read_tree(&node.path("b")) == model.files);
    let totals = node.status()["totals"].clone();
    assert_eq!((&totals["pulls"], &totals["hits"]), (&json!(1), &json!(1)), "{totals}");
}

/// Waits until the origin has sent nothing for a while.
fn until_silent(origin: &Origin) {
    let (started, mut sent, mut since) = (Instant::now(), 0, Instant::now());
    while sent == 0 || since.elapsed() < Duration::from_millis(300) {
        assert!(started.elapsed() < PATIENCE, "the origin sends on and on");
        std::thread::sleep(Duration::from_millis(20));
        if origin.bytes_sent() != sent {
            (sent, since) = (origin.bytes_sent(), Instant::now());
        }
    }
}

/// The origin refuses while the daemon dies, so that nothing is on its way then and every byte
/// that was sent twice would show.
#[test]
fn sixty_four_pods_and_two_kills_move_a_model_once() {
    const PODS: usize = 64;
    let origin = Origin::start(Front::S3).expect("an origin");
    let model = SampleModel::new(5, 4, 10 << 20);
    upload(origin.bucket(), "m/", &model, Checksums::multipart());
    let (served, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(4)));
    let open = Arc::clone(&gate);
    origin.misbehave_on_reads(move |_, _| {
        let may = served.fetch_update(Relaxed, Relaxed, |served| (served < open.load(Relaxed)).then_some(served + 1));
        Some(if may.is_ok() { Fault::Slow(8 << 20) } else { Fault::slow_down() })
    });
    let mut node = Node::started(&origin);
    let pods: Vec<String> = (0..PODS).map(|pod| format!("pod-{pod}")).collect();
    let spawn = |node: &Node, uid: &String| {
        node.begin_pod(uid);
        node.spawn_init(&["s3://models/m/", text(&node.path(uid)), "--pod-uid", uid])
    };
    let callers: Vec<_> = pods.iter().map(|uid| spawn(&node, uid)).collect();
    node.until("all of them wait", |status| status["moving"][0]["waiters"] == PODS);
    for more in [4, u64::MAX / 2] {
        until_silent(&origin);
        assert!(origin.bytes_sent() < model.len(), "killed on the way");
        node.kill();
        gate.fetch_add(more, Relaxed);
        node.start();
    }
    for caller in callers {
        let ran = wait(caller);
        assert_eq!(ran.code, Some(0), "{ran:?}\n{}", node.log());
    }
    let place = node.path(&pods[0]).canonicalize().expect("a link");
    assert!(read_tree(&place) == model.files, "the files are right");
    for uid in &pods {
        assert_eq!(node.path(uid).canonicalize().expect("a link"), place);
    }
    let leases = node.status()["leases"].as_array().expect("leases").len();
    assert_eq!(leases, PODS);
    let bodies = read_bytes(&origin);
    eprintln!("{bodies} bytes asked for, {} sent, {} in the model", origin.bytes_sent(), model.len());
    assert!(bodies <= model.len() + model.len() / 100, "{bodies} bytes for {}", model.len());
}

/// Bytes of objects in the answers that were given: what was asked for, as far as there was it.
fn read_bytes(origin: &Origin) -> u64 {
    let given = |seen: &larder_origins::Seen| {
        let (first, last) = seen.request.range().unwrap_or((0, 0));
        let key = seen.request.path.trim_start_matches("/models/");
        let len = origin.bucket().get(key).map_or(0, |stored| stored.bytes.len() as u64);
        if seen.request.range().is_none() { len } else { last.min(len - 1) + 1 - first }
    };
    origin.seen().iter().filter(|seen| seen.is_read && matches!(seen.status, 200 | 206)).map(given).sum()
}

/// Killed at whatever moment: what is on its way then is lost, and no more.
#[test]
fn a_kill_costs_no_more_than_what_was_on_its_way() {
    const KILLS: u64 = 3;
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(2 << 20)));
    let mut node = Node::started(&origin);
    let callers: Vec<_> =
        (0..6).map(|pod| node.spawn_init(&["s3://models/m/", text(&node.path(&format!("p{pod}")))])).collect();
    for kill in 1..=KILLS {
        let least = model.len() * kill / (KILLS + 2);
        node.until("it moves", |status| status["moving"][0]["bytes_done"].as_u64() >= Some(least));
        node.restart();
    }
    for caller in callers {
        let ran = wait(caller);
        assert_eq!(ran.code, Some(0), "{ran:?}\n{}", node.log());
    }
    assert!(read_tree(&node.path("p0").canonicalize().expect("a link")) == model.files);
    let again = origin.bytes_sent().saturating_sub(model.len());
    let allowed = KILLS * origin.in_flight_max() * LOSS_PER_CONNECTION_MAX;
    eprintln!("{again} bytes moved twice in {KILLS} kills, {allowed} allowed");
    assert!(again <= allowed);
}

/// By another prefix and by other globs it is another model, but the same objects.
#[test]
fn callers_for_overlapping_models_share_the_files_they_have_in_common() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(3 << 20)));
    let node = Node::started(&origin);
    let wishes = [
        json!({"source": "s3://models/m/", "progress_ms": 100}),
        json!({"source": "s3://models/m/", "include": ["*.safetensors"], "progress_ms": 100}),
        json!({"source": "s3://models/", "exclude": ["*.json"], "progress_ms": 100}),
    ];
    let told: Vec<Vec<Value>> = std::thread::scope(|scope| {
        let callers: Vec<_> = wishes.iter().map(|wish| scope.spawn(|| node.ensure(wish))).collect();
        callers.into_iter().map(|caller| caller.join().expect("a caller")).collect()
    });
    for events in &told {
        let (last, before) = events.split_last().expect("events");
        assert_eq!(last["event"], "ready", "{last}");
        let done: Vec<u64> = before.iter().map(|event| number(&event["bytes_done"])).collect();
        assert!(done.is_sorted() && done.last() > done.first(), "each sees how far it is: {done:?}");
        assert_eq!(last["bytes_total"], number(&last["bytes_moved"]) + number(&last["bytes_here"]));
    }
    let files = |events: &[Value]| read_tree(events.last().expect("one")["path"].as_str().expect("a path").as_ref());
    assert!(files(&told[0]) == model.files);
    assert_eq!(files(&told[1]).len(), 3);
    assert!(files(&told[2]).keys().all(|name| name.starts_with("m/")));
    let mut asked: Vec<_> = origin
        .seen()
        .iter()
        .filter(|seen| seen.is_read)
        .map(|seen| (seen.request.path.clone(), seen.request.range()))
        .collect();
    let reads = asked.len();
    asked.sort();
    asked.dedup();
    assert_eq!(asked.len(), reads, "nothing was asked for twice");
    assert_eq!(read_bytes(&origin), model.len(), "every byte came once");
    let totals = node.status()["totals"].clone();
    assert_eq!(totals["bytes_from_origin"], model.len(), "{totals}");
}

/// The real error, not that somebody else failed.
#[test]
fn every_caller_hears_the_origins_own_refusal() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let node = Node::started(&origin);
    let all = |source: &str| -> Vec<_> {
        let callers: Vec<_> =
            (0..6).map(|pod| node.spawn_init(&[source, text(&node.path(&format!("p{pod}")))])).collect();
        callers.into_iter().map(wait).collect()
    };
    // Late, so that they wait together.
    for ran in all("s3://models/absent/") {
        assert_eq!(ran.code, Some(66), "{ran:?}");
        assert!(ran.stderr.contains("s3://models/absent/"), "{ran:?}");
    }
    origin.misbehave_on_reads(|_, request| {
        request.path.ends_with("00002-of-00003.safetensors").then_some(Fault::Refuse(403, "AccessDenied", None))
    });
    for ran in all("s3://models/m/") {
        assert_eq!(ran.code, Some(77), "{ran:?}");
        assert!(ran.stderr.contains("00002-of-00003.safetensors") && ran.stderr.contains("403"), "{ran:?}");
    }
    origin.misbehave(|_| Some(Fault::Refuse(403, "AccessDenied", None)));
    for ran in all("s3://models/m/") {
        assert_eq!(ran.code, Some(77), "{ran:?}");
        assert!(ran.stderr.contains("403 AccessDenied"), "{ran:?}");
    }
    // A refusal is no state: the next one who asks gets what there is then.
    origin.behave();
    for ran in all("s3://models/m/") {
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
}

#[test]
fn a_transfer_stops_when_the_last_caller_leaves_and_what_came_stays() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(MIB)));
    let node = Node::started(&origin);
    let wish = json!({"source": "s3://models/m/", "progress_ms": 100});
    let (mut first, second) = (node.ensuring(&wish), node.ensuring(&wish));
    node.until("two wait", |status| status["moving"][0]["waiters"] == 2);
    drop(second);
    node.until("one waits", |status| status["moving"][0]["waiters"] == 1);
    let come = |event: &Value| event["event"] == "progress" && number(&event["bytes_done"]) > model.len() / 3;
    assert!(first.any(|event| come(&event)), "it goes on for the one who stayed");
    drop(first);
    node.until("nothing moves", |status| status["moving"] == json!([]));
    until_silent(&origin);
    let sent = origin.bytes_sent();
    assert!(sent < model.len(), "it was stopped: {sent}");

    origin.behave();
    let lost = origin.in_flight_max() * LOSS_PER_CONNECTION_MAX;
    origin.forget_seen();
    let ready = node.ready(&wish);
    let (moved, here) = (number(&ready["bytes_moved"]), number(&ready["bytes_here"]));
    assert_eq!(moved + here, model.len(), "{ready}");
    assert_eq!(read_bytes(&origin), moved, "only the rest is asked for");
    assert!(here + lost >= sent && here > 0, "{here} of {sent} bytes stayed");
    assert!(read_tree(ready["path"].as_str().expect("a path").as_ref()) == model.files);
}

/// The files were on their way for somebody else, with other globs; the one who stays gets them.
#[test]
fn a_caller_goes_on_when_the_one_who_brought_its_files_leaves() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(2 << 20)));
    let node = Node::started(&origin);
    let all = node.ensuring(&json!({"source": "s3://models/m/", "progress_ms": 100}));
    node.until("it moves", |status| status["moving"][0]["bytes_moved"].as_u64() >= Some(2 * MIB));
    let shards = node.ensuring(&json!({"source": "s3://models/m/", "include": ["*.safetensors"], "progress_ms": 100}));
    node.until("two pulls", |status| status["moving"].as_array().is_some_and(|moving| moving.len() == 2));
    let (seen, sent) = (origin.seen().len(), origin.bytes_sent());
    drop(all);
    let events: Vec<Value> = shards.collect();
    let ready = events.last().expect("events");
    assert_eq!(ready["event"], "ready", "{ready}\n{}", node.log());
    assert_eq!(ready["files"], 3);
    let again = origin.bytes_sent().saturating_sub(model.len());
    eprintln!("{sent} bytes sent in {seen} requests until one left; {again} bytes more than the model in the end");
    assert!(again <= origin.in_flight_max() * LOSS_PER_CONNECTION_MAX);
}

/// Whoever goes away does so at any moment, and leaves neither a lease nor a pull.
#[test]
fn callers_that_come_and_go_leave_nothing_behind() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(4 << 20)));
    let node = Node::started(&origin);
    let wish = |more: Value| {
        let mut wish = json!({"source": "s3://models/m/", "lease": "connection", "progress_ms": 100});
        wish.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        wish
    };
    let wishes = [wish(json!({})), wish(json!({"include": ["*.safetensors"]})), wish(json!({"exclude": ["*00001*"]}))];
    let come_and_go = |rounds: u64, patience: u64| {
        std::thread::scope(|scope| {
            for caller in 0..6 {
                let (node, wish) = (&node, &wishes[caller as usize % wishes.len()]);
                scope.spawn(move || {
                    let mut noise = Noise::new(caller);
                    for _ in 0..rounds {
                        let events = node.ensuring(wish);
                        std::thread::sleep(Duration::from_micros(noise.below(patience)));
                        drop(events);
                    }
                });
            }
        });
    };
    come_and_go(15, 100_000);
    node.until("nothing is left", |status| status["moving"] == json!([]) && status["leases"] == json!([]));
    let held: Vec<_> = wishes
        .iter()
        .map(|wish| {
            let mut events = node.ensuring(wish);
            let ready = events.find(|event| event["event"] == "ready").unwrap_or_else(|| panic!("{}", node.log()));
            let files = read_tree(ready["path"].as_str().expect("a path").as_ref());
            assert!(files.iter().all(|(name, bytes)| model.files[name] == *bytes));
            (events, files.len())
        })
        .collect();
    let all = model.files.len();
    assert_eq!(held.iter().map(|(_, files)| *files).collect::<Vec<_>>(), [all, 3, all - 1]);
    drop(held);
    // And where the models are here, so that a lease is all there is to it.
    come_and_go(150, 10_000);
    node.until("no lease is left", |status| status["leases"] == json!([]));
    for globs in [json!({}), json!({"include": ["*.safetensors"]}), json!({"exclude": ["*00001*"]})] {
        let mut body = json!({"models": ["s3://models/m/"]});
        body.as_object_mut().expect("an object").extend(globs.as_object().expect("an object").clone());
        let (status, told) = node.ask_admin("POST", "/v1/remove", Some(&body));
        assert_eq!(status, 200, "{told}");
    }
    assert_eq!(node.status()["models"], 0);
}
