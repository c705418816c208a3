//! Models bound where pods want them.

use std::fs;
use std::os::unix::fs::symlink;
use std::thread;

use larder_keeper::{Errands, protocol};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::scene::{Daemon, Scene, content, errno, mode, mount_tmpfs, read, scene, until};

fn with_daemon(scene: &Scene, parks: bool) -> (Errands, Daemon) {
    (scene.errands(), scene.daemon(parks))
}

#[test]
fn a_model_is_bound_once_and_read_only() {
    let Some(scene) = scene() else { return };
    let (keeper, _daemon) = with_daemon(&scene, false);
    let descriptors = scene.descriptors();
    let target = scene.path("pods/p/mount");
    keeper.bind("model", &target).unwrap();
    assert_eq!(read(target.join("plain")), content("plain"));
    keeper.bind("model", &target).unwrap();
    assert_eq!(scene.mounts().len(), 2, "the mount and one bind: {:?}", scene.mounts());
    assert!(scene.mounts()[1].contains(" ro,nosuid,nodev,noexec,noatime"), "{:?}", scene.mounts());
    let error = fs::write(target.join("new"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    // Another directory takes its place; nothing piles up.
    keeper.bind("gate", &target).unwrap();
    assert!(fs::metadata(target.join("plain")).is_err());
    assert_eq!(scene.mounts().len(), 2);
    assert!(keeper.unbind(&target).unwrap());
    assert!(!target.exists());
    assert!(!keeper.unbind(&target).unwrap());
    assert!(!keeper.unbind(scene.path("pods/gone/mount")).unwrap());
    assert_eq!(scene.mounts().len(), 1);
    until("no descriptor is kept", || scene.descriptors() == descriptors);
}

#[test]
fn a_target_is_made_if_only_it_is_missing() {
    let Some(scene) = scene() else { return };
    let (keeper, _daemon) = with_daemon(&scene, false);
    let target = scene.path("pods/p/mount");
    fs::create_dir(&target).unwrap();
    keeper.bind("model", &target).unwrap();
    keeper.unbind(&target).unwrap();
    assert_eq!(errno(keeper.bind("nothing", &target)), Errno::NOENT);
    assert!(!target.exists(), "made only for a model that is there");
    assert_eq!(errno(keeper.bind("model", scene.path("pods/a/b"))), Errno::NOENT);
    mount_tmpfs(&scene.path("pods/p"));
    assert_eq!(errno(keeper.bind("model", &target)), Errno::XDEV, "below what is mounted by others");
}

#[test]
fn models_are_bound_nowhere_else() {
    let Some(scene) = scene() else { return };
    let (keeper, _daemon) = with_daemon(&scene, false);
    let (pod, other) = (scene.path("pods/p"), scene.path("store/other"));
    for directory in [&other, &pod.join("full/entry"), &pod.join("tmpfs"), &pod.join("empty")] {
        fs::create_dir_all(directory).unwrap();
    }
    symlink(&other, pod.join("link")).unwrap();
    symlink("empty", pod.join("near")).unwrap();
    fs::write(pod.join("file"), "kept").unwrap();
    mount_tmpfs(&pod.join("tmpfs"));
    let mounts = scene.mounts();
    for (target, expected) in [
        (other.clone(), Errno::PERM),
        ("/".into(), Errno::PERM),
        ("".into(), Errno::PERM),
        ("pods/p/x".into(), Errno::PERM),
        (scene.path("pods"), Errno::PERM),
        (scene.path("podsX"), Errno::PERM),
        (pod.join("../../store/other"), Errno::PERM),
        (pod.join(".."), Errno::PERM),
        (pod.join("link"), Errno::LOOP),
        (pod.join("near"), Errno::LOOP),
        (pod.join("link/x"), Errno::LOOP),
        (pod.join("near/x"), Errno::LOOP),
        (pod.join("file"), Errno::NOTDIR),
        (pod.join("file/x"), Errno::NOTDIR),
        (pod.join("full"), Errno::NOTEMPTY),
        (pod.join("tmpfs"), Errno::BUSY),
        (pod.join("tmpfs/x"), Errno::XDEV),
    ] {
        assert_eq!(errno(keeper.bind("model", &target)), expected, "{target:?}");
    }
    for (source, expected) in [
        ("", Errno::INVAL),
        (".", Errno::INVAL),
        ("/", Errno::INVAL),
        ("..", Errno::INVAL),
        ("/model", Errno::INVAL),
        ("model/../gate", Errno::INVAL),
        ("model/../../..", Errno::INVAL),
        ("model/plain", Errno::NOTDIR),
        ("model/nothing", Errno::NOENT),
    ] {
        assert_eq!(errno(keeper.bind(source, pod.join("empty"))), expected, "{source:?}");
    }
    assert_eq!(scene.mounts(), mounts, "nothing was mounted or taken away");
    assert_eq!(fs::read_dir(&other).unwrap().count(), 0);

    assert!(!keeper.unbind(pod.join("tmpfs")).unwrap(), "not ours");
    assert!(!keeper.unbind(pod.join("full")).unwrap(), "not empty");
    assert!(pod.join("full/entry").exists());
    assert_eq!(errno(keeper.unbind(&other)), Errno::PERM);
    assert_eq!(errno(keeper.unbind(pod.join("link"))), Errno::LOOP);
    assert_eq!(scene.mounts(), mounts);
    let sentence = keeper.bind("model", "/etc").unwrap_err().to_string();
    assert!(sentence.contains("`/etc`"), "{sentence}");
}

/// The mount is another one after a keeper was killed. What it had bound is dead, and replaced.
#[test]
fn binds_of_a_keeper_that_died_are_replaced() {
    let Some(mut scene) = scene() else { return };
    let (kept, dropped) = (scene.path("pods/p/kept"), scene.path("pods/p/dropped"));
    let (keeper, daemon) = with_daemon(&scene, false);
    keeper.bind("model", &kept).unwrap();
    keeper.bind("model", &dropped).unwrap();
    scene.end(Signal::KILL);
    drop(daemon);
    assert_eq!(fs::read(kept.join("new")).unwrap_err().raw_os_error(), Some(Errno::NOTCONN.raw_os_error()));
    scene.start();
    let (keeper, _daemon) = with_daemon(&scene, false);
    keeper.bind("model", &kept).unwrap();
    assert_eq!(read(kept.join("plain")), content("plain"));
    assert!(keeper.unbind(&dropped).unwrap());
    assert!(!dropped.exists());
    assert_eq!(scene.mounts().len(), 2, "{:?}", scene.mounts());
    assert_eq!(mode(kept.parent().unwrap()), 0o755, "as it was");
}

/// More binds than are allowed wait for a daemon that will never answer. The next one is heard,
/// answers them, and all of those that waited are done.
#[test]
fn a_bind_waits_for_the_next_daemon_and_holds_nobody_up() {
    let Some(scene) = scene() else { return };
    let (keeper, first) = with_daemon(&scene, true);
    let binds: Vec<_> = (0..64)
        .map(|number| {
            let (keeper, target) = (keeper.clone(), scene.path(&format!("pods/p/{number}")));
            thread::spawn(move || keeper.bind("gate", target))
        })
        .collect();
    until("all wait", || scene.threads() == 2 + 2 * 64);
    first.says("parked a look-up");
    assert_eq!(errno(keeper.bind("gate", scene.path("pods/p/one_more"))), Errno::BUSY);
    first.kill();
    let (next, hello) = scene.connect();
    assert_eq!(next.keys(hello.fuse.epoch, None).unwrap(), []);
    drop((next, hello));
    let _second = scene.daemon(false);
    binds.into_iter().for_each(|bind| bind.join().unwrap().unwrap());
    assert_eq!(scene.mounts().len(), 1 + 64);
    until("their threads are gone", || scene.threads() == 2);
    for number in 0..64 {
        assert!(keeper.unbind(scene.path(&format!("pods/p/{number}"))).unwrap());
    }
}

/// A request that a dead daemon had read cannot be cancelled, not even by SIGKILL. It must not
/// keep the keeper from ending.
#[test]
fn a_bind_that_waits_does_not_keep_a_killed_keeper_alive() {
    for signal in [Signal::KILL, Signal::TERM] {
        let Some(mut scene) = scene() else { return };
        let (keeper, daemon) = with_daemon(&scene, true);
        let target = scene.path("pods/p/mount");
        let bind = thread::spawn(move || keeper.bind("gate", target));
        daemon.says("parked a look-up");
        daemon.kill();
        scene.end(signal);
        bind.join().unwrap().unwrap_err();
    }
}

/// The daemon before asked, and was killed while the walk waited for it; the next one has taken the
/// volume away since.
#[test]
fn a_bind_that_waited_for_a_daemon_ends_with_the_one_that_asked() {
    let Some(scene) = scene() else { return };
    let target = scene.path("pods/p/mount");
    let asked = scene.raw();
    let target_bytes = target.to_str().expect("ASCII").as_bytes();
    protocol::send(&asked, &protocol::join(&[b"bind", b"model", target_bytes]), None).expect("sent");
    until("it waits for a daemon", || scene.threads() == 3);
    drop(asked);
    let _daemon = scene.daemon(false);
    until("it has ended", || scene.logs("whoever asked has gone") == 1);
    assert!(!target.exists());
    assert_eq!(scene.mounts().len(), 1, "{:?}", scene.mounts());
}
