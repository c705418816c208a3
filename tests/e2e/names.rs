//! A name means exactly one thing, with a daemon and without.

use std::collections::BTreeSet;
use std::path::Path;

use larder_origins::Checksums;
use serde_json::{Value, json};

use crate::node::{Node, http};
use crate::support::{Larder, Ran, origin_with_model, read_tree};

const MODEL: &str = "s3://models/m/";
const JSON: [&str; 3] = [MODEL, "--include", "*.json"];
const WEIGHTS: [&str; 3] = [MODEL, "--exclude", "*.json"];

/// What runs commands beside a store: this process as its owner, or a daemon.
struct Scene<'a> {
    what: &'static str,
    run: &'a dyn Fn(&[&str]) -> Ran,
}

impl Scene<'_> {
    #[track_caller]
    fn ok(&self, verb: &[&str], name: &[&str]) -> Ran {
        let ran = (self.run)(&[verb, name].concat());
        assert_eq!(ran.code, Some(0), "{}: larder {verb:?} {name:?}: {ran:?}", self.what);
        ran
    }

    #[track_caller]
    fn fails(&self, code: i32, verb: &[&str], name: &[&str]) -> String {
        let ran = (self.run)(&[verb, name].concat());
        assert_eq!(ran.code, Some(code), "{}: larder {verb:?} {name:?}: {ran:?}", self.what);
        assert_eq!(ran.stdout, "");
        ran.stderr
    }

    fn files(&self, name: &[&str]) -> BTreeSet<String> {
        read_tree(Path::new(self.ok(&["path"], name).stdout.trim_end())).into_keys().collect()
    }

    /// The globs of each thing that is listed, and whether it is pinned.
    fn listed(&self) -> Vec<(Value, Value, bool)> {
        let rows = self.ok(&["ls", "--json"], &[]).events();
        rows.iter().map(|row| (row["include"].clone(), row["exclude"].clone(), row["pinned"] == json!(true))).collect()
    }
}

/// Runs a story in a store that nobody owns, and in one that a daemon owns.
fn both(story: impl Fn(&Scene<'_>)) {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let larder = Larder::at(&origin);
    story(&Scene { what: "alone", run: &|args| larder.run(args) });
    let node = Node::started(&origin);
    story(&Scene { what: "with a daemon", run: &|args| node.larder(args) });
}

/// What a hint lists, as the words of a shell.
fn candidates(told: &str) -> Vec<Vec<String>> {
    let lines = told.lines().filter_map(|line| line.strip_prefix("    larder "));
    let words = |line: &str| line.replace('\'', "").split(' ').map(str::to_owned).collect();
    lines.map(words).collect()
}

#[test]
fn a_source_means_all_of_its_files_and_globs_are_part_of_a_name() {
    both(|scene| {
        scene.ok(&["prefetch"], &[MODEL]);
        scene.ok(&["prefetch"], &JSON);
        let all = scene.files(&[MODEL]);
        let json = scene.files(&JSON);
        assert!(all.len() > json.len() && all.is_superset(&json), "{}: {all:?} {json:?}", scene.what);
        assert!(json.iter().all(|name| Path::new(name).extension().is_some_and(|kind| kind == "json")), "{json:?}");

        let exported = |name: &[&str]| {
            let scratch = tempfile::tempdir().expect("a directory");
            let target = scratch.path().join("copy");
            scene.ok(&["export"], &[&[name[0], target.to_str().expect("text")], &name[1..]].concat());
            read_tree(&target).into_keys().collect::<BTreeSet<_>>()
        };
        assert_eq!((exported(&[MODEL]), exported(&JSON)), (all.clone(), json.clone()));
        let inspected = |name: &[&str]| scene.ok(&["inspect", "--json"], name).last_event();
        assert_eq!(inspected(&[MODEL])["files"].as_array().map(Vec::len), Some(all.len()));
        let shown = inspected(&JSON);
        assert_eq!((&shown["include"], &shown["exclude"]), (&json!(["*.json"]), &json!([])), "{shown}");
        let hashed = |name: &[&str]| scene.ok(&["verify", "--json"], name).last_event()["blobs"].clone();
        assert_eq!((hashed(&[MODEL]), hashed(&JSON)), (json!(all.len()), json!(json.len())));

        // In a list they are told apart in the words in which they are typed.
        let list = scene.ok(&["ls"], &[]).stdout;
        assert!(list.contains("s3://models/m/ --include '*.json' "), "{list}");

        scene.ok(&["pin"], &JSON);
        let pinned = |globs: &[&str]| scene.listed().iter().any(|(include, _, pin)| *pin && *include == json!(globs));
        assert!(pinned(&["*.json"]) && !pinned(&[]), "{:?}", scene.listed());
        scene.ok(&["unpin"], &[MODEL]);
        assert!(pinned(&["*.json"]), "the other's pin stays: {:?}", scene.listed());
        scene.ok(&["unpin"], &JSON);
        assert!(!pinned(&["*.json"]));

        scene.ok(&["rm"], &[MODEL]);
        assert_eq!(scene.files(&JSON), json, "{}: nobody asked for the selection to go", scene.what);
        scene.fails(66, &["path"], &[MODEL]);
        scene.ok(&["prefetch"], &[MODEL]);
        scene.ok(&["rm"], &JSON);
        assert_eq!(scene.files(&[MODEL]), all, "{}", scene.what);
        scene.fails(66, &["path"], &JSON);
    });
}

/// One selection alone is not meant by the source either: it is what the hint says.
#[test]
fn what_is_not_here_is_an_error_that_lists_what_is() {
    both(|scene| {
        scene.ok(&["prefetch"], &JSON);
        for verb in ["path", "inspect", "verify", "rm", "pin", "unpin"] {
            let told = scene.fails(66, &[verb], &[MODEL]);
            let expected: Vec<String> = [&[verb][..], &JSON].concat().into_iter().map(str::to_owned).collect();
            assert_eq!(candidates(&told), [expected], "{}: {told}", scene.what);
        }
        let scratch = tempfile::tempdir().expect("a directory");
        let told = scene.fails(66, &["export"], &[MODEL, scratch.path().to_str().expect("text")]);
        assert!(told.contains("    larder export s3://models/m/ --include '*.json' DIRECTORY\n"), "{told}");

        scene.ok(&["prefetch"], &WEIGHTS);
        let told = scene.fails(66, &["path"], &[MODEL]);
        let listed = candidates(&told);
        assert_eq!(listed.len(), 2, "{told}");
        for candidate in &listed {
            let words: Vec<&str> = candidate.iter().map(String::as_str).collect();
            scene.ok(&words[..1], &words[1..]);
        }
        let told = scene.fails(66, &["path"], &[MODEL, "--include", "*.gguf"]);
        assert!(told.contains("with these globs is not in the store"), "{told}");
        assert_eq!(candidates(&told), listed);
        assert_eq!(scene.listed().len(), 2, "nothing went");

        // What is nowhere is brought by the command that is hinted at.
        let told = scene.fails(66, &["path"], &["s3://models/x/", "--exclude", "a b"]);
        assert!(told.ends_with("hint: `larder prefetch s3://models/x/ --exclude 'a b'` brings it\n"), "{told}");
        for name in [&["abcdef0", "--include", "*"][..], &[MODEL, "--include", "["]] {
            scene.fails(64, &["path"], name);
            scene.fails(64, &["pin"], name);
        }
        scene.ok(&["rm"], &JSON);
        scene.ok(&["rm"], &WEIGHTS);
        assert_eq!(scene.listed(), []);
    });
}

#[test]
fn digits_name_a_model_as_long_as_they_begin_no_other() {
    both(|scene| {
        scene.ok(&["prefetch"], &[MODEL]);
        scene.ok(&["prefetch"], &JSON);
        let rows = scene.ok(&["ls", "--json"], &[]).events();
        let digests: Vec<&str> = rows.iter().map(|row| row["digest"].as_str().expect("a digest")).collect();
        let tree = scene.ok(&["path"], &JSON).stdout;
        let of_json = digests.iter().find(|digest| tree.contains(**digest)).expect("its digest");
        assert_eq!(scene.ok(&["path"], &[&of_json[..6]]).stdout, tree);
        scene.ok(&["rm"], &[of_json]);
        scene.fails(66, &["path"], &JSON);
        scene.ok(&["path"], &[MODEL]);
    });
}

/// The globs of a name go over the socket as well.
#[test]
fn the_socket_takes_the_globs_of_a_name() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let node = Node::started(&origin);
    for name in [&[MODEL][..], &JSON] {
        assert_eq!(node.larder(&[&["prefetch"], name].concat()).code, Some(0));
    }
    let ask = |method: &str, path: &str, body: &Value| {
        let text = (method == "POST").then(|| body.to_string());
        let answer = http::ask(&node.admin_socket(), method, path, text.as_ref().map(String::as_bytes));
        let answer = answer.expect("an answer");
        (answer.status, answer.json())
    };
    let (_, all) = ask("GET", &format!("/v1/model?name={MODEL}"), &Value::Null);
    let (status, json) = ask("GET", &format!("/v1/model?name={MODEL}&include=%2A.json"), &Value::Null);
    assert_eq!((status, &all["include"], &json["include"]), (200, &json!([]), &json!(["*.json"])), "{json}");
    let name = |globs: Value| json!({"model": MODEL, "include": globs});
    let (status, pinned) = ask("POST", "/v1/pin", &name(json!(["*.json"])));
    assert_eq!((status, &pinned["models"]), (200, &json!(["s3://models/m/ --include '*.json'"])), "{pinned}");
    let (status, told) = ask("POST", "/v1/pin", &name(json!(["*.gguf"])));
    let hint = told["error"]["hint"].as_str().expect("a hint");
    assert!(status == 404 && hint.contains("larder pin s3://models/m/\n"), "{told}");
    for wrong in [json!({"model": MODEL, "include": vec!["*"; 257]}), json!({"model": "abcdef0", "include": ["*"]})] {
        assert_eq!(ask("POST", "/v1/unpin", &wrong).0, 400);
    }
    let (status, _) = ask("POST", "/v1/remove", &json!({"models": [MODEL]}));
    assert_eq!(status, 200);
    let (status, told) = ask("POST", "/v1/remove", &json!({"models": [MODEL], "include": ["*.json"]}));
    assert_eq!((status, &told["error"]["exit_code"]), (409, &json!(75)), "it is pinned: {told}");
    ask("POST", "/v1/unpin", &name(json!(["*.json"])));
    let (status, _) = ask("POST", "/v1/remove", &json!({"models": [MODEL], "include": ["*.json"]}));
    assert_eq!(status, 200);
}

/// An object and the prefix of the same name are two models.
#[test]
fn a_slash_is_part_of_a_name() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    origin.bucket().put("x", "object", Checksums::multipart());
    origin.bucket().put("x/in", "prefix", Checksums::multipart());
    let larder = Larder::at(&origin);
    let texts = |source: &str| larder.files(source).into_values().collect::<Vec<_>>();
    larder.prefetch("s3://models/x");
    let told = larder.fails(66, &["path", "s3://models/x/"]);
    assert_eq!(candidates(&told), [["path", "s3://models/x"]], "{told}");
    larder.ok(&["prefetch", "--pin", "s3://models/x/"]);
    assert_eq!((texts("s3://models/x"), texts("s3://models/x/")), (vec![b"object".to_vec()], vec![b"prefix".to_vec()]));
    larder.ok(&["rm", "s3://models/x"]);
    assert_eq!(texts("s3://models/x/"), [b"prefix"]);
    assert_eq!(larder.ok(&["ls", "--json"]).last_event()["pinned"], json!(true));
}
