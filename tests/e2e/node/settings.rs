//! What may be asked for, and what a daemon refuses to start with.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use larder_origins::{Checksums, Front, Origin};
use serde_json::{Value, json};

use super::{Node, quoted};
use crate::support::{Ran, origin_with_model, wait};

/// A daemon that must end by itself.
fn run(command: &mut Command) -> Ran {
    wait(command.spawn().expect("larder starts"))
}

fn check(node: &Node) -> Command {
    let mut command = node.daemon_command();
    command.arg("--check");
    command
}

/// Nothing was made: no store, no socket, no directory for one.
fn untouched(node: &Node) -> bool {
    !["store", "run", "admin"].iter().any(|name| node.path(name).exists())
}

#[test]
fn what_the_settings_do_not_allow_is_refused_before_anything_is_asked() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let node = Node::started(&origin);
    let secret = node.path("secret");
    std::fs::create_dir(&secret).expect("a directory");
    std::fs::write(secret.join("token"), "x").expect("a file");
    let file = format!("file://{}", secret.display());
    for source in
        [file.as_str(), &format!("{}/models/m/config.json", origin.url()), "http://169.254.169.254/latest/meta-data"]
    {
        let (status, told) = node.ask("POST", "/v1/ensure", Some(&json!({"source": source})));
        assert_eq!((status, &told["error"]["exit_code"]), (403, &json!(77)), "{source}: {told}");
        assert!(told["error"]["hint"].as_str().is_some_and(|hint| hint.contains("`sources`")), "{told}");
        let ran = node.init(&[source, node.path("dest").to_str().expect("text")]);
        assert_eq!(ran.code, Some(77), "{ran:?}");
        assert!(ran.stderr.contains("may not be asked for on this node"), "{ran:?}");
    }
    assert_eq!(origin.seen().len(), 0);
    assert_eq!(node.status()["models"], 0);
}

#[test]
fn a_prefix_of_sources_allows_what_is_below_it_and_not_what_begins_alike() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let mut node = Node::at(&origin);
    let (inside, beside) = (node.path("data/in"), node.path("data/inside"));
    for directory in [&inside, &beside] {
        std::fs::create_dir_all(directory).expect("a directory");
        std::fs::write(directory.join("config.json"), "{}").expect("a file");
    }
    node.set("sources", &format!("[\"s3://models/m\", \"file://{}\"]", inside.display()));
    node.start();
    let status = |source: String| node.ask("POST", "/v1/ensure", Some(&json!({"source": source}))).0;
    assert_eq!(status(format!("file://{}", inside.display())), 200);
    assert_eq!(status(format!("file://{}", beside.display())), 403);
    assert_eq!(status(format!("file://{}/../inside", inside.display())), 403);
    assert_eq!(status("s3://models/m/".into()), 200);
    assert_eq!(status("s3://models/mm/".into()), 403);
    assert_eq!(status("s3://models/".into()), 403);
}

/// The setting goes before what the environment says.
#[test]
fn the_endpoint_of_the_settings_is_the_one_that_is_asked() {
    let (wanted, model) = origin_with_model(Checksums::multipart());
    let other = Origin::start(Front::S3).expect("an origin");
    let mut node = Node::at(&other);
    node.set("endpoint_url", &format!("\"{}\"", wanted.url()));
    node.set("region", "\"us-east-1\"");
    node.start();
    assert_eq!(node.ready(&json!({"source": "s3://models/m/"}))["bytes_moved"], model.len());
    assert_eq!(other.seen().len(), 0);
}

#[test]
fn every_wrong_value_is_told_at_once_and_nothing_is_touched() {
    let node = Node::new([("LARDER_RECHECK", "soon")]);
    let text = format!(
        "store = {}\nsocket = \"relative\"\nhigh_watermark = 101\nlow_watermak = 60\nsources = [\"ftp://x/\"]\n\
         stop_within = \"1h\"\nlisten = \"nowhere\"\n\n[[prefetch]]\nsource = \"s3://b/m/\"\npined = true\n",
        quoted(&node.store())
    );
    let told = |args: &[&str]| {
        let mut command = node.command(&["daemon", "--config"]);
        command.arg(node.write_settings_text(&text)).args(args).env_remove("LARDER_STORE");
        let ran = run(&mut command);
        assert_eq!(ran.code, Some(64), "{ran:?}");
        assert_eq!(ran.stdout, "");
        ran.stderr
    };
    let (started, checked) = (told(&[]), told(&["--check"]));
    assert_eq!(started, checked, "--check says what a start would say");
    for said in [
        "2: `socket` is",
        "3: `high_watermark` is",
        "did you mean `low_watermark`?",
        "5: `sources` has",
        "6: `stop_within` is",
        "7: `listen` is",
        "did you mean `pin`?",
        "LARDER_RECHECK is",
    ] {
        assert!(started.contains(said), "{said}: {started}");
    }
    assert!(untouched(&node));
}

#[test]
fn check_says_what_holds_and_where_it_was_set() {
    let mut node = Node::new([("LARDER_LOW_WATERMARK", "55"), ("LARDER_STORE_SERVICE_HOST", "10.0.0.1")]);
    node.set("high_watermark", "\"75%\"");
    let ran = run(&mut check(&node));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let row = |name: &str| {
        let line = ran.stdout.lines().find(|line| line.split_whitespace().next() == Some(name)).expect("a row");
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert!(row("high_watermark").starts_with("75 ") && row("high_watermark").contains("larder.toml:"), "{ran:?}");
    assert_eq!(row("low_watermark"), "55 LARDER_LOW_WATERMARK");
    assert_eq!(row("recheck"), "\"10s\" default");
    let json: Value = serde_json::from_str(&run(check(&node).arg("--json")).stdout).expect("JSON");
    assert_eq!(json["settings"]["low_watermark"], json!({"value": 55, "set_by": "LARDER_LOW_WATERMARK"}));
    assert!(untouched(&node));

    // A variable goes before the file, and --store before both.
    node.set_variable("LARDER_HIGH_WATERMARK", "80");
    let ran = run(check(&node).args(["--json", "--store", "/elsewhere"]));
    let json: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(json["settings"]["high_watermark"]["value"], 80);
    assert_eq!(json["settings"]["store"], json!({"value": "/elsewhere", "set_by": "--store"}));
}

#[test]
fn a_variable_goes_before_the_file_in_a_running_daemon() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let mut node = Node::at(&origin);
    node.set("sources", "[\"gs://\"]");
    node.set_variable("LARDER_SOURCES", "s3://");
    node.start();
    assert_eq!(node.ready(&json!({"source": "s3://models/m/config.json"}))["files"], 1);
}

#[test]
fn a_second_daemon_on_one_store_names_the_first_and_leaves_it_alone() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let first = Node::started(&origin);
    let mut second = Node::at(&origin);
    second.set("store", &quoted(&first.store()));
    let ran = run(&mut second.daemon_command());
    assert_eq!(ran.code, Some(75), "{ran:?}");
    assert!(ran.stderr.contains(&format!("pid {}", first.pid())), "{ran:?}");
    assert!(!second.socket().exists() && !second.admin_socket().exists());
    assert_eq!(first.status()["state"], "serving");
}

#[test]
fn a_second_daemon_on_one_socket_is_refused_and_the_first_goes_on() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let first = Node::started(&origin);
    for (name, path) in [("socket", first.socket()), ("admin_socket", first.admin_socket())] {
        let mut second = Node::at(&origin);
        second.set(name, &quoted(&path));
        let ran = run(&mut second.daemon_command());
        assert_eq!(ran.code, Some(75), "{ran:?}");
        assert!(ran.stderr.contains(path.to_str().expect("text")), "{ran:?}");
    }
    assert_eq!(first.status()["pid"], first.pid());
    assert_eq!(first.ask_admin("GET", "/v1/models", None).0, 200);
}

#[test]
fn a_place_that_is_taken_by_something_else_is_told_and_left_alone() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let mut node = Node::at(&origin);
    node.set("listen", &format!("\"{address}\""));
    let ran = run(&mut node.daemon_command());
    assert_eq!(ran.code, Some(64), "{ran:?}");
    assert!(ran.stderr.contains(&address) && ran.stderr.contains("`listen`"), "{ran:?}");

    let mut node = Node::at(&origin);
    let file = node.path("precious");
    std::fs::write(&file, "text").expect("a file");
    node.set("socket", &quoted(&file));
    let ran = run(&mut node.daemon_command());
    assert_eq!(ran.code, Some(64), "{ran:?}");
    assert!(ran.stderr.contains("is there and is no socket"), "{ran:?}");
    assert_eq!(std::fs::read_to_string(&file).expect("a file"), "text");
}

#[test]
fn pods_may_write_to_one_socket_and_only_root_to_the_other() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let mut node = Node::started(&origin);
    let mode = |path: &Path| path.metadata().expect("there").permissions().mode() & 0o777;
    let admin = node.path("admin");
    assert_eq!((mode(&node.socket()), mode(&node.path("run"))), (0o666, 0o755));
    assert_eq!((mode(&node.admin_socket()), mode(&admin)), (0o600, 0o700));
    // What a crash leaves of sockets is in nobody's way; what an orderly end leaves is nothing.
    node.restart();
    assert_eq!(node.terminate().0, Some(0));
    assert!(!node.socket().exists() && !node.admin_socket().exists());
}

#[test]
fn the_example_of_the_settings_is_one_that_checks() {
    let node = Node::new([("", ""); 0]);
    let mut command = node.command(&["daemon", "--check", "--config"]);
    command.arg(node.write_settings_text(&larder::config::example())).env_remove("LARDER_STORE");
    let ran = run(&mut command);
    assert_eq!(ran.code, Some(0), "{ran:?}");
}
