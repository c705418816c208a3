//! What is known to be wrong is handed out by nobody: every verb, from whatever has found it.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use larder_origins::{Checksums, Fault};
use serde_json::{Value, json};

use crate::node::{Node, damage, http};
use crate::support::{Larder, origin_with_model, read_tree};

const SOURCE: &str = "s3://models/m/";
const SHARD: &str = "model-00002-of-00003.safetensors";

fn tree(larder: &Larder) -> PathBuf {
    PathBuf::from(larder.ok(&["path", SOURCE]).stdout.trim_end())
}

/// All verbs of a store without a daemon, once it is known that a file is wrong.
#[track_caller]
fn nobody_hands_it_out(larder: &Larder) {
    for args in [&["path", SOURCE][..], &["export", SOURCE, "elsewhere"], &["export", "--hard-link", SOURCE, "else"]] {
        let told = larder.fails(65, args);
        assert!(told.contains(SHARD) && told.contains("s3://models/m"), "{args:?}: {told}");
        assert!(told.contains("larder prefetch s3://models/m"), "{args:?}: {told}");
    }
    let listed = larder.ok(&["ls"]).stdout;
    assert!(listed.contains(&format!("damaged: {SHARD}")), "{listed}");
    let listed = larder.ok(&["ls", "--json"]).last_event();
    assert_eq!((&listed["state"], &listed["damaged"]), (&json!("damaged"), &json!([SHARD])), "{listed}");
    let inspected = larder.ok(&["inspect", SOURCE]).stdout;
    assert!(inspected.contains(&format!("wrong   {SHARD}\n")) && !inspected.contains("path   "), "{inspected}");
    let inspected = larder.ok(&["inspect", "--json", SOURCE]).last_event();
    assert_eq!((&inspected["damaged"], &inspected["path"]), (&json!([SHARD]), &Value::Null), "{inspected}");
}

#[test]
fn verify_says_it_once_and_for_all() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let larder = Larder::at(&origin);
    larder.prefetch(SOURCE);
    let tree = tree(&larder);
    let inode = tree.metadata().expect("a directory").ino();
    damage(&tree.join(SHARD));
    for _ in 0..2 {
        let told = larder.fails(65, &["verify"]);
        assert!(told.contains(&format!("{SHARD} is damaged in bytes 3145728-4194304")), "{told}");
        nobody_hands_it_out(&larder);
    }
    assert!(!tree.join(SHARD).exists(), "nor by its name in the directory");
    let again = larder.prefetch(SOURCE);
    assert_eq!(again["bytes_moved"], model.files[SHARD].len(), "this file alone: {again}");
    larder.holds(SOURCE, &model.files);
    assert_eq!(tree.metadata().expect("a directory").ino(), inode, "the same directory");
    larder.ok(&["verify"]);
    assert_eq!(larder.ok(&["ls", "--json"]).last_event()["state"], "complete");
}

#[test]
fn export_hashes_what_it_gives_out() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let larder = Larder::at(&origin);
    for hard_link in [false, true] {
        larder.prefetch(SOURCE);
        damage(&tree(&larder).join(SHARD));
        let to = larder.scratch().join(format!("given-{hard_link}"));
        let mut args = vec!["export", SOURCE, to.to_str().expect("text")];
        args.extend(hard_link.then_some("--hard-link"));
        let told = larder.fails(65, &args);
        assert!(told.contains(SHARD), "{told}");
        let given = read_tree(&to);
        assert!(!given.contains_key(SHARD) && given.iter().all(|(path, bytes)| model.files[path] == *bytes));
        nobody_hands_it_out(&larder);
    }
    larder.ok(&["verify", "--repair"]);
    let to = larder.scratch().join("right");
    larder.ok(&["export", SOURCE, to.to_str().expect("text")]);
    assert!(read_tree(&to) == model.files);
}

/// The daemon repairs what others have found, by itself, and as soon as the origin is there.
#[test]
fn a_daemon_repairs_what_anybody_finds_and_waits_for_its_origin() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let mut node = Node::at(&origin);
    node.set("recheck", "\"0s\"");
    let listen = node.listen();
    node.start();
    let ready = node.ready(&json!({"source": SOURCE}));
    let tree = PathBuf::from(ready["path"].as_str().expect("a path"));
    let inode = tree.metadata().expect("a directory").ino();

    // A process that owns nothing finds it.
    damage(&tree.join(SHARD));
    let to = node.path("given");
    let ran = node.larder(&["export", SOURCE, to.to_str().expect("text")]);
    assert_eq!(ran.code, Some(65), "{ran:?}");
    node.until("repaired", |status| status["damaged_blobs"] == 0 && tree.join(SHARD).exists());
    assert!(read_tree(&tree) == model.files && tree.metadata().expect("a directory").ino() == inode);

    // The origin is away: nothing wrong is given out, and everybody says so.
    origin.misbehave(|_| Some(Fault::Refuse(403, "AccessDenied", None)));
    damage(&tree.join(SHARD));
    let ran = node.larder(&["verify"]);
    assert_eq!(ran.code, Some(65), "{ran:?}");
    let status = node.until("told", |status| status["damaged_blobs"] == 1);
    assert_eq!(status["damaged"][0]["files"], json!([format!("{SOURCE}: {SHARD}")]), "{status}");
    assert!(status["damaged"][0]["since"].as_u64() > Some(1_000_000_000), "{status}");
    let metrics = http::ask_tcp(&listen, "GET", "/metrics").expect("an answer").text();
    assert!(metrics.contains("larder_damaged_blobs 1"), "{metrics}");
    let shown = node.larder(&["status"]).stdout;
    assert!(shown.contains("DAMAGED") && shown.contains(SHARD), "{shown}");
    assert!(!tree.join(SHARD).exists());
    assert_eq!(node.larder(&["path", SOURCE]).code, Some(65));
    let events = node.ensure(&json!({"source": SOURCE}));
    let last = events.last().expect("an event");
    assert!(last["event"] == "error" && last["exit_code"] != 0, "{events:?}");
    assert!(last["message"].as_str().expect("text").contains(SHARD), "{last}");
    let ran = node.init(&[SOURCE, node.path("dest").to_str().expect("text"), "--fresh"]);
    assert!(ran.code != Some(0) && ran.stderr.contains(SHARD), "{ran:?}");

    // A restart forgets nothing.
    node.restart();
    assert_eq!(node.until("told", |status| status["damaged_blobs"] == 1)["models"], 1);
    assert_eq!(node.larder(&["path", SOURCE]).code, Some(65));
    origin.behave();
    node.until("repaired", |status| status["damaged_blobs"] == 0 && tree.join(SHARD).exists());
    assert!(read_tree(&tree) == model.files && tree.metadata().expect("a directory").ino() == inode);
    assert_eq!(node.larder(&["path", SOURCE]).code, Some(0));
}

/// Gives a file of the store another length, as a tool that writes to it may.
fn resize(file: &std::path::Path, len: u64) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = file.metadata().expect("a file").permissions();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).expect("a mode");
    std::fs::File::options().write(true).open(file).and_then(|file| file.set_len(len)).expect("a length");
    std::fs::set_permissions(file, mode).expect("a mode");
}

#[test]
fn a_file_of_another_length_is_damaged_for_every_verb() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let larder = Larder::at(&origin);
    let whole = model.files[SHARD].len() as u64;
    for (round, len) in [0, whole - 1, whole + 2].into_iter().enumerate() {
        larder.prefetch(SOURCE);
        resize(&tree(&larder).join(SHARD), len);
        // Whichever verb looks first.
        match round {
            0 => drop(larder.ok(&["ls"])),
            1 => drop(larder.fails(65, &["path", SOURCE])),
            _ => {}
        }
        let again = larder.prefetch(SOURCE);
        assert_eq!(again["bytes_moved"], whole, "this file alone, after {len} bytes: {again}");
        larder.holds(SOURCE, &model.files);
    }
}

#[test]
fn a_file_of_another_length_is_fetched_again_by_the_daemon() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let mut node = Node::at(&origin);
    node.start();
    let ready = node.ready(&json!({"source": SOURCE}));
    let tree = PathBuf::from(ready["path"].as_str().expect("a path"));
    let whole = model.files[SHARD].len() as u64;
    for (restarts, pinned, len) in [(false, false, whole / 2), (true, false, whole + 2), (false, true, whole - 1)] {
        if pinned {
            assert_eq!(node.larder(&["pin", SOURCE]).code, Some(0));
        }
        resize(&tree.join(SHARD), len);
        // What was looked at a moment ago is believed.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        if restarts {
            node.restart();
        } else {
            let again = node.ready(&json!({"source": SOURCE}));
            assert_eq!(again["path"], ready["path"], "{again}");
        }
        node.until("repaired", |status| status["damaged_blobs"] == 0 && tree.join(SHARD).exists());
        assert!(read_tree(&tree) == model.files, "{restarts} {len}\n{}", node.log());
    }
    // Nor is anything else handed out that has the place of a blob.
    let blob = || {
        let inode = tree.join(SHARD).metadata().expect("a file").ino();
        let directories = ["fresh", "blobs"].map(|name| node.store().join("v1").join(name));
        let below = directories.iter().flat_map(|directory| std::fs::read_dir(directory).expect("directories"));
        let files = below.flat_map(|entry| std::fs::read_dir(entry.expect("an entry").path()).expect("blobs"));
        let mut paths = files.map(|entry| entry.expect("an entry").path());
        paths.find(|path| path.metadata().expect("a file").ino() == inode).expect("its blob")
    };
    for kind in ["link", "directory", "unreadable"] {
        let blob = blob();
        if kind == "unreadable" {
            std::fs::set_permissions(&blob, std::os::unix::fs::PermissionsExt::from_mode(0o000)).expect("a mode");
        } else {
            std::fs::remove_file(&blob).expect("removed");
        }
        match kind {
            "link" => std::os::unix::fs::symlink("/etc/passwd", &blob).expect("a link"),
            "directory" => std::fs::create_dir(&blob).expect("a directory"),
            _ => {}
        }
        let ran = node.larder(&["verify"]);
        assert_eq!(ran.code, Some(65), "{kind}: {ran:?}");
        node.until("repaired", |status| status["damaged_blobs"] == 0 && tree.join(SHARD).exists());
        assert!(read_tree(&tree) == model.files, "{kind}\n{}", node.log());
    }
    // Nobody asks: a start finds it.
    origin.misbehave(|_| Some(Fault::Refuse(403, "AccessDenied", None)));
    resize(&tree.join(SHARD), 1);
    node.restart();
    node.until("told", |status| status["damaged_blobs"] == 1);
    assert!(!tree.join(SHARD).exists());
}

/// What has the place of a blob goes with its model.
#[test]
fn a_model_with_a_directory_in_place_of_a_blob_can_be_removed() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let larder = Larder::at(&origin);
    larder.ok(&["prefetch", "s3://models/m/"]);
    let mut replaced = 0;
    for name in ["fresh", "blobs"] {
        let Ok(below) = std::fs::read_dir(larder.store().join("v1").join(name)) else { continue };
        let files = below.flat_map(|entry| std::fs::read_dir(entry.expect("an entry").path()).into_iter().flatten());
        for blob in files.map(|entry| entry.expect("an entry").path()) {
            std::fs::remove_file(&blob).expect("removed");
            std::fs::create_dir_all(blob.join("below")).expect("a directory");
            replaced += 1;
        }
    }
    assert!(replaced > 0);
    larder.ok(&["rm", "s3://models/m/"]);
    assert_eq!(larder.ok(&["ls"]).stdout, "");
}
