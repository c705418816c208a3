//! `kill -9` of the keeper: what is open stays, and the next keeper brings a new mount.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use larder_keeper::Keeper;
use larder_origins::{Checksums, SampleModel, safetensors};
use serde_json::json;

use super::kept::Kept;
use super::{assert_reads, lazily, mount_status, root, slow_origin, until_removed};
use crate::support::{origin_with_model, upload};

/// Mounts of ours at the node's place, as the kernel has them.
fn mounts(kept: &Kept) -> usize {
    let at = root(&kept.node).display().to_string();
    let table = fs::read_to_string("/proc/self/mounts").expect("a table");
    table.lines().filter(|line| line.split(' ').nth(1) == Some(&at)).count()
}

#[test]
fn what_is_open_outlives_the_keeper_and_the_next_one_brings_a_new_mount() {
    let whole = safetensors("w", 12, 24 << 20);
    let origin = slow_origin(&whole, 1 << 20);
    let model = SampleModel::new(4, 2, 4 << 20);
    upload(origin.bucket(), "n/", &model, Checksums::multipart());
    let Some(mut kept) = Kept::started(&origin) else { return };
    let ready = kept.node.ready(&json!({"source": "s3://models/n/"}));
    let directory = Path::new(ready["path"].as_str().expect("a path")).to_owned();
    let shard = "model-00001-of-00002.safetensors";
    let arriving = lazily(&kept.node).join("model.safetensors");
    let (passed, served) = (File::open(directory.join(shard)).expect("a file"), File::open(&arriving).expect("a file"));

    kept.kill_keeper();
    // Nothing of it was read before.
    assert_range(&passed, &model.files[shard], 0, 1 << 20);
    assert_range(&served, &whole, 0, 1 << 20);
    kept.node.until("the daemon has noticed", |status| status["mount"]["kept"] == false);
    assert_range(&served, &whole, 5 << 20, 7 << 20);
    // The daemon holds the connection of its own: until it ends, the old mount works on.
    assert!(fs::read(directory.join(shard)).expect("a file that is open already") == model.files[shard]);

    kept.start_keeper();
    kept.node.until("the daemon serves the new mount", |status| status["mount"]["kept"] == true);
    assert_eq!(mounts(&kept), 1, "the old mount is taken away");
    assert_reads(&directory, &model);
    assert_reads(&root(&kept.node).join("sources/s3/models/n@"), &model);
    let fresh = File::open(&arriving).expect("a file of the new mount");
    assert_range(&fresh, &whole, 9 << 20, 10 << 20);
    assert_eq!(mount_status(&kept.node)["sealed"], "passthrough");
    // And those of the old mount do not notice.
    assert_range(&passed, &model.files[shard], 1 << 20, 4 << 20);
    assert_range(&served, &whole, 12 << 20, 13 << 20);
    let (status, busy) = kept.node.ask_admin("POST", "/v1/remove", Some(&json!({"models": ["s3://models/n/"]})));
    assert_eq!(status, 409, "open in the old mount: {busy}");
    drop(passed);
    until_removed(&kept.node, "s3://models/n/");

    // The next daemon is the new keeper's like any other.
    kept.node.restart();
    assert_range(&fresh, &whole, 14 << 20, 15 << 20);
    assert!(fs::read(&arriving).expect("the file") == whole);
}

/// What a pod has: the node's mount at a place of its own, which no later keeper reaches.
fn of_a_pod(kept: &Kept, directory: &Path) -> PathBuf {
    let pod = kept.node.path("pod");
    if !pod.exists() {
        fs::create_dir(&pod).expect("a directory");
        rustix::mount::mount_bind(root(&kept.node), &pod).expect("a bind mount");
    }
    pod.join(directory.strip_prefix(root(&kept.node)).expect("a directory of the mount"))
}

fn assert_range(file: &File, right: &[u8], from: usize, to: usize) {
    let mut bytes = vec![0; to - from];
    file.read_exact_at(&mut bytes, from as u64).unwrap_or_else(|error| panic!("{from}..{to}: {error}"));
    assert!(bytes == right[from..to], "{from}..{to} is wrong");
}

#[test]
fn a_pod_keeps_its_mount_through_keepers_and_daemons() {
    const SHARD: &str = "model-00001-of-00002.safetensors";
    let whole = safetensors("w", 12, 24 << 20);
    let origin = slow_origin(&whole, 1 << 20);
    let model = SampleModel::new(4, 2, 4 << 20);
    upload(origin.bucket(), "n/", &model, Checksums::multipart());
    let Some(mut kept) = Kept::started(&origin) else { return };
    let ready = kept.node.ready(&json!({"source": "s3://models/n/"}));
    let directory = of_a_pod(&kept, Path::new(ready["path"].as_str().expect("a path")));
    let arriving = of_a_pod(&kept, &lazily(&kept.node)).join("model.safetensors");
    let passed = File::open(directory.join(SHARD)).expect("a file");
    let mut served = vec![File::open(&arriving).expect("a file")];
    for round in 1..=3 {
        kept.kill_keeper();
        kept.node.until("the daemon has noticed", |status| status["mount"]["kept"] == false);
        kept.start_keeper();
        kept.node.until("the daemon serves the new mount", |status| status["mount"]["kept"] == true);
        assert_eq!(kept.logs().matches("keeps a mount of a keeper before").count(), round, "those that nobody has end");
        // Only the new keeper has the pod's mount now.
        kept.node.restart();
        kept.node.until("the next daemon serves it", |status| status["mount"]["kept"] == true);
        assert_range(&passed, &model.files[SHARD], (round - 1) << 20, round << 20);
        for (number, file) in served.iter().enumerate() {
            let from = (4 * round + number) << 20;
            assert_range(file, &whole, from, from + (1 << 20));
        }
        assert_reads(&directory, &model);
        assert_reads(&root(&kept.node).join("sources/s3/models/n@"), &model);
        served.push(File::open(&arriving).expect("a file that no daemon of now has made"));
    }
    assert!(fs::read(&arriving).expect("the file") == whole);
    assert_eq!(mount_status(&kept.node)["reads_failed"], 0, "{}", kept.logs());
    let (status, busy) = kept.node.ask_admin("POST", "/v1/remove", Some(&json!({"models": ["s3://models/n/"]})));
    assert_eq!(status, 409, "open in a mount of three keepers ago: {busy}");
    // No daemon says goodbye to what is gone.
    drop((passed, served));
    rustix::mount::unmount(kept.node.path("pod"), rustix::mount::UnmountFlags::DETACH).expect("unmounted");
    until_removed(&kept.node, "s3://models/n/");
}

#[test]
fn files_are_opened_for_the_first_time_while_there_is_no_keeper() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let Some(mut kept) = Kept::started(&origin) else { return };
    let ready = kept.node.ready(&json!({"source": "s3://models/m/"}));
    let directory = of_a_pod(&kept, Path::new(ready["path"].as_str().expect("a path")));
    let [first, second] = ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"];
    let passed = File::open(directory.join(first)).expect("a file");
    let status = mount_status(&kept.node);
    assert_eq!((&status["opens_passed"], &status["opens_cached"]), (&json!(1), &json!(0)), "{status}");
    kept.kill_keeper();
    kept.node.until("the daemon has noticed", |status| status["mount"]["kept"] == false);
    let cached = File::open(directory.join(second)).expect("no keeper is needed");
    assert_range(&cached, &model.files[second], 0, model.files[second].len());
    assert_reads(&directory, &model);
    let status = mount_status(&kept.node);
    assert_eq!(status["opens_passed"], 2, "what has been passed through stays so: {status}");
    // The kernel lets no file be both, whoever serves it by now.
    kept.start_keeper();
    kept.node.until("the daemon serves the new mount", |status| status["mount"]["kept"] == true);
    assert_reads(&directory, &model);
    for _ in 0..2 {
        kept.node.restart();
        kept.node.until("the next daemon serves it", |status| status["mount"]["kept"] == true);
        assert_reads(&directory, &model);
        assert_range(&cached, &model.files[second], 0, 1 << 16);
    }
    let status = mount_status(&kept.node);
    assert!(status["opens_cached"].as_u64() >= Some(1), "open all the time, and so cached: {status}");
    drop(cached);
    // Of the end of an open the daemon hears a moment later.
    kept.node.until("every open is passed through", |before| {
        assert_reads(&directory, &model);
        mount_status(&kept.node)["opens_cached"] == before["mount"]["opens_cached"]
    });
    kept.node.restart();
    kept.node.until("the next daemon serves it", |status| status["mount"]["kept"] == true);
    assert_reads(&directory, &model);
    let status = mount_status(&kept.node);
    assert_eq!((&status["opens_cached"], &status["reads_failed"]), (&json!(0), &json!(0)), "{status}");
    drop(passed);
}

#[test]
fn a_keeper_that_dies_with_the_daemon_leaves_a_mount_that_the_next_ones_replace() {
    let origin = slow_origin(b"small", 1 << 20);
    let Some(mut kept) = Kept::started(&origin) else { return };
    let ready = kept.node.ready(&json!({"source": "s3://models/m/"}));
    let path = Path::new(ready["path"].as_str().expect("a path")).join("model.safetensors");
    let open = File::open(&path).expect("a file");
    kept.node.kill();
    kept.kill_keeper();
    let mut bytes = [0; 5];
    open.read_exact_at(&mut bytes, 0).expect("what the kernel reads by itself");
    assert_eq!(&bytes, b"small");
    let gone = File::open(&path).expect_err("nobody answers");
    assert_eq!(gone.raw_os_error(), Some(rustix::io::Errno::NOTCONN.raw_os_error()), "{gone}");
    // The daemon comes first and waits for the keeper.
    kept.node.start();
    kept.start_keeper();
    kept.node.until("there is a mount again", |status| status["mount"]["kept"] == true);
    assert_eq!((fs::read(&path).expect("the file"), mounts(&kept)), (b"small".to_vec(), 1));
}

#[test]
fn a_daemon_that_its_keeper_cut_off_goes_on_where_it_was() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let Some(kept) = Kept::started(&origin) else { return };
    let ready = kept.node.ready(&json!({"source": "s3://models/m/"}));
    let directory = Path::new(ready["path"].as_str().expect("a path")).to_owned();
    let shard = "model-00001-of-00003.safetensors";
    let open = File::open(directory.join(shard)).expect("a file");
    // Whoever says hello is the daemon.
    drop(Keeper::connect(kept.node.path("keeper/sock"), Duration::from_secs(5)).expect("a keeper"));
    kept.node.until("the daemon is the daemon again", |status| {
        status["mount"]["kept"] == true && kept.logs().matches("the daemon is here: user 65532").count() == 2
    });
    assert_reads(&directory, &model);
    let mut bytes = vec![0; model.files[shard].len()];
    open.read_exact_at(&mut bytes, 0).expect("an open file");
    assert!(bytes == model.files[shard]);
    let (status, busy) = kept.node.ask_admin("POST", "/v1/remove", Some(&json!({"models": ["s3://models/m/"]})));
    assert_eq!(status, 409, "{busy}");
    drop(open);
    until_removed(&kept.node, "s3://models/m/");
}
