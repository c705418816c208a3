//! What the keeper says is mounted for pods.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use larder_keeper::{Errands, What};
use rustix::io::Errno;
use rustix::mount::mount_bind;
use rustix::process::Signal;

use crate::scene::{Scene, ask, empty_scene, errno, mount_tmpfs, scene, until};

/// By where it is.
fn mounts(errands: &Errands) -> BTreeMap<PathBuf, What> {
    errands.mounts().expect("a list").into_iter().map(|mounted| (mounted.target, mounted.what)).collect()
}

fn model(name: &str) -> What {
    What::Model(name.into())
}

/// What a pod has of each kind, and things beside it that are nobody's business.
fn furnished(scene: &Scene) -> BTreeMap<PathBuf, What> {
    let (errands, pod) = (scene.errands(), scene.path("pods/p"));
    let daemon = scene.daemon(false);
    fs::create_dir(scene.models().join("removed")).expect("done");
    for directory in ["subpath", "tmpfs", "foreign"] {
        fs::create_dir(pod.join(directory)).expect("done");
    }
    errands.publish("whole", pod.join("published")).expect("done");
    errands.publish("removed", pod.join("removed")).expect("done");
    errands.bind("model", pod.join("bound")).expect("done");
    // As kubelet does for a container with a `subPath`.
    mount_bind(pod.join("published/sub"), pod.join("subpath")).expect("done");
    // As the daemon removes a model.
    fs::rename(scene.models().join("removed"), scene.path("data/v1/scratch/1")).expect("done");
    fs::remove_dir(scene.path("data/v1/scratch/1")).expect("done");
    mount_tmpfs(&pod.join("tmpfs"));
    mount_bind(scene.path("store/model"), pod.join("foreign")).expect("done");
    mount_bind(scene.models().join("whole"), scene.path("plugins")).expect("done");
    daemon.kill();
    [
        ("published", model("whole")),
        ("subpath", model("whole")),
        ("removed", model("")),
        ("bound", What::Directory("model".into())),
    ]
    .map(|(name, what)| (pod.join(name), what))
    .into()
}

#[test]
fn what_pods_have_is_told_while_no_daemon_answers() {
    let Some(mut scene) = scene() else { return };
    assert_eq!(mounts(&scene.errands()), BTreeMap::new());
    let descriptors = scene.descriptors();
    let expected = furnished(&scene);
    assert_eq!(mounts(&scene.errands()), expected);
    until("no descriptor is kept", || scene.descriptors() == descriptors);
    // The next keeper knows the same, of a mount whose file system is gone as well.
    scene.end(Signal::KILL);
    scene.start();
    assert_eq!(mounts(&scene.errands()), expected);
    for target in expected.keys().filter(|target| !target.ends_with("subpath")) {
        scene.errands().unbind(target).unwrap();
    }
    assert_eq!(mounts(&scene.errands()).into_values().collect::<Vec<_>>(), [model("whole")], "kubelet's own stays");
}

#[test]
fn mounts_come_in_pages() {
    let Some(scene) = scene() else { return };
    let (errands, pod) = (scene.errands(), scene.path("pods/p"));
    let long = "x".repeat(200);
    let targets: Vec<PathBuf> = (0..60).map(|number| pod.join(format!("{long}{number}"))).collect();
    for target in &targets {
        errands.publish("whole", target).unwrap();
    }
    assert_eq!(mounts(&errands), targets.iter().map(|target| (target.clone(), model("whole"))).collect());
    let (socket, mut pages, mut after) = (scene.raw(), 0, String::new());
    let mut ids = Vec::new();
    loop {
        let answer = ask(&socket, format!("mounts\0{after}").as_bytes());
        let fields: Vec<&str> = answer.split('|').skip(1).collect();
        let page: Vec<u64> = fields.chunks(4).map(|mount| mount[0].parse().expect("a number")).collect();
        let Some(last) = page.last() else { break };
        after = last.to_string();
        ids.extend(page);
        pages += 1;
    }
    assert!(pages > 1, "{pages}");
    assert!(ids.is_sorted() && ids.len() == targets.len(), "{ids:?}");
}

#[test]
fn pods_are_where_the_daemon_says_though_the_kernel_says_otherwise() {
    let Some(mut scene) = empty_scene() else { return };
    let (pods, kubelet) = (scene.path("pods"), scene.path("kubelet"));
    symlink(&scene.root, &kubelet).unwrap();
    let mut command = scene.command();
    command.arg("--bind-below").arg(kubelet.join("pods"));
    scene.start_as(command);
    let errands = scene.errands();
    errands.publish("whole", kubelet.join("pods/p/x")).unwrap();
    assert_eq!(mounts(&errands).into_keys().collect::<Vec<_>>(), [pods.join("p/x")], "by the first name there is");
    // Only a keeper that sees pods may say that there is nothing.
    fs::rename(&pods, scene.path("away")).unwrap();
    assert_eq!(errno(errands.mounts()), Errno::NOENT);
    fs::rename(scene.path("away"), &pods).unwrap();
    assert!(errands.unbind(Path::new(&pods).join("p/x")).unwrap());
}
