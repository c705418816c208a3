//! `TorchServe`, on Debian's torch for CPUs and on Debian's Java. The probes are those of its example, the
//! command of the one for startup among them: `/ping` says less than one would think.

use std::path::PathBuf;

use larder_origins::{Checksums, Origin};
use serde_json::{Value, json};

use super::matrix::Matrix;
use super::pod::{Example, Pod, text, words};
use super::{applications, arrived_slowly, ends, held_back, installed, nobody, origin, source};
use crate::csi::kubelet::Volume;
use crate::csi::started;
use crate::mount::Kept;

fn torchserve() -> Option<PathBuf> {
    installed("torchserve", "`tests/run` installs TorchServe, on Debian 12")
}

/// What the example has in `config.properties`.
fn property<'a>(example: &'a Example, name: &str) -> &'a str {
    let files = example.files("config");
    let (_, properties) = files.iter().find(|(file, _)| *file == "config.properties").expect("properties");
    let mut properties = properties.lines().filter_map(|line| line.split_once('='));
    properties.find(|(its, _)| *its == name).map(|(_, value)| value).expect("a property of that name")
}

/// A model store with the model that the example loads: a directory, as the archiver makes it.
fn model_store(example: &Example, matrix: &Matrix) -> (Origin, String) {
    let (name, directory) = property(example, "load_models").split_once('=').expect("a directory");
    let origin = origin(&format!("m/{directory}/"), matrix);
    let manifest = json!({
        "createdOn": "24/11/2026 19:21:02",
        "archiverVersion": "0.12.0",
        "runtime": "python",
        "model": {
            "modelName": name,
            "modelVersion": "1.0",
            "serializedFile": "model.safetensors",
            "handler": "served_by_torchserve.py",
        },
    });
    for (file, contents) in [
        ("MAR-INF/MANIFEST.json", manifest.to_string().into_bytes()),
        ("served_by_torchserve.py", source("served_by_torchserve.py")),
    ] {
        origin.bucket().put(&format!("m/{directory}/{file}"), contents, Checksums::none());
    }
    (origin, name.to_owned())
}

fn example(image: &std::path::Path) -> Example {
    Example::new(image, "torchserve.yaml", "Deployment", "/spec/template/spec")
}

fn server(kept: &Kept, uid: u32, example: &Example, more: &[(&str, &str)]) -> (Pod, Volume) {
    let volume = example.volume(kept, "p1", more);
    volume.publish().expect("published");
    let mut command = words(&example.container["command"]);
    command.extend(words(&example.container["args"]));
    // The first line of what it is installed as names a place that only we may go to.
    let command = format!("exec python /venv/bin/{}", command.join(" "));
    (Pod::new(kept, "server", uid, example, &volume, &command), volume)
}

/// The startup probe, as kubelet makes it: whether it succeeds, and what it says.
fn startup(pod: &Pod, example: &Example) -> (bool, String) {
    let probe = &example.container["startupProbe"];
    let (status, said) =
        pod.exec(probe["timeoutSeconds"].as_u64().expect("a limit"), &words(&probe["exec"]["command"]));
    (status == Some(0), said)
}

/// Whether the other probe of that name succeeds.
fn answers(pod: &Pod, example: &Example, probe: &str) -> bool {
    let get = &example.container[probe]["httpGet"];
    pod.answers(example.port(text(&get["port"])), text(&get["path"]))
}

/// Serves the model when `open` has been called, and writes where it may.
#[track_caller]
fn serves(pod: &mut Pod, example: &Example, name: &str, matrix: &Matrix, open: impl FnOnce()) -> Value {
    let told = pod.loads(
        |pod| startup(pod, example).0,
        |pod| {
            pod.until("healthy without its model, and so not to be asked for startup", |pod| {
                answers(pod, example, "readinessProbe")
            });
            // Not that it found nobody to ask.
            pod.until("a reason", |pod| {
                let (succeeds, said) = startup(pod, example);
                assert!(!succeeds, "before it is loaded");
                said.trim() == "models are not loaded yet"
            });
            open();
        },
    );
    for probe in ["readinessProbe", "livenessProbe"] {
        pod.until(probe, |pod| answers(pod, example, probe));
    }
    pod.multiplies(example.port("http"), &format!("/predictions/{name}"), matrix);

    let metrics = example.port("metrics");
    pod.until("a metric", |pod| pod.ask(metrics, "/metrics", None).1.contains("ts_inference_requests_total{"));
    let management = property(example, "management_address").rsplit_once(':').expect("a port").1;
    let management = management.parse().expect("a number");
    let patience: u64 = property(example, "default_startup_timeout").parse().expect("seconds");
    pod.until("a worker with the example's patience, on a CPU, which is all that is proved here", |pod| {
        let (_, model) = pod.ask(management, &format!("/models/{name}"), None);
        let model: Value = serde_json::from_str(&model).unwrap_or_default();
        model[0]["startupTimeout"] == patience && model[0]["deviceType"] == "cpu"
    });

    let store = example.mounts().into_iter().find(|(name, _)| *name == "model").expect("a model").1;
    let (_, models) =
        pod.exec(60, &["find", "/tmp/models", "-mindepth", "1", "-not", "-type", "d", "-printf", "%y %l\n"]);
    let (_, directory) = property(example, "load_models").split_once('=').expect("a directory");
    assert_eq!(models.trim(), format!("l {store}/{directory}"), "linked, and nothing copied");
    let written = pod.written();
    let is_in_tmp = written.iter().all(|path| path.starts_with("tmp/"));
    assert!(is_in_tmp && written.iter().any(|path| path == "tmp/logs"), "nothing elsewhere: {written:?}");
    let (_, shared) = pod.exec(60, &["find", "/dev/shm", "-mindepth", "1"]);
    assert_eq!(shared, "", "nothing elsewhere");
    eprintln!("TorchServe: {told}, wrote {written:?}");
    told
}

#[test]
fn torchserve_serves_a_model_that_is_here() {
    let Some(image) = torchserve() else { return };
    let example = example(&image);
    let matrix = Matrix::new(4, 64, 64);
    let (origin, name) = model_store(&example, &matrix);
    let Some(kept) = started(&origin, &[]) else { return };
    let open = applications(&kept);
    let (mut pod, volume) = server(&kept, nobody(4), &example, &[]);
    serves(&mut pod, &example, &name, &matrix, open);
    ends(&kept, vec![pod], &[&volume]);
}

#[test]
fn torchserve_serves_a_model_that_arrives() {
    let Some(image) = torchserve() else { return };
    let example = example(&image);
    let matrix = Matrix::new(5, 64, 1 << 14);
    let (origin, name) = model_store(&example, &matrix);
    let arrive = held_back(&origin);
    let Some(kept) = started(&origin, &[]) else { return };
    applications(&kept)();
    let (mut pod, volume) = server(&kept, nobody(5), &example, &[("lazy", "true")]);
    let told = serves(&mut pod, &example, &name, &matrix, arrive);
    arrived_slowly(&kept, &told);
    ends(&kept, vec![pod], &[&volume]);
}
