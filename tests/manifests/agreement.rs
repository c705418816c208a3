//! Paths, ports, users and times stand in the manifests and in the code. Here they are the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use larder::cluster;
use larder::config::{Config, MountAt, SETTINGS};
use larder::csi::DRIVER;
use larder_keeper::protocol;
use serde_json::Value;

use super::base::{daemonset, object, objects};
use super::load;

/// The keeper's options are in its binary; this is the table that a test of it holds against them.
const KEEPER_ARGS: &str = include_str!("../../daemonset/keeper/src/args.rs");

/// What the daemon of the base runs by.
fn config() -> Config {
    let (_, _, container) = daemonset("larder");
    let variables: BTreeMap<String, String> = container
        .env
        .into_iter()
        .flatten()
        .map(|variable| {
            // From the node: any will do.
            let value = variable.value.unwrap_or_else(|| "node-1".to_owned());
            (variable.name, value)
        })
        .collect();
    let file = load::daemonset().join("base/larder.toml");
    let loaded = Config::load(Some(&file), None, &|name| variables.get(name).cloned());
    loaded.unwrap_or_else(|failure| panic!("{}", failure.message)).config
}

/// The directories of the node that a pod mounts: where in the container, where on the node, and how.
fn mounts(pod: &PodSpec, container: &Container) -> Vec<(PathBuf, PathBuf, Option<String>)> {
    let mut found = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = pod.volumes.iter().flatten().find(|volume| volume.name == mount.name).expect("a volume");
        if let Some(host) = &volume.host_path {
            assert!(mount.sub_path.is_none() && mount.read_only != Some(true), "{mount:?}");
            found.push(((&mount.mount_path).into(), (&host.path).into(), mount.mount_propagation.clone()));
        }
    }
    found
}

/// Whether a path of the container is below a directory of the node, at the same place there.
fn covered(mounts: &[(PathBuf, PathBuf, Option<String>)], path: &Path) -> bool {
    mounts.iter().any(|(inside, outside, _)| inside == outside && path.starts_with(inside))
}

/// The defaults that the keeper's `--help` gives for an option.
fn keeper_defaults(option: &str) -> Vec<String> {
    let (_, rest) = KEEPER_ARGS.split_once(&format!("      {option} ")).unwrap_or_else(|| panic!("no {option}"));
    let rest = rest.split("      --").next().expect("a part");
    let (_, rest) = rest.split_once('[').unwrap_or_else(|| panic!("no default of {option}"));
    let (defaults, _) = rest.split_once(']').expect("its end");
    defaults.split(',').map(|default| default.trim().to_owned()).collect()
}

/// What an option of the keeper says in the base, or its defaults.
fn keeper_option(option: &str) -> Vec<String> {
    let (_, _, container) = daemonset("larder-keeper");
    let start = format!("{option}=");
    let said: Vec<String> =
        container.args.iter().flatten().filter_map(|arg| arg.strip_prefix(&start)).map(str::to_owned).collect();
    if said.is_empty() { keeper_defaults(option) } else { said }
}

fn http_port(probe: &Probe, container: &Container) -> (String, i32) {
    let get = probe.http_get.as_ref().expect("an HTTP probe");
    let port = match &get.port {
        IntOrString::Int(port) => *port,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            ports.find(|port| port.name.as_deref() == Some(name)).expect("a port of that name").container_port
        }
    };
    (get.path.clone().expect("a path"), port)
}

#[test]
fn every_variable_of_the_daemon_is_a_setting() {
    let (_, _, container) = daemonset("larder");
    for variable in container.env.iter().flatten() {
        let known = SETTINGS.iter().any(|setting| setting.variable() == variable.name);
        assert!(known, "{} is no setting", variable.name);
    }
    // Those of overlays and components as well.
    let mut files = load::files(&load::daemonset().join("overlays"), "yaml");
    files.extend(load::files(&load::daemonset().join("components"), "yaml"));
    for file in files {
        let text = load::text(&file);
        for name in
            text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("LARDER_"))
        {
            let known = SETTINGS.iter().any(|setting| setting.variable() == name);
            assert!(known, "{}: {name} is no setting", file.display());
        }
    }
}

#[test]
fn every_option_of_the_keeper_is_one() {
    let (_, _, container) = daemonset("larder-keeper");
    let probe = |probe: &Option<Probe>| probe.clone().and_then(|probe| probe.exec?.command).unwrap_or_default();
    let probes = [probe(&container.liveness_probe), probe(&container.readiness_probe)];
    for command in &probes {
        assert_eq!(command.first().map(String::as_str), Some("/larder-keeper"), "{command:?}");
    }
    let component = load::text(&load::daemonset().join("components/kubelet-dir/kustomization.yaml"));
    let patched = component.lines().filter_map(|line| line.trim().strip_prefix("value: ")).map(str::to_owned);
    let args = container.args.into_iter().flatten().chain(probes.into_iter().flatten()).chain(patched);
    for arg in args.filter(|arg| arg.starts_with("--")) {
        let option = arg.split('=').next().expect("a part");
        assert!(KEEPER_ARGS.contains(&format!("\"{option}\"")), "the keeper has no {option}");
    }
}

#[test]
fn the_daemon_finds_the_keeper_and_the_keeper_the_daemon() {
    let config = config();
    assert_eq!(config.mount, Some(MountAt::Keeper(protocol::SOCKET.into())));
    assert_eq!(keeper_option("--socket"), [protocol::SOCKET]);
    let (_, pod, container) = daemonset("larder");
    let user = pod.security_context.clone().expect("a context").run_as_user.expect("a user");
    assert_eq!(keeper_option("--peer-uid"), [user.to_string()]);
    let (_, keeper_pod, keeper) = daemonset("larder-keeper");
    for mounts in [mounts(&pod, &container), mounts(&keeper_pod, &keeper)] {
        assert!(covered(&mounts, protocol::SOCKET.as_ref()), "{mounts:?}");
    }
    for probe in [keeper.liveness_probe, keeper.readiness_probe] {
        let command = probe.and_then(|probe| probe.exec).and_then(|exec| exec.command).expect("a command");
        assert_eq!(command, ["/larder-keeper", "--probe"]);
    }
}

#[test]
fn what_the_daemon_writes_is_given_to_it_by_the_keeper() {
    let config = config();
    let (_, pod, container) = daemonset("larder");
    let (_, keeper_pod, keeper) = daemonset("larder-keeper");
    let mut directories = vec![config.store.clone()];
    for socket in [&config.socket, &config.admin_socket] {
        directories.push(socket.parent().expect("a directory").to_owned());
    }
    let own: Vec<PathBuf> = keeper_option("--own").into_iter().map(PathBuf::from).collect();
    assert_eq!(own, directories);
    for directory in &directories {
        assert!(covered(&mounts(&pod, &container), directory), "{}", directory.display());
        assert!(covered(&mounts(&keeper_pod, &keeper), directory), "{}", directory.display());
    }
    // Pods mount the directory of one socket and not of the other.
    assert_ne!(config.socket.parent(), config.admin_socket.parent());
    assert_eq!(keeper_option("--models"), [config.store.join("v1/models").display().to_string()]);
}

#[test]
fn what_the_keeper_mounts_is_seen_by_pods_and_by_the_daemon() {
    let (_, pod, container) = daemonset("larder-keeper");
    let mounts_of_keeper = mounts(&pod, &container);
    let propagated: Vec<_> =
        mounts_of_keeper.iter().filter(|(_, _, propagation)| propagation.as_deref() == Some("Bidirectional")).collect();
    let mount = keeper_option("--mount").remove(0);
    for place in keeper_option("--bind-below").iter().chain([&mount]) {
        let is_seen =
            propagated.iter().any(|(inside, outside, _)| inside == outside && Path::new(place).starts_with(inside));
        assert!(is_seen, "{place}: {propagated:?}");
    }
    assert_eq!(propagated.len(), 2, "no more than it needs: {propagated:?}");
    for place in keeper_option("--listen-below") {
        assert!(covered(&mounts_of_keeper, place.as_ref()), "{place}");
    }
    let (_, pod, container) = daemonset("larder");
    let seen = mounts(&pod, &container)
        .into_iter()
        .find(|(inside, ..)| Path::new(&mount).starts_with(inside))
        .expect("the daemon sees the mount");
    assert_eq!(seen.2.as_deref(), Some("HostToContainer"));
}

/// kubelet's directory is the keeper's business.
#[test]
fn the_daemon_sees_nothing_of_kubelet() {
    let config = config();
    let (_, pod, container) = daemonset("larder");
    for (inside, outside, _) in mounts(&pod, &container) {
        for path in [inside, outside] {
            assert!(
                !path.starts_with(&config.kubelet_dir) && !config.kubelet_dir.starts_with(&path),
                "{}",
                path.display()
            );
        }
    }
    for place in keeper_option("--bind-below").iter().chain(&keeper_option("--listen-below")) {
        assert!(Path::new(place).starts_with(&config.kubelet_dir), "{place}");
    }
}

#[test]
fn it_reads_the_settings_that_are_mounted() {
    let (_, pod, container) = daemonset("larder");
    let args = container.args.expect("arguments");
    assert_eq!(args[0], "daemon");
    let at = args.iter().position(|arg| arg == "--config").expect("--config");
    let file = Path::new(&args[at + 1]);
    let mount = container.volume_mounts.iter().flatten().find(|mount| mount.name == "config").expect("a mount");
    assert_eq!(Some(Path::new(&mount.mount_path)), file.parent());
    assert!(mount.sub_path.is_none(), "a subPath never changes");
    assert_eq!(file.file_name().expect("a name"), "larder.toml", "the key of the ConfigMap");
    let volume = pod.volumes.iter().flatten().find(|volume| volume.name == "config").expect("a volume");
    assert_eq!(volume.config_map.as_ref().expect("a ConfigMap").name, "larder");
    assert!(config().prefetch.is_empty(), "nothing moves before somebody asks for it");
}

#[test]
fn one_port_for_listener_probes_metrics_and_policy() {
    let listen = config().listen.expect("an address");
    assert!(listen.ip().is_unspecified(), "kubelet asks at the pod's address");
    let (_, _, container) = daemonset("larder");
    let ports: Vec<(Option<&str>, i32)> =
        container.ports.iter().flatten().map(|port| (port.name.as_deref(), port.container_port)).collect();
    assert_eq!(ports, [(Some("metrics"), i32::from(listen.port()))]);

    let contract: Value = serde_json::from_str(include_str!("../../src/control/openapi.json")).expect("JSON");
    let served = contract["paths"].as_object().expect("paths");
    let probes = [&container.startup_probe, &container.liveness_probe, &container.readiness_probe];
    for (probe, expected) in probes.into_iter().zip(["/healthz", "/healthz", "/readyz"]) {
        let (path, port) = http_port(probe.as_ref().expect("a probe"), &container);
        assert_eq!((path.as_str(), port), (expected, i32::from(listen.port())));
        assert!(served.contains_key(&path), "{path} is not served");
    }

    let monitor = &load::documents(&load::daemonset().join("components/pod-monitor/pod-monitor.yaml"))[0].value;
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!((&endpoint["port"], &endpoint["path"]), (&Value::from("metrics"), &Value::from("/metrics")));
    assert!(served.contains_key("/metrics"));
    let labels = &object("DaemonSet", "larder").value["spec"]["selector"]["matchLabels"];
    assert_eq!(&monitor["spec"]["selector"]["matchLabels"], labels);

    let policies = load::documents(&load::daemonset().join("components/network-policy/network-policy.yaml"));
    let policy = policies.iter().find(|policy| policy.name() == "larder").expect("a policy");
    assert_eq!(policy.value["spec"]["ingress"][0]["ports"][0]["port"], listen.port());
    for policy in &policies {
        let labels = &object("DaemonSet", policy.name()).value["spec"]["selector"]["matchLabels"];
        assert_eq!(&policy.value["spec"]["podSelector"]["matchLabels"], labels, "{}", policy.name());
    }
}

#[test]
fn it_stops_before_it_is_killed() {
    let config = config();
    let (_, pod, container) = daemonset("larder");
    let grace = u64::try_from(pod.termination_grace_period_seconds.expect("a grace period")).expect("positive");
    assert!(config.stop_within.as_secs() < grace, "{:?} of {grace} s", config.stop_within);
    // Recovery is not to be cut off: minutes, not seconds.
    let startup = container.startup_probe.expect("a probe");
    let patience = startup.period_seconds.unwrap_or(10) * startup.failure_threshold.unwrap_or(3);
    assert!(patience >= 300, "{patience} s");
}

/// Both sockets of the driver are made in directories that the keeper has, and may make them in.
#[test]
fn the_drivers_sockets_have_a_place() {
    let below = keeper_option("--listen-below");
    for directory in ["plugins", "plugins_registry"] {
        let directory = config().kubelet_dir.join(directory).display().to_string();
        assert!(below.contains(&directory), "{directory}: {below:?}");
    }
    let pods = config().kubelet_dir.join("pods").display().to_string();
    assert_eq!(keeper_option("--bind-below"), [pods]);
}

#[test]
fn names_are_those_of_the_code() {
    let defined: Vec<String> = cluster::definitions().iter().filter_map(|crd| crd.metadata.name.clone()).collect();
    let written: Vec<String> = objects()
        .iter()
        .filter(|document| document.kind() == "CustomResourceDefinition")
        .map(|document| document.name().to_owned())
        .collect();
    assert_eq!(written, defined);
    for rule in object("ClusterRole", "larder").value["rules"].as_array().expect("rules") {
        let group = rule["apiGroups"][0].as_str().expect("a group");
        assert!(group.is_empty() || group == cluster::GROUP, "{group}");
    }

    let text = |file: &str| load::text(&load::daemonset().join(file));
    let guard = text("components/node-labels-guard/nodes.yaml");
    assert!(guard.contains(&format!("startsWith('{}')", cluster::PREFIX)), "labels");
    assert!(guard.contains(&format!("o.key == '{}'", cluster::STARTUP_TAINT)), "the taint");
    let uninstall = text("uninstall");
    for name in [format!("DRIVER={DRIVER}"), format!("{}*)", cluster::PREFIX), cluster::STARTUP_TAINT.to_owned()] {
        assert!(uninstall.contains(&name), "{name}");
    }
    for name in defined {
        assert!(uninstall.contains(&name), "{name}");
    }
    // What examples prefer is what a CachedModel of that name gives.
    for file in load::files(&load::daemonset().join("examples"), "yaml") {
        for key in text(file.to_str().expect("text")).lines().filter_map(|line| line.trim().strip_prefix("- key: ")) {
            assert_eq!(key.strip_prefix(cluster::PREFIX).map(cluster::key_of).as_deref(), Some(key));
        }
    }
}
