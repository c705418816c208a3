//! Complete models: passed through by the kernel, and nothing can be changed.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use larder_origins::Checksums;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::{assert_reads, mount_status, mounting, root};
use crate::node::{Node, PATIENCE};
use crate::support::{origin_with_model, wait};

fn ready(node: &Node) -> PathBuf {
    PathBuf::from(node.ready(&json!({"source": "s3://models/m/"}))["path"].as_str().expect("a path"))
}

#[test]
fn a_model_reads_as_it_was_and_by_the_kernel_alone() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let Some(mut node) = mounting(&origin) else { return };
    node.start();
    let directory = ready(&node);
    assert_eq!(directory.parent(), Some(root(&node).as_path()));
    assert_reads(&directory, &model);
    let status = mount_status(&node);
    assert_eq!((&status["sealed"], &status["bytes_read"]), (&json!("passthrough"), &json!(0)), "{status}");
    assert_eq!(status["opens_passed"], model.files.len(), "{status}");
    // By the link of its source too.
    assert_reads(&root(&node).join("sources/s3/models/m@"), &model);
}

#[test]
fn names_numbers_and_times_are_the_same_after_a_restart() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let Some(mut node) = mounting(&origin) else { return };
    node.start();
    let directory = ready(&node);
    let look = || -> Vec<(String, u64, i64, u32, u64)> {
        let stat = |path: &String| {
            let metadata = fs::metadata(directory.join(path)).expect("a file");
            (path.clone(), metadata.ino(), metadata.mtime(), metadata.mode(), metadata.len())
        };
        model.files.keys().map(stat).collect()
    };
    let before = look();
    assert!(before.iter().all(|(path, .., len)| *len == model.files[path].len() as u64));
    assert!(before.iter().all(|(.., mode, _)| mode & 0o7777 == 0o444));
    node.restart();
    assert_eq!(look(), before);
    assert_reads(&directory, &model);
    assert_eq!(node.terminate().0, Some(0));
    let table = fs::read_to_string("/proc/self/mounts").expect("a table");
    assert!(!table.contains(root(&node).to_str().expect("text")), "nothing stays mounted:\n{table}");
}

#[test]
fn nothing_can_be_written() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let Some(mut node) = mounting(&origin) else { return };
    node.start();
    let directory = ready(&node);
    let file = directory.join(model.files.keys().next().expect("a file"));
    let read_only = |what: &str, result: std::io::Result<()>| {
        let error = result.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem, "{what}: {error}");
    };
    read_only("create", fs::write(directory.join("new"), b"x"));
    read_only("open for writing", fs::File::options().append(true).open(&file).map(drop));
    read_only("remove", fs::remove_file(&file));
    read_only("rename", fs::rename(&file, directory.join("other")));
    read_only("make a directory", fs::create_dir(directory.join("d")));
    read_only("remove a directory", fs::remove_dir(&directory));
    read_only("link", fs::hard_link(&file, directory.join("l")));
    read_only("symlink", std::os::unix::fs::symlink("x", directory.join("s")));
    read_only("chmod", fs::set_permissions(&file, fs::Permissions::from_mode(0o777)));
    assert_eq!(fs::metadata(directory.join("absent")).expect_err("absent").kind(), ErrorKind::NotFound);
}

#[test]
fn a_person_mounts_a_store_and_pulls_into_it_beside() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    // For what it checks and what it cleans up.
    let Some(node) = mounting(&origin) else { return };
    let (directory, runtime) = (root(&node), node.path("runtime"));
    fs::create_dir(&runtime).expect("a directory");
    let larder = |args: &[&str]| {
        let mut command = node.command(args);
        command.env("XDG_RUNTIME_DIR", &runtime);
        command
    };
    let mut mount = larder(&["mount", directory.to_str().expect("text")]).spawn().expect("larder starts");
    let began = Instant::now();
    while !directory.join("sources").is_dir() {
        assert!(began.elapsed() < PATIENCE && mount.try_wait().expect("a child").is_none(), "no mount");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pulled = wait(larder(&["prefetch", "s3://models/m/"]).spawn().expect("larder starts"));
    assert_eq!(pulled.code, Some(0), "{pulled:?}");
    assert_reads(&directory.join("sources/s3/models/m@"), &model);
    kill_process(Pid::from_child(&mount), Signal::INT).expect("a signal");
    let ended = wait(mount);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("until Ctrl-C"), "{ended:?}");
    assert_eq!(fs::read_dir(&directory).expect("a directory").count(), 0, "nothing stays mounted");
    assert_eq!(fs::read_dir(&runtime).expect("a directory").count(), 0, "nor any socket");
}
