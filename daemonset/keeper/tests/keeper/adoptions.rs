//! Mounts of keepers before, which pods still have: the next keeper keeps them, too.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use larder_keeper::fuse::PASSTHROUGH;
use larder_keeper::{FuseConnection, Keeper};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::Signal;

use crate::scene::{Scene, ask, content, errno, read, scene, until};

/// A scene whose first mount somebody has elsewhere, and what a daemon holds of it; the keeper that
/// made it is gone, and another one is there.
fn with_a_mount_of_before() -> Option<(Scene, PathBuf, FuseConnection)> {
    let mut scene = scene()?;
    let (_, hello) = scene.connect();
    let elsewhere = scene.path("pods/p/before");
    fs::create_dir(&elsewhere).expect("a directory");
    mount_bind(scene.mount(), &elsewhere).expect("a bind mount");
    scene.end(Signal::KILL);
    scene.start();
    Some((scene, elsewhere, hello.fuse))
}

fn same(fuse: &FuseConnection) -> FuseConnection {
    FuseConnection { epoch: fuse.epoch, agreed: fuse.agreed, device: fuse.device.try_clone().expect("a descriptor") }
}

#[test]
fn a_mount_of_a_keeper_before_outlives_the_daemon_that_held_it() {
    let Some((scene, elsewhere, before)) = with_a_mount_of_before() else { return };
    let (keeper, hello) = scene.connect();
    assert_ne!(hello.fuse.epoch, before.epoch);
    assert!(keeper.adopted(None).unwrap().is_none());
    assert!(keeper.adopt(&before).unwrap());
    assert!(!keeper.adopt(&before).unwrap(), "once is enough");
    assert!(!keeper.adopt(&hello.fuse).unwrap(), "its own it has");
    let (epoch, agreed) = (before.epoch, before.agreed);
    drop((keeper, hello, before));

    // Nobody but the keeper has the connection now.
    let (keeper, _) = scene.connect();
    let found = keeper.adopted(None).unwrap().expect("the connection");
    assert_eq!((found.epoch, found.agreed), (epoch, agreed));
    assert!(keeper.adopted(Some(epoch)).unwrap().is_none(), "there is one");
    drop((keeper, found));
    let first = scene.daemon(false);
    assert_eq!(read(elsewhere.join("model/plain")), content("plain"));
    let open = File::open(elsewhere.join("model/passed")).unwrap();
    let id = (agreed.flags & PASSTHROUGH != 0).then(|| first.says("backed"));
    first.kill();
    let second = scene.daemon(false);
    assert_eq!(read(elsewhere.join("model/passed")), content("passed"));
    let mut byte = [0];
    open.read_exact_at(&mut byte, 200_000).unwrap();
    if let Some(id) = id {
        assert_eq!(second.says("backed"), id);
    }
    drop((open, second));

    let with_it = scene.descriptors();
    unmount(&elsewhere, UnmountFlags::DETACH).unwrap();
    let (keeper, _) = scene.connect();
    until("it is over", || keeper.adopted(None).unwrap().is_none());
    drop(keeper);
    until("its descriptor is closed", || scene.descriptors() < with_it);
}

#[test]
fn ids_of_a_keeper_before_are_remembered() {
    let Some(mut scene) = scene() else { return };
    let (keeper, hello) = scene.connect();
    if hello.fuse.agreed.flags & PASSTHROUGH == 0 {
        return eprintln!("skipped: this kernel has no passthrough");
    }
    let elsewhere = scene.path("pods/p/before");
    fs::create_dir(&elsewhere).unwrap();
    mount_bind(scene.mount(), &elsewhere).unwrap();
    let (before, file) = (hello.fuse, || File::open(scene.path("store/model/plain")).unwrap());
    let (one, two) = (before.epoch, 7);
    let id = keeper.back(one, two, file()).unwrap();
    drop(keeper);
    scene.end(Signal::KILL);
    scene.start();
    let file = || File::open(scene.path("store/model/plain")).unwrap();
    let (keeper, hello) = scene.connect();
    assert_eq!(errno(keeper.keys(one, None)), Errno::NOTCONN, "not its own");
    assert!(keeper.adopt(&before).unwrap());
    assert_eq!(keeper.keys(one, None).unwrap(), []);
    keeper.remember(one, two, id).unwrap();
    keeper.remember(one, two, id + 100).unwrap();
    assert_eq!(keeper.keys(one, None).unwrap(), [(two, id)], "the first word counts");
    assert_eq!(keeper.back(one, two, file()).unwrap(), id);
    let other = keeper.back(one, 8, file()).unwrap();
    assert_ne!(other, id, "the kernel has counted on");
    assert_eq!(keeper.keys(hello.fuse.epoch, None).unwrap(), [], "each connection has its own");
    assert!(keeper.unback(one, two).unwrap());
    assert!(!keeper.unback(one, two).unwrap());
    assert_eq!(keeper.keys(one, None).unwrap(), [(8, other)]);
}

#[test]
fn nothing_but_a_connection_that_lives_is_adopted_and_not_too_many() {
    let Some((scene, elsewhere, before)) = with_a_mount_of_before() else { return };
    let (keeper, _hello) = scene.connect();
    let with = |device: OwnedFd| FuseConnection { epoch: 1, agreed: before.agreed, device };
    let opened = |path: &str| OwnedFd::from(File::options().read(true).open(path).unwrap());
    assert_eq!(errno(keeper.adopt(&with(opened("/dev/null")))), Errno::INVAL);
    assert_eq!(errno(keeper.adopt(&with(opened("/proc/version")))), Errno::INVAL);
    assert_eq!(errno(keeper.adopt(&with(opened("/dev/fuse")))), Errno::NOTCONN, "connected to nothing");
    // Only the daemon may, and ask for what there is.
    let adopt = |keeper: &Keeper, epoch| keeper.adopt(&FuseConnection { epoch, ..same(&before) });
    let stranger = scene.raw();
    assert!(ask(&stranger, b"adopted\0").starts_with("error|1|"));
    assert!(ask(&stranger, b"remember\x001\x001\x001").starts_with("error|1|"));
    let descriptors = scene.descriptors();
    for epoch in 1..=16 {
        assert!(adopt(&keeper, epoch).unwrap());
    }
    assert_eq!(errno(adopt(&keeper, 17)), Errno::NOSPC);
    assert!(!adopt(&keeper, 16).unwrap(), "that one is there");
    let mut found = Vec::new();
    while let Some(fuse) = keeper.adopted(found.last().copied()).unwrap() {
        found.push(fuse.epoch);
    }
    assert_eq!(found, (1..=16).collect::<Vec<u64>>());
    assert_eq!(scene.descriptors(), descriptors + 16, "what was refused is closed");
    unmount(&elsewhere, UnmountFlags::DETACH).unwrap();
    until("all are over", || keeper.adopted(None).unwrap().is_none());
    assert_eq!(errno(adopt(&keeper, 18)), Errno::NOTCONN);
    assert_eq!(scene.descriptors(), descriptors);
}
