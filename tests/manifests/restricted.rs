//! The profile `restricted` of the Pod Security Standards, field by field.

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, Container, Lifecycle, LifecycleHandler, PodSpec, Probe, SELinuxOptions,
    SeccompProfile, SecurityContext,
};
use serde_json::{Value, json};

use super::load;

/// Types of volumes that are allowed.
const VOLUMES: &[&str] =
    &["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];
const SELINUX_TYPES: &[&str] = &["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
const SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// What the profile forbids in a pod; empty if it is allowed.
pub fn restricted(spec: &PodSpec) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |is_wrong: bool, what: &str| {
        if is_wrong {
            wrong.push(what.to_owned());
        }
    };
    check(spec.host_network == Some(true), "hostNetwork");
    check(spec.host_pid == Some(true), "hostPID");
    check(spec.host_ipc == Some(true), "hostIPC");
    for volume in spec.volumes.iter().flatten() {
        let fields = serde_json::to_value(volume).expect("JSON");
        for kind in fields.as_object().expect("an object").keys().filter(|key| *key != "name") {
            check(!VOLUMES.contains(&kind.as_str()), &format!("volume `{}` is a {kind}", volume.name));
        }
    }
    let pod = spec.security_context.clone().unwrap_or_default();
    check(pod.run_as_user == Some(0), "runAsUser of the pod");
    check(!seccomp(pod.seccomp_profile.as_ref(), true), "seccompProfile of the pod");
    check(!app_armor(pod.app_armor_profile.as_ref()), "appArmorProfile of the pod");
    check(!se_linux(pod.se_linux_options.as_ref()), "seLinuxOptions of the pod");
    check(pod.windows_options.is_some_and(|windows| windows.host_process == Some(true)), "hostProcess of the pod");
    for sysctl in pod.sysctls.iter().flatten() {
        check(!SYSCTLS.contains(&sysctl.name.as_str()), &format!("sysctl {}", sysctl.name));
    }
    for container in containers(spec) {
        let name = &container.name;
        let own = container.security_context.clone().unwrap_or_default();
        for what in of_container(&container, &own) {
            check(true, &format!("{what} of `{name}`"));
        }
        check(own.run_as_non_root.or(pod.run_as_non_root) != Some(true), &format!("runAsNonRoot of `{name}`"));
        // What the container does not say, the pod must have said.
        let is_said = pod.seccomp_profile.is_some();
        check(!seccomp(own.seccomp_profile.as_ref(), is_said), &format!("seccompProfile of `{name}`"));
    }
    wrong
}

/// All three kinds, as containers.
pub fn containers(spec: &PodSpec) -> Vec<Container> {
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| {
        load::read::<Container>(&serde_json::to_value(container).expect("JSON")).expect("the same fields")
    });
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).cloned().chain(ephemeral).collect()
}

fn of_container(container: &Container, own: &SecurityContext) -> Vec<&'static str> {
    let Capabilities { add, drop } = own.capabilities.clone().unwrap_or_default();
    let adds = add.unwrap_or_default();
    let drops = drop.unwrap_or_default();
    let has_host_port = container.ports.iter().flatten().any(|port| port.host_port.is_some_and(|port| port != 0));
    let host_process = own.windows_options.as_ref().is_some_and(|windows| windows.host_process == Some(true));
    [
        (has_host_port, "hostPort"),
        (own.privileged == Some(true), "privileged"),
        (own.allow_privilege_escalation != Some(false), "allowPrivilegeEscalation"),
        (!drops.iter().any(|name| name == "ALL"), "capabilities.drop"),
        (adds.iter().any(|name| name != "NET_BIND_SERVICE"), "capabilities.add"),
        (own.run_as_user == Some(0), "runAsUser"),
        (own.proc_mount.as_deref().is_some_and(|kind| kind != "Default"), "procMount"),
        (!app_armor(own.app_armor_profile.as_ref()), "appArmorProfile"),
        (!se_linux(own.se_linux_options.as_ref()), "seLinuxOptions"),
        (host_process, "hostProcess"),
        (asks_another_host(container), "host of a probe or hook"),
    ]
    .into_iter()
    .filter_map(|(is_wrong, what)| is_wrong.then_some(what))
    .collect()
}

fn seccomp(profile: Option<&SeccompProfile>, may_be_absent: bool) -> bool {
    profile.map_or(may_be_absent, |profile| matches!(profile.type_.as_str(), "RuntimeDefault" | "Localhost"))
}

fn app_armor(profile: Option<&AppArmorProfile>) -> bool {
    profile.is_none_or(|profile| matches!(profile.type_.as_str(), "RuntimeDefault" | "Localhost"))
}

fn se_linux(options: Option<&SELinuxOptions>) -> bool {
    let is_empty = |text: &Option<String>| text.as_deref().unwrap_or_default().is_empty();
    options.is_none_or(|options| {
        let kind = options.type_.as_deref().unwrap_or_default();
        SELINUX_TYPES.contains(&kind) && is_empty(&options.user) && is_empty(&options.role)
    })
}

/// Kubernetes 1.34 added this to the profiles: kubelet would ask for the pod, from its own place.
fn asks_another_host(container: &Container) -> bool {
    let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
    let of_probe = |probe: &Probe| {
        let http = probe.http_get.as_ref().and_then(|get| get.host.as_ref());
        http.or(probe.tcp_socket.as_ref().and_then(|tcp| tcp.host.as_ref())).is_some()
    };
    let of_hook = |hook: &LifecycleHandler| {
        let http = hook.http_get.as_ref().and_then(|get| get.host.as_ref());
        http.or(hook.tcp_socket.as_ref().and_then(|tcp| tcp.host.as_ref())).is_some()
    };
    let hooks = |lifecycle: &Lifecycle| [&lifecycle.post_start, &lifecycle.pre_stop].into_iter().flatten().any(of_hook);
    probes.into_iter().flatten().any(of_probe) || container.lifecycle.as_ref().is_some_and(hooks)
}

fn allowed() -> Value {
    json!({
        "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "a",
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}},
            "ports": [{"containerPort": 80}],
            "readinessProbe": {"httpGet": {"path": "/", "port": 80}},
        }],
        "initContainers": [{
            "name": "b",
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        }],
        "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "csi": {"driver": "d"}}],
    })
}

fn pod(value: &Value) -> PodSpec {
    load::read(value).expect("a pod")
}

#[test]
fn what_the_profile_allows_is_allowed() {
    assert_eq!(restricted(&pod(&allowed())), Vec::<String>::new());
    let mut each = allowed();
    each["securityContext"] = json!({});
    for list in ["containers", "initContainers"] {
        each[list][0]["securityContext"]["runAsNonRoot"] = json!(true);
        each[list][0]["securityContext"]["seccompProfile"] = json!({"type": "Localhost", "localhostProfile": "p"});
    }
    assert_eq!(restricted(&pod(&each)), Vec::<String>::new());
}

/// Each field of the standard, violated alone.
#[test]
fn every_violation_is_named() {
    let violations: &[(&str, Value, &str)] = &[
        ("/hostNetwork", json!(true), "hostNetwork"),
        ("/hostPID", json!(true), "hostPID"),
        ("/hostIPC", json!(true), "hostIPC"),
        ("/volumes/0", json!({"name": "v", "hostPath": {"path": "/"}}), "volume `v` is a hostPath"),
        ("/volumes/0", json!({"name": "v", "nfs": {"server": "s", "path": "/"}}), "volume `v` is a nfs"),
        ("/securityContext/runAsNonRoot", json!(false), "runAsNonRoot of `a`"),
        ("/securityContext/runAsNonRoot", Value::Null, "runAsNonRoot of `b`"),
        ("/containers/0/securityContext/runAsNonRoot", json!(false), "runAsNonRoot of `a`"),
        ("/securityContext/runAsUser", json!(0), "runAsUser of the pod"),
        ("/initContainers/0/securityContext/runAsUser", json!(0), "runAsUser of `b`"),
        ("/securityContext/seccompProfile", Value::Null, "seccompProfile of `a`"),
        ("/securityContext/seccompProfile/type", json!("Unconfined"), "seccompProfile of the pod"),
        ("/containers/0/securityContext/seccompProfile", json!({"type": "Unconfined"}), "seccompProfile of `a`"),
        ("/securityContext/appArmorProfile", json!({"type": "Unconfined"}), "appArmorProfile of the pod"),
        ("/containers/0/securityContext/appArmorProfile", json!({"type": "Unconfined"}), "appArmorProfile of `a`"),
        ("/securityContext/seLinuxOptions", json!({"type": "spc_t"}), "seLinuxOptions of the pod"),
        ("/containers/0/securityContext/seLinuxOptions", json!({"user": "u"}), "seLinuxOptions of `a`"),
        ("/containers/0/securityContext/seLinuxOptions", json!({"role": "r"}), "seLinuxOptions of `a`"),
        ("/securityContext/sysctls", json!([{"name": "kernel.msgmax", "value": "1"}]), "sysctl kernel.msgmax"),
        ("/securityContext/windowsOptions", json!({"hostProcess": true}), "hostProcess of the pod"),
        ("/containers/0/securityContext/windowsOptions", json!({"hostProcess": true}), "hostProcess of `a`"),
        ("/containers/0/ports/0/hostPort", json!(80), "hostPort of `a`"),
        ("/containers/0/securityContext/privileged", json!(true), "privileged of `a`"),
        ("/containers/0/securityContext/allowPrivilegeEscalation", json!(true), "allowPrivilegeEscalation of `a`"),
        ("/containers/0/securityContext/allowPrivilegeEscalation", Value::Null, "allowPrivilegeEscalation of `a`"),
        ("/containers/0/securityContext/capabilities/drop", json!(["KILL"]), "capabilities.drop of `a`"),
        ("/initContainers/0/securityContext/capabilities", Value::Null, "capabilities.drop of `b`"),
        ("/containers/0/securityContext/capabilities/add", json!(["CHOWN"]), "capabilities.add of `a`"),
        ("/containers/0/securityContext/procMount", json!("Unmasked"), "procMount of `a`"),
        ("/containers/0/readinessProbe/httpGet/host", json!("h"), "host of a probe or hook of `a`"),
        (
            "/containers/0/lifecycle",
            json!({"preStop": {"tcpSocket": {"host": "h", "port": 1}}}),
            "host of a probe or hook of `a`",
        ),
        ("/ephemeralContainers", json!([{"name": "c"}]), "allowPrivilegeEscalation of `c`"),
    ];
    for (at, value, expected) in violations {
        let mut spec = allowed();
        let (parent, key) = at.rsplit_once('/').expect("a pointer");
        let parent = if parent.is_empty() { &mut spec } else { spec.pointer_mut(parent).expect("a parent") };
        match key.parse::<usize>() {
            Ok(index) => parent[index] = value.clone(),
            Err(_) => parent[key] = value.clone(),
        }
        let found = restricted(&pod(&spec));
        assert!(found.iter().any(|wrong| wrong == expected), "{at} = {value}: {found:?}");
    }
}
