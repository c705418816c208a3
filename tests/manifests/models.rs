//! `daemonset/models`, with a kubectl that answers from two texts.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use super::load;

/// What is printed for these names of `CachedModel` objects, and lines of "name state" as nodes have them.
fn shown(models: &str, nodes: &str) -> (Option<i32>, String) {
    let at = tempfile::tempdir().expect("a directory");
    let kubectl = at.path().join("kubectl");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in\n'--context c get cachedmodels.larder.dev '*) printf '{models}' ;;\n\
         '--context c get nodecaches.larder.dev '*) printf '{nodes}' ;;\n*) exit 9 ;;\nesac\n"
    );
    std::fs::write(&kubectl, script).expect("a file");
    std::fs::set_permissions(&kubectl, std::fs::Permissions::from_mode(0o755)).expect("owned");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(load::daemonset().join("models"));
    command.args(["--context", "c"]).env("PATH", format!("{}:{path}", at.path().display()));
    let output = command.output().expect("bash");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    (output.status.code(), String::from_utf8(output.stdout).expect("text"))
}

#[test]
fn a_cached_model_that_no_node_has_to_have_is_said() {
    let (code, told) =
        shown("llama\\nlost\\nmixtral\\n", "llama Ready\\nllama Failed\\nllama Moving\\nmixtral Ready\\n");
    let rows: Vec<String> = told.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let expected =
        ["MODEL NODES READY FAILED", "llama 3 1 1", "lost 0 0 0 no node: see its nodeSelector", "mixtral 1 1 0"];
    assert_eq!((code, rows), (Some(1), expected.map(str::to_owned).to_vec()));
    assert_eq!(shown("llama\\n", "llama Ready\\n").0, Some(0));
    assert_eq!(shown("lost\\n", "").0, Some(1), "no node at all");
    assert_eq!(shown("", "gone Ready\\n"), (Some(0), String::new()));
}
