//! `BentoML` and Ray Serve, as `PyPI` has them, serve a model that is a CSI volume: as a user that nobody
//! knows, in containers that have what `daemonset/examples` gives them (variables, mounts and, of
//! `BentoML`, the probe) and nothing else to write to, without any network. The applications are small
//! ones of our own, as torch is gigabytes of code for GPUs; `TorchServe`, which needs it and Java besides,
//! is not run: its example is checked against its documentation only.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use larder_origins::{Checksums, Fault, Front, Noise, Origin};
use serde_json::{Value, json};

use super::kubelet::Volume;
use super::{owners, started, volume};
use crate::mount::{Kept, mount_status};
use crate::support::{program, skipped};

/// For a server to start, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_mins(4);

/// Where `tests/run` installs the servers. `None` where it did not.
fn servers() -> Option<PathBuf> {
    let servers = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-servers");
    let found = servers.join("ready").exists();
    if !found {
        skipped("servers", "`tests/run` installs BentoML and Ray Serve");
    }
    found.then_some(servers)
}

/// A matrix of whole numbers, which have exact products, as a file in the safetensors format.
struct Matrix {
    rows: Vec<Vec<f32>>,
}

impl Matrix {
    fn new(seed: u64, rows: usize, columns: usize) -> Self {
        let mut noise = Noise::new(seed);
        let mut row = || (0..columns).map(|_| f32::from(noise.below(17) as u8) - 8.0).collect();
        Self { rows: (0..rows).map(|_| row()).collect() }
    }

    fn file(&self) -> Vec<u8> {
        let (rows, columns) = (self.rows.len(), self.rows[0].len());
        let header = json!({"w": {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, rows * columns * 4]}});
        let header = header.to_string();
        let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend(self.rows.iter().flatten().flat_map(|number| number.to_le_bytes()));
        file
    }

    /// What a server is to answer.
    fn product(&self, x: &[f32]) -> Value {
        let mut y = vec![0.0; self.rows[0].len()];
        for (row, x) in self.rows.iter().zip(x) {
            y.iter_mut().zip(row).for_each(|(y, number)| *y += x * number);
        }
        json!({"type": "none", "y": y})
    }
}

fn origin(matrix: &Matrix) -> Origin {
    let origin = Origin::start(Front::S3).expect("an origin");
    origin.bucket().put("m/config.json", br#"{"model_type":"none"}"#.to_vec(), Checksums::none());
    origin.bucket().put("m/model.safetensors", matrix.file(), Checksums::none());
    origin
}

/// The first container of a pod in an example.
struct Example {
    pod: Value,
    container: Value,
}

impl Example {
    fn new(file: &str, kind: &str, template: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset/examples").join(file);
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&fs::read_to_string(path).expect("an example")).expect("YAML");
        let document = documents.iter().find(|document| document["kind"] == kind).expect("that kind");
        let pod = document.pointer(template).expect("a pod").clone();
        Self { container: pod["containers"][0].clone(), pod }
    }

    fn environment(&self) -> Vec<String> {
        let variables = self.container["env"].as_array().expect("variables").iter();
        variables.map(|variable| format!("{}={}", text(&variable["name"]), text(&variable["value"]))).collect()
    }

    /// Names of its mounts and where they are.
    fn mounts(&self) -> Vec<(&str, &str)> {
        let mounts = self.container["volumeMounts"].as_array().expect("mounts").iter();
        mounts.map(|mount| (text(&mount["name"]), text(&mount["mountPath"]))).collect()
    }

    /// Its model, as a volume of that pod: ours, and otherwise with its attributes and these.
    fn volume(&self, kept: &Kept, pod: &str, more: &[(&str, &str)]) -> Volume {
        let volumes = self.pod["volumes"].as_array().expect("volumes");
        let model = volumes.iter().find(|volume| volume["name"] == "model").expect("a model");
        let attributes = model["csi"]["volumeAttributes"].as_object().expect("attributes");
        let attributes = attributes.iter().map(|(name, value)| (name.as_str(), text(value)));
        let attributes: Vec<_> = attributes.chain(more.iter().copied()).chain([("source", "s3://models/m/")]).collect();
        volume(kept, pod, &attributes)
    }
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

/// A container that runs. Ended, with all that it started, when it is dropped.
struct Pod {
    /// `unshare`, behind `nice`, in the namespaces for network and mounts.
    process: Child,
    home: PathBuf,
    uid: u32,
}

impl Pod {
    /// Runs a command in a shell in `/app`, where the applications are.
    fn new(kept: &Kept, name: &str, uid: u32, example: &Example, model: &Volume, command: &str) -> Self {
        let home = kept.node.path(name);
        let mut mounts = vec![
            (servers().expect("they are installed"), "/venv".to_owned()),
            (kept.node.path("app"), "/app".to_owned()),
        ];
        for (name, at) in example.mounts() {
            if name == "model" {
                mounts.push((model.target(), at.to_owned()));
            } else if at != "/dev/shm" {
                let directory = home.join(name);
                fs::create_dir_all(&directory).expect("a directory");
                chown(&directory, Some(uid), Some(uid)).expect("an owner");
                mounts.push((directory, at.to_owned()));
            }
        }
        let root = home.join("root");
        fs::create_dir_all(&root).expect("a directory");
        let log = fs::File::create(home.join("log")).expect("a log");
        // Other tests beside this one take the time.
        let mut unshare = Command::new("nice");
        unshare.args(["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--"]);
        unshare.arg(sources().join("pod")).arg(root).arg(uid.to_string());
        for (from, to) in &mounts {
            unshare.arg(from).arg(to);
        }
        unshare.args(["--", "env", "-i", "PATH=/venv/bin:/usr/bin:/bin", "PYTHONPATH=/app", "PYTHONUNBUFFERED=1"]);
        unshare.args(example.environment()).args(["sh", "-c", &format!("cd /app && {command}")]);
        unshare.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let mut pod = Self { process: unshare.spawn().expect("unshare starts"), home, uid };
        let ours = fs::read_link("/proc/self/ns/net").expect("a namespace");
        pod.until("a network of its own", |pod| fs::read_link(pod.network()).is_ok_and(|its| its != ours));
        pod
    }

    fn network(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.process.id()).into()
    }

    /// A command of the machine in its network.
    fn inside(&self, command: &[&str]) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--net={}", self.network().display())).args(command);
        nsenter
    }

    /// Status and body; a status of 0 where nobody answers within a second.
    fn ask(&self, port: u16, path: &str, body: Option<&Value>) -> (u16, String) {
        let url = format!("http://127.0.0.1:{port}{path}");
        let body = body.map(Value::to_string);
        let mut command = vec!["curl", "-s", "-w", "\n%{http_code}", &url];
        let json = ["-m", "60", "-H", "content-type: application/json", "-d"];
        command.extend(if body.is_some() { &json[..] } else { &["-m", "1"] });
        command.extend(body.as_deref());
        let output = self.inside(&command).output().expect("curl starts");
        let answer = String::from_utf8(output.stdout).expect("text");
        let (body, status) = answer.rsplit_once('\n').expect("a status");
        (status.parse().expect("a number"), body.to_owned())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }

    #[track_caller]
    fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !wanted(self) {
            let ended = self.process.try_wait().expect("a child");
            let is_in_time = ended.is_none() && began.elapsed() < PATIENCE;
            assert!(is_in_time, "not within {PATIENCE:?}: {what} ({ended:?})\n{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The weights are there to be loaded when `open` was called, and not before: what is ready, and when?
    #[track_caller]
    fn loads(&mut self, port: u16, ready: &str, open: impl FnOnce()) -> Value {
        let loaded = self.home.join("tmp/loaded");
        self.until("an application that waits", |pod| pod.home.join("tmp/waits").exists());
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(2) {
            let (status, _) = self.ask(port, ready, None);
            assert!(status != 200 && !loaded.exists(), "not ready: {status}\n{}", self.log());
        }
        open();
        self.until("ready", |pod| pod.ask(port, ready, None).0 == 200);
        let told = fs::read_to_string(loaded).expect("ready, and so loaded");
        let told: Value = serde_json::from_str(&told).expect("JSON");
        assert_eq!(told["uid"], self.uid);
        assert_eq!((&told["model"], &told["root"]), (&json!("EROFS"), &json!("EROFS")), "both are read-only");
        told
    }

    #[track_caller]
    fn multiplies(&self, port: u16, path: &str, matrix: &Matrix) {
        let x: Vec<f32> = (0..matrix.rows.len()).map(|n| f32::from(n as u8) - 20.0).collect();
        let (status, body) = self.ask(port, path, Some(&json!({"x": x})));
        assert_eq!(status, 200, "{body}\n{}", self.log());
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        assert!(answer == matrix.product(&x), "another product: {body:.200}");
    }

    /// What it has written, two levels deep.
    fn written(&self) -> Vec<String> {
        let mut found = Vec::new();
        let names = |at: &Path| -> Vec<PathBuf> {
            let Ok(entries) = fs::read_dir(at) else { return Vec::new() };
            entries.map(|entry| entry.expect("an entry").path()).collect()
        };
        for entry in ["tmp", "cache"].iter().flat_map(|place| names(&self.home.join(place))) {
            found.extend([entry.clone()].into_iter().chain(names(&entry)));
        }
        let below = |path: PathBuf| path.strip_prefix(&self.home).expect("below").display().to_string();
        let mut found: Vec<String> = found.into_iter().map(below).collect();
        found.sort();
        found
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/csi/servers")
}

/// Has the applications lie where containers find them; whoever loads waits for `open`.
fn applications(kept: &Kept) -> impl Fn() {
    let app = kept.node.path("app");
    fs::create_dir_all(&app).expect("a directory");
    for name in ["weights.py", "served_by_bentoml.py", "served_by_ray.py"] {
        fs::copy(sources().join(name), app.join(name)).expect("a copy");
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

/// All of it ends, and the volume with it.
#[track_caller]
fn ends(kept: &Kept, pods: Vec<Pod>, volumes: &[&Volume]) {
    let uid = pods[0].uid;
    drop(pods);
    super::until(kept, "no process is left", |_| processes_of(uid) == 0);
    for volume in volumes {
        let mut names: Vec<_> =
            fs::read_dir(volume.target()).expect("a model").map(|file| file.expect("an entry").file_name()).collect();
        names.sort();
        assert!(names.iter().all(|name| name == "config.json" || name == "model.safetensors"), "{names:?}");
        volume.unpublish().expect("taken away");
    }
    assert_eq!(owners(kept), [""; 0]);
}

fn bentoml(kept: &Kept, uid: u32, more: &[(&str, &str)]) -> (Pod, Volume, u16, String) {
    let example = Example::new("bentoml.yaml", "Deployment", "/spec/template/spec");
    let volume = example.volume(kept, "p1", more);
    volume.publish().expect("published");
    let port = example.container["ports"][0]["containerPort"].as_u64().expect("a port") as u16;
    let ready = text(&example.container["readinessProbe"]["httpGet"]["path"]).to_owned();
    let command = format!("exec python -m bentoml serve served_by_bentoml:Product --host 127.0.0.1 --port {port}");
    (Pod::new(kept, "server", uid, &example, &volume, &command), volume, port, ready)
}

#[test]
fn bentoml_serves_a_model_that_is_here() {
    if servers().is_none() {
        return;
    }
    let matrix = Matrix::new(1, 64, 64);
    let origin = origin(&matrix);
    let Some(kept) = started(&origin, &[]) else { return };
    let open = applications(&kept);
    let (mut pod, volume, port, ready) = bentoml(&kept, nobody(1), &[]);
    let told = pod.loads(port, &ready, open);
    pod.multiplies(port, "/multiply", &matrix);
    eprintln!("BentoML: {told}, wrote {:?}", pod.written());
    ends(&kept, vec![pod], &[&volume]);
}

#[test]
fn bentoml_serves_a_model_that_arrives() {
    if servers().is_none() {
        return;
    }
    let matrix = Matrix::new(2, 64, 1 << 14);
    let origin = origin(&matrix);
    // Not a byte of the weights before the server waits for them, and then 4 MiB of them slowly.
    let gone = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&gone);
    origin.misbehave_on_reads(move |_, request| {
        let is_weights = request.path.ends_with("model.safetensors");
        while is_weights && !gate.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
        is_weights.then_some(Fault::Slow(2 << 20))
    });
    let Some(kept) = started(&origin, &[]) else { return };
    applications(&kept)();
    let (mut pod, volume, port, ready) = bentoml(&kept, nobody(2), &[("lazy", "true")]);
    let told = pod.loads(port, &ready, || gone.store(true, Relaxed));
    pod.multiplies(port, "/multiply", &matrix);
    let status = mount_status(&kept.node);
    assert!(status["opens_arriving"].as_u64() >= Some(1), "{status}");
    assert_eq!(status["reads_failed"], 0, "{status}\n{}", kept.logs());
    assert!(told["seconds"].as_f64() > Some(2.0), "it waited for its weights: {told}");
    eprintln!("BentoML, lazily: {told}, wrote {:?}", pod.written());
    ends(&kept, vec![pod], &[&volume]);
}

/// A head that serves nothing and a worker, each with the volume and the mounts of its example.
#[test]
fn ray_serve_serves_a_model_that_is_here() {
    const HEALTH: &str = "/-/healthz";
    if servers().is_none() {
        return;
    }
    let matrix = Matrix::new(3, 64, 64);
    let origin = origin(&matrix);
    let Some(kept) = started(&origin, &[]) else { return };
    let open = applications(&kept);
    let of = |group: &str| {
        Example::new("ray-serve.yaml", "RayService", &format!("/spec/rayClusterConfig/{group}/template/spec"))
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
    let peer = worker.process.id().to_string();
    program(&mut head.inside(&["ip", "link", "add", "pods", "type", "veth", "peer", "name", "pods", "netns", &peer]));
    for (pod, address) in [(&head, "10.0.0.1/24"), (&worker, "10.0.0.2/24")] {
        program(&mut pod.inside(&["ip", "address", "add", address, "dev", "pods"]));
        program(&mut pod.inside(&["ip", "link", "set", "pods", "up"]));
    }
    let told = worker.loads(8000, HEALTH, || {
        // Of its worker that says nothing.
        head.until("routes on the head", |head| head.ask(8000, HEALTH, None).0 == 200);
        open();
    });
    worker.multiplies(8000, "/", &matrix);
    head.multiplies(8000, "/", &matrix);
    let written = [head.written(), worker.written()];
    assert!(written.iter().flatten().all(|path| path.starts_with("tmp/")), "nothing in its home: {written:?}");
    eprintln!("Ray Serve: {told}, wrote {written:?}");
    let [first, second] = &volumes;
    ends(&kept, vec![head, worker], &[first, second]);
}
