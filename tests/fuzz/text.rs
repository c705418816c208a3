//! What people and their files say: sources, globs, keys, settings, an index of shards.

use std::fs;

use larder::config::Config;
use larder::domain::{ModelPath, Source, load_order};
use larder::fetch::Selection;

use crate::engine::{Target, outcome, sentence};

#[test]
fn sources() {
    let words = "s3://|gs://|https://|http://|file://|?|#|@|query-0123456789ab|X-Amz-Signature=|Signature=|sig=|&";
    Target::named("sources").words(words).len_max(4096).run(|input| {
        let text = String::from_utf8_lossy(input);
        match Source::parse(&text) {
            Ok(source) => {
                // What is shown names the same, and says no more.
                let shown = source.to_string();
                let again =
                    Source::parse(&shown).unwrap_or_else(|error| panic!("{shown:?} is shown and not read: {error}"));
                assert_eq!(again, source);
                assert_eq!(again.to_string(), shown);
                let url = source.secret_url();
                outcome((
                    source.scheme(),
                    source.path().is_empty(),
                    source.path().ends_with('/'),
                    url.is_some(),
                    shown.contains('?'),
                ))
            }
            Err(error) => outcome(std::mem::discriminant(&error)),
        }
    });
}

#[test]
fn globs() {
    let words = "**/|*|?|[a-z]|[!|{|}|,|{a,b}|\\|.safetensors|**";
    Target::named("globs").words(words).len_max(16 << 10).run(|input| {
        let text = String::from_utf8_lossy(input);
        let (globs, keys) = text.split_once("\n\n").unwrap_or((&text, "config.json"));
        let globs: Vec<String> = globs.lines().map(str::to_owned).take(256).collect();
        match Selection::new(&globs, &[]) {
            Ok(selection) => outcome(
                keys.lines()
                    .filter_map(|key| ModelPath::new(key).ok())
                    .take(64)
                    .filter(|key| selection.takes(key))
                    .count()
                    .min(3),
            ),
            Err(error) => sentence(&error.to_string()),
        }
    });
}

#[test]
fn keys() {
    Target::named("keys").words("/|.|..|model|\u{7f}").len_max(4096).run(|input| {
        let text = String::from_utf8_lossy(input);
        match ModelPath::new(&text) {
            Ok(path) => {
                let inside = std::path::Path::new("/model").join(path.as_str());
                let is_name = |part| matches!(part, std::path::Component::RootDir | std::path::Component::Normal(_));
                assert!(inside.components().all(is_name) && inside.starts_with("/model"), "{path} leads out");
                outcome(path.as_str().contains('/'))
            }
            Err(error) => outcome(std::mem::discriminant(&error)),
        }
    });
}

/// Whatever an index says, every file is in the order once.
#[test]
fn index() {
    let paths = ["config.json", "a.safetensors", "b.safetensors", "sub/c.bin", "model.safetensors.index.json"];
    let paths = paths.map(|path| ModelPath::new(path).expect("a path"));
    let words = "\"weight_map\":|{|}|\"a.safetensors\"|\"b.safetensors\"|[|null";
    Target::named("index").words(words).run(|input| {
        let order = load_order(&paths.each_ref(), Some(input));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3, 4]);
        outcome(order)
    });
}

#[test]
fn settings() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("larder.toml");
    let words = "[[prefetch]]|[[policy]]|source = |sources = |store = |socket = |listen = |high_watermark = |recheck = |mount = |scrub_rate = |\"keeper:/run/k\"|\"10 s\"|\"32 MiB/s\"|true|= [|\"\"\"|'''|# ";
    let example = include_str!("../../daemonset/larder.toml");
    // All of them, as if somebody wanted them.
    let set: String = example
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|line| line.contains(" = ")).unwrap_or(line))
        .map(|line| format!("{line}\n"))
        .collect();
    Target::named("settings").seed(example).seed(set).words(words).run(|input| {
        fs::write(&file, input).expect("a file");
        match Config::load(Some(&file), None, &|_| None) {
            Ok(loaded) => {
                let (told, json) = (loaded.told(), loaded.to_json().to_string());
                assert!(!told.is_empty() && !json.is_empty());
                outcome(loaded.prefetch().count().min(3))
            }
            Err(failure) => {
                assert!(failure.message.chars().all(|c| c == '\n' || !c.is_control()), "{:?}", failure.message);
                sentence(failure.message.lines().next_back().unwrap_or_default())
            }
        }
    });
}
