//! What kustomize makes of it.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use super::kinds;
use super::load::{self, Document};

/// What `kubectl kustomize` prints. Nothing, with a printed reason, where there is no kubectl.
pub fn rendered(directory: &Path, test: &str) -> Option<Vec<Document>> {
    let output = match Command::new("kubectl").arg("kustomize").arg(directory).output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("SKIPPED {test}: kubectl does not start: {error}");
            return None;
        }
    };
    let said = String::from_utf8_lossy(&output.stderr);
    // Warnings are about fields that a later kustomize does not have.
    assert!(output.status.success() && said.is_empty(), "{}: {said}", directory.display());
    Some(load::parse(directory, &String::from_utf8_lossy(&output.stdout)))
}

/// A directory that puts components on the base, for as long as the test runs.
pub fn with_components(names: &[&str]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path().canonicalize().expect("a path");
    // kustomize takes only paths that lead there from here.
    let up = at.components().filter(|part| matches!(part, Component::Normal(_))).map(|_| "../").collect::<String>();
    let daemonset = load::daemonset().canonicalize().expect("a path");
    let below = format!("{up}{}", daemonset.strip_prefix("/").expect("absolute").display());
    let components = names.iter().map(|name| format!("  - {below}/components/{name}\n")).collect::<String>();
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n  - {below}/base\ncomponents:\n{components}"
    );
    std::fs::write(at.join("kustomization.yaml"), text).expect("a file");
    directory
}

fn names(directory: &str) -> Vec<String> {
    let directories = load::directories(&load::daemonset().join(directory));
    directories.iter().map(|path| path.file_name().expect("a name").to_string_lossy().into_owned()).collect()
}

#[test]
fn everything_renders_to_what_kubernetes_knows() {
    const TEST: &str = "everything_renders_to_what_kubernetes_knows";
    let mut places: Vec<PathBuf> = vec![load::daemonset(), load::daemonset().join("base")];
    places.extend(load::directories(&load::daemonset().join("overlays")));
    let components = names("components");
    let mut each: Vec<Vec<&str>> = components.iter().map(|name| vec![name.as_str()]).collect();
    // Together as well, but for two that are of different clouds.
    each.push(components.iter().map(String::as_str).filter(|name| *name != "gpu-gke").collect());
    let made: Vec<tempfile::TempDir> = each.iter().map(|names| with_components(names)).collect();
    places.extend(made.iter().map(|directory| directory.path().to_owned()));
    for place in places {
        let Some(documents) = rendered(&place, TEST) else { return };
        assert!(documents.len() >= 10, "{}: {} objects", place.display(), documents.len());
        kinds::assert_right(&documents);
    }
}

/// What nobody names is not installed.
#[test]
fn every_file_is_named_by_the_kustomization_beside_it() {
    for file in load::files(&load::daemonset(), "yaml") {
        let directory = file.parent().expect("a directory");
        let kustomization = directory.join("kustomization.yaml");
        if file == kustomization || !kustomization.exists() {
            continue;
        }
        let value = &load::documents(&kustomization)[0].value;
        let named: BTreeSet<&str> =
            value["resources"].as_array().into_iter().flatten().filter_map(|name| name.as_str()).collect();
        let name = file.file_name().expect("a name").to_string_lossy();
        assert!(named.contains(name.as_ref()), "{} names no {name}", kustomization.display());
    }
}

/// A field that is spelt wrongly in a patch would be taken over as it is.
#[test]
fn patches_have_only_fields_that_kubernetes_knows() {
    let mut seen = 0;
    for file in load::files(&load::daemonset(), "yaml").iter().filter(|file| file.ends_with("kustomization.yaml")) {
        for document in load::documents(file) {
            for patch in document.value["patches"].as_array().into_iter().flatten() {
                let text =
                    patch["patch"].as_str().unwrap_or_else(|| panic!("{}: a patch without text", file.display()));
                let patches = load::parse(file, text);
                // A list of operations is checked where it is rendered.
                kinds::assert_right(&patches.into_iter().filter(|patch| patch.value.is_object()).collect::<Vec<_>>());
                seen += 1;
            }
        }
    }
    assert!(seen >= 8, "{seen} patches");
}

#[test]
fn readme_and_directories_name_the_same() {
    let readme = load::text(&load::daemonset().join("README.md"));
    for kind in ["components", "overlays"] {
        for name in names(kind) {
            let link = format!("({kind}/{name}/kustomization.yaml)");
            assert!(readme.contains(&link), "{link} is not in the README");
        }
    }
}
