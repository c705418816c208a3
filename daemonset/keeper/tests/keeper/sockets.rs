//! Listening sockets in kubelet's directories.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::io::Errno;

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
    // The next daemon: the old descriptor is gone with its process, the name is not.
    let second = UnixListener::from(keeper.listen(&path).unwrap());
    let _kubelet = UnixStream::connect(&path).unwrap();
    second.accept().unwrap();
    keeper.unlisten(&path).unwrap();
    assert!(!path.exists());
    keeper.unlisten(&path).unwrap();
    keeper.listen(scene.path("registry/larder-reg.sock")).unwrap();
    assert!(is_socket(&scene.path("registry/larder-reg.sock")));
    until("no descriptor is kept", || scene.descriptors() == descriptors);
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
