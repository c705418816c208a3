//! `BentoML`, Ray Serve and `TorchServe`, as `PyPI` has them, serve a model that is a CSI volume: as a user
//! that nobody knows, in containers that have what `daemonset/examples` gives them (variables, mounts and,
//! but for Ray's, the probes) and nothing else to write to, without any network. The applications are small
//! ones of our own. None of it has a GPU: torch is Debian's, as that of `PyPI` is gigabytes for GPUs.

mod matrix;
mod pod;
mod torchserve;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use larder_origins::{Checksums, Fault, Front, Noise, Origin};
use serde_json::Value;

use super::kubelet::Volume;
use super::{owners, started};
use crate::mount::{Kept, mount_status};
use crate::support::{program, skipped};
use matrix::Matrix;
use pod::{Example, Pod, text};

/// Where `tests/run` installs some servers. `None`, with the reason printed, where it did not.
fn installed(servers: &str, reason: &str) -> Option<PathBuf> {
    let at = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/test-{servers}"));
    let found = at.join("ready").exists();
    if !found {
        skipped(servers, reason);
    }
    found.then_some(at)
}

fn servers() -> Option<PathBuf> {
    installed("servers", "`tests/run` installs BentoML and Ray Serve")
}

fn origin(prefix: &str, matrix: &Matrix) -> Origin {
    let origin = Origin::start(Front::S3).expect("an origin");
    let config = br#"{"model_type":"none"}"#.to_vec();
    for (name, contents) in [("config.json", config), ("model.safetensors", matrix.file())] {
        origin.bucket().put(&format!("{prefix}{name}"), contents, Checksums::none());
    }
    origin
}

/// Not a byte of the weights before what this returns is called, and then 4 MiB of them slowly.
fn held_back(origin: &Origin) -> impl FnOnce() {
    let gone = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&gone);
    origin.misbehave_on_reads(move |_, request| {
        let is_weights = request.path.ends_with("model.safetensors");
        while is_weights && !gate.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
        is_weights.then_some(Fault::Slow(2 << 20))
    });
    move || gone.store(true, Relaxed)
}

/// Read while they arrived, in the time that this takes.
#[track_caller]
fn arrived_slowly(kept: &Kept, told: &Value) {
    let status = mount_status(&kept.node);
    assert!(status["opens_arriving"].as_u64() >= Some(1), "{status}");
    assert_eq!(status["reads_failed"], 0, "{status}\n{}", kept.logs());
    assert!(told["seconds"].as_f64() > Some(2.0), "it waited for its weights: {told}");
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/csi/servers")
}

fn source(name: &str) -> Vec<u8> {
    fs::read(sources().join(name)).expect("one of our files")
}

/// Has the applications lie where containers find them; whoever loads waits for `open`.
fn applications(kept: &Kept) -> impl Fn() {
    let app = kept.node.path("app");
    fs::create_dir_all(&app).expect("a directory");
    for name in ["weights.py", "served_by_bentoml.py", "served_by_ray.py"] {
        fs::write(app.join(name), source(name)).expect("a copy");
        fs::set_permissions(app.join(name), fs::Permissions::from_mode(0o644)).expect("a mode");
    }
    move || drop(fs::File::create(app.join("open")).expect("a file"))
}

/// Somebody that no other test is.
fn nobody(seed: u64) -> u32 {
    100_000 + Noise::new(u64::from(std::process::id()) * 8 + seed).below(1 << 30) as u32
}

fn processes_of(uid: u32) -> usize {
    use std::os::unix::fs::MetadataExt as _;
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    processes.filter(|process| process.metadata().is_ok_and(|metadata| metadata.uid() == uid)).count()
}

/// Names of all files, at whatever depth.
fn files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    let name = |path: PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![name(path)] }).collect()
}

/// All of it ends, and the volume with it.
#[track_caller]
fn ends(kept: &Kept, pods: Vec<Pod>, volumes: &[&Volume]) {
    const OURS: &[&str] = &["config.json", "model.safetensors", "MANIFEST.json", "served_by_torchserve.py"];
    let uid = pods[0].uid;
    drop(pods);
    super::until(kept, "no process is left", |_| processes_of(uid) == 0);
    for volume in volumes {
        let names = files(&volume.target());
        assert!(names.iter().all(|name| OURS.contains(&name.as_str())), "{names:?}");
        volume.unpublish().expect("taken away");
    }
    assert_eq!(owners(kept), [""; 0]);
}

fn bentoml(kept: &Kept, image: &Path, uid: u32, more: &[(&str, &str)]) -> (Pod, Volume, u16, String) {
    let example = Example::new(image, "bentoml.yaml", "Deployment", "/spec/template/spec");
    let volume = example.volume(kept, "p1", more);
    volume.publish().expect("published");
    let port = example.container["ports"][0]["containerPort"].as_u64().expect("a port") as u16;
    let ready = text(&example.container["readinessProbe"]["httpGet"]["path"]).to_owned();
    let command = format!("exec python -m bentoml serve served_by_bentoml:Product --host 127.0.0.1 --port {port}");
    (Pod::new(kept, "server", uid, &example, &volume, &command), volume, port, ready)
}

#[test]
fn bentoml_serves_a_model_that_is_here() {
    let Some(image) = servers() else { return };
    let matrix = Matrix::new(1, 64, 64);
    let origin = origin("m/", &matrix);
    let Some(kept) = started(&origin, &[]) else { return };
    let open = applications(&kept);
    let (mut pod, volume, port, ready) = bentoml(&kept, &image, nobody(1), &[]);
    let told = pod.loads(|pod| pod.answers(port, &ready), |_| open());
    pod.multiplies(port, "/multiply", &matrix);
    eprintln!("BentoML: {told}, wrote {:?}", pod.written());
    ends(&kept, vec![pod], &[&volume]);
}

#[test]
fn bentoml_serves_a_model_that_arrives() {
    let Some(image) = servers() else { return };
    let matrix = Matrix::new(2, 64, 1 << 14);
    let origin = origin("m/", &matrix);
    let arrive = held_back(&origin);
    let Some(kept) = started(&origin, &[]) else { return };
    applications(&kept)();
    let (mut pod, volume, port, ready) = bentoml(&kept, &image, nobody(2), &[("lazy", "true")]);
    let told = pod.loads(|pod| pod.answers(port, &ready), |_| arrive());
    pod.multiplies(port, "/multiply", &matrix);
    arrived_slowly(&kept, &told);
    eprintln!("BentoML, lazily: {told}, wrote {:?}", pod.written());
    ends(&kept, vec![pod], &[&volume]);
}

/// A head that serves nothing and a worker, each with the volume and the mounts of its example.
#[test]
fn ray_serve_serves_a_model_that_is_here() {
    const HEALTH: &str = "/-/healthz";
    let Some(image) = servers() else { return };
    let matrix = Matrix::new(3, 64, 64);
    let origin = origin("m/", &matrix);
    let Some(kept) = started(&origin, &[]) else { return };
    let open = applications(&kept);
    let of = |group: &str| {
        let template = format!("/spec/rayClusterConfig/{group}/template/spec");
        Example::new(&image, "ray-serve.yaml", "RayService", &template)
    };
    let (head, worker) = (of("headGroupSpec"), of("workerGroupSpecs/0"));
    let volumes = [head.volume(&kept, "p1", &[]), worker.volume(&kept, "p2", &[])];
    volumes.iter().for_each(|volume| volume.publish().expect("published"));
    let configuration: Vec<_> = fs::read_dir(volumes[0].target()).expect("a model").collect();
    assert_eq!(configuration.len(), 1, "no weights on the head: {configuration:?}");
    let uid = nobody(3);
    // Home is the image's, in the example.
    let start = "export HOME=/cache/home; python -m ray.scripts.scripts start --object-store-memory=80000000";
    let at_head = format!(
        "{start} --head --num-cpus=0 --port=6379 --node-ip-address=10.0.0.1 --include-dashboard=false && \
         python -c 'import served_by_ray; served_by_ray.deploy(\"/model\")'"
    );
    let at_worker = format!("{start} --address=10.0.0.1:6379 --num-cpus=1 --node-ip-address=10.0.0.2 --block");
    let mut head = Pod::new(&kept, "head", uid, &head, &volumes[0], &at_head);
    let mut worker = Pod::new(&kept, "worker", uid, &worker, &volumes[1], &at_worker);
    let peer = worker.id().to_string();
    program(&mut head.inside(&["ip", "link", "add", "pods", "type", "veth", "peer", "name", "pods", "netns", &peer]));
    for (pod, address) in [(&head, "10.0.0.1/24"), (&worker, "10.0.0.2/24")] {
        program(&mut pod.inside(&["ip", "address", "add", address, "dev", "pods"]));
        program(&mut pod.inside(&["ip", "link", "set", "pods", "up"]));
    }
    let told = worker.loads(
        |worker| worker.answers(8000, HEALTH),
        |_| {
            // Of its worker that says nothing.
            head.until("routes on the head", |head| head.answers(8000, HEALTH));
            open();
        },
    );
    worker.multiplies(8000, "/", &matrix);
    head.multiplies(8000, "/", &matrix);
    let written = [head.written(), worker.written()];
    assert!(written.iter().flatten().all(|path| path.starts_with("tmp/")), "nothing in its home: {written:?}");
    eprintln!("Ray Serve: {told}, wrote {written:?}");
    let [first, second] = &volumes;
    ends(&kept, vec![head, worker], &[first, second]);
}
