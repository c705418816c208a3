//! The base as it is meant: who may do what.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, PodSpec, Toleration};
use serde_json::{Value, json};

use super::load::{self, Document};

/// The service account of the daemon, as a user.
pub const USER: &str = "system:serviceaccount:larder:larder";
/// Fields that an API server of Kubernetes 1.20 does not know: `kubectl` refuses them there.
const TOO_NEW: &[&str] = &[
    "appArmorProfile",
    "grpc",
    "hostUsers",
    "matchLabelKeys",
    "maxSurge",
    "recursiveReadOnly",
    "resizePolicy",
    "schedulingGates",
    "seLinuxMount",
    "selectableFields",
    "supplementalGroupsPolicy",
    "tokenRequests",
    "x-kubernetes-validations",
];

/// Everything in `daemonset/base`.
pub fn objects() -> Vec<Document> {
    load::files(&load::daemonset().join("base"), "yaml").iter().flat_map(|file| load::documents(file)).collect()
}

/// The one of that kind and name.
pub fn object(kind: &str, name: &str) -> Document {
    let found: Vec<Document> =
        objects().into_iter().filter(|document| document.kind() == kind && document.name() == name).collect();
    assert_eq!(found.len(), 1, "{kind} {name}");
    found[0].clone()
}

/// A `DaemonSet`, its pod, and the pod's container.
pub fn daemonset(name: &str) -> (DaemonSet, PodSpec, Container) {
    let set: DaemonSet = object("DaemonSet", name).read();
    let pod = set.spec.clone().expect("a spec").template.spec.expect("a pod");
    assert_eq!(pod.containers.len(), 1, "{name} has one container");
    let container = pod.containers[0].clone();
    (set, pod, container)
}

fn field<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

#[test]
fn the_daemon_is_an_ordinary_user() {
    let value = object("DaemonSet", "larder").value;
    let pod = field(&value, "/spec/template/spec");
    for (pointer, expected) in [
        ("/securityContext/runAsNonRoot", json!(true)),
        ("/securityContext/seccompProfile/type", json!("RuntimeDefault")),
        ("/containers/0/securityContext/allowPrivilegeEscalation", json!(false)),
        ("/containers/0/securityContext/readOnlyRootFilesystem", json!(true)),
        ("/containers/0/securityContext/capabilities", json!({"drop": ["ALL"]})),
        ("/serviceAccountName", json!("larder")),
        ("/enableServiceLinks", json!(false)),
        ("/priorityClassName", json!("system-node-critical")),
        ("/hostNetwork", Value::Null),
        ("/hostPID", Value::Null),
        ("/containers/0/resources/limits/cpu", Value::Null),
    ] {
        assert_eq!(field(pod, pointer), &expected, "{pointer}");
    }
    assert_eq!(field(&value, "/spec/updateStrategy/type"), "RollingUpdate");
    assert_ne!(field(&value, "/spec/updateStrategy/rollingUpdate/maxUnavailable"), &Value::Null);
    // But for the directories of the node it would be allowed anywhere.
    let (_, pod, _) = daemonset("larder");
    let wrong = super::restricted::restricted(&pod);
    assert!(wrong.iter().all(|wrong| wrong.ends_with("is a hostPath")), "{wrong:?}");
}

#[test]
fn the_keeper_is_privileged_and_alone() {
    let value = object("DaemonSet", "larder-keeper").value;
    let pod = field(&value, "/spec/template/spec");
    for (pointer, expected) in [
        ("/containers/0/securityContext", json!({"privileged": true, "readOnlyRootFilesystem": true})),
        ("/securityContext", json!({"runAsUser": 0, "runAsGroup": 0})),
        ("/serviceAccountName", json!("larder-keeper")),
        ("/automountServiceAccountToken", json!(false)),
        ("/enableServiceLinks", json!(false)),
        ("/priorityClassName", json!("system-node-critical")),
        ("/hostNetwork", Value::Null),
        ("/hostPID", Value::Null),
        ("/containers/0/ports", Value::Null),
        ("/containers/0/envFrom", Value::Null),
    ] {
        assert_eq!(field(pod, pointer), &expected, "{pointer}");
    }
    assert_eq!(field(&value, "/spec/updateStrategy"), &json!({"type": "OnDelete"}));
    let account = object("ServiceAccount", "larder-keeper").value;
    assert_eq!(field(&account, "/automountServiceAccountToken"), &json!(false));
}

/// Whether a pod of these tolerations is let onto, and left on, a node with this taint.
fn tolerates(tolerations: &[Toleration], key: &str, effect: &str) -> bool {
    tolerations.iter().any(|toleration| {
        assert_eq!(toleration.operator.as_deref(), Some("Exists"), "as far as this test reads them");
        toleration.key.as_deref().is_none_or(|of| of == key)
            && toleration.effect.as_deref().is_none_or(|of| of == effect)
            && toleration.toleration_seconds.is_none()
    })
}

/// They run where GPUs are, and stay where their pods are driven out: not on every node there is.
#[test]
fn they_run_on_gpu_nodes_and_not_behind_every_taint() {
    let (_, pod, _) = daemonset("larder");
    let own = pod.tolerations.expect("tolerations");
    for (key, effect) in [
        ("nvidia.com/gpu", "NoSchedule"),
        ("larder.dev/not-ready", "NoSchedule"),
        ("anything.example.com/at-all", "NoExecute"),
    ] {
        assert!(tolerates(&own, key, effect), "{key} {effect}");
    }
    for key in [
        "node-role.kubernetes.io/control-plane",
        "node-role.kubernetes.io/master",
        "virtual-kubelet.io/provider",
        "team",
    ] {
        assert!(!tolerates(&own, key, "NoSchedule"), "{key}");
    }
}

/// A keeper without a daemon serves nobody, and the other way round.
#[test]
fn both_run_on_the_same_nodes() {
    let (_, daemon, _) = daemonset("larder");
    let (_, keeper, _) = daemonset("larder-keeper");
    assert_eq!(daemon.node_selector, keeper.node_selector);
    assert_eq!(daemon.tolerations, keeper.tolerations);
    assert_eq!(daemon.affinity, keeper.affinity);
}

#[test]
fn the_daemon_may_do_this_at_the_api_server_and_no_more() {
    let expected = json!([
        {"apiGroups": ["larder.dev"], "resources": ["cachedmodels"], "verbs": ["list", "watch"]},
        {"apiGroups": ["larder.dev"], "resources": ["nodecaches"], "verbs": ["create", "patch"]},
        {"apiGroups": ["larder.dev"], "resources": ["nodecaches/status"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    ]);
    assert_eq!(object("ClusterRole", "larder").value["rules"], expected);
    let component = load::documents(&load::daemonset().join("components/node-labels/rbac.yaml"));
    let rules = &component.iter().find(|document| document.kind() == "ClusterRole").expect("a role").value["rules"];
    assert_eq!(rules, &json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["patch"]}]));

    // No other role, and no other account that has one.
    let mut roles = objects();
    roles.extend(component);
    for document in roles.iter().filter(|document| document.kind().ends_with("Binding")) {
        let account = json!([{"kind": "ServiceAccount", "name": "larder", "namespace": "larder"}]);
        assert_eq!(document.value["subjects"], account, "{}", document.name());
        assert_eq!(document.value["roleRef"]["name"], document.name());
    }
    assert_eq!(roles.iter().filter(|document| document.kind().contains("Role")).count(), 4);
}

#[test]
fn the_driver_makes_volumes_for_pods_and_nothing_else() {
    let driver = object("CSIDriver", larder::csi::DRIVER).value;
    let expected = json!({
        "attachRequired": false,
        "podInfoOnMount": true,
        "volumeLifecycleModes": ["Ephemeral"],
        "fsGroupPolicy": "None",
        "requiresRepublish": false,
        "storageCapacity": false,
    });
    assert_eq!(driver["spec"], expected);
    let label = "security.openshift.io/csi-ephemeral-volume-profile";
    assert_eq!(driver["metadata"]["labels"][label], "restricted");
}

#[test]
fn the_namespace_admits_both() {
    let labels = &object("Namespace", "larder").value["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "privileged");
    for document in objects() {
        let namespace = document.value["metadata"]["namespace"].as_str();
        let is_namespaced = matches!(document.kind(), "DaemonSet" | "ServiceAccount");
        assert_eq!(namespace, is_namespaced.then_some("larder"), "{} {}", document.kind(), document.name());
    }
}

#[test]
fn selectors_select_their_pods() {
    for name in ["larder", "larder-keeper"] {
        let (set, ..) = daemonset(name);
        let spec = set.spec.expect("a spec");
        let selected = spec.selector.match_labels.expect("labels");
        let labels = spec.template.metadata.expect("metadata").labels.expect("labels");
        assert!(selected.iter().all(|(key, value)| labels.get(key) == Some(value)), "{name}");
        assert_eq!(selected.get("app.kubernetes.io/name").map(String::as_str), Some(name));
    }
}

#[test]
fn every_image_is_in_the_list_and_has_this_version() {
    let kustomization = &load::documents(&load::daemonset().join("base/kustomization.yaml"))[0].value;
    let listed: Vec<(&str, &str)> = kustomization["images"]
        .as_array()
        .expect("images")
        .iter()
        .map(|image| (image["name"].as_str().expect("a name"), image["newTag"].as_str().expect("a tag")))
        .collect();
    for (name, tag) in &listed {
        assert_eq!(*tag, env!("CARGO_PKG_VERSION"), "{name}");
    }
    for name in ["larder", "larder-keeper"] {
        let image = daemonset(name).2.image.expect("an image");
        let (repository, tag) = image.rsplit_once(':').expect("a tag");
        assert!(listed.contains(&(repository, tag)), "{image}: {listed:?}");
        assert_eq!(repository, format!("larder/{name}"));
    }
    assert!(listed.iter().any(|(name, _)| *name == "larder/larder-init"));
    let version = &kustomization["labels"][0]["pairs"]["app.kubernetes.io/version"];
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
}

/// The list of models is followed by the daemon; a hash would make each change of it a rollout.
#[test]
fn the_config_map_keeps_its_name() {
    let kustomization = &load::documents(&load::daemonset().join("base/kustomization.yaml"))[0].value;
    let generator = &kustomization["configMapGenerator"][0];
    assert_eq!(generator["name"], "larder");
    assert_eq!(generator["files"], json!(["larder.toml"]));
    assert_eq!(generator["options"]["disableNameSuffixHash"], true);
}

#[test]
fn the_base_has_no_field_that_kubernetes_1_20_refuses() {
    fn look(value: &Value, at: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(key, field)| {
                let at = format!("{at}.{key}");
                if TOO_NEW.contains(&key.as_str()) {
                    found.push(at.clone());
                }
                look(field, &at, found);
            }),
            Value::Array(items) => items.iter().for_each(|item| look(item, at, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    for document in objects() {
        look(&document.value, document.name(), &mut found);
    }
    assert!(found.is_empty(), "{found:#?}");
}
