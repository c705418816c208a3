//! A name means exactly one thing, with a daemon and without.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use larder_origins::{Checksums, Front, Origin};
use serde_json::{Value, json};

use crate::mount;
use crate::node::{Node, damage, http};
use crate::support::{Larder, Ran, origin_with_model, read_tree, s3_environment};

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

const X: &str = "s3://models/x/";

/// Two servers with the same bucket and key, and other bytes.
fn two_servers() -> (Origin, Origin) {
    let server = |text: &str| {
        let origin = Origin::start(Front::S3).expect("an origin");
        origin.bucket().put("x/w", format!("of {text}").into_bytes(), Checksums::multipart());
        origin
    };
    (server("a"), server("b"))
}

/// What the one file of a model says.
fn text(path: &Ran) -> String {
    let files = read_tree(Path::new(path.stdout.trim_end()));
    String::from_utf8(files.into_values().next().expect("a file")).expect("text")
}

#[test]
fn one_uri_at_two_servers_is_two_models() {
    let (a, b) = two_servers();
    let (at_a, at_b) = (a.url(), b.url());
    let mut larder = Larder::at(&a);
    let of = |larder: &Larder, args: &[&str]| text(&larder.ok(&[&["path", X], args].concat()));
    larder.ok(&["prefetch", X]);
    let told = larder.fails(66, &["path", X, "--endpoint-url", &at_b]);
    assert!(told.contains(&format!("`{X}` of `{at_b}` is not in the store")), "{told}");
    assert_eq!(candidates(&told), [["path", X]], "{told}");
    larder.ok(&["prefetch", "--pin", X, "--endpoint-url", &at_b]);
    assert_eq!((of(&larder, &[]), of(&larder, &["--endpoint-url", &at_a])), ("of a".to_owned(), "of a".to_owned()));
    // However it is spelled.
    let spelled = format!("{}/", at_b.replace("http:", "HTTP:"));
    assert_eq!(of(&larder, &["--endpoint-url", &spelled]), "of b");

    // What is from elsewhere says so, ready to be pasted.
    let list = larder.ok(&["ls"]).stdout;
    assert!(list.contains(&format!("{X} --endpoint-url {at_b} ")) && list.contains(&format!("{X}  ")), "{list}");
    let urls: BTreeSet<String> =
        larder.ok(&["ls", "--json"]).events().iter().map(|row| row["endpoint_url"].to_string()).collect();
    assert_eq!(urls, [json!(at_a).to_string(), json!(at_b).to_string()].into());
    let shown = larder.ok(&["inspect", X, "--endpoint-url", &at_b]);
    assert!(shown.stdout.starts_with(&format!("source  {X} --endpoint-url {at_b}\n")), "{shown:?}");
    assert!(shown.stdout.contains("pinned"), "{shown:?}");
    assert!(!larder.ok(&["inspect", X]).stdout.contains("pinned"));
    let copy = larder.scratch().join("copy");
    larder.ok(&["export", X, copy.to_str().expect("text"), "--endpoint-url", &at_b]);
    assert_eq!(read_tree(&copy)["w"], b"of b");

    // With another server in the environment, that one is meant.
    larder.set("AWS_ENDPOINT_URL", &*at_b);
    assert_eq!(of(&larder, &[]), "of b");
    larder.set("AWS_ENDPOINT_URL_S3", &*at_a);
    assert_eq!(of(&larder, &[]), "of a");

    // With none it is neither of two, and the only one that is left.
    larder.set("AWS_ENDPOINT_URL", "");
    larder.set("AWS_ENDPOINT_URL_S3", "");
    for verb in ["path", "rm", "verify"] {
        let told = larder.fails(64, &[verb, X]);
        assert!(told.contains(&format!("`{X}` is here from 2 servers")), "{told}");
        let listed = candidates(&told);
        assert_eq!(listed.len(), 2, "{told}");
        for candidate in listed.iter().filter(|_| verb != "rm") {
            larder.ok(&candidate.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }
    larder.ok(&["unpin", X, "--endpoint-url", &at_b]);
    larder.ok(&["rm", X, "--endpoint-url", &at_a]);
    assert_eq!(of(&larder, &[]), "of b");
    assert_eq!(larder.ok(&["ls", "--json"]).events().len(), 1);

    // A digest is of all servers, and no server is one with a password.
    let digest = larder.ok(&["ls", "--json"]).last_event()["digest"].as_str().expect("a digest")[..12].to_owned();
    larder.fails(64, &["rm", &digest, "--endpoint-url", &at_b]);
    let told = larder.fails(64, &["path", X, "--endpoint-url", "http://us3r:p4ss@h"]);
    assert!(!told.contains("p4ss"), "{told}");
}

#[test]
fn a_model_is_mended_from_its_own_server_alone() {
    let (a, b) = two_servers();
    let larder = Larder::at(&a);
    larder.ok(&["prefetch", X, "--endpoint-url", &b.url()]);
    let path = larder.ok(&["path", X, "--endpoint-url", &b.url()]).stdout;
    damage(&Path::new(path.trim_end()).join("w"));
    let told = larder.run(&["verify", "--repair"]);
    assert_eq!(told.code, Some(64), "{told:?}");
    assert!(
        told.stderr.contains(&format!("came from `{}`, and is not fetched again from another server", b.url())),
        "{told:?}"
    );
    assert!(a.seen().is_empty(), "the other server is not even asked");
    larder.fails(65, &["path", X, "--endpoint-url", &b.url()]);
    larder.ok(&["verify", X, "--repair", "--endpoint-url", &b.url()]);
    assert_eq!(text(&larder.ok(&["path", X, "--endpoint-url", &b.url()])), "of b");
}

#[test]
fn a_daemon_means_its_own_server() {
    let (a, b) = two_servers();
    let (at_a, at_b) = (a.url(), b.url());
    let mut node = Node::at(&a);
    for origin in [&a, &b] {
        let ran = node.larder(&["prefetch", X, "--endpoint-url", &origin.url()]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    node.start();
    // What a pod asks for is the daemon's.
    let pod = |node: &Node| {
        text(&Ran {
            stdout: node.ready(&json!({"source": X}))["path"].as_str().expect("a path").into(),
            ..node.larder(&["ls"])
        })
    };
    assert_eq!(pod(&node), "of a");

    let ran = |args: &[&str]| node.larder(args);
    assert_eq!(ran(&["pin", X, "--endpoint-url", &at_b]).stderr, format!("pinned {X} --endpoint-url {at_b}\n"));
    let is_pinned = |url: &str| {
        let (status, shown) = node.ask_admin("GET", &format!("/v1/model?name={X}&endpoint_url={url}"), None);
        assert_eq!((status, &shown["endpoint_url"]), (200, &json!(url)), "{shown}");
        shown["pinned"] == json!(true)
    };
    assert_eq!((is_pinned(&at_a), is_pinned(&at_b)), (false, true));
    assert_eq!(ran(&["unpin", X]).code, Some(0));
    assert_eq!((is_pinned(&at_a), is_pinned(&at_b)), (false, true));
    assert_eq!(ran(&["rm", X]).code, Some(0));
    let told = ran(&["rm", X]);
    assert_eq!(told.code, Some(66), "{told:?}");
    let rm = ["rm".to_owned(), X.to_owned(), "--endpoint-url".to_owned(), at_b.clone()];
    assert_eq!(candidates(&told.stderr), std::slice::from_ref(&rm), "{told:?}");

    // It brings models of its own server alone, and says which that is.
    let refused = ran(&["prefetch", X, "--endpoint-url", &at_b]);
    assert_eq!(refused.code, Some(64), "{refused:?}");
    assert!(refused.stderr.contains(&format!("`{X}` comes from `{at_a}` here, and not from `{at_b}`")), "{refused:?}");
    let mut other = node.command(&["prefetch", X]);
    let refused = other.env("AWS_ENDPOINT_URL", &at_b).output().expect("larder");
    assert_eq!(refused.status.code(), Some(64), "{refused:?}");
    assert_eq!(ran(&["prefetch", X, "--endpoint-url", &format!("{at_a}/")]).code, Some(0));
    assert_eq!(pod(&node), "of a");
    assert_eq!(ran(&["unpin", X, "--endpoint-url", &at_b]).code, Some(0));
    assert_eq!(ran(&rm.each_ref().map(String::as_str)).code, Some(0));
    assert_eq!(pod(&node), "of a");
}

/// The list of a daemon is of its own server too, and what is here from another stays what it is.
#[test]
fn a_daemon_that_moves_to_another_server_has_other_models() {
    let (a, b) = two_servers();
    let mut node = Node::at(&a);
    node.set_list(&format!("[[prefetch]]\nsource = \"{X}\"\npin = true\n"));
    node.start();
    let is_ready = |status: &Value| status["prefetch"][0]["state"] == json!("ready");
    node.until("the list", is_ready);
    assert!(node.end());
    for (name, value) in s3_environment(&b) {
        node.set_variable(name, value);
    }
    node.start();
    node.until("the list", |status| is_ready(status) && b.bytes_sent() > 0);
    let path = node.ready(&json!({"source": X}))["path"].as_str().expect("a path").to_owned();
    assert_eq!(fs::read_to_string(Path::new(&path).join("w")).expect("a file"), "of b");
    let pins: BTreeSet<(String, bool)> = node
        .larder(&["ls", "--json"])
        .events()
        .iter()
        .map(|row| (row["endpoint_url"].as_str().expect("a URL").to_owned(), row["pinned"] == json!(true)))
        .collect();
    assert_eq!(pins, [(a.url(), false), (b.url(), true)].into());
}

/// An emulator of GCS and the profile's endpoint are servers like any other.
#[test]
fn a_name_is_of_the_server_that_the_environment_names() {
    let gcs = |text: &str| {
        let origin = Origin::start(Front::Gcs).expect("an origin");
        origin.bucket().put("x/w", format!("of {text}").into_bytes(), Checksums::multipart());
        origin
    };
    let ((a, b), (gs, other)) = (two_servers(), (gcs("gs"), gcs("other")));
    let mut larder = Larder::new([("STORAGE_EMULATOR_HOST", gs.url().replace("http://", ""))]);
    larder.ok(&["prefetch", "gs://models/x/"]);
    larder.ok(&["prefetch", "--anonymous", "gs://models/x/", "--endpoint-url", &other.url()]);
    let of = |larder: &Larder, args: &[&str]| text(&larder.ok(&[&["path"], args].concat()));
    assert_eq!(of(&larder, &["gs://models/x/"]), "of gs");
    assert_eq!(of(&larder, &["gs://models/x/", "--endpoint-url", &other.url()]), "of other");

    let aws = larder.scratch().join(".aws");
    fs::create_dir(&aws).expect("a directory");
    let profile =
        |name: &str, origin: &Origin| format!("[profile {name}]\nregion = x\nendpoint_url = {}\n", origin.url());
    fs::write(aws.join("config"), profile("a", &a) + &profile("b", &b)).expect("a file");
    for name in ["a", "b"] {
        larder.set("AWS_PROFILE", name);
        larder.ok(&["prefetch", "--anonymous", X]);
        assert_eq!(of(&larder, &[X]), format!("of {name}"));
    }
    // The region is no part of it.
    larder.set("AWS_REGION", "eu-central-1");
    assert_eq!(of(&larder, &[X]), "of b");
}

#[test]
fn a_link_in_the_mount_is_of_the_daemons_own_server() {
    let (a, b) = two_servers();
    let Some(mut node) = mount::mounting(&a) else { return };
    for origin in [&b, &a] {
        let ran = node.larder(&["prefetch", X, "--endpoint-url", &origin.url()]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    node.start();
    let links = mount::root(&node).join("sources/s3/models");
    let names: BTreeSet<String> = fs::read_dir(&links)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    let texts: Vec<String> =
        names.iter().map(|name| fs::read_to_string(links.join(name).join("w")).expect("a file")).collect();
    assert!(names.len() == 2 && names.first().expect("one") == "x@", "{names:?}");
    assert_eq!(texts, ["of a", "of b"]);
}
