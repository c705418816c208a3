//! The direction of dependencies, read from the source: layers use what is below them, and
//! nothing else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Which layers each layer may use. A layer not named here is a new one: name it.
const MAY_USE: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("lanes", &[]),
    ("telemetry", &[]),
    ("net", &["telemetry"]),
    ("store", &["domain"]),
    ("remote", &["domain", "lanes"]),
    ("fetch", &["domain", "store", "remote"]),
    ("report", &["domain", "store", "remote", "fetch"]),
    ("cache", &["domain", "lanes", "telemetry", "store", "remote", "fetch", "report"]),
    ("config", &["domain", "fetch", "report"]),
    ("control", &["domain", "lanes", "telemetry", "net", "fetch", "report", "cache"]),
    ("mount", &["domain", "store", "cache"]),
    ("csi", &["domain", "lanes", "telemetry", "net", "store", "remote", "fetch", "report", "cache"]),
    ("cluster", &["domain", "telemetry", "fetch", "report", "cache"]),
    (
        "daemon",
        &[
            "domain",
            "lanes",
            "telemetry",
            "net",
            "mount",
            "csi",
            "cluster",
            "store",
            "remote",
            "fetch",
            "report",
            "cache",
            "control",
            "config",
        ],
    ),
    ("cli", &["domain", "store", "remote", "fetch", "report", "cache", "config", "daemon"]),
];

fn sources(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Every `crate::layer` of a file, wherever it stands.
fn uses(text: &str) -> BTreeSet<String> {
    let mut layers = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let names = match rest.strip_prefix('{') {
            Some(group) => {
                // The first name of every member of a group: `crate::{remote, store::Store}`.
                let mut depth = 0;
                let mut names = vec![String::new()];
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => names.push(String::new()),
                        c => names.last_mut().expect("one").push(c),
                    }
                }
                names.iter().map(|name| name.trim().split("::").next().unwrap_or_default().to_owned()).collect()
            }
            None => vec![rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()],
        };
        layers.extend(names.into_iter().filter(|name| !name.is_empty()));
    }
    layers
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn layers_use_only_what_is_below_them() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    let source = root().join("src");
    let mut files = Vec::new();
    sources(&source, &mut files);
    assert!(files.len() > 40, "{} files", files.len());
    for file in files {
        let path = file.strip_prefix(&source).expect("below");
        let layer = path.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
        if matches!(layer.as_str(), "lib.rs" | "main.rs") {
            continue;
        }
        let Some((_, below)) = MAY_USE.iter().find(|(name, _)| *name == layer) else {
            wrong.push(format!("{}: `{layer}` is no layer", path.display()));
            continue;
        };
        seen.insert(layer.clone());
        for used in uses(&std::fs::read_to_string(&file).expect("text")) {
            if used != layer && !below.contains(&used.as_str()) {
                wrong.push(format!("{}: `{layer}` uses `{used}`", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(seen.len(), MAY_USE.len(), "every layer is there");
}

/// The disk side knows no network and the network side no disk, not even through a crate.
#[test]
fn crates_stay_on_their_side() {
    let mut wrong = Vec::new();
    let sides: [(&str, &[&str]); 3] = [
        ("domain", &["tokio", "reqwest", "object_store", "aws_", "google_", "std::fs", "std::net", "rustix"]),
        ("store", &["tokio", "reqwest", "object_store", "aws_", "google_", "std::net", "async fn"]),
        ("remote", &["rustix", "memmap2"]),
    ];
    for (layer, foreign) in sides {
        let mut files = Vec::new();
        sources(&root().join("src").join(layer), &mut files);
        for file in files {
            let text = std::fs::read_to_string(&file).expect("text");
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            for line in code {
                for name in foreign.iter().filter(|name| line.contains(**name)) {
                    wrong.push(format!("{}: {name} in `{}`", file.display(), line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn groups_and_single_names_are_both_seen() {
    let text = "use crate::{remote, store::{Store, self}, domain::Digest};\nlet x = crate::fetch::Pull;";
    assert_eq!(uses(text), ["domain", "fetch", "remote", "store"].map(String::from).into());
}
