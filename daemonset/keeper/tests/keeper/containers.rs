//! The keeper as Kubernetes runs it: process 1 of a container, with the node's directories
//! mounted `Bidirectional`, beside a daemon and pods that it does not see.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use larder_keeper::{Mounted, What};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::Signal;

use crate::scene::{Scene, content, empty_scene, mount_tmpfs, read, until};

/// A scene whose directory is a mount that others share, with a keeper in namespaces of its own.
fn scene_in_containers() -> Option<(Scene, i32)> {
    if !Command::new("unshare").arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: needs unshare(1)");
        return None;
    }
    let mut scene = empty_scene()?;
    share(&scene.root, &scene.root);
    // A volume that the container sees by another name than the node.
    fs::create_dir(scene.path("volume")).expect("a directory");
    share(&scene.path("data"), &scene.path("volume"));
    let keeper = scene.command();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount", "--propagation", "unchanged"]);
    command.arg(keeper.get_program()).args(keeper.get_args()).env("LARDER_KEEPER_MOUNT", scene.mount());
    command.env("LARDER_KEEPER_MODELS", scene.path("volume/v1/models"));
    command.stdin(Stdio::null()).stderr(scene.log());
    scene.start_as(command);
    let children = format!("/proc/{pid}/task/{pid}/children", pid = scene.pid());
    let keeper = fs::read_to_string(children).expect("a list").trim().parse().expect("one child");
    Some((scene, keeper))
}

fn share(directory: &Path, at: &Path) {
    mount_bind(directory, at).expect("a mount");
    mount_change(at, MountPropagationFlags::SHARED).expect("shared");
}

#[test]
fn what_the_keeper_mounts_is_there_for_the_node_and_for_pods() {
    let Some((mut scene, keeper)) = scene_in_containers() else { return };
    let target = scene.path("pods/p/mount");
    // A pod that runs already; it does not see this namespace, only what is propagated to it.
    let mut pod = Command::new("unshare")
        .args(["--mount", "--propagation", "slave", "sh", "-c"])
        .arg("echo; read go; cat \"$0/model/plain\"; cat \"$1/plain\"; echo; read go; ls -A \"$0\"")
        .args([scene.mount(), target.clone()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut go, mut said) = (pod.stdin.take().unwrap(), BufReader::new(pod.stdout.take().unwrap()));
    let mut line = Vec::new();
    said.read_until(b'\n', &mut line).unwrap();

    let client = scene.errands();
    let daemon = scene.daemon(false);
    assert!(scene.logged("the daemon is here: user 65532"), "though it has no number in the keeper's container");
    client.bind("model", &target).unwrap();
    client.bind("model", &target).unwrap();
    assert_eq!(scene.mounts().len(), 4, "the directory, the volume, the mount, the bind: {:?}", scene.mounts());
    assert_eq!(read(target.join("plain")), content("plain"));
    go.write_all(b"\n").unwrap();
    line.clear();
    said.read_until(b'\n', &mut line).unwrap();
    assert_eq!(line.strip_suffix(b"\n"), Some([content("plain"), content("plain")].concat().as_slice()));
    assert!(client.unbind(&target).unwrap());
    assert!(!target.exists());
    client.bind("model", &target).unwrap();

    assert_eq!(scene.end_by(keeper, Signal::TERM).code(), Some(0), "process 1 is told, too");
    drop(daemon);
    until("the mount is gone from the node", || !is_mounted(&scene, &scene.mount()));
    assert!(is_mounted(&scene, &target), "a bind is left for the next keeper");
    go.write_all(b"\n").unwrap();
    line.clear();
    said.read_until(b'\n', &mut line).unwrap();
    assert!(line.is_empty(), "and from the pod");
    pod.wait().unwrap();

    scene.start();
    let client = scene.errands();
    let _daemon = scene.daemon(false);
    client.bind("model", &target).unwrap();
    assert_eq!(read(target.join("plain")), content("plain"));
    assert!(client.unbind(&target).unwrap());
}

#[test]
fn what_the_keeper_publishes_is_there_for_the_node_and_for_pods() {
    let Some((mut scene, keeper)) = scene_in_containers() else { return };
    let target = scene.path("pods/p/mount");
    let mut pod = Command::new("unshare")
        .args(["--mount", "--propagation", "slave", "sh", "-c"])
        .arg("echo; read go; cat \"$0/plain\"; echo; read go; ls -A \"$0\"")
        .arg(&target)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut go, mut said) = (pod.stdin.take().unwrap(), BufReader::new(pod.stdout.take().unwrap()));
    let mut line = Vec::new();
    said.read_until(b'\n', &mut line).unwrap();

    let errands = scene.errands();
    for _ in 0..2 {
        errands.publish("whole", &target).unwrap();
        assert_eq!(scene.mounts().len(), 4, "{:?}", scene.mounts());
    }
    let mount = scene.mounts().into_iter().find(|line| line.contains("/pods/p/mount ")).unwrap();
    let told = Mounted { target: target.clone(), what: What::Model("whole".into()) };
    assert_eq!(errands.mounts().unwrap(), std::slice::from_ref(&told));
    assert!(mount.contains(" ro,nosuid,nodev,noexec"), "{mount}");
    assert!(fs::write(target.join("new"), "").is_err());
    go.write_all(b"\n").unwrap();
    line.clear();
    said.read_until(b'\n', &mut line).unwrap();
    assert_eq!(line.strip_suffix(b"\n"), Some(content("whole").as_slice()));
    // What comes to the store's directories later does not come to the pod.
    mount_tmpfs(&scene.path("volume/v1/models/whole/sub"));
    assert!(!is_mounted(&scene, &target.join("sub")), "{:?}", scene.mounts());

    scene.end_by(keeper, Signal::KILL);
    assert_eq!(read(target.join("plain")), content("whole"), "a publish needs no keeper");
    // The next one sees the same directory by another name.
    scene.start();
    assert_eq!(errands.mounts().unwrap(), [told]);
    assert!(errands.unbind(&target).unwrap());
    assert!(!target.exists());
    go.write_all(b"\n").unwrap();
    line.clear();
    said.read_until(b'\n', &mut line).unwrap();
    assert!(line.is_empty(), "gone from the pod");
    pod.wait().unwrap();
}

fn is_mounted(scene: &Scene, at: &Path) -> bool {
    scene.mounts().iter().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == at))
}
