//! The list of what to have before anybody asks.

use larder_origins::{Checksums, Fault, Front, Origin, SampleModel};
use serde_json::{Value, json};

use super::Node;
use crate::support::{read_tree, upload};

/// An origin with the models `a`, `b` and `c`.
fn origin() -> Origin {
    let origin = Origin::start(Front::S3).expect("an origin");
    for (seed, name) in [(1, "a/"), (2, "b/"), (3, "c/")] {
        upload(origin.bucket(), name, &SampleModel::new(seed, 1, 1 << 18), Checksums::single_part());
    }
    origin
}

fn entry(name: &str, more: &str) -> String {
    format!("[[prefetch]]\nsource = \"s3://models/{name}/\"\n{more}\n")
}

/// Source, state and pin of every entry.
fn entries(status: &Value) -> Vec<(String, String, bool)> {
    let entry = |entry: &Value| {
        let text = |name: &str| entry[name].as_str().expect("text").to_owned();
        (text("source"), text("state"), entry["pin"].as_bool().expect("known"))
    };
    status["prefetch"].as_array().expect("a list").iter().map(entry).collect()
}

fn are(expected: &[(&str, &str, bool)]) -> impl Fn(&Value) -> bool {
    let expected: Vec<_> =
        expected.iter().map(|(name, state, pin)| (format!("s3://models/{name}/"), (*state).to_owned(), *pin)).collect();
    move |status| entries(status) == expected
}

/// Sources that are pinned.
fn pinned(node: &Node) -> Vec<String> {
    let listed = node.ask("GET", "/v1/models", None).1;
    let models = listed["models"].as_array().expect("models").iter();
    models.filter(|model| model["pinned"] == true).map(|m| m["source"].as_str().expect("named").to_owned()).collect()
}

/// How often the origin was asked what a model is.
fn listings(origin: &Origin, name: &str) -> usize {
    let prefix = format!("{name}/");
    origin.seen().iter().filter(|seen| seen.request.query("prefix") == Some(&prefix)).count()
}

#[test]
fn what_is_on_the_list_comes_by_itself() {
    let origin = origin();
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(200_000)));
    let mut node = Node::at(&origin);
    let list = [entry("a", "pin = true"), entry("b", "include = [\"*.json\"]"), entry("absent", "")];
    node.set_list(&list.concat());
    node.start();
    node.until("one moves", |status| entries(status).iter().any(|(_, state, _)| state == "moving"));
    let status = node.until(
        "two are here, and one cannot be",
        are(&[("a", "ready", true), ("absent", "failed", false), ("b", "ready", false)]),
    );
    let message = status["prefetch"][1]["message"].as_str().expect("why");
    assert!(message.contains("s3://models/absent/"), "{message}");
    assert_eq!(status["prefetch"][0]["message"], Value::Null);
    assert_eq!(pinned(&node), ["s3://models/a/"]);
    let ready = node.ready(&json!({"source": "s3://models/a/"}));
    assert_eq!(ready["bytes_moved"], 0);
    let shown = node.ask("GET", "/v1/model?name=s3://models/b/&include=*.json", None).1;
    let files = shown["file_list"].as_array().expect("files");
    assert_eq!((files.len(), &shown["include"]), (5, &json!(["*.json"])), "{shown}");

    // It is tried again without anybody's doing.
    upload(origin.bucket(), "absent/", &SampleModel::new(4, 1, 1 << 10), Checksums::single_part());
    node.until("all are here", |status| entries(status).iter().all(|(_, state, _)| state == "ready"));
}

/// kubelet brings a changed `ConfigMap` by a rename; nobody restarts the daemon for it.
#[test]
fn a_changed_list_counts_without_a_restart() {
    let origin = origin();
    let mut node = Node::at(&origin);
    node.set_list(&[entry("a", "pin = true"), entry("b", "pin = true")].concat());
    node.start();
    node.until("both are here", are(&[("a", "ready", true), ("b", "ready", true)]));
    let pid = node.pid();

    node.set_list(&[entry("b", ""), entry("c", "pin = true")].concat());
    node.write_settings();
    node.until("the new list", are(&[("b", "ready", false), ("c", "ready", true)]));
    assert_eq!(pinned(&node), ["s3://models/c/"], "the list pins what it says now");
    assert_eq!((listings(&origin, "b"), listings(&origin, "c")), (1, 1), "what stayed is not asked for again");
    assert_eq!(node.status()["models"], 3, "what left the list stays until room is wanted");

    // A pin by hand is not the list's to take.
    node.ask_admin("POST", "/v1/pin", Some(&json!({"model": "s3://models/c/"})));
    node.set_list("");
    node.write_settings();
    node.until("an empty list", are(&[]));
    assert_eq!(pinned(&node), ["s3://models/c/"]);
    assert_eq!(node.status()["pid"], pid);
}

/// A wrong entry is failed, and keeps neither the others nor the daemon from what they are there for.
#[test]
fn a_wrong_entry_costs_itself_alone() {
    let origin = origin();
    let mut node = Node::at(&origin);
    let address = node.listen();
    let wrong =
        ["[[prefetch]]\nsource = \"models/nowhere\"\n", &entry("c", "include = [\"[\"]"), "[[prefetch]]\npin = true\n"];
    node.set_list(&(wrong.concat() + &entry("a", "pin = true")));
    node.start();
    let told = |status: &Value| -> Vec<(String, String)> {
        let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let entries = status["prefetch"].as_array().expect("a list").iter();
        entries.map(|entry| (text(entry, "source"), text(entry, "state"))).collect()
    };
    let expected = |a: &str| {
        [("[[prefetch]]", "failed"), ("models/nowhere", "failed"), ("s3://models/a/", a), ("s3://models/c/", "failed")]
            .map(|(source, state)| (source.to_owned(), state.to_owned()))
    };
    let status = node.until("the right one is here", |status| told(status) == expected("ready"));
    let message = |at: usize| status["prefetch"][at]["message"].as_str().expect("why").to_owned();
    assert!(message(0).contains("has no `source`") && message(1).contains("want s3://"), "{status}");
    assert!(message(3).contains("unclosed character class"), "{status}");
    assert_eq!(listings(&origin, "c"), 0, "nothing of it is brought");
    let scrape = super::http::ask_tcp(&address, "GET", "/metrics").expect("an answer").text();
    assert!(scrape.contains("larder_failed_prefetches 3\n"), "{scrape}");
    assert!(node.log().contains("left out"), "{}", node.log());
    let shown = node.larder(&["status"]);
    assert!(shown.stdout.contains("models/nowhere"), "{shown:?}");
    // Who asks before a start hears of it.
    let mut check = node.command(&["daemon", "--check", "--config"]);
    let checked = crate::support::wait(check.arg(node.path("larder.toml")).spawn().expect("larder starts"));
    assert_eq!(checked.code, Some(64), "{checked:?}");
    assert!(checked.stderr.contains("has no `source`"), "{checked:?}");

    // Corrected, it counts without a restart; and what is wrong beside the list keeps the old one.
    node.set_list(&[entry("a", ""), entry("b", "pinn = true")].concat());
    node.write_settings();
    node.until("the new list", are(&[("a", "ready", false), ("b", "failed", false)]));
    node.set("recheck", "\"soon\"");
    node.set_list(&entry("c", ""));
    node.write_settings();
    let started = std::time::Instant::now();
    while !node.log().contains("the changed settings are wrong, the list stays as it was") {
        assert!(started.elapsed() < super::PATIENCE, "{}", node.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(are(&[("a", "ready", false), ("b", "failed", false)])(&node.status()));
    assert!(pinned(&node).is_empty());

    // And the next change counts, with a word on what needs a restart.
    node.set("recheck", "\"1m\"");
    node.set_list(&entry("b", ""));
    node.write_settings();
    node.until("the right list", are(&[("b", "ready", false)]));
    assert!(node.log().contains("they count from the next start on"), "{}", node.log());
}

/// With the bucket down, a node that starts still has what it had.
#[test]
fn a_list_whose_models_are_here_needs_no_origin() {
    let origin = origin();
    let mut node = Node::at(&origin);
    node.set_list(&[entry("a", "pin = true"), entry("b", "")].concat());
    node.start();
    node.until("both are here", are(&[("a", "ready", true), ("b", "ready", false)]));
    drop(origin);
    node.restart();
    let status = node.until("both are here", are(&[("a", "ready", true), ("b", "ready", false)]));
    assert_eq!(status["prefetch"][0]["message"], Value::Null, "a pinned one asks nobody");
    assert!(status["prefetch"][1]["message"].as_str().is_some_and(|told| told.contains("as it was")), "{status}");
    let ready = node.ready(&json!({"source": "s3://models/a/"}));
    assert!(!read_tree(ready["path"].as_str().expect("a path").as_ref()).is_empty());
}
