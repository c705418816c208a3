//! Whoever reads, and however: other users, other calls, other names.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use larder_origins::{Checksums, Front, Noise, Origin};
use rustix::fs::{Advice, OFlags};
use rustix::io::Errno;
use serde_json::json;

use super::kept::{Kept, unprivileged};
use super::{mount_status, root};
use crate::support::{origin_with_model, program, read_tree, skipped};

const SHARD: &str = "model-00002-of-00003.safetensors";

fn directory(kept: &Kept) -> PathBuf {
    let ready = kept.node.ready(&json!({"source": "s3://models/m/"}));
    PathBuf::from(ready["path"].as_str().expect("a path"))
}

#[test]
fn any_user_reads() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let Some(kept) = Kept::started(&origin) else { return };
    let directory = directory(&kept);
    let uid = 100_000 + Noise::new(u64::from(std::process::id())).below(1 << 30) as u32;
    let run = |prefix: &[&str], what: &[&str], at: &Path| {
        let mut words = unprivileged(uid).into_iter().chain(prefix.iter().chain(what).map(Into::into));
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words).arg(at).output().expect("a program that runs")
    };
    for prefix in [&[][..], &["unshare", "-Ur", "--"]] {
        if run(prefix, &["true"], Path::new("")).status.code() != Some(0) {
            skipped("any_user_reads", "no user namespace can be made here");
            continue;
        }
        let ran = run(prefix, &["cat"], &directory.join(SHARD));
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.success() && ran.stdout == model.files[SHARD], "user {uid}, {prefix:?}: {said}");
        let ran = run(prefix, &["find"], &directory);
        let found = String::from_utf8_lossy(&ran.stdout).lines().count();
        assert_eq!(found, model.files.len() + 2, "{prefix:?}: {ran:?}");
        let ran = run(prefix, &["touch"], &directory.join("new"));
        assert!(!ran.status.success() && String::from_utf8_lossy(&ran.stderr).contains("Read-only"), "{ran:?}");
    }
}

#[test]
fn five_thousand_files_are_listed_whole_and_twice_the_same() {
    const FILES: usize = 5000;
    let origin = Origin::start(Front::S3).expect("an origin");
    for file in 0..FILES {
        origin.bucket().put(&format!("m/part-{file:05}.json"), file.to_string(), Checksums::none());
    }
    let Some(mut kept) = Kept::started(&origin) else { return };
    let directory = directory(&kept);
    let list = || -> Vec<_> {
        fs::read_dir(&directory).expect("a directory").map(|entry| entry.expect("an entry").file_name()).collect()
    };
    let first = list();
    let names: BTreeSet<_> = first.iter().map(|name| name.to_str().expect("text").to_owned()).collect();
    assert_eq!((first.len(), names.len()), (FILES, FILES));
    assert!((0..FILES).all(|file| names.contains(&format!("part-{file:05}.json"))));
    assert_eq!(list(), first, "the second time");
    // A daemon that is replaced goes on where the one before was.
    let mut halfway = fs::read_dir(&directory).expect("a directory");
    let mut rest: Vec<_> = halfway.by_ref().take(100).map(|entry| entry.expect("an entry").file_name()).collect();
    kept.node.restart();
    rest.extend(halfway.map(|entry| entry.expect("an entry").file_name()));
    assert_eq!(rest, first, "across a restart");
    assert_eq!(list(), first, "after a restart");
    assert_eq!(fs::read(directory.join("part-04999.json")).expect("a file"), b"4999");
}

#[test]
fn every_way_to_read_gives_the_same_bytes() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let Some(kept) = Kept::started(&origin) else { return };
    let path = directory(&kept).join(SHARD);
    let whole = &model.files[SHARD];
    let copy = kept.node.path("copy");
    let copied = |what: &str| {
        assert!(fs::read(&copy).expect("a copy") == *whole, "{what}");
        File::create(&copy).expect("a file")
    };
    let mut to = File::create(&copy).expect("a file");
    let from = || File::open(&path).expect("a file");

    let read = |what: &str, step: &mut dyn FnMut() -> rustix::io::Result<usize>| loop {
        match step() {
            Ok(0) => return true,
            Ok(_) => {}
            // As between any two file systems: programs fall back.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP) if what == "copy_file_range" => return false,
            Err(error) => panic!("{what}: {error}"),
        }
    };
    let source = from();
    read("sendfile", &mut || rustix::fs::sendfile(&to, &source, None, 1 << 20));
    to = copied("sendfile");
    let source = from();
    if read("copy_file_range", &mut || rustix::fs::copy_file_range(&source, None, &to, None, 1 << 20)) {
        to = copied("copy_file_range");
    }
    std::io::copy(&mut from(), &mut to).expect("a copy");
    drop(copied("std's copy"));
    program(Command::new("cp").arg(&path).arg(&copy));
    drop(copied("cp"));

    // Straight from the disk: address, offset and length are whole pages.
    let direct = OFlags::DIRECT.bits().cast_signed();
    let direct = fs::OpenOptions::new().read(true).custom_flags(direct).open(&path).expect("a file");
    let mut pages = memmap2::MmapMut::map_anon(whole.len().next_multiple_of(4096)).expect("pages");
    let mut at = 0;
    while at < whole.len() {
        let end = (at + (1 << 20)).min(pages.len());
        let len = direct.read_at(&mut pages[at..end], at as u64).expect("a direct read");
        assert!(len > 0, "the end at {at}");
        at += len;
    }
    assert!(pages[..whole.len()] == whole[..], "O_DIRECT");
    assert_eq!(mount_status(&kept.node)["bytes_read"], 0, "all of it by the kernel alone");

    // Advice makes the kernel read into a cache that it does not read from: useless, and no harm.
    let advised = from();
    rustix::fs::fadvise(&advised, 0, None, Advice::WillNeed).expect("advice");
    rustix::fs::fadvise(&advised, 0, None, Advice::DontNeed).expect("advice");
    rustix::fs::fadvise(&advised, 0, None, Advice::WillNeed).expect("advice");
    let mut bytes = Vec::new();
    (&advised).read_to_end(&mut bytes).expect("the file");
    assert!(bytes == *whole, "after advice");
}

#[test]
fn what_there_is_to_know_of_a_file_is_right() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let Some(kept) = Kept::started(&origin) else { return };
    let directory = directory(&kept);
    for (path, bytes) in &model.files {
        let mut value = [0; 100];
        let len = rustix::fs::getxattr(directory.join(path), "user.larder.blake3", &mut value).expect("an attribute");
        assert_eq!(std::str::from_utf8(&value[..len]), Ok(blake3::hash(bytes).to_hex().as_str()), "{path}");
    }
    let mut value = [0; 100];
    let other = rustix::fs::getxattr(directory.join(SHARD), "user.other", &mut value);
    assert_eq!(other, Err(Errno::NODATA));

    let (shown, store) = (rustix::fs::statvfs(root(&kept.node)), rustix::fs::statvfs(kept.node.store()));
    let (shown, store) = (shown.expect("numbers"), store.expect("numbers"));
    assert_eq!((shown.f_blocks, shown.f_frsize), (store.f_blocks, store.f_frsize));
    // Others write to this disk meanwhile.
    let apart = shown.f_bavail.abs_diff(store.f_bavail) * store.f_frsize;
    assert!(apart < 4 << 30, "{apart} bytes apart");

    for name in [&b"\xff\xfe"[..], b"model-\xc3\x28", b"\x80"] {
        let error = fs::metadata(directory.join(OsStr::from_bytes(name))).expect_err("no such name");
        assert_eq!(error.kind(), ErrorKind::NotFound, "{name:?}: {error}");
        let error = fs::metadata(root(&kept.node).join(OsStr::from_bytes(name))).expect_err("no such name");
        assert_eq!(error.kind(), ErrorKind::NotFound, "{name:?}: {error}");
    }
    assert_eq!(fs::metadata(directory.join("n".repeat(255))).expect_err("none").kind(), ErrorKind::NotFound);

    // Loaders that resolve links, or refuse them, see plain files.
    let mut open = vec![directory.clone()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).expect("a directory") {
            let entry = entry.expect("an entry");
            let kind = entry.file_type().expect("a kind");
            assert!(!kind.is_symlink(), "{}", entry.path().display());
            if kind.is_dir() {
                open.push(entry.path());
            }
        }
    }
    assert!(read_tree(&directory) == model.files);
}
