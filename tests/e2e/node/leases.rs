//! Who uses a model keeps it, and nobody else.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use larder_origins::{Checksums, Fault, Front, Origin, SampleModel};
use serde_json::{Value, json};

use super::{Node, http};
use crate::support::{read_tree, upload};

const SOURCE: &str = "s3://models/m/";

/// An origin with a model of a few hundred KiB.
fn small_origin() -> Origin {
    let origin = Origin::start(Front::S3).expect("an origin");
    upload(origin.bucket(), "m/", &SampleModel::new(8, 1, 1 << 18), Checksums::single_part());
    origin
}

fn wish(lease: &str) -> Value {
    json!({"source": SOURCE, "lease": lease})
}

fn remove(node: &Node) -> (u16, Value) {
    node.ask_admin("POST", "/v1/remove", Some(&json!({"models": [SOURCE]})))
}

/// Removing is refused, and the owner is named.
#[track_caller]
fn keeps(node: &Node, owner: &str) {
    let (status, told) = remove(node);
    assert_eq!((status, &told["error"]["exit_code"]), (409, &json!(75)), "{told}");
    let message = told["error"]["message"].as_str().expect("a message");
    assert!(message.contains(owner) && message.contains(SOURCE), "{message}");
}

fn has_leases(count: usize) -> impl Fn(&Value) -> bool {
    move |status| status["leases"].as_array().is_some_and(|leases| leases.len() == count)
}

#[test]
fn a_pod_keeps_its_model_until_kubelet_removes_its_directory() {
    let origin = small_origin();
    let mut node = Node::started(&origin);
    node.begin_pod("5d0c-1");
    let ran = node.init(&[SOURCE, node.path("dest").to_str().expect("text"), "--pod-uid", "5d0c-1"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    keeps(&node, "pod:5d0c-1");
    // Neither a crash nor an orderly end of the daemon is an end of the pod.
    node.restart();
    keeps(&node, "pod:5d0c-1");
    assert_eq!(node.terminate().0, Some(0));
    node.start();
    keeps(&node, "pod:5d0c-1");
    assert!(has_leases(1)(&node.status()));
    assert!(node.path("dest/config.json").exists());

    node.end_pod("5d0c-1");
    node.until("the lease ends", has_leases(0));
    let (status, told) = remove(&node);
    assert_eq!((status, &told["removed"]), (200, &json!([SOURCE])), "{told}");
    assert!(!node.path("dest/config.json").exists(), "the model is gone");
}

/// The pod ended while there was no daemon to see it.
#[test]
fn a_lease_ends_also_when_its_pod_ended_while_the_daemon_was_down() {
    let origin = small_origin();
    let mut node = Node::started(&origin);
    node.begin_pod("p");
    node.ready(&wish("pod:p"));
    node.kill();
    node.end_pod("p");
    node.start();
    node.until("the lease ends", has_leases(0));
}

#[test]
fn a_lease_for_a_pod_that_cannot_be_seen_is_warned_of_and_kept() {
    let origin = small_origin();
    let node = Node::started(&origin);
    let events = node.ensure(&wish("pod:nobody"));
    let warning = events.iter().find(|event| event["event"] == "warning").expect("a warning");
    let message = warning["message"].as_str().expect("a message");
    assert!(message.contains("no pod `nobody`") && message.contains("kubelet/pods"), "{message}");
    assert_eq!(events.last().expect("events")["event"], "ready");
    // Longer than it takes to end the lease of a pod that was seen.
    node.begin_pod("seen");
    node.ready(&wish("pod:seen"));
    node.end_pod("seen");
    let status = node.until("one is left", has_leases(1));
    assert_eq!(status["leases"][0]["owner"], "pod:nobody");
    keeps(&node, "pod:nobody");
}

#[test]
fn a_lease_that_is_asked_for_twice_is_one() {
    let origin = small_origin();
    let mut node = Node::started(&origin);
    node.begin_pod("p");
    let first = node.ready(&wish("pod:p"));
    assert_eq!(node.ready(&wish("pod:p"))["lease"], first["lease"]);
    node.restart();
    assert_eq!(node.ready(&wish("pod:p"))["lease"], first["lease"]);
    let status = node.status();
    assert!(has_leases(1)(&status), "{status}");
    // Of another model it is another one.
    let other = node.ready(&json!({"source": SOURCE, "include": ["*.json"], "lease": "pod:p"}));
    assert_ne!(other["lease"], first["lease"]);
    let listed = node.ask("GET", "/v1/models", None).1;
    let leases: Vec<&Value> = listed["models"].as_array().expect("models").iter().map(|m| &m["leases"]).collect();
    assert_eq!(leases, [&json!(1), &json!(1)]);
}

#[test]
fn a_process_keeps_its_model_until_it_ends() {
    let origin = small_origin();
    let mut node = Node::started(&origin);
    let mut process = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("sleep");
    let owner = format!("process:{}", process.id());
    node.ready(&wish(&owner));
    keeps(&node, &owner);
    node.restart();
    keeps(&node, &owner);
    process.kill().expect("a child");
    process.wait().expect("a child");
    node.until("the lease ends", has_leases(0));
    assert_eq!(remove(&node).0, 200);

    let (status, told) = node.ask("POST", "/v1/ensure", Some(&wish(&owner)));
    assert_eq!((status, &told["error"]["exit_code"]), (400, &json!(64)), "no such process: {told}");
}

#[test]
fn a_connection_keeps_its_model_until_it_is_closed() {
    let origin = small_origin();
    let node = Node::started(&origin);
    let held = |node: &Node| {
        let mut events = node.ensuring(&wish("connection"));
        let ready = events.find(|event| event["event"] == "ready").expect("the model");
        assert!(ready["lease"].is_string(), "{ready}");
        events
    };
    let (first, second) = (held(&node), held(&node));
    assert!(has_leases(2)(&node.status()), "each connection is an owner of its own");
    keeps(&node, "connection:");
    drop(first);
    node.until("one is left", has_leases(1));
    keeps(&node, "connection:");
    drop(second);
    node.until("none is left", has_leases(0));
    assert_eq!(remove(&node).0, 200);
}

/// What the pod copies must not go while it copies; afterwards it needs no lease.
#[test]
fn an_init_container_that_copies_holds_a_lease_only_meanwhile() {
    let origin = small_origin();
    let node = Node::started(&origin);
    let dest = node.path("dest");
    let ran = node.init(&[SOURCE, dest.to_str().expect("text"), "--copy"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    node.until("no lease", has_leases(0));
    assert_eq!(remove(&node).0, 200);
    assert!(Path::new(&dest).join("config.json").is_file(), "the copy is the pod's own");
}

#[test]
fn an_administrator_ends_a_lease_by_hand() {
    let origin = small_origin();
    let mut node = Node::started(&origin);
    node.begin_pod("p");
    let lease = node.ready(&wish("pod:p"))["lease"].clone();
    let released = || node.ask_admin("POST", "/v1/release", Some(&json!({"lease": lease})));
    assert_eq!(released(), (200, json!({"released": true, "leases": 1})));
    assert_eq!(released(), (200, json!({"released": false, "leases": 0})));
    node.restart();
    assert!(has_leases(0)(&node.status()), "it does not come back");
    assert_eq!(remove(&node).0, 200);
}

/// By a command, whether a daemon runs or not.
#[test]
fn a_command_ends_the_leases_of_an_owner() {
    let origin = small_origin();
    let mut node = Node::started(&origin);
    for pod in ["p", "q"] {
        node.begin_pod(pod);
        node.ready(&wish(&format!("pod:{pod}")));
    }
    let ran = node.larder(&["release", "pod:p"]);
    assert_eq!((ran.code, ran.stderr.contains("ended 1 lease")), (Some(0), true), "{ran:?}");
    let status = node.status();
    assert!(has_leases(1)(&status) && status["leases"][0]["owner"] == "pod:q", "{status}");
    let ran = node.larder(&["release", "pod:p"]);
    assert!(ran.code == Some(66) && ran.stderr.contains("no lease is called `pod:p`"), "{ran:?}");
    node.kill();
    // What was written down counts without a daemon, too.
    let ran = node.larder(&["rm", SOURCE]);
    assert!(ran.code == Some(75) && ran.stderr.contains("pod:q uses it"), "{ran:?}");
    let id = status["leases"][0]["id"].as_str().expect("an id");
    let ran = node.larder(&["--json", "release", id]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.stdout.trim(), json!({"released": [id], "leases": 1}).to_string());
    node.start();
    assert!(has_leases(0)(&node.status()), "it does not come back");
}

/// Several at once: all or none.
#[test]
fn removing_several_models_removes_none_when_one_is_in_use() {
    let origin = small_origin();
    upload(origin.bucket(), "n/", &SampleModel::new(9, 1, 1 << 18), Checksums::single_part());
    let node = Node::started(&origin);
    node.begin_pod("p");
    node.ready(&wish("pod:p"));
    node.ready(&json!({"source": "s3://models/n/"}));
    let both = json!({"models": ["s3://models/n/", SOURCE]});
    let body = both.to_string();
    let answer = http::ask(&node.admin_socket(), "POST", "/v1/remove", Some(body.as_bytes())).expect("an answer");
    assert_eq!(answer.status, 409);
    assert_eq!(node.status()["models"], 2);
    node.end_pod("p");
    node.until("the lease ends", has_leases(0));
    assert_eq!(node.ask_admin("POST", "/v1/remove", Some(&both)).0, 200);
    assert_eq!(node.status()["models"], 0);
}

/// Removing takes turns with giving out: a model is leased and there, or gone and pulled again.
///
/// The leases of three users may overlap for all of a run by chance. In every tenth round each
/// keeps its lease until removing was refused, and then stays away until it was not.
#[test]
fn what_is_given_out_stays_there_whoever_removes_meanwhile() {
    const ROUNDS: usize = 60;
    let origin = small_origin();
    let expected = SampleModel::new(8, 1, 1 << 18).files;
    let node = Node::started(&origin);
    let done = AtomicBool::new(false);
    let (removed, gone, kept) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let users: Vec<_> = (0..3)
            .map(|user| {
                let (node, expected, removed, gone, kept) = (&node, &expected, &removed, &gone, &kept);
                let uid = format!("user-{user}");
                node.begin_pod(&uid);
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let ready = node.ready(&wish(&format!("pod:{uid}")));
                        let files = read_tree(ready["path"].as_str().expect("a path").as_ref());
                        assert!(files == *expected, "{uid} in round {round}: {:?}\n{}", files.keys(), node.log());
                        let meets = round % 10 == 0;
                        let refused = kept.load(Relaxed);
                        if meets {
                            node.until("removing is refused", |_| kept.load(Relaxed) > refused);
                        }
                        let free = || removed.load(Relaxed) + gone.load(Relaxed);
                        let was_free = free();
                        let lease = json!({"lease": ready["lease"]});
                        assert_eq!(node.ask_admin("POST", "/v1/release", Some(&lease)).0, 200);
                        if meets {
                            node.until("removing meets no lease", |_| free() > was_free);
                        }
                    }
                })
            })
            .collect();
        let remover = scope.spawn(|| {
            while !done.load(Relaxed) {
                let count = match remove(&node).0 {
                    200 => &removed,
                    404 => &gone,
                    409 => &kept,
                    other => panic!("{other}"),
                };
                count.fetch_add(1, Relaxed);
            }
        });
        let ended: Vec<_> = users.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Relaxed);
        remover.join().expect("a remover");
        ended.into_iter().for_each(|user| user.expect("a user"));
    });
    let (removed, kept) = (removed.into_inner(), kept.into_inner());
    eprintln!("removed {removed} times, kept {kept} times");
    assert!(removed > 0 && kept > 0, "removed {removed} times, kept {kept} times");
}

#[test]
fn a_model_that_is_here_only_in_part_can_be_removed_and_leaves_nothing() {
    let origin = Origin::start(Front::S3).expect("an origin");
    upload(origin.bucket(), "m/", &SampleModel::new(8, 2, 6 << 20), Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(2 << 20)));
    let mut node = Node::started(&origin);
    let caller = node.ensuring(&json!({"source": SOURCE}));
    node.until("it moves", |status| status["moving"][0]["bytes_done"].as_u64() >= Some(6 << 20));
    drop(caller);
    node.until("nothing moves", |status| status["moving"] == json!([]));
    let model = node.ask("GET", "/v1/models", None).1["models"][0].clone();
    assert_eq!((&model["state"], model["bytes_here"].as_u64() > Some(4 << 20)), (&json!("partial"), true), "{model}");
    let (status, told) = remove(&node);
    assert_eq!(status, 200, "{told}");
    assert_eq!(node.ask("GET", "/v1/models", None).1, json!({"models": []}));
    let left = node.status()["disk"]["store"].as_u64().expect("a number");
    assert!(left < 1 << 20, "{left} bytes are left");
    node.restart();
    assert!(node.status()["disk"]["store"].as_u64() < Some(1 << 20));
}
