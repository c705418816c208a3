//! `daemonset/uninstall`, with a kubectl that notes what it is asked and answers from files.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::load;

/// A cluster with one node, which has a label of ours, and with the pods in `users`.
const KUBECTL: &str = r#"#!/bin/sh
printf '%s\n' "$*" | tr '\n' ' ' >> "$STAGE/calls"
echo >> "$STAGE/calls"
case "$*" in
  *create*) cat >> "$STAGE/created" ;;
  *"get pods --all-namespaces"*csi.larder.dev*) cat "$STAGE/users" ;;
  *"get pods --all-namespaces"*hostPath*) cat "$STAGE/readers" ;;
  *"get nodes"*labels*) printf 'n1 kubernetes.io/os\nn1 models.larder.dev/llama\n' ;;
  *"get pods -l app.kubernetes.io/name=larder-keeper -o jsonpath"*) echo n1 ;;
  *"volumes[?(@.name==\"larder\")]"*) printf /mnt/disk/larder ;;
  *api-resources*) echo validatingadmissionpolicies.admissionregistration.k8s.io ;;
esac
"#;

struct Stage {
    at: tempfile::TempDir,
}

impl Stage {
    fn new(users: &str, readers: &str) -> Self {
        let at = tempfile::tempdir().expect("a directory");
        std::fs::write(at.path().join("users"), users).expect("a file");
        std::fs::write(at.path().join("readers"), readers).expect("a file");
        std::fs::write(at.path().join("created"), "").expect("a file");
        let kubectl = at.path().join("kubectl");
        std::fs::write(&kubectl, KUBECTL).expect("a file");
        std::fs::set_permissions(&kubectl, PermissionsExt::from_mode(0o755)).expect("a mode");
        Self { at }
    }

    fn run(&self, args: &[&str]) -> Output {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(load::daemonset().join("uninstall"));
        command.args(args).stdin(Stdio::null());
        command.env("PATH", format!("{}:{path}", self.at.path().display())).env("STAGE", self.at.path());
        command.output().expect("bash")
    }

    fn read(&self, name: &str) -> String {
        load::text(&Path::new(self.at.path()).join(name))
    }

    /// The calls that change something.
    fn changes(&self) -> Vec<String> {
        let calls = self.read("calls");
        let changes = |call: &&str| ["delete ", "label ", "create "].iter().any(|verb| call.contains(verb));
        calls.lines().filter(changes).map(|call| call.trim().to_owned()).collect()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn it_refuses_while_pods_have_a_volume_and_names_them() {
    let stage = Stage::new("default/llama-0 on n1\n", "");
    for args in [&[][..], &["--cache"], &["--dry-run"]] {
        let output = stage.run(args);
        assert_eq!(output.status.code(), Some(75), "{}", said(&output));
        assert!(said(&output).contains("default/llama-0 on n1"), "{}", said(&output));
        assert_eq!(stage.changes(), Vec::<String>::new());
    }
}

#[test]
fn it_takes_everything_away_in_order() {
    let stage = Stage::new("", "");
    let output = stage.run(&[]);
    assert!(output.status.success(), "{}", said(&output));
    let expected = [
        "-n larder delete daemonset larder --ignore-not-found",
        "-n larder delete daemonset larder-keeper --ignore-not-found",
        "label node n1 models.larder.dev/llama-",
        "delete csidriver csi.larder.dev --ignore-not-found",
        "delete validatingadmissionpolicybinding,validatingadmissionpolicy larder-nodes larder-node-caches --ignore-not-found",
        "delete clusterrolebinding,clusterrole larder larder-node-labels --ignore-not-found",
        "delete crd cachedmodels.larder.dev nodecaches.larder.dev --ignore-not-found",
        "delete namespace larder --ignore-not-found",
    ];
    assert_eq!(stage.changes(), expected);
    assert!(said(&output).contains("still on the nodes, in /mnt/disk/larder"), "{}", said(&output));
    assert_eq!(stage.read("created"), "", "no pod without --cache");
}

#[test]
fn a_dry_run_changes_nothing() {
    let stage = Stage::new("", "");
    let output = stage.run(&["--cache", "--dry-run"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(stage.changes(), Vec::<String>::new());
    for expected in ["delete namespace larder", "remove /mnt/disk/larder", "busybox", "label node n1"] {
        assert!(said(&output).contains(expected), "{expected}: {}", said(&output));
    }
}

#[test]
fn the_cache_goes_by_a_pod_on_each_node() {
    let stage = Stage::new("", "");
    let output = stage.run(&["--cache", "--cleaner-image=registry.example.com/shell:1"]);
    assert!(output.status.success(), "{}", said(&output));
    let pods = load::parse("the cleaner".as_ref(), &stage.read("created"));
    assert_eq!(pods.len(), 1);
    super::kinds::assert_right(&pods);
    let spec = &pods[0].value["spec"];
    assert_eq!(spec["nodeName"], "n1");
    assert_eq!(spec["containers"][0]["image"], "registry.example.com/shell:1");
    assert_eq!(spec["volumes"][0]["hostPath"]["path"], "/mnt/disk");
    assert_eq!(spec["containers"][0]["env"][0]["value"], "larder");
    let changes = stage.changes();
    let created = changes.iter().position(|call| call.contains("create")).expect("a pod is made");
    let keeper = changes.iter().position(|call| call.contains("daemonset larder-keeper")).expect("the keeper goes");
    assert!(keeper < created, "after the keeper: {changes:#?}");
}

#[test]
fn the_cache_stays_while_somebody_reads_the_nodes_directory() {
    let stage = Stage::new("", "/mnt/disk/larder default/reader\n/mnt/disk/larder2 default/other\n");
    let output = stage.run(&["--cache"]);
    assert_eq!(output.status.code(), Some(75), "{}", said(&output));
    assert!(said(&output).contains("default/reader mounts /mnt/disk/larder"), "{}", said(&output));
    assert!(!said(&output).contains("default/other"), "{}", said(&output));
    assert_eq!(stage.changes(), Vec::<String>::new());
    let output = stage.run(&[]);
    assert!(output.status.success(), "without --cache they keep their files: {}", said(&output));
}

#[test]
fn slips_are_named() {
    let stage = Stage::new("", "");
    for (args, expected) in [
        (&["--force"][..], "unknown argument `--force`"),
        (&["--cleaner-image"], "needs a value"),
        (&["--cleaner-image=a b"], "is no image"),
    ] {
        let output = stage.run(args);
        assert_eq!(output.status.code(), Some(64), "{}", said(&output));
        assert!(said(&output).contains(expected), "{}", said(&output));
    }
    let help = stage.run(&["--help"]);
    assert!(String::from_utf8_lossy(&help.stdout).contains("--cleaner-image IMAGE"));
}
