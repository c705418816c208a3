//! Complete models, real files, where pods want them. None of it needs a daemon.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::Duration;

use larder_keeper::Errands;
use rustix::io::Errno;
use rustix::mount::mount_bind;
use rustix::process::{Pid, Signal, kill_process};

use crate::scene::{PEER_UID, Scene, content, empty_scene, errno, mount_tmpfs, read, scene, until};

fn published() -> Option<(Scene, Errands)> {
    let scene = scene()?;
    let errands = scene.errands();
    Some((scene, errands))
}

#[test]
fn a_model_is_published_once_and_nobody_writes_to_it() {
    let Some((scene, errands)) = published() else { return };
    let (target, descriptors) = (scene.path("pods/p/mount"), scene.descriptors());
    for _ in 0..2 {
        errands.publish("whole", &target).unwrap();
        assert_eq!(scene.mounts().len(), 2, "the file system and one model: {:?}", scene.mounts());
    }
    assert!(scene.mounts()[1].contains(" ro,nosuid,nodev,noexec"), "{:?}", scene.mounts());
    assert_eq!(read(target.join("plain")), content("whole"));
    let writes = [
        fs::write(target.join("new"), ""),
        fs::write(target.join("plain"), ""),
        fs::remove_file(target.join("plain")),
        fs::set_permissions(target.join("plain"), fs::Permissions::from_mode(0o777)),
        std::os::unix::fs::chown(&target, Some(PEER_UID), None),
    ];
    for written in writes {
        assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
    fs::write(scene.models().join("whole/new"), "").expect("the daemon itself writes as ever");
    assert!(target.join("new").exists());
    assert!(errands.unbind(&target).unwrap());
    assert!(!target.exists());
    assert!(!errands.unbind(&target).unwrap());
    assert_eq!(scene.mounts().len(), 1);
    assert!(scene.models().join("whole/plain").exists());
    until("no descriptor is kept", || scene.descriptors() == descriptors);
}

/// A keeper that hung finds requests whose askers have long asked others for the opposite.
#[test]
fn what_nobody_waits_for_any_more_is_not_done() {
    let Some((scene, errands)) = published() else { return };
    let _daemon = scene.daemon(false);
    let targets = ["a", "b", "c"].map(|name| scene.path("pods/p").join(name));
    errands.publish("whole", &targets[2]).unwrap();
    let pid = Pid::from_raw(scene.pid().cast_signed()).expect("a process");
    kill_process(pid, Signal::STOP).expect("a signal");
    let impatient = errands.within(Duration::from_millis(50));
    for error in [
        impatient.publish("whole", &targets[0]).unwrap_err(),
        impatient.bind("model", &targets[1]).unwrap_err(),
        impatient.unbind(&targets[2]).unwrap_err(),
    ] {
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
    }
    kill_process(pid, Signal::CONT).expect("a signal");
    until("all have been seen", || scene.logs("whoever asked has gone") == 3);
    assert!(!targets[0].exists() && !targets[1].exists());
    assert_eq!(read(targets[2].join("plain")), content("whole"));
}

/// Names that /proc writes otherwise than they are.
#[test]
fn any_name_is_known_again() {
    let Some((scene, errands)) = published() else { return };
    let target = scene.path("pods/p/mount");
    for name in [&b"a b"[..], b"a\\040b", b"\t\n#", b"\xff\xfe", b"deleted"] {
        let name = Path::new(OsStr::from_bytes(name));
        fs::create_dir(scene.models().join(name)).unwrap();
        for _ in 0..2 {
            errands.publish(name, &target).unwrap();
            assert_eq!(scene.mounts().len(), 2, "{name:?}: {:?}", scene.mounts());
        }
    }
    assert!(errands.unbind(&target).unwrap());
    assert_eq!(scene.mounts().len(), 1);
}

#[test]
fn publishes_and_binds_replace_each_other() {
    let Some((mut scene, errands)) = published() else { return };
    let daemon = scene.daemon(false);
    let target = scene.path("pods/p/mount");
    fs::create_dir(scene.models().join("other")).unwrap();
    errands.bind("model", &target).unwrap();
    errands.publish("whole", &target).unwrap();
    assert_eq!(read(target.join("plain")), content("whole"));
    errands.publish("other", &target).unwrap();
    assert!(!target.join("plain").exists());
    errands.bind("model", &target).unwrap();
    assert_eq!(read(target.join("plain")), content("plain"));
    assert_eq!(scene.mounts().len(), 2, "{:?}", scene.mounts());
    // A dead one, too.
    scene.end(Signal::KILL);
    drop(daemon);
    scene.start();
    errands.publish("whole", &target).unwrap();
    assert_eq!(read(target.join("plain")), content("whole"));
    assert_eq!(scene.mounts().len(), 2, "{:?}", scene.mounts());
}

#[test]
fn a_publish_outlives_its_keeper_and_the_next_one_takes_it_away() {
    let Some((mut scene, errands)) = published() else { return };
    let [kept, moved, gone, remade] = ["kept", "moved", "gone", "remade"].map(|name| scene.path("pods/p").join(name));
    let models = scene.models();
    let model = |name: &str| models.join(name);
    for (name, target) in [("whole", &kept), ("moved", &moved), ("gone", &gone), ("remade", &remade)] {
        fs::create_dir_all(model(name)).unwrap();
        errands.publish(name, target).unwrap();
    }
    scene.end(Signal::KILL);
    assert_eq!(read(kept.join("plain")), content("whole"));
    // As the daemon removes a model.
    for name in ["moved", "gone", "remade"] {
        fs::rename(model(name), scene.path("data/v1/scratch").join(name)).unwrap();
    }
    for name in ["gone", "remade"] {
        fs::remove_dir(scene.path("data/v1/scratch").join(name)).unwrap();
    }
    fs::create_dir_all(model("remade/new")).unwrap();
    scene.start();
    errands.publish("whole", &kept).unwrap();
    errands.publish("remade", &remade).unwrap();
    assert!(remade.join("new").exists(), "not the one that had the name");
    assert_eq!(scene.mounts().len(), 1 + 4, "{:?}", scene.mounts());
    fs::remove_dir_all(scene.path("data")).unwrap();
    for target in [kept, moved, gone, remade] {
        assert!(errands.unbind(&target).unwrap(), "{target:?}");
        assert!(!target.exists());
    }
    assert_eq!(scene.mounts().len(), 1, "{:?}", scene.mounts());
}

#[test]
fn nothing_but_models_is_published_and_only_to_empty_places() {
    let Some((scene, errands)) = published() else { return };
    let (models, pod) = (scene.models(), scene.path("pods/p"));
    symlink("whole", models.join("link")).unwrap();
    symlink("/etc", models.join("etc")).unwrap();
    fs::write(models.join("file"), "").unwrap();
    fs::create_dir(models.join("mounted")).unwrap();
    mount_tmpfs(&models.join("mounted"));
    for directory in ["full/entry", "tmpfs", "foreign", "empty"] {
        fs::create_dir_all(pod.join(directory)).unwrap();
    }
    mount_tmpfs(&pod.join("tmpfs"));
    // Of the same file system, but not of the store.
    mount_bind(scene.path("store/model"), pod.join("foreign")).unwrap();
    symlink("empty", pod.join("near")).unwrap();
    let mounts = scene.mounts();
    for (name, expected) in [
        ("", Errno::INVAL),
        (".", Errno::INVAL),
        ("..", Errno::INVAL),
        ("/", Errno::INVAL),
        ("/whole", Errno::INVAL),
        ("./whole", Errno::INVAL),
        ("whole/", Errno::INVAL),
        ("whole/.", Errno::INVAL),
        ("whole/sub", Errno::INVAL),
        ("../scratch", Errno::INVAL),
        ("nothing", Errno::NOENT),
        ("link", Errno::LOOP),
        ("etc", Errno::LOOP),
        ("file", Errno::NOTDIR),
        ("mounted", Errno::XDEV),
    ] {
        assert_eq!(errno(errands.publish(name, pod.join("new"))), expected, "{name:?}");
        assert!(!pod.join("new").exists(), "made only for a model that is there");
    }
    for (target, expected) in [
        (scene.path("store/x"), Errno::PERM),
        (scene.path("pods"), Errno::PERM),
        (pod.join("../../store/x"), Errno::PERM),
        (pod.join("a/b"), Errno::NOENT),
        (pod.join("near"), Errno::LOOP),
        (pod.join("near/x"), Errno::LOOP),
        (pod.join("full"), Errno::NOTEMPTY),
        (pod.join("tmpfs"), Errno::BUSY),
        (pod.join("foreign"), Errno::BUSY),
        (pod.join("foreign/x"), Errno::XDEV),
    ] {
        assert_eq!(errno(errands.publish("whole", &target)), expected, "{target:?}");
    }
    assert!(!errands.unbind(pod.join("foreign")).unwrap(), "not ours");
    assert!(!errands.unbind(pod.join("tmpfs")).unwrap(), "nor this");
    assert_eq!(scene.mounts(), mounts, "nothing was mounted or taken away");
    // What is mounted below a model does not come with it.
    mount_tmpfs(&models.join("whole/sub"));
    fs::write(models.join("whole/sub/file"), "").unwrap();
    errands.publish("whole", pod.join("empty")).unwrap();
    assert_eq!(fs::read_dir(pod.join("empty/sub")).unwrap().count(), 0);
}

/// The daemon owns the directories on the way to its models, and could make one a link.
#[test]
fn the_way_to_the_models_has_no_links() {
    let Some(mut scene) = empty_scene() else { return };
    symlink(scene.path("data"), scene.path("linked")).unwrap();
    let mut command = scene.command();
    command.env("LARDER_KEEPER_MODELS", scene.path("linked/v1/models"));
    scene.start_as(command);
    assert_eq!(errno(scene.errands().publish("whole", scene.path("pods/p/x"))), Errno::LOOP);
    assert_eq!(scene.mounts().len(), 1);
}

#[test]
fn whether_a_directory_is_there() {
    let Some((scene, errands)) = published() else { return };
    let pods = scene.path("pods");
    symlink("p", pods.join("link")).unwrap();
    fs::write(pods.join("file"), "").unwrap();
    for directory in ["p/a", "mounted"] {
        fs::create_dir(pods.join(directory)).unwrap();
    }
    mount_tmpfs(&pods.join("mounted"));
    for (path, expected) in [("p", true), ("p/a", true), ("gone", false), ("gone/a", false), ("file", false)] {
        assert_eq!(errands.there(pods.join(path)).unwrap(), expected, "{path}");
    }
    for (path, expected) in [
        (pods.join("link"), Errno::LOOP),
        (pods.join("link/a"), Errno::LOOP),
        (pods.join("mounted"), Errno::XDEV),
        (pods.join("mounted/a"), Errno::XDEV),
        (pods.join("x".repeat(256)), Errno::NAMETOOLONG),
        (pods.join("../store"), Errno::PERM),
        (pods.clone(), Errno::PERM),
        (scene.path("store"), Errno::PERM),
        ("/etc".into(), Errno::PERM),
    ] {
        assert_eq!(errno(errands.there(&path)), expected, "{path:?}");
    }
    fs::rename(&pods, scene.path("away")).unwrap();
    assert_eq!(errno(errands.there(pods.join("p"))), Errno::NOENT, "whoever cannot see pods says nothing of them");
    fs::rename(scene.path("away"), &pods).unwrap();
}
