//! The admission policies of `components/node-labels-guard`.

use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};

use super::base::USER;
use super::load::{self, Document};

fn documents() -> Vec<Document> {
    let directory = load::daemonset().join("components/node-labels-guard");
    ["nodes.yaml", "node-caches.yaml", "events.yaml"]
        .iter()
        .flat_map(|file| load::documents(&directory.join(file)))
        .collect()
}

#[test]
fn each_policy_is_bound_denies_and_is_about_the_daemon() {
    let policies: Vec<ValidatingAdmissionPolicy> = documents()
        .iter()
        .filter(|document| document.kind() == "ValidatingAdmissionPolicy")
        .map(Document::read)
        .collect();
    let bindings: Vec<ValidatingAdmissionPolicyBinding> = documents()
        .iter()
        .filter(|document| document.kind() == "ValidatingAdmissionPolicyBinding")
        .map(Document::read)
        .collect();
    assert_eq!((policies.len(), bindings.len()), (3, 3));
    for policy in policies {
        let name = policy.metadata.name.expect("a name");
        let spec = policy.spec.expect("a spec");
        assert_eq!(spec.failure_policy.as_deref(), Some("Fail"), "{name}");
        let binding = bindings.iter().filter_map(|binding| binding.spec.as_ref());
        let binding = binding.filter(|spec| spec.policy_name.as_deref() == Some(&name)).collect::<Vec<_>>();
        assert_eq!(binding.len(), 1, "{name}");
        assert!(binding[0].match_resources.is_none(), "{name} is for all objects");
        assert!(binding[0].validation_actions.iter().flatten().any(|action| action == "Deny"), "{name}");
        let conditions: Vec<String> =
            spec.match_conditions.into_iter().flatten().map(|condition| condition.expression).collect();
        assert_eq!(conditions, [format!("request.userInfo.username == '{USER}'")], "{name}");
        let validations = spec.validations.unwrap_or_default();
        assert!(validations.iter().all(|validation| validation.message.is_some()), "{name}");
        let claim = "'authentication.kubernetes.io/node-name' in variables.extra";
        assert!(validations[0].expression.contains(claim), "{name}: its node first");
        // What is not declared is an error at each request, and so a refusal.
        let declared: Vec<String> = spec.variables.into_iter().flatten().map(|variable| variable.name).collect();
        for validation in &validations {
            for used in validation.expression.split("variables.").skip(1) {
                let used: String = used.chars().take_while(char::is_ascii_alphanumeric).collect();
                assert!(declared.contains(&used), "{name} has no variable {used}");
            }
        }
    }
}

/// What the role allows is what the policy looks at.
#[test]
fn the_policies_cover_what_the_roles_allow_to_write() {
    let mut rules: Vec<(String, String)> = Vec::new();
    for document in documents().iter().filter(|document| document.kind() == "ValidatingAdmissionPolicy") {
        for rule in document.value["spec"]["matchConstraints"]["resourceRules"].as_array().expect("rules") {
            for resource in rule["resources"].as_array().expect("resources") {
                let operations = rule["operations"].as_array().expect("operations");
                assert!(operations.iter().any(|operation| operation == "UPDATE"));
                rules.push((
                    rule["apiGroups"][0].as_str().expect("a group").to_owned(),
                    resource.as_str().expect("a resource").to_owned(),
                ));
            }
        }
    }
    let mut files = vec![load::daemonset().join("base/rbac.yaml")];
    files.push(load::daemonset().join("components/node-labels/rbac.yaml"));
    let roles = files.iter().flat_map(|file| load::documents(file)).filter(|document| document.kind() == "ClusterRole");
    for role in roles {
        for rule in role.value["rules"].as_array().expect("rules") {
            let reads = ["get", "list", "watch"];
            let writes =
                rule["verbs"].as_array().expect("verbs").iter().any(|verb| !reads.iter().any(|read| verb == read));
            let key = (
                rule["apiGroups"][0].as_str().expect("a group").to_owned(),
                rule["resources"][0].as_str().expect("a resource").to_owned(),
            );
            assert!(!writes || rules.contains(&key), "{key:?} is not guarded: {rules:?}");
        }
    }
}
