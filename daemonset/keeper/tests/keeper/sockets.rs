//! Listening sockets in kubelet's directories.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};

use crate::scene::{errno, is_socket, mode, mount_tmpfs, scene, until};

#[test]
fn kubelet_reaches_the_daemon_through_a_socket_of_the_keepers() {
    let Some(scene) = scene() else { return };
    let keeper = scene.errands();
    let descriptors = scene.descriptors();
    let path = scene.path("plugins/larder/csi.sock");
    let listener = UnixListener::from(keeper.listen(&path).unwrap());
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o755));
    let _kubelet = UnixStream::connect(&path).unwrap();
    listener.accept().unwrap();
    keeper.unlisten(&path).unwrap();
    assert!(!path.exists());
    keeper.unlisten(&path).unwrap();
    keeper.listen(scene.path("registry/larder-reg.sock")).unwrap();
    assert!(is_socket(&scene.path("registry/larder-reg.sock")));
    until("one socket is kept", || scene.descriptors() == descriptors + 1);
}

/// Who connects while one daemon is gone and the next is not there yet is answered all the same.
#[test]
fn a_socket_outlives_its_daemon() {
    let Some(scene) = scene() else { return };
    let (keeper, path) = (scene.errands(), scene.path("plugins/csi.sock"));
    let inode = || fs::symlink_metadata(&path).unwrap().ino();
    let first = UnixListener::from(keeper.listen(&path).unwrap());
    let before = inode();
    drop(first);
    let mut kubelet = UnixStream::connect(&path).expect("nobody is there, and nobody is refused");
    kubelet.write_all(b"probe").unwrap();
    let second = UnixListener::from(keeper.listen(&path).unwrap());
    assert_eq!(inode(), before);
    let mut said = [0; 5];
    second.accept().unwrap().0.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"probe");
}

#[test]
fn a_socket_that_cannot_be_reached_any_more_is_made_anew() {
    let Some(scene) = scene() else { return };
    let (keeper, path) = (scene.errands(), scene.path("plugins/csi.sock"));
    let answers = |listener: UnixListener| {
        let _kubelet = UnixStream::connect(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener.accept().is_ok()
    };
    assert!(answers(keeper.listen(&path).unwrap().into()));
    fs::remove_file(&path).unwrap();
    assert!(answers(keeper.listen(&path).unwrap().into()), "without a name");
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    assert!(answers(keeper.listen(&path).unwrap().into()), "with a name that is another one's");
    drop(other);
    shutdown(keeper.listen(&path).unwrap(), Shutdown::Both).unwrap();
    UnixStream::connect(&path).unwrap_err();
    assert!(answers(keeper.listen(&path).unwrap().into()), "shut down by a daemon");
    keeper.unlisten(&path).unwrap();
    assert!(answers(keeper.listen(&path).unwrap().into()), "taken back");
}

#[test]
fn a_bounded_number_of_sockets_is_kept() {
    let Some(scene) = scene() else { return };
    let (keeper, descriptors) = (scene.errands(), scene.descriptors());
    let path = |number: usize| scene.path(&format!("plugins/{number}"));
    (0..40).for_each(|number| drop(keeper.listen(path(number)).unwrap()));
    until("no more are kept", || scene.descriptors() == descriptors + 16);
    UnixStream::connect(path(0)).unwrap_err();
    UnixStream::connect(path(39)).unwrap();
    (0..40).for_each(|number| keeper.unlisten(path(number)).unwrap());
    until("none is kept", || scene.descriptors() == descriptors);
}

#[test]
fn sockets_are_made_nowhere_else() {
    let Some(scene) = scene() else { return };
    let keeper = scene.errands();
    let (plugins, other) = (scene.path("plugins"), scene.path("store/other"));
    fs::create_dir(&other).unwrap();
    symlink(&other, plugins.join("link")).unwrap();
    symlink(other.join("target"), plugins.join("leaf")).unwrap();
    fs::write(plugins.join("file"), "kept").unwrap();
    fs::create_dir(plugins.join("directory")).unwrap();
    fs::create_dir(plugins.join("mounted")).unwrap();
    mount_tmpfs(&plugins.join("mounted"));
    for (path, expected) in [
        (other.join("s"), Errno::PERM),
        (plugins.clone(), Errno::PERM),
        (plugins.join("../store/other/s"), Errno::PERM),
        ("plugins/s".into(), Errno::PERM),
        ("".into(), Errno::PERM),
        (scene.path("pluginsX/s"), Errno::PERM),
        (scene.path("pods/s"), Errno::PERM),
        (plugins.join("link/s"), Errno::LOOP),
        (plugins.join("mounted/s"), Errno::XDEV),
        (plugins.join("file/s"), Errno::NOTDIR),
        (plugins.join("a/b/s"), Errno::NOENT),
        (plugins.join("file"), Errno::NOTSOCK),
        (plugins.join("leaf"), Errno::NOTSOCK),
        (plugins.join("directory"), Errno::NOTSOCK),
        (plugins.join("s".repeat(256)), Errno::NAMETOOLONG),
    ] {
        assert_eq!(errno(keeper.listen(&path)), expected, "listen at {path:?}");
        if expected != Errno::NOENT {
            assert_eq!(errno(keeper.unlisten(&path)), expected, "unlisten {path:?}");
        }
    }
    assert_eq!(fs::read_to_string(plugins.join("file")).unwrap(), "kept");
    assert_eq!(fs::read_dir(&other).unwrap().count(), 0);
    assert!(!plugins.join("a").exists());
}
