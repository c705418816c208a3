//! The pods of `daemonset/examples`: what they ask of larder, and that they ask nothing of the cluster.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Container, PodSpec, Service, Volume};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use larder::config::Config;
use larder::csi::DRIVER;
use larder::domain::Source;
use serde_json::{Value, json};

use super::kinds;
use super::load::{self, Document};
use super::restricted::restricted;

/// What a volume may say.
const ATTRIBUTES: &[&str] = &["source", "include", "exclude", "lazy", "fresh"];
/// Of `InferenceService`: what stands among the fields of a pod and is none.
const PREDICTOR: &[&str] = &["model", "minReplicas"];
/// And among those of a container.
const MODEL: &[&str] = &["modelFormat", "runtime", "storageUri"];
/// These mount directories of the node, and say so.
const NOT_RESTRICTED: &[&str] = &["kserve-storage-container.yaml"];

/// What these answer to a probe over HTTP says nothing of the model: a command finds out at startup.
const STARTED_BY_COMMAND: &[&str] = &["torchserve.yaml"];

/// A pod of an example, and where it stands.
struct Pod {
    whose: String,
    file: String,
    spec: PodSpec,
    /// Probes are somebody else's.
    has_own_probes: bool,
    /// All that the object says, for what stands outside of the pod.
    all: String,
}

fn documents() -> Vec<Document> {
    load::files(&load::daemonset().join("examples"), "yaml").iter().flat_map(|file| load::documents(file)).collect()
}

/// The pods that an object becomes.
fn pods(document: &Document) -> Vec<Pod> {
    let file = document.file.file_name().expect("a name").to_string_lossy().into_owned();
    let all = document.value.to_string();
    let pod = |what: &str, spec: &Value, has_own_probes: bool| {
        let whose = format!("{file}: {} {what}", document.name());
        let wrong = kinds::unknown::<PodSpec>(spec);
        assert!(wrong.is_empty(), "{whose}: {wrong:#?}");
        Pod { whose, file: file.clone(), spec: load::read(spec).expect("a pod"), has_own_probes, all: all.clone() }
    };
    let spec = &document.value["spec"];
    match document.kind() {
        "Deployment" => vec![pod("", &spec["template"]["spec"], true)],
        "InferenceService" => vec![pod("predictor", &predictor(&spec["predictor"]), true)],
        "RayService" => {
            let cluster = &spec["rayClusterConfig"];
            let mut pods = vec![pod("head", &cluster["headGroupSpec"]["template"]["spec"], false)];
            for group in cluster["workerGroupSpecs"].as_array().expect("groups") {
                pods.push(pod("worker", &group["template"]["spec"], false));
            }
            pods
        }
        "ClusterStorageContainer" => vec![pod("", &json!({"containers": [spec["container"]]}), false)],
        _ => Vec::new(),
    }
}

/// `KServe` writes the fields of a pod and those of a container into each other.
fn predictor(value: &Value) -> Value {
    let mut pod = value.as_object().expect("a predictor").clone();
    let model = pod.get("model").cloned().expect("a model");
    pod.retain(|key, _| !PREDICTOR.contains(&key.as_str()));
    let mut container = model.as_object().expect("a model").clone();
    container.retain(|key, _| !MODEL.contains(&key.as_str()));
    container.insert("name".to_owned(), json!("kserve-container"));
    pod.insert("containers".to_owned(), json!([container]));
    Value::Object(pod)
}

/// Those that are to be `restricted`, which are those with our volume.
fn consumers() -> Vec<Pod> {
    let pods: Vec<Pod> = documents().iter().flat_map(pods).collect();
    pods.into_iter().filter(|pod| !NOT_RESTRICTED.contains(&pod.file.as_str())).collect()
}

fn models(pod: &Pod) -> Vec<&Volume> {
    pod.spec.volumes.iter().flatten().filter(|volume| volume.csi.is_some()).collect()
}

fn is_below(path: &str, mounts: &[String]) -> bool {
    mounts.iter().any(|mount| Path::new(path).starts_with(mount))
}

fn mount_paths(container: &Container) -> Vec<String> {
    container.volume_mounts.iter().flatten().map(|mount| mount.mount_path.clone()).collect()
}

#[test]
fn every_server_has_an_example() {
    let readme = load::text(&load::daemonset().join("README.md"));
    for name in ["vllm", "sglang", "triton", "torchserve", "tf-serving", "bentoml", "ray-serve", "kserve"] {
        let file = load::daemonset().join(format!("examples/{name}.yaml"));
        let text = load::text(&file);
        let head = text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim).collect::<Vec<_>>().join(" ");
        for expected in ["Source: ", "Checked against", "not run"] {
            assert!(head.contains(expected), "{name}: {expected}: {head}");
        }
    }
    assert!(readme.contains("(examples/)"));
    assert!(consumers().len() >= 9);
}

#[test]
fn every_pod_is_restricted() {
    for pod in consumers() {
        assert_eq!(restricted(&pod.spec), Vec::<String>::new(), "{}", pod.whose);
        assert_eq!(pod.spec.automount_service_account_token, Some(false), "{}", pod.whose);
    }
    for file in NOT_RESTRICTED {
        let text = load::text(&load::daemonset().join("examples").join(file));
        assert!(text.contains("are not `restricted`"), "{file} says so");
    }
}

#[test]
fn every_volume_is_a_model_that_the_base_allows() {
    let base = load::daemonset().join("base/larder.toml");
    let config = Config::load(Some(&base), None, &|_| None).expect("settings").config;
    for pod in consumers() {
        let models = models(&pod);
        assert!(!models.is_empty(), "{}: no model", pod.whose);
        for volume in models {
            let csi = volume.csi.as_ref().expect("a CSI volume");
            assert_eq!(csi.driver, DRIVER, "{}", pod.whose);
            assert_eq!(csi.read_only, Some(true), "{}", pod.whose);
            assert!(csi.fs_type.is_none() && csi.node_publish_secret_ref.is_none(), "{}", pod.whose);
            let attributes = csi.volume_attributes.clone().unwrap_or_default();
            for key in attributes.keys() {
                assert!(ATTRIBUTES.contains(&key.as_str()), "{}: {key}", pod.whose);
            }
            let source = Source::parse(attributes.get("source").expect("a source")).expect("a source");
            assert!(config.allows(&source), "{}: {source}", pod.whose);
        }
    }
}

/// The server is told the directory that is mounted.
#[test]
fn every_model_is_mounted_read_only_and_named() {
    for pod in consumers() {
        for volume in models(&pod) {
            let mut mounted = 0;
            for container in &pod.spec.containers {
                for mount in container.volume_mounts.iter().flatten().filter(|mount| mount.name == volume.name) {
                    mounted += 1;
                    assert_eq!(mount.read_only, Some(true), "{}", pod.whose);
                    let words = container.args.iter().flatten().chain(container.command.iter().flatten());
                    let values = container.env.iter().flatten().filter_map(|variable| variable.value.as_ref());
                    let is_named = words.chain(values).any(|word| word.split('=').any(|part| part == mount.mount_path));
                    // Of Ray it stands in the application's configuration.
                    let is_configured = pod.all.contains(&format!("model_source: {}", mount.mount_path));
                    assert!(is_named || is_configured, "{}: {}", pod.whose, mount.mount_path);
                }
            }
            assert_eq!(mounted, 1, "{}", pod.whose);
        }
    }
}

/// Where the root is read-only, whatever is named to be written is on a volume.
#[test]
fn what_is_written_has_a_place() {
    for pod in consumers() {
        for container in &pod.spec.containers {
            let context = container.security_context.clone().unwrap_or_default();
            let mounts = mount_paths(container);
            assert!(mounts.iter().any(|mount| mount == "/tmp"), "{}: /tmp", pod.whose);
            if context.read_only_root_filesystem != Some(true) {
                continue;
            }
            let variables = container.env.iter().flatten();
            let places: BTreeMap<&str, &str> =
                variables.filter_map(|variable| Some((variable.name.as_str(), variable.value.as_deref()?))).collect();
            assert!(places.contains_key("HOME"), "{}: HOME", pod.whose);
            for (name, place) in places.iter().filter(|(_, place)| place.starts_with('/')) {
                assert!(is_below(place, &mounts), "{}: {name}={place}", pod.whose);
            }
        }
    }
}

#[test]
fn nobody_is_killed_while_it_loads() {
    for pod in consumers().iter().filter(|pod| pod.has_own_probes) {
        let container = &pod.spec.containers[0];
        let startup = container.startup_probe.as_ref().unwrap_or_else(|| panic!("{}: no startupProbe", pod.whose));
        let patience = startup.period_seconds.unwrap_or(10) * startup.failure_threshold.unwrap_or(3);
        assert!(patience >= 1800, "{}: {patience} s", pod.whose);
        let readiness = container.readiness_probe.as_ref();
        assert!(readiness.is_some_and(|probe| probe.http_get.is_some()), "{}: no readinessProbe", pod.whose);
        let ports: Vec<&str> = container.ports.iter().flatten().filter_map(|port| port.name.as_deref()).collect();
        let is_command = STARTED_BY_COMMAND.contains(&pod.file.as_str());
        assert_eq!(startup.exec.is_some(), is_command, "{}: startup by command", pod.whose);
        for probe in [Some(startup), readiness, container.liveness_probe.as_ref()].into_iter().flatten() {
            assert!(probe.timeout_seconds.unwrap_or(1) >= 5, "{}: a second is short under load", pod.whose);
            if is_command && std::ptr::eq(probe, startup) {
                assert!(probe.http_get.is_none(), "{}: one or the other", pod.whose);
                continue;
            }
            let get = probe.http_get.as_ref().expect("an HTTP probe");
            match &get.port {
                IntOrString::String(name) => assert!(ports.contains(&name.as_str()), "{}: {name}", pod.whose),
                // KServe gives the port a name of its own.
                IntOrString::Int(port) => assert_eq!((*port, ports.len()), (8080, 0), "{}", pod.whose),
            }
        }
    }
}

/// The only one that runs a command: kubelet does not reach the address, which is in the pod only.
#[test]
fn torchserve_is_asked_where_it_manages_models() {
    let documents = documents();
    let of_kind = |kind: &str| {
        documents.iter().find(|document| document.file.ends_with("torchserve.yaml") && document.kind() == kind)
    };
    let properties = of_kind("ConfigMap").expect("a ConfigMap").value["data"]["config.properties"].clone();
    let properties: BTreeMap<&str, &str> =
        properties.as_str().expect("properties").lines().filter_map(|line| line.split_once('=')).collect();
    let address = properties["management_address"];
    assert!(address.starts_with("http://127.0.0.1:"), "{address}");
    let pod = &pods(of_kind("Deployment").expect("a Deployment"))[0];
    let startup = pod.spec.containers[0].startup_probe.as_ref().expect("a startupProbe");
    let command = startup.exec.as_ref().and_then(|exec| exec.command.as_deref()).expect("a command");
    assert_eq!(command[..2], ["python", "-c"]);
    let asked: Vec<&str> = command[2].split('"').filter(|word| word.contains("://")).collect();
    assert_eq!(asked, [address], "{command:?}");

    let patience = startup.period_seconds.unwrap_or(10) * startup.failure_threshold.unwrap_or(3);
    assert_eq!(properties["default_startup_timeout"], patience.to_string(), "as long as the startup probe waits");
    let limit = startup.timeout_seconds.unwrap_or(1);
    let one: i32 = command[2].split_once("timeout=").expect("a limit").1[..1].parse().expect("a number");
    assert!(one < limit, "{one} s for one question, {limit} s for all");
}

#[test]
fn images_have_a_version() {
    for pod in documents().iter().flat_map(pods) {
        for image in pod.spec.containers.iter().filter_map(|container| container.image.as_ref()) {
            let (_, tag) = image.rsplit_once(':').unwrap_or_else(|| panic!("{}: {image}", pod.whose));
            assert!(tag.chars().any(|c| c.is_ascii_digit()) && tag != "latest", "{}: {image}", pod.whose);
            if let Some(ours) = image.strip_prefix("larder/") {
                assert_eq!(ours, format!("larder-init:{}", env!("CARGO_PKG_VERSION")), "{}", pod.whose);
            }
        }
    }
}

#[test]
fn services_reach_their_pods() {
    let documents = documents();
    let mut services = 0;
    for document in documents.iter().filter(|document| document.kind() == "Service") {
        services += 1;
        let service: Service = document.read();
        let spec = service.spec.expect("a spec");
        let deployment = documents
            .iter()
            .find(|other| other.kind() == "Deployment" && other.file == document.file)
            .expect("a Deployment in the same file");
        let deployment = deployment.read::<Deployment>().spec.expect("a spec");
        let labels = deployment.template.metadata.expect("metadata").labels.expect("labels");
        assert_eq!(spec.selector.as_ref(), deployment.selector.match_labels.as_ref(), "{}", document.name());
        assert!(spec.selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value)));
        let pod = deployment.template.spec.expect("a pod");
        let ports: Vec<&str> =
            pod.containers[0].ports.iter().flatten().filter_map(|port| port.name.as_deref()).collect();
        for port in spec.ports.expect("ports") {
            let Some(IntOrString::String(target)) = port.target_port else { panic!("{}: by name", document.name()) };
            assert!(ports.contains(&target.as_str()), "{}: {target}", document.name());
        }
        let strategy = deployment.strategy.and_then(|strategy| strategy.type_);
        assert_eq!(strategy.as_deref(), Some("Recreate"), "{}", document.name());
    }
    assert_eq!(services, 6);
}

/// Pod side of the README, as it is typed.
#[test]
fn the_readme_shows_a_volume_like_these() {
    let readme = load::text(&load::daemonset().join("README.md"));
    let block = readme
        .split("```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .find(|block| block.contains("driver:"))
        .expect("a block");
    let spec = &load::parse("README.md".as_ref(), block)[0].value;
    let wrong = kinds::unknown::<PodSpec>(spec);
    assert!(wrong.is_empty(), "{wrong:#?}");
    let pod: PodSpec = load::read(spec).expect("a pod");
    let volume = &pod.volumes.expect("volumes")[0];
    let csi = volume.csi.as_ref().expect("a CSI volume");
    assert_eq!((csi.driver.as_str(), csi.read_only), (DRIVER, Some(true)));
    assert!(csi.volume_attributes.as_ref().expect("attributes").contains_key("source"));
}
