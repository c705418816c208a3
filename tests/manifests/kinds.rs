//! Every object as the type that Kubernetes gives it: a field that the type does not have is a slip of
//! the pen, which `kubectl apply` may drop without a word.

use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ResourceQuota, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, RoleBinding};
use k8s_openapi::api::storage::v1::CSIDriver;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::load::{self, Document};

/// Kinds that are not Kubernetes' own, with what must be there and what may be.
const OTHERS: &[(&str, &str, &[&str], &[&str])] = &[
    (
        "kustomize.config.k8s.io/v1beta1",
        "Kustomization",
        &["resources"],
        &["resources", "components", "patches", "images", "labels", "configMapGenerator"],
    ),
    ("kustomize.config.k8s.io/v1alpha1", "Component", &[], &["resources", "patches"]),
    ("monitoring.coreos.com/v1", "PodMonitor", &["spec"], &["metadata", "spec"]),
    ("serving.kserve.io/v1beta1", "InferenceService", &["spec"], &["metadata", "spec"]),
    ("serving.kserve.io/v1alpha1", "ClusterStorageContainer", &["spec"], &["metadata", "spec"]),
    ("ray.io/v1", "RayService", &["spec"], &["metadata", "spec"]),
];

/// What is wrong with an object; of a patch, required fields may be missing.
pub fn wrong(value: &Value) -> Vec<String> {
    let name = |key: &str| value[key].as_str().unwrap_or_default();
    let (version, kind) = (name("apiVersion"), name("kind"));
    match (version, kind) {
        ("v1", "Namespace") => unknown::<Namespace>(value),
        ("v1", "ServiceAccount") => unknown::<ServiceAccount>(value),
        ("v1", "Pod") => unknown::<Pod>(value),
        ("v1", "ConfigMap") => unknown::<ConfigMap>(value),
        ("v1", "ResourceQuota") => unknown::<ResourceQuota>(value),
        ("v1", "Service") => unknown::<Service>(value),
        ("apps/v1", "DaemonSet") => unknown::<DaemonSet>(value),
        ("apps/v1", "Deployment") => unknown::<Deployment>(value),
        ("networking.k8s.io/v1", "NetworkPolicy") => unknown::<NetworkPolicy>(value),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => unknown::<ClusterRole>(value),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => unknown::<ClusterRoleBinding>(value),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => unknown::<RoleBinding>(value),
        ("storage.k8s.io/v1", "CSIDriver") => unknown::<CSIDriver>(value),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => unknown::<CustomResourceDefinition>(value),
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy") => unknown::<ValidatingAdmissionPolicy>(value),
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding") => {
            unknown::<ValidatingAdmissionPolicyBinding>(value)
        }
        _ => other(version, kind, value),
    }
}

fn other(version: &str, kind: &str, value: &Value) -> Vec<String> {
    let found = OTHERS.iter().find(|(of, other, ..)| *of == version && *other == kind);
    let Some((_, _, required, allowed)) = found else {
        return vec![format!("`{kind}` of `{version}` is no kind that this test knows")];
    };
    let Some(fields) = value.as_object() else { return vec!["it is no object".to_owned()] };
    let missing = required.iter().filter(|key| !fields.contains_key(**key)).map(|key| format!("`{key}` is missing"));
    let known = |key: &str| matches!(key, "apiVersion" | "kind") || allowed.contains(&key);
    let unknown = fields.keys().filter(|key| !known(key)).map(|key| format!("`{key}` is unknown"));
    missing.chain(unknown).collect()
}

/// The fields that are gone when a value has been that type.
pub fn unknown<T: DeserializeOwned + Serialize>(value: &Value) -> Vec<String> {
    let typed: T = match load::read(value) {
        Ok(typed) => typed,
        Err(error) => return vec![error],
    };
    let kept = serde_json::to_value(&typed).expect("JSON");
    let mut lost = Vec::new();
    compare(value, &kept, "", &mut lost);
    lost
}

fn compare(value: &Value, kept: &Value, at: &str, lost: &mut Vec<String>) {
    match (value, kept) {
        (Value::Object(fields), Value::Object(others)) => {
            // `$patch: delete` and its like are kustomize's.
            for (key, field) in fields.iter().filter(|(key, _)| !key.starts_with('$')) {
                match others.get(key) {
                    Some(other) => compare(field, other, &format!("{at}.{key}"), lost),
                    None => lost.push(format!("`{at}.{key}` is unknown")),
                }
            }
        }
        (Value::Array(items), Value::Array(others)) if items.len() == others.len() => {
            for (index, (item, other)) in items.iter().zip(others).enumerate() {
                compare(item, other, &format!("{at}[{index}]"), lost);
            }
        }
        // kustomize writes 0 for 0.0, which is the same to Kubernetes.
        (Value::Number(number), Value::Number(other)) if number.as_f64() == other.as_f64() => {}
        _ if value == kept => {}
        _ => lost.push(format!("`{at}` is {value}, and becomes {kept}")),
    }
}

/// Says what is wrong with every document, or nothing.
pub fn assert_right(documents: &[Document]) {
    let mut all = Vec::new();
    for document in documents {
        for wrong in wrong(&document.value) {
            all.push(format!("{}: {} `{}`: {wrong}", document.file.display(), document.kind(), document.name()));
        }
    }
    assert!(all.is_empty(), "{all:#?}");
}

#[test]
fn every_file_has_only_fields_that_kubernetes_knows() {
    let mut documents = Vec::new();
    for file in load::files(&load::daemonset(), "yaml") {
        documents.extend(load::documents(&file));
    }
    assert!(documents.len() > 40, "{} documents", documents.len());
    assert_right(&documents);
}

#[test]
fn a_slip_of_the_pen_is_found() {
    let slips = [
        ("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a}\nautomountServiceAccounttoken: false", "token"),
        (
            "apiVersion: apps/v1\nkind: DaemonSet\nspec: {template: {spec: {priorityClass: a, containers: []}}}",
            "priorityClass",
        ),
        (
            "apiVersion: apps/v1\nkind: DaemonSet\nspec: {template: {spec: {containers: [{name: a, port: []}]}}}",
            "[0].port",
        ),
        ("apiVersion: v1\nkind: Servce\n", "no kind"),
        ("apiVersion: ray.io/v1\nkind: RayService\nspce: {}", "`spec` is missing"),
        ("apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\npatch: []", "`patch` is unknown"),
        ("apiVersion: v1\nkind: Namespace\nmetadata: {name: [a]}", "invalid type"),
    ];
    for (text, expected) in slips {
        let documents = load::parse("a slip".as_ref(), text);
        let found = wrong(&documents[0].value).join("\n");
        assert!(found.contains(expected), "{text}: {found}");
    }
}
