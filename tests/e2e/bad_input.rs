//! The sentences that users read on bad days: one test per row of the design's table.

use std::path::{Path, PathBuf};
use std::process::Command;

use larder_origins::{Checksums, Fault, Front, Noise, Origin, SampleModel};
use serde_json::json;

use crate::node::Node;
use crate::support::{Larder, origin_with_model, program, skipped, upload};

/// What must be said about a key, and what must not happen to it.
#[track_caller]
fn refuses_key(keys: &[&str], expected: &str) {
    let origin = Origin::start(Front::S3).expect("an origin");
    origin.bucket().put("m/config.json", b"{}".to_vec(), Checksums::single_part());
    for key in keys {
        origin.bucket().put(key, b"x".to_vec(), Checksums::single_part());
    }
    let larder = Larder::at(&origin);
    let told = larder.fails(64, &["prefetch", "s3://models/m/"]);
    assert!(told.contains("`s3://models/m/`") && told.contains(expected), "{told}");
    assert_eq!(origin.reads(), 0, "refused before a byte moves");
}

#[test]
fn keys_that_no_directory_can_hold() {
    refuses_key(&["m/../../etc/passwd"], "key \"../../etc/passwd\" has a `.` or `..` component");
    refuses_key(&["m/a/../b"], "has a `.` or `..` component");
    refuses_key(&["m//a"], "key \"/a\" has an empty component");
    refuses_key(&["m/a//b"], "has an empty component");
    refuses_key(&["m/a", "m/a/b"], "key \"a\" is a file and also the directory of \"a/b\"");
    refuses_key(&[&format!("m/{}", "n".repeat(256))], "is too long: 255 bytes a name");
    refuses_key(&[&format!("m/{}", "n/".repeat(512) + "n")], "is too long");
}

#[test]
fn nothing_there() {
    let (origin, _) = origin_with_model(Checksums::single_part());
    let larder = Larder::at(&origin);
    let told = larder.fails(66, &["prefetch", "s3://models/lama/"]);
    assert!(told.contains("`s3://models/lama/`: nothing matches: check the prefix"), "{told}");
    let told = larder.fails(66, &["prefetch", "s3://modells/m/"]);
    assert!(told.contains("`s3://modells/m/`: no such bucket"), "{told}");
    let told = larder.fails(66, &["prefetch", "s3://models/m", "--include", "*.gguf"]);
    assert!(told.contains("include and exclude globs leave none"), "{told}");
    let told = larder.fails(66, &["prefetch", "file:///no/such/directory"]);
    assert!(told.contains("`file:///no/such/directory`"), "{told}");
}

#[test]
fn access_denied() {
    let (origin, _) = origin_with_model(Checksums::single_part());
    let larder = Larder::at(&origin);
    origin.misbehave(|_| Some(Fault::Refuse(403, "AccessDenied", None)));
    let told = larder.fails(77, &["prefetch", "s3://models/m"]);
    assert!(
        told.contains("`s3://models/m`: access denied (403 AccessDenied") && told.contains("s3:GetObject"),
        "{told}"
    );
    // Listing allowed, reading not.
    origin.misbehave_on_reads(|_, _| Some(Fault::Refuse(403, "AccessDenied", None)));
    let told = larder.fails(77, &["prefetch", "s3://models/m"]);
    assert!(told.contains("`s3://models/m/") && told.contains("access denied"), "{told}");
}

#[test]
fn no_credentials_at_all() {
    let (origin, _) = origin_with_model(Checksums::single_part());
    let mut larder = Larder::new([("AWS_ENDPOINT_URL", origin.url())]);
    larder.set("AWS_EC2_METADATA_DISABLED", "true");
    larder.set("AWS_REGION", "us-east-1");
    let told = larder.fails(77, &["prefetch", "s3://models/m"]);
    assert!(told.contains("no usable credentials") && told.contains("--anonymous"), "{told}");
}

#[test]
fn a_region_that_is_set_to_nothing_is_not_set() {
    let (origin, _) = origin_with_model(Checksums::single_part());
    let mut larder = Larder::at(&origin);
    larder.set("AWS_REGION", "");
    larder.set("AWS_DEFAULT_REGION", "");
    larder.prefetch("s3://models/m/");
}

#[test]
fn wrong_region() {
    let (origin, _) = origin_with_model(Checksums::single_part());
    origin.misbehave(|_| Some(Fault::Elsewhere("eu-central-1")));
    let told = Larder::at(&origin).fails(64, &["prefetch", "s3://models/m"]);
    assert!(told.contains("`s3://models/m`") && told.contains("AWS_REGION=eu-central-1"), "{told}");
}

#[test]
fn bad_endpoints() {
    let mut larder = Larder::new([("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_REGION", "r")]);
    larder.set("AWS_ENDPOINT_URL", "not a url");
    let told = larder.fails(64, &["prefetch", "s3://models/m"]);
    assert!(told.contains("`s3://models/m`: the endpoint `not a url` is not a URL"), "{told}");
    // Nobody listens on port 1; the name is one that never resolves (RFC 6761).
    for (endpoint, cause) in [("http://127.0.0.1:1", "refused"), ("http://nowhere.invalid", "lookup")] {
        larder.set("AWS_ENDPOINT_URL", endpoint);
        let told = larder.fails(69, &["prefetch", "s3://models/m"]);
        assert!(told.contains("`s3://models/m`") && told.to_lowercase().contains(cause), "{told}");
        assert!(told.contains("attempts in"), "{told}");
    }
}

#[test]
fn endpoints_with_a_password_are_refused_unseen() {
    let (origin, _) = origin_with_model(Checksums::single_part());
    let mut larder = Larder::at(&origin);
    let endpoint = origin.url().replace("http://", "http://us3r:p4ssw0rd@");
    let by_flag = larder.fails(64, &["prefetch", "-vv", "--endpoint-url", &endpoint, "s3://models/m"]);
    larder.set("AWS_ENDPOINT_URL", endpoint);
    let by_environment = larder.fails(64, &["prefetch", "-vv", "s3://models/m"]);
    for told in [by_flag, by_environment] {
        assert!(told.contains("`s3://models/m`: the endpoint URL has a user name or password"), "{told}");
        assert!(!told.contains("us3r") && !told.contains("p4ssw0rd"), "{told}");
    }
    assert!(origin.seen().is_empty(), "nothing was asked");
}

/// Settings with what no header, host or URL can carry are refused in words, and their values, which
/// may be secrets, are not told.
#[test]
fn settings_that_no_request_can_carry() {
    let (origin, _) = origin_with_model(Checksums::single_part());
    for (name, value, code, told_of) in [
        ("AWS_ACCESS_KEY_ID", "S3CR3T\n", 77, "access key id"),
        ("AWS_ACCESS_KEY_ID", "S3CR3T\u{e9}", 77, "access key id"),
        ("AWS_SECRET_ACCESS_KEY", "S3CR3T\n", 77, "secret access key"),
        ("AWS_SESSION_TOKEN", "S3CR\n3T", 77, "session token"),
        ("AWS_REGION", "us-east-1\n", 64, "is no region"),
        ("AWS_REGION", "us east", 64, "is no region"),
        ("AWS_ENDPOINT_URL", "http://m\u{fc}ller.example", 64, "is not a URL"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1/a b", 64, "is not a URL"),
    ] {
        let mut larder = Larder::at(&origin);
        larder.set(name, value);
        let told = larder.fails(code, &["-vv", "prefetch", "s3://models/m"]);
        assert!(told.contains(told_of) && !told.contains("panic"), "{name}={value:?}: {told}");
        assert!(!told.contains("S3CR"), "{name}: {told}");
    }
    let mut larder = Larder::at(&origin);
    larder.set("LARDER_LOG", " a\u{10595}=");
    larder.prefetch("s3://models/m");
}

/// The same where a daemon has them: each who asks hears it, and it goes on.
#[test]
fn a_daemon_with_a_credential_that_no_request_can_carry_says_so_and_lives() {
    let (origin, _) = origin_with_model(Checksums::single_part());
    let mut node = Node::at(&origin);
    node.set_variable("AWS_ACCESS_KEY_ID", "S3CR3T\n");
    node.start();
    for _ in 0..2 {
        let last = node.ensure(&json!({"source": "s3://models/m"})).pop().expect("an event");
        assert_eq!((&last["event"], &last["exit_code"]), (&json!("error"), &json!(77)), "{last}");
        assert!(last["message"].as_str().is_some_and(|message| message.contains("access key id")), "{last}");
    }
    let log = node.log();
    assert!(!log.contains("panic") && !log.contains("S3CR3T"), "{log}");
}

/// An ETag is sent back as a condition of every read.
#[test]
fn etags_that_no_header_can_carry() {
    for etag in ["\"a\nb\"", "\"a\tb\"", "\"\u{e9}\"", "\"\u{1b}[31m\"", "\"\u{7f}\""] {
        let (origin, _) = origin_with_model(Checksums::single_part());
        origin.bucket().edit("m/config.json", |stored| etag.clone_into(&mut stored.etag));
        let told = Larder::at(&origin).fails(69, &["prefetch", "s3://models/m"]);
        assert!(told.contains("s3://models/m") && !told.contains("panic"), "{etag:?}: {told}");
        assert!(!told.contains(['\t', '\u{1b}', '\u{7f}']), "{etag:?}: {told:?}");
        assert_eq!(origin.reads(), 0, "refused before a byte moves");
    }
}

/// The client that moves the bytes would ask for another key, or for none.
#[test]
fn sources_with_keys_that_cannot_be_asked_for() {
    let (origin, _) = origin_with_model(Checksums::single_part());
    for key in ["/m/config.json", "m//config.json", "m/./config.json", "m/../config.json"] {
        origin.bucket().put(key, b"another".to_vec(), Checksums::single_part());
    }
    let larder = Larder::at(&origin);
    for source in [
        "s3://models//m/config.json",
        "s3://models//m/",
        "s3://models//",
        "s3://models/m//config.json",
        "s3://models/m//",
        "s3://models/m/./config.json",
        "s3://models/m/..",
    ] {
        let told = larder.fails(64, &["prefetch", source]);
        assert!(told.contains(&format!("`{source}`: keys with an empty, `.` or `..` component")), "{told}");
    }
    assert!(origin.seen().is_empty(), "no other key was asked for");
}

#[test]
fn sources_that_are_none() {
    let larder = Larder::new::<&str, &str>([]);
    for source in ["models/m", "s3:/models", "s3://", "ftp://host/file", "gs:///m", ""] {
        let told = larder.fails(64, &["prefetch", source]);
        assert!(told.contains(&format!("`{source}`")), "{told}");
    }
    let told = larder.fails(64, &["prefetch", "s3://b/m", "--include", "[a"]);
    assert!(told.contains("`[a` is not a glob"), "{told}");
}

#[test]
fn another_owner_of_the_store() {
    let (origin, _) = origin_with_model(Checksums::single_part());
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(1 << 20)));
    let larder = Larder::at(&origin);
    let mut child = larder.spawn(&["prefetch", "s3://models/m"]);
    while origin.reads() == 0 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let told = larder.fails(75, &["prefetch", "--no-wait", "s3://models/m"]);
    assert!(told.contains("is in use by") && told.contains(&child.id().to_string()), "{told}");
    // Looking is always possible.
    assert_eq!(larder.ok(&["ls", "--json"]).last_event()["state"], "partial");
    child.kill().expect("a child");
    child.wait().expect("a child");
    // Killed, its lock is gone: nothing to clean up by hand.
    origin.behave();
    larder.prefetch("s3://models/m");
}

#[test]
fn directories_that_are_no_store_of_ours() {
    let (origin, model) = origin_with_model(Checksums::single_part());
    let larder = Larder::at(&origin);
    let other = larder.scratch().join("home");
    std::fs::create_dir_all(other.join("documents")).expect("a directory");
    let told = larder.fails(64, &["--store", other.to_str().expect("text"), "prefetch", "s3://models/m"]);
    assert!(told.contains("is not a larder store this build can use") && told.contains("documents"), "{told}");

    let newer = larder.scratch().join("newer");
    std::fs::create_dir_all(newer.join("v2/blobs")).expect("a directory");
    let told = larder.fails(64, &["--store", newer.to_str().expect("text"), "prefetch", "s3://models/m"]);
    assert!(told.contains("v2"), "{told}");

    // A file where the directory should be.
    let file = larder.scratch().join("file");
    std::fs::write(&file, b"").expect("a file");
    let told = larder.fails(74, &["--store", file.to_str().expect("text"), "prefetch", "s3://models/m"]);
    assert!(told.contains(file.to_str().expect("text")), "{told}");
    drop(model);
}

fn only(directory: &Path) -> PathBuf {
    let mut entries = std::fs::read_dir(directory).expect("a directory");
    entries.next().expect("one entry").expect("an entry").path()
}

/// What cannot be proven is forgotten or fetched again, and what was dropped is told.
#[test]
fn torn_records_and_flipped_bits_in_the_books() {
    let (origin, model) = origin_with_model(Checksums::single_part());
    let larder = Larder::at(&origin);
    larder.prefetch("s3://models/m");
    let root = larder.store().join("v1");

    // A catalog whose last line is torn: known again from what is left and from the origin.
    let catalog = root.join("catalog.log");
    let bytes = std::fs::read(&catalog).expect("a catalog");
    std::fs::write(&catalog, &bytes[..bytes.len() - 20]).expect("torn");
    let ran = larder.ok(&["prefetch", "s3://models/m"]);
    assert!(ran.stderr.contains("1 catalog line"), "{ran:?}");
    larder.holds("s3://models/m", &model.files);

    // A manifest with a flipped bit is no manifest.
    let manifest = only(&root.join("manifests"));
    let mut bytes = std::fs::read(&manifest).expect("a manifest");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    let mut permissions = std::fs::metadata(&manifest).expect("a file").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    std::fs::set_permissions(&manifest, permissions).expect("owned");
    std::fs::write(&manifest, bytes).expect("flipped");
    let before = origin.bytes_sent();
    larder.ok(&["prefetch", "s3://models/m"]);
    assert!(origin.bytes_sent() - before < 16 << 10, "only the listing moves");
    larder.holds("s3://models/m", &model.files);
    larder.ok(&["verify"]);
}

/// A small file system of the test's own, unmounted with the value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, mib: u32) -> Option<Self> {
        std::fs::create_dir_all(at).expect("a directory");
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let options = format!("size={mib}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }

    fn remount(&self, options: &str) {
        program(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_is_too_small_is_refused_before_a_byte_moves() {
    let (origin, _) = origin_with_model(Checksums::single_part());
    let larder = Larder::at(&origin);
    let Some(disk) = SmallDisk::mount(&larder.store(), 8) else {
        return skipped("a_disk_that_is_too_small_is_refused_before_a_byte_moves", "mounting a tmpfs needs root");
    };
    let told = larder.fails(74, &["prefetch", "s3://models/m"]);
    assert!(told.contains("not enough room") && told.contains("needed") && told.contains("free"), "{told}");
    assert_eq!(origin.reads(), 0);
    drop(disk);
}

#[test]
fn a_disk_that_fills_up_meanwhile_stops_the_pull_and_the_next_goes_on() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let larder = Larder::at(&origin);
    let Some(disk) = SmallDisk::mount(&larder.store(), 28) else {
        return skipped(
            "a_disk_that_fills_up_meanwhile_stops_the_pull_and_the_next_goes_on",
            "mounting a tmpfs needs root",
        );
    };
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(4 << 20)));
    let child = larder.spawn(&["prefetch", "s3://models/m"]);
    while origin.reads() == 0 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // Files larger than what is free are allocated first, so some of them take their room later.
    let hog = larder.store().join("v1/scratch");
    std::fs::create_dir_all(&hog).expect("a directory");
    let hog = hog.join("hog");
    let filled = std::fs::write(&hog, Noise::new(1).bytes(28 << 20));
    let ran = crate::support::wait(child);
    assert!(filled.is_err(), "the disk is full now");
    if ran.code != Some(0) {
        assert_eq!(ran.code, Some(74), "{ran:?}");
        assert!(ran.stderr.contains("No space left") && ran.stderr.contains("make room"), "{ran:?}");
    }
    std::fs::remove_file(&hog).expect("the hog");
    origin.behave();
    larder.prefetch("s3://models/m");
    larder.holds("s3://models/m", &model.files);
    drop(disk);
}

#[test]
fn a_read_only_disk_gives_its_models_and_takes_none() {
    let (origin, model) = origin_with_model(Checksums::single_part());
    let larder = Larder::at(&origin);
    let Some(disk) = SmallDisk::mount(&larder.store(), 64) else {
        return skipped("a_read_only_disk_gives_its_models_and_takes_none", "mounting a tmpfs needs root");
    };
    larder.prefetch("s3://models/m");
    upload(origin.bucket(), "n/", &SampleModel::new(8, 1, 1 << 20), Checksums::single_part());
    disk.remount("ro");
    let told = larder.fails(74, &["prefetch", "s3://models/n"]);
    assert!(told.contains("Read-only file system"), "{told}");
    larder.holds("s3://models/m", &model.files);
    drop(disk);
}

#[test]
fn secrets_are_never_told() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(Fault::Refuse(500, "InternalError", None)));
    let mut larder = Larder::at(&origin);
    larder.set("AWS_SECRET_ACCESS_KEY", "S3CR3TS3CR3T");
    larder.set("AWS_SESSION_TOKEN", "T0K3NT0K3N");
    let ran = larder.run(&["prefetch", "-vv", "--retry-for", "1s", "s3://models/m"]);
    assert_eq!(ran.code, Some(69));
    assert!(!ran.stderr.is_empty());
    for secret in ["S3CR3TS3CR3T", "T0K3NT0K3N", "Signature="] {
        assert!(!ran.stderr.contains(secret), "{secret} in the log");
    }
    // A presigned URL's query is a secret.
    let signed = format!("{}/models/none?X-Amz-Signature=S3CR3TS3CR3T", origin.url());
    let ran = larder.run(&["prefetch", "-vv", &signed]);
    assert_ne!(ran.code, Some(0));
    assert!(!ran.stderr.contains("S3CR3TS3CR3T"), "{}", ran.stderr);
}
