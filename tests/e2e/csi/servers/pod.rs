//! A pod of an example, as far as a server can tell.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::matrix::Matrix;
use super::sources;
use crate::csi::kubelet::Volume;
use crate::csi::volume;
use crate::mount::Kept;

/// For a server to start, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_mins(8);

/// The first container of a pod in an example.
pub struct Example {
    documents: Vec<Value>,
    pod: Value,
    pub container: Value,
    /// The virtual environment that stands for the image.
    image: PathBuf,
}

impl Example {
    pub fn new(image: &Path, file: &str, kind: &str, template: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset/examples").join(file);
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&fs::read_to_string(path).expect("an example")).expect("YAML");
        let document = documents.iter().find(|document| document["kind"] == kind).expect("that kind");
        let pod = document.pointer(template).expect("a pod").clone();
        Self { container: pod["containers"][0].clone(), pod, documents, image: image.to_owned() }
    }

    fn environment(&self) -> Vec<String> {
        let variables = self.container["env"].as_array().expect("variables").iter();
        variables.map(|variable| format!("{}={}", text(&variable["name"]), text(&variable["value"]))).collect()
    }

    /// Names of its mounts and where they are.
    pub fn mounts(&self) -> Vec<(&str, &str)> {
        let mounts = self.container["volumeMounts"].as_array().expect("mounts").iter();
        mounts.map(|mount| (text(&mount["name"]), text(&mount["mountPath"]))).collect()
    }

    fn volume_named(&self, name: &str) -> &Value {
        let volumes = self.pod["volumes"].as_array().expect("volumes");
        volumes.iter().find(|volume| volume["name"] == name).expect("a volume of that name")
    }

    /// Its model, as a volume of that pod: ours, and otherwise with its attributes and these.
    pub fn volume(&self, kept: &Kept, pod: &str, more: &[(&str, &str)]) -> Volume {
        let attributes = self.volume_named("model")["csi"]["volumeAttributes"].as_object().expect("attributes");
        let attributes = attributes.iter().map(|(name, value)| (name.as_str(), text(value)));
        let attributes: Vec<_> = attributes.chain(more.iter().copied()).chain([("source", "s3://models/m/")]).collect();
        volume(kept, pod, &attributes)
    }

    /// The files of a volume that is a `ConfigMap`; none of any other.
    pub fn files(&self, volume: &str) -> Vec<(&str, &str)> {
        let Some(name) = self.volume_named(volume).pointer("/configMap/name") else { return Vec::new() };
        let map = self.documents.iter().find(|one| one["kind"] == "ConfigMap" && &one["metadata"]["name"] == name);
        let files = map.expect("a ConfigMap of that name")["data"].as_object().expect("files").iter();
        files.map(|(file, contents)| (file.as_str(), text(contents))).collect()
    }

    /// The port that a probe or a Service calls by this name.
    pub fn port(&self, name: &str) -> u16 {
        let ports = self.container["ports"].as_array().expect("ports");
        let port = ports.iter().find(|port| port["name"] == name).expect("a port of that name");
        port["containerPort"].as_u64().expect("a port") as u16
    }
}

pub fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

/// What is in a list of words.
pub fn words(value: &Value) -> Vec<&str> {
    value.as_array().expect("words").iter().map(text).collect()
}

/// A container that runs. Ended, with all that it started, when it is dropped.
pub struct Pod {
    /// `unshare`, behind `nice`, in the namespaces for network and mounts.
    process: Child,
    home: PathBuf,
    pub uid: u32,
    environment: Vec<String>,
    directory: String,
}

impl Pod {
    /// Runs a command in a shell, in the example's directory or in `/app`, where the applications are.
    pub fn new(kept: &Kept, name: &str, uid: u32, example: &Example, model: &Volume, command: &str) -> Self {
        let home = kept.node.path(name);
        let mut mounts = vec![(example.image.clone(), "/venv".to_owned()), (kept.node.path("app"), "/app".to_owned())];
        for (name, at) in example.mounts() {
            if name == "model" {
                mounts.push((model.target(), at.to_owned()));
            } else if at != "/dev/shm" {
                let directory = home.join(name);
                fs::create_dir_all(&directory).expect("a directory");
                let files = example.files(name);
                for (file, contents) in &files {
                    fs::write(directory.join(file), contents).expect("a file");
                }
                if files.is_empty() {
                    chown(&directory, Some(uid), Some(uid)).expect("an owner");
                }
                mounts.push((directory, at.to_owned()));
            }
        }
        let root = home.join("root");
        fs::create_dir_all(&root).expect("a directory");
        let log = fs::File::create(home.join("log")).expect("a log");
        let ours = ["PATH=/venv/bin:/usr/bin:/bin", "PYTHONPATH=/app", "PYTHONUNBUFFERED=1"].map(str::to_owned);
        let environment: Vec<String> = ours.into_iter().chain(example.environment()).collect();
        let directory = example.container["workingDir"].as_str().unwrap_or("/app").to_owned();
        // Other tests beside this one take the time.
        let mut unshare = Command::new("nice");
        unshare.args(["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--"]);
        unshare.arg(sources().join("pod")).arg(root).arg(uid.to_string());
        for (from, to) in &mounts {
            unshare.arg(from).arg(to);
        }
        unshare.args(["--", "env", "-i", "-C", &directory]).args(&environment).args(["sh", "-c", command]);
        unshare.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let mut pod = Self { process: unshare.spawn().expect("unshare starts"), home, uid, environment, directory };
        let ours = fs::read_link("/proc/self/ns/net").expect("a namespace");
        pod.until("a network of its own", |pod| fs::read_link(pod.namespace("net")).is_ok_and(|its| its != ours));
        pod
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    fn namespace(&self, name: &str) -> PathBuf {
        format!("/proc/{}/ns/{name}", self.process.id()).into()
    }

    /// A command of the machine in its network.
    pub fn inside(&self, command: &[&str]) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--net={}", self.namespace("net").display())).args(command);
        nsenter
    }

    /// A command in the container, as kubelet's `exec` runs it, which ends it after so many seconds: its
    /// status, where it had one, and what it said.
    pub fn exec(&self, seconds: u64, command: &[&str]) -> (Option<i32>, String) {
        let mut nsenter = Command::new("nsenter");
        for (kind, name) in [("mount", "mnt"), ("pid", "pid_for_children"), ("net", "net")] {
            nsenter.arg(format!("--{kind}={}", self.namespace(name).display()));
        }
        let uid = self.uid.to_string();
        nsenter.args(["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups", "--no-new-privs"]);
        nsenter.args(["--bounding-set=-all", "--inh-caps=-all", "--"]);
        nsenter.args(["env", "-i", "-C", &self.directory]).args(&self.environment);
        nsenter.args(["timeout", "--signal=KILL", &seconds.to_string()]).args(command).stdin(Stdio::null());
        let output = nsenter.output().expect("nsenter starts");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    }

    /// Status and body; a status of 0 where nobody answers within a second.
    pub fn ask(&self, port: u16, path: &str, body: Option<&Value>) -> (u16, String) {
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

    /// Whether a probe of that path would be content.
    pub fn answers(&self, port: u16, path: &str) -> bool {
        self.ask(port, path, None).0 == 200
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }

    #[track_caller]
    pub fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !wanted(self) {
            let ended = self.process.try_wait().expect("a child");
            let is_in_time = ended.is_none() && began.elapsed() < PATIENCE;
            assert!(is_in_time, "not within {PATIENCE:?}: {what} ({ended:?})\n{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The weights are there to be loaded when `open` was called, and not before: is it ready then, and
    /// only then?
    #[track_caller]
    pub fn loads(&mut self, is_ready: impl Fn(&Self) -> bool, open: impl FnOnce(&mut Self)) -> Value {
        let loaded = self.home.join("tmp/loaded");
        self.until("an application that waits", |pod| pod.home.join("tmp/waits").exists());
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(2) {
            assert!(!is_ready(self) && !loaded.exists(), "not ready\n{}", self.log());
        }
        open(self);
        self.until("ready", is_ready);
        let told = fs::read_to_string(loaded).expect("ready, and so loaded");
        let told: Value = serde_json::from_str(&told).expect("JSON");
        assert_eq!(told["uid"], self.uid);
        assert_eq!((&told["model"], &told["root"]), (&json!("EROFS"), &json!("EROFS")), "both are read-only");
        told
    }

    #[track_caller]
    pub fn multiplies(&self, port: u16, path: &str, matrix: &Matrix) {
        let x: Vec<f32> = (0..matrix.rows.len()).map(|n| f32::from(n as u8) - 20.0).collect();
        let (status, body) = self.ask(port, path, Some(&json!({"x": x})));
        assert_eq!(status, 200, "{body}\n{}", self.log());
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        assert!(answer == matrix.product(&x), "another product: {body:.200}");
    }

    /// What it has written on its volumes, two levels deep.
    pub fn written(&self) -> Vec<String> {
        let names = |at: &Path| -> Vec<PathBuf> {
            let Ok(entries) = fs::read_dir(at) else { return Vec::new() };
            entries.map(|entry| entry.expect("an entry").path()).collect()
        };
        let mut found = Vec::new();
        for entry in names(&self.home).iter().flat_map(|volume| names(volume)) {
            found.extend([entry.clone()].into_iter().chain(names(&entry)));
        }
        // What a ConfigMap brought is not its own. What is gone by now was.
        found.retain(|path| fs::symlink_metadata(path).map_or(true, |metadata| metadata.uid() == self.uid));
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
