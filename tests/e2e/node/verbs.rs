//! The command line on a node with a daemon: the verbs go through its socket, and say the same.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use larder_origins::{Checksums, Fault, Noise};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{Node, PATIENCE};
use crate::mount::{mounting, root};
use crate::support::{Larder, Ran, origin_with_model, skipped, wait};

const MODEL: &str = "s3://models/m";
/// A user that owns nothing here.
const NOBODY: u32 = 65534;

/// Flips a bit of a read-only file, behind larder's back.
fn damage(file: &Path) {
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("owned");
    let mut bytes = fs::read(file).expect("a file");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(file, bytes).expect("written in place");
}

/// Without what differs from run to run and from store to store.
fn redacted(ran: &Ran, store: &Path) -> (Option<i32>, String, String) {
    let told = |text: &str| {
        let text = text.replace(store.to_str().expect("text"), "STORE");
        // A daemon says besides why the copy that it has does not stand in.
        let short = text
            .lines()
            .map(|line| line.split_once("; the copy that is here is damaged").map_or(line, |(before, _)| before));
        let lines = short.map(|line| match line.split_once("moved in ").or(line.split_once("had to move (")) {
            Some((before, _)) => format!("{before}TIME\n"),
            None => format!("{line}\n"),
        });
        lines.collect::<String>()
    };
    let events = ran.stdout.lines().map(|line| {
        let Ok(Value::Object(mut event)) = serde_json::from_str::<Value>(line) else { return told(line) };
        if ["progress", "hashing"].iter().any(|name| event.get("event") == Some(&json!(name))) {
            return String::new();
        }
        event.remove("seconds");
        format!("{}\n", told(&Value::Object(event).to_string()).trim_end())
    });
    (ran.code, events.collect(), told(&ran.stderr))
}

/// Runs the same commands, and damages the same files, in a store that nobody owns and in one that a
/// daemon owns.
#[test]
fn the_verbs_say_the_same_with_a_daemon_and_without() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let (alone, node) = (Larder::at(&origin), Node::started(&origin));
    let shard = "model-00002-of-00003.safetensors";
    let tree = |store: &Path| {
        let mut models = fs::read_dir(store.join("v1/models")).expect("models");
        models.next().expect("a model").expect("an entry").path()
    };
    let both = |args: &[&str]| {
        let here = redacted(&alone.run(args), &alone.store());
        let there = redacted(&node.larder(args), &node.store());
        assert_eq!(here, there, "larder {args:?}");
        here
    };
    let break_both = || [alone.store(), node.store()].iter().for_each(|store| damage(&tree(store).join(shard)));

    assert_eq!(both(&["prefetch", MODEL]).0, Some(0));
    both(&["prefetch", MODEL]);
    assert!(both(&["prefetch", "--json", MODEL]).1.contains("\"event\":\"done\""));
    assert_eq!(both(&["prefetch", "-q", MODEL]), (Some(0), String::new(), String::new()));
    both(&["prefetch", "--sync", "--pin", MODEL]);
    both(&["prefetch", "--json", "--pin", MODEL]);
    both(&["ls"]);
    assert!(both(&["inspect", MODEL]).1.contains("state   complete, pinned\n"));
    both(&["path", MODEL]);
    both(&["prefetch", "s3://models/none", "s3://nobucket/m", MODEL]);
    both(&["prefetch", "--json", "s3://models/none"]);
    both(&["prefetch", "not a source"]);
    both(&["unpin", MODEL]);
    both(&["pin", MODEL, MODEL]);
    both(&["unpin", "--json", MODEL]);
    both(&["pin", "s3://models/none"]);
    both(&["pin", "--json", "--", "abcdef0"]);

    assert_eq!(both(&["verify"]).0, Some(0));
    both(&["verify", "--json", MODEL]);
    both(&["verify", "s3://models/none"]);
    // The daemon would repair it by itself.
    let refuse = || origin.misbehave_on_reads(|_, _| Some(Fault::Refuse(403, "AccessDenied", None)));
    refuse();
    break_both();
    assert_eq!(both(&["verify"]).0, Some(65));
    both(&["verify", "--json"]);
    assert_eq!(both(&["path", MODEL]).0, Some(65));
    both(&["ls"]);
    origin.behave();
    alone.ok(&["prefetch", MODEL]);
    node.until("repaired", |status| status["damaged_blobs"] == 0);
    break_both();
    assert!(both(&["verify", "--repair"]).2.ends_with("1 file repaired\n"));
    break_both();
    let (code, events, _) = both(&["verify", "--repair", "--json"]);
    let last = events.lines().last().expect("an event").to_owned();
    assert_eq!(
        (code, last.as_str()),
        (Some(0), r#"{"damaged":1,"damaged_manifests":0,"event":"repaired","exit_code":0}"#)
    );
    break_both();
    refuse();
    assert_eq!(both(&["verify", "--repair"]).0, Some(77));
    origin.behave();
    alone.ok(&["prefetch", MODEL]);
    node.until("repaired", |status| status["damaged_blobs"] == 0);

    both(&["rm", "--json", MODEL]);
    both(&["rm", MODEL]);
    both(&["ls"]);
}

#[test]
fn a_damaged_model_that_no_source_names_is_told_by_the_daemon_too() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let node = Node::started(&origin);
    let prefetch = || node.larder(&["prefetch", "--json", MODEL]).last_event();
    let old = prefetch();
    origin.bucket().put("m/model-00002-of-00003.safetensors", Noise::new(5).bytes(4 << 20), Checksums::multipart());
    assert_ne!(prefetch()["digest"], old["digest"]);
    damage(&Path::new(old["path"].as_str().expect("a path")).join("model-00002-of-00003.safetensors"));
    let ran = node.larder(&["verify", "--repair"]);
    assert_eq!(ran.code, Some(65), "{ran:?}");
    assert!(ran.stderr.contains(": its file cannot be fetched again"), "{ran:?}");
}

#[test]
fn how_origins_are_reached_is_for_the_daemon_to_decide() {
    let (origin, _) = origin_with_model(Checksums::single_part());
    let node = Node::started(&origin);
    for (command, flags) in [
        (["prefetch", MODEL], &["--anonymous"][..]),
        (["prefetch", MODEL], &["--requester-pays"]),
        (["verify", "--repair"], &["--region", "x"]),
        (["prefetch", MODEL], &["--endpoint-url", "http://127.0.0.1:1"]),
    ] {
        let ran = node.larder(&[&command[..], flags].concat());
        assert_eq!(ran.code, Some(64), "{ran:?}");
        let told = format!("error: {} is of no use here: larder's daemon owns the store `", flags[0]);
        assert!(ran.stderr.starts_with(&told), "{ran:?}");
    }
}

#[test]
fn what_pods_use_is_not_removed() {
    let (origin, _) = origin_with_model(Checksums::single_part());
    let node = Node::started(&origin);
    node.begin_pod("a");
    node.ready(&json!({"source": MODEL, "lease": "pod:a"}));
    let ran = node.larder(&["rm", MODEL]);
    assert_eq!(ran.code, Some(75), "{ran:?}");
    assert!(ran.stderr.contains("pod:a"), "{ran:?}");
    assert_eq!(node.larder(&["path", MODEL]).code, Some(0));
}

#[test]
fn control_c_ends_the_command_at_once_and_with_it_the_pull() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(1 << 20)));
    let node = Node::started(&origin);
    let child = node.command(&["prefetch", MODEL]).spawn().expect("larder starts");
    node.until("bytes move", |status| status["moving"][0]["bytes_moved"].as_u64().is_some_and(|moved| moved > 0));
    let asked = Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).expect("a signal");
    let ran = wait(child);
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert!(ran.stderr.contains("error: interrupted\n  hint: what has arrived stays"), "{ran:?}");
    node.until("the pull has ended", |status| status["moving"] == json!([]));
    origin.behave();
    let done = node.larder(&["prefetch", "--json", MODEL]).last_event();
    let moved = done["bytes_moved"].as_u64().expect("a number");
    assert!(moved < model.len(), "what had arrived stays: {done}");
}

#[test]
fn a_daemon_that_stops_is_told_from_an_interrupt() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(1 << 20)));
    let mut node = Node::started(&origin);
    let child = node.command(&["prefetch", MODEL]).spawn().expect("larder starts");
    node.until("bytes move", |status| status["moving"][0]["bytes_moved"].as_u64().is_some_and(|moved| moved > 0));
    node.terminate();
    let ran = wait(child);
    assert_eq!(ran.code, Some(69), "{ran:?}");
    assert!(ran.stderr.contains("the same command goes on from there"), "{ran:?}");
}

#[test]
fn progress_through_the_socket_is_lines_or_events() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(2 << 20)));
    let node = Node::started(&origin);
    let events = node.larder(&["prefetch", "--json", MODEL]).events();
    let progress: Vec<&Value> = events.iter().filter(|event| event["event"] == "progress").collect();
    assert!(!progress.is_empty(), "{events:?}");
    assert!(progress.iter().all(|event| event["bytes_total"] == model.len()), "{progress:?}");
}

/// A store of root's, with its daemon, and a user who is not.
#[test]
fn a_user_whom_the_socket_refuses_is_told_so() {
    let name = "a_user_whom_the_socket_refuses_is_told_so";
    if !rustix::process::geteuid().is_root() {
        return skipped(name, "only root can become another user");
    }
    let (origin, _) = origin_with_model(Checksums::single_part());
    let node = Node::started(&origin);
    node.larder(&["prefetch", MODEL]);
    fs::set_permissions(node.path(""), fs::Permissions::from_mode(0o755)).expect("owned");
    // Where the binary is, nobody may be.
    let binary = node.path("larder");
    fs::copy(env!("CARGO_BIN_EXE_larder"), &binary).expect("a copy");
    let as_nobody = |args: &[&str]| {
        let known = node.command(args);
        let mut command = std::process::Command::new(&binary);
        command.args(args).env_clear().envs(known.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.uid(NOBODY).gid(NOBODY).current_dir("/").stdin(std::process::Stdio::null());
        wait(command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().expect("starts"))
    };
    for args in [&["prefetch", MODEL][..], &["rm", MODEL], &["verify"], &["pin", MODEL], &["unpin", MODEL]] {
        let ran = as_nobody(args);
        assert_eq!(ran.code, Some(77), "larder {args:?}: {ran:?}");
        assert!(ran.stderr.contains("larder's daemon owns the store `"), "{ran:?}");
        assert!(ran.stderr.contains("hint: run this as root, or as the user that the daemon runs as\n"), "{ran:?}");
    }
    // Looking is for everybody.
    assert_eq!(as_nobody(&["path", MODEL]).code, Some(0));
    let socket = node.socket();
    let told = as_nobody(&["status", "--socket", socket.to_str().expect("text")]);
    assert_eq!(told.code, Some(0), "{told:?}");
    let told = as_nobody(&["status"]);
    assert_eq!(told.code, Some(77), "{told:?}");
}

#[test]
fn status_shows_the_node_on_a_screen_or_as_json() {
    let (origin, _) = origin_with_model(Checksums::single_part());
    let mut node = Node::started(&origin);
    node.begin_pod("a");
    node.ready(&json!({"source": MODEL, "lease": "pod:a"}));
    // Found by the lock of the store that other commands use.
    let told = node.larder(&["status"]);
    assert_eq!(told.code, Some(0), "{told:?}");
    for part in [": serving, pid ", "\ndisk     ", "\nstore    ", " 1 pulled,", "IN USE", "s3://models/m", "pod:a"] {
        assert!(told.stdout.contains(part), "{part}: {}", told.stdout);
    }
    assert!(!told.stdout.contains('\u{1b}'), "{told:?}");
    let events = node.larder(&["status", "--json"]).events();
    assert_eq!((events.len(), &events[0]["pid"]), (1, &json!(node.pid())));

    let mut watching = node.command(&["status", "--watch", "--json"]).spawn().expect("larder starts");
    std::thread::sleep(Duration::from_millis(2500));
    kill_process(Pid::from_child(&watching), Signal::INT).expect("a signal");
    let deadline = Instant::now() + PATIENCE;
    while watching.try_wait().expect("a child").is_none() {
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(3));
    }
    let watched = wait(watching);
    assert!((2..=4).contains(&watched.events().len()), "{watched:?}");

    node.terminate();
    let told = node.larder(&["status", "--socket", "/nonexistent/sock"]);
    assert_eq!((told.code, told.stdout.as_str()), (Some(69), ""), "{told:?}");
    assert!(told.stderr.contains("hint: `larder daemon` starts one"), "{told:?}");
    assert_eq!(node.larder(&["status"]).code, Some(69));
}

#[test]
fn status_says_where_the_mount_is_and_where_it_is_missing() {
    let (origin, _) = origin_with_model(Checksums::single_part());
    let mut node = Node::at(&origin);
    node.set("mount", "\"keeper:/nonexistent/sock\"");
    node.start();
    let told = node.larder(&["status"]).stdout;
    assert!(told.contains("\nmount    not up yet, the daemon's log says what is amiss\n"), "{told}");
    node.terminate();

    let Some(mut node) = mounting(&origin) else { return };
    node.start();
    let told = node.larder(&["status"]).stdout;
    let line = format!("\nmount    {}, ", root(&node).display());
    assert!(told.contains(&line) && told.contains("not kept: it ends with the daemon\n"), "{told}");
    assert!(told.contains(" 0 let in while it arrives,"), "{told}");
}

/// Pins are the store's, not the daemon's: set before it starts they hold, and end with a removal.
#[test]
fn pins_outlive_daemons_and_end_with_their_model() {
    let (origin, _) = origin_with_model(Checksums::single_part());
    let mut node = Node::at(&origin);
    node.larder(&["prefetch", "--pin", MODEL]);
    node.start();
    let pinned = |node: &Node| node.larder(&["ls", "--json"]).last_event()["pinned"].clone();
    assert_eq!((pinned(&node), &node.status()["pins"]), (json!(true), &json!(1)));
    assert_eq!(node.larder(&["rm", MODEL]).code, Some(75), "pinned is wanted");
    node.terminate();
    assert_eq!(node.larder(&["rm", MODEL]).code, Some(0));
    node.larder(&["prefetch", MODEL]);
    assert_eq!(pinned(&node), json!(false));
}

/// The daemon takes its store before it listens: whoever comes between is not turned away.
#[test]
fn a_command_waits_for_a_daemon_that_starts() {
    let (origin, _) = origin_with_model(Checksums::single_part());
    let mut node = Node::started(&origin);
    for socket in [node.socket(), node.admin_socket()] {
        fs::rename(&socket, socket.with_extension("away")).expect("a rename");
    }
    let child = node.command(&["prefetch", MODEL]).spawn().expect("larder starts");
    std::thread::sleep(Duration::from_millis(500));
    for socket in [node.socket(), node.admin_socket()] {
        fs::rename(socket.with_extension("away"), &socket).expect("a rename");
    }
    let ran = wait(child);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    node.terminate();
}
