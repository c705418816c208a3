//! The layer as a whole: text in, settings or sentences out.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::load::{FILE_LEN_MAX, Loaded, Settling, load};
use super::{Config, MountAt, SETTINGS, document, example, told};
use crate::report::{Exit, Failure};

/// The settings of a file with this text, under the name it has where they are told.
fn read(text: impl AsRef<[u8]>, variables: &[(&str, &str)], flag: Option<&str>) -> Result<Loaded, Failure> {
    let mut settling = Settling::default();
    let file = Path::new("larder.toml");
    document::apply(&mut settling, file, text.as_ref());
    settling.environment(&|name| {
        variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned())
    });
    if let Some(flag) = flag {
        settling.store(Path::new(flag));
    }
    settling.finish(Some(file))
}

fn write(file: &Path, text: &str) {
    let mut file = std::fs::File::create(file).expect("a file");
    file.write_all(text.as_bytes()).expect("a file");
}

#[track_caller]
fn problems(text: &str, variables: &[(&str, &str)]) -> String {
    let failure = read(text, variables, None).and_then(|loaded| loaded.check()).expect_err("problems");
    assert_eq!(failure.exit, Exit::Usage);
    failure.message
}

const FULL: &str = r#"
store = "/data/larder"
listen = ""
sources = ["S3://models/", "file://localhost/nfs"]
high_watermark = "75%"
low_watermark = 60
recheck = "2m"
anonymous = true
region = "eu-central-1"
endpoint_url = "http://minio:9000"
scrub_rate = 0
stop_within = "500s"
mount = "keeper:/run/k.sock"
log = "info,larder::fetch=debug"
log_format = "json"

[[prefetch]]
source = "s3://models/llama/"
include = [
  "*.json",
  "*.safetensors",
]
pin = true

[[prefetch]]
source = "file:///nfs/mistral"
"#;

#[test]
fn a_full_file_is_read() {
    let loaded = read(FULL, &[], None).expect("settings");
    let config = &loaded.config;
    assert_eq!(config.listen, None);
    assert_eq!(config.sources, ["s3://models/", "file:///nfs"]);
    assert_eq!((config.high_watermark, config.low_watermark), (75, 60));
    assert_eq!((config.recheck, config.stop_within), (Duration::from_mins(2), Duration::from_secs(500)));
    assert_eq!(config.region.as_deref(), Some("eu-central-1"));
    assert_eq!(config.scrub_rate, 0);
    assert_eq!(config.mount, Some(MountAt::Keeper("/run/k.sock".into())));
    assert_eq!(config.prefetch.len(), 2);
    assert_eq!(config.prefetch[0].include, ["*.json", "*.safetensors"]);
    assert!(config.prefetch[0].pin && !config.prefetch[1].pin);
    insta::assert_snapshot!(loaded.told(), @r#"
    SETTING         VALUE                            SET BY
    store           "/data/larder"                   larder.toml:2
    socket          "/run/larder/larder.sock"        default
    admin_socket    "/run/larder-admin/larder.sock"  default
    listen          ""                               larder.toml:3
    sources         ["s3://models/", "file:///nfs"]  larder.toml:4
    high_watermark  75                               larder.toml:5
    low_watermark   60                               larder.toml:6
    recheck         "2m"                             larder.toml:7
    anonymous       true                             larder.toml:8
    requester_pays  false                            default
    region          "eu-central-1"                   larder.toml:9
    endpoint_url    "http://minio:9000"              larder.toml:10
    scrub_rate      "0"                              larder.toml:11
    stop_within     "500s"                           larder.toml:12
    kubelet_dir     "/var/lib/kubelet"               default
    mount           "keeper:/run/k.sock"             larder.toml:13
    read_timeout    "5m"                             default
    node            ""                               default
    policy          []                               default
    log             "info,larder::fetch=debug"       larder.toml:14
    log_format      "json"                           larder.toml:15

    PREFETCH             INCLUDE                      EXCLUDE  PIN    SET BY
    s3://models/llama/   ["*.json", "*.safetensors"]  []       true   larder.toml:17
    file:///nfs/mistral  []                           []       false  larder.toml:25
    "#);
    let json = loaded.to_json();
    assert_eq!(json["file"], "larder.toml");
    insta::assert_snapshot!(json["settings"]["recheck"], @r#"{"set_by":"larder.toml:7","value":"2m"}"#);
    insta::assert_snapshot!(json["settings"]["store"], @r#"{"set_by":"larder.toml:2","value":"/data/larder"}"#);
    insta::assert_snapshot!(json["settings"]["prefetch"][1], @r#"{"set_by":"larder.toml:25","value":{"exclude":[],"include":[],"pin":false,"source":"file:///nfs/mistral"}}"#);
}

#[test]
fn an_empty_file_and_the_example_are_the_defaults() {
    assert_eq!(read("", &[], None).expect("empty").config, Config::default());
    let file = include_str!("../../daemonset/larder.toml");
    assert_eq!(read(file, &[], None).expect("the example").config, Config::default());
    assert_eq!(file, example(), "daemonset/larder.toml says what the table says");
    // With its last lines no comments any more.
    let at = file.find("# [[prefetch]]").expect("an entry");
    let live = format!("{}{}", &file[..at], file[at..].replace("# ", ""));
    assert_eq!(read(&live, &[], None).expect("the example").config.prefetch.len(), 1);
}

#[test]
fn what_is_told_is_read_as_the_same() {
    let first = read(FULL, &[], None).expect("settings");
    let mut text = String::new();
    for setting in SETTINGS {
        text += &format!("{} = {}\n", setting.name, told::toml(&(setting.show)(&first.config)));
    }
    assert_eq!(read(&text, &[], None).expect("the same").config, first.config);
}

#[test]
fn the_flag_goes_before_variables_and_these_before_the_file() {
    let variables = [("LARDER_STORE", "/env"), ("LARDER_SOURCES", "s3://a/, gs://"), ("LARDER_REGION", "")];
    let text = "store = \"/file\"\nregion = \"file-1\"\nrecheck = \"1s\"";
    let loaded = read(text, &variables, Some("flag")).expect("settings");
    assert!(loaded.config.store.is_absolute() && loaded.config.store.ends_with("flag"));
    assert_eq!(loaded.config.sources, ["s3://a/", "gs://"]);
    assert_eq!(loaded.config.region.as_deref(), Some("file-1"), "an empty variable is not set");
    let set_by = |name| loaded.set_by(name).map(ToString::to_string);
    assert_eq!(set_by("store").as_deref(), Some("--store"));
    assert_eq!(set_by("sources").as_deref(), Some("LARDER_SOURCES"));
    assert_eq!(set_by("recheck").as_deref(), Some("larder.toml:3"));
    assert_eq!(set_by("log").as_deref(), Some("default"));
    assert_eq!(set_by("nothing"), None);
    let loaded = read(text, &variables, None).expect("settings");
    assert_eq!(loaded.config.store, Path::new("/env"));
}

#[test]
fn everything_wrong_is_said_at_once() {
    let text = r#"
stroe = "/data"
store = "data"
socket = 7
listen = "localhost:9464"
sources = [
  "s3://models",
  "ftp://host",
  3,
]
high-watermark = 80
high_watermark = 120
recheck = 10
anonymous = "yes"
region = "eu central"
endpoint_url = "https://us3r:p4ss@minio"
scrub_rate = "32MB"
stop_within = "1h"
log = "inof"
log_format = "xml"
pin = true
capacity = "1TiB"

[[prefetch]]
source = "models/llama"
inlcude = ["*"]
include = ["[", "*.json", "{a"]
pin = 1

[[prefetch]]
recheck = "1s"
exclude = "*.bin"
"#;
    let variables = [("LARDER_LOW_WATERMARK", "zero"), ("LARDER_PREFETCH", "s3://b/"), ("LARDER_LOG", "=,=")];
    insta::assert_snapshot!(problems(text, &variables), @r#"
    larder.toml:2: `stroe` is unknown: did you mean `store`?
    larder.toml:3: `store` is `data`: want an absolute path
    larder.toml:4: `socket` is `7`: want an absolute path of at most 107 bytes
    larder.toml:5: `listen` is `localhost:9464`: want ip:port such as 127.0.0.1:9464, or "" for none
    larder.toml:8: `sources` has `ftp://host` in it: want a prefix that begins with s3://, gs://, https://, http:// or file://
    larder.toml:9: `sources` has `3` in it: want a list of prefixes such as ["s3://models/", "https://"]
    larder.toml:11: `high-watermark` is unknown: did you mean `high_watermark`?
    larder.toml:12: `high_watermark` is `120`: want a whole percent from 2 to 99, such as 80 or "80%"
    larder.toml:13: `recheck` is `10`: the unit is missing: want 500ms, 10s, 2m or 1h
    larder.toml:14: `anonymous` is `yes`: want true or false
    larder.toml:15: `region` is `eu central`: want the name of a region such as "eu-central-1", or "" for what the environment says
    larder.toml:16: `endpoint_url` is a text with an `@` in it, which is not shown because it may hold a password: larder keeps endpoints on disk: want http://host:port or https://host, and credentials by the credential chain
    larder.toml:17: `scrub_rate` is `32MB`: want bytes per second such as "32MiB" or "1GiB", or "0" for off
    larder.toml:18: `stop_within` is `1h`: want a duration from 1s to 10m, such as "25s"
    larder.toml:19: `log` is `inof`: want a level (error, warn, info, debug, trace, off) or a tracing filter such as "info,larder::fetch=debug"
    larder.toml:20: `log_format` is `xml`: want "text" or "json"
    larder.toml:21: `pin` is unknown: it belongs below a line [[prefetch]]
    larder.toml:22: `capacity` is unknown: `larder daemon --check` without it shows the names of all settings
    larder.toml:25: `source` of [[prefetch]] is `models/llama`: want s3://bucket/prefix/, gs://bucket/prefix/ or https://host/file
    larder.toml:26: `inlcude` of [[prefetch]] is unknown: did you mean `include`?
    larder.toml:27: `include` of [[prefetch]] has `[` in it: unclosed character class; missing ']'
    larder.toml:27: `include` of [[prefetch]] has `{a` in it: unclosed alternate group; missing '}' (maybe escape '{' with '[{]'?)
    larder.toml:28: `pin` of [[prefetch]] is `1`: want true or false
    larder.toml:30: [[prefetch]] has no `source`: want s3://bucket/prefix/, gs://bucket/prefix/ or https://host/file
    larder.toml:31: `recheck` of [[prefetch]] is unknown: it is a setting of its own: put it above the first [[prefetch]]
    larder.toml:32: `exclude` of [[prefetch]] is `*.bin`: want a list of globs such as ["*.json"]
    LARDER_LOW_WATERMARK is `zero`: want a whole percent from 1 to 98, such as 70 or "70%"
    LARDER_LOG is `=,=`: want a level (error, warn, info, debug, trace, off) or a tracing filter such as "info,larder::fetch=debug"
    LARDER_PREFETCH is set: only the file can say what to prefetch
    "#);
}

#[test]
fn what_contradicts_is_said_where_it_was_set() {
    insta::assert_snapshot!(problems("\nhigh_watermark = 70", &[]), @"larder.toml:2: `low_watermark` is 70 and `high_watermark` is 70: want a low one below the high one");
    insta::assert_snapshot!(problems("high_watermark = 60\nlow_watermark = 60", &[]), @"larder.toml:2: `low_watermark` is 60 and `high_watermark` is 60: want a low one below the high one");
    insta::assert_snapshot!(problems("", &[("LARDER_LOW_WATERMARK", "90%")]), @"LARDER_LOW_WATERMARK: `low_watermark` is 90 and `high_watermark` is 80: want a low one below the high one");
    insta::assert_snapshot!(problems("socket = \"/s\"\nadmin_socket = \"/s\"", &[]), @"larder.toml:2: `admin_socket` is the same as `socket`: want another directory, which pods do not mount");
}

#[test]
fn what_is_prefetched_must_be_allowed() {
    let text = r#"
[[prefetch]]
pin = true
source = "file:///etc/larder"
[[prefetch]]
source = "s3://other/x"
pin = 1
[[prefetch]]
source = "https://h/f?query-0123456789ab"
"#;
    insta::assert_snapshot!(problems(text, &[("LARDER_SOURCES", "s3://models,https://")]), @"
    larder.toml:4: `source` of [[prefetch]] is `file:///etc/larder`: `sources` does not allow it, add a prefix of it there
    larder.toml:6: `source` of [[prefetch]] is `s3://other/x`: `sources` does not allow it, add a prefix of it there
    larder.toml:7: `pin` of [[prefetch]] is `1`: want true or false
    larder.toml:9: `source` of [[prefetch]] is `https://h/f…`: this is how larder shows a URL with a query, and cannot be asked for: want the whole URL
    ");
    assert!(!problems(text, &[("LARDER_SOURCES", "nonsense")]).contains("does not allow"));
}

#[test]
fn a_wrong_wish_costs_itself_alone_and_a_misplaced_setting_everything() {
    let text = "[[prefetch]]\nsource = \"nowhere\"\n[[prefetch]]\nsource = \"s3://b/m\"\nexclude = [\"[\"]\n\
                [[prefetch]]\nsource = \"file:///x\"\n[[prefetch]]\nsource = \"s3://b/n\"";
    let loaded = read(text, &[], None).expect("settings");
    let sources: Vec<String> = loaded.prefetch().map(|(entry, _)| entry.source.to_string()).collect();
    assert_eq!(sources, ["s3://b/n"]);
    let refused: Vec<&str> = loaded.refused.iter().map(|refused| refused.source.as_str()).collect();
    assert_eq!(refused, ["nowhere", "s3://b/m", "file:///x"]);
    assert!(loaded.refused[1].why.contains("unclosed character class"), "{:?}", loaded.refused);
    assert!(loaded.refused[2].why.contains("does not allow it"), "{:?}", loaded.refused);
    assert_eq!(loaded.check().expect_err("wrong").message.lines().count(), 3);
    // What was meant to say who may ask for what is no wish.
    for misplaced in ["policy = []", "sources = [\"s3://b/\"]", "polcy = []"] {
        assert!(read(format!("[[prefetch]]\nsource = \"s3://b/m\"\n{misplaced}"), &[], None).is_err(), "{misplaced}");
    }
}

#[test]
fn what_is_no_toml_is_said_with_its_line() {
    insta::assert_snapshot!(problems("store = \nlisten = 5\nrecheck = \"10s", &[]), @r#"
    larder.toml:1: this is not TOML: string values must be quoted, expected literal string
    larder.toml:2: `listen` is `5`: want ip:port such as 127.0.0.1:9464, or "" for none
    larder.toml:3: this is not TOML: invalid basic string, expected `"`
    "#);
    insta::assert_snapshot!(problems("[[prefetch]\nsource = 5\nextra = 1", &[]), @"larder.toml:1: this is not TOML: unclosed array table, expected `]`");
    insta::assert_snapshot!(problems("log = \"info\"\nlog = \"warn\"", &[]), @"larder.toml:2: this is not TOML: duplicate key");
    insta::assert_snapshot!(problems("[prefetch]\nsource = \"s3://b/\"", &[]), @"larder.toml:1: `prefetch` is one table: want [[prefetch]] and below it source, and if wanted include, exclude (lists of globs) and pin (true or false)");
    insta::assert_snapshot!(problems("prefetch = [1]\nstore.x = 1", &[]), @"
    larder.toml:1: `prefetch` has something else than a table in it: want [[prefetch]] and below it source, and if wanted include, exclude (lists of globs) and pin (true or false)
    larder.toml:2: `store` is a table: want an absolute path
    ");
    let told = problems("sources = [\"file://\", x]\n[[prefetch]]\nsource = \"file:///a\"\npin = 5", &[]);
    assert!(!told.contains("does not allow") && told.contains("`pin` of [[prefetch]] is `5`"), "{told}");
    let failure = read(b"\n\nlog = \"\xff\"", &[], None).expect_err("no text");
    assert_eq!(failure.message, "larder.toml:3: this line is not UTF-8, as TOML must be");
}

#[test]
fn secrets_stay_where_they_are() {
    let text = r#"
endpoint_url = "https://u:S3CR3T@host"
region = "https://u:S3CR3T@host"
sources = ["https://u:S3CR3T@host/", "s3://S3CR3T@b/"]
[[prefetch]]
source = "https://u:S3CR3T@host/f"
[[prefetch]]
source = "https://host/?token=S3CR3T"
[[prefetch]]
source = "s3://u:S3CR3T@bucket/f"
"#;
    let told = problems(text, &[("LARDER_ENDPOINT_URL", "u:S3CR3T@host")]);
    assert!(!told.contains("S3CR3T"), "{told}");
    assert_eq!(told.lines().count(), 8, "{told}");
    let loaded = read("[[prefetch]]\nsource = \"https://h/f?token=S3CR3T\"", &[], None).expect("settings");
    assert_eq!(
        loaded.config.prefetch[0].source.secret_url().as_deref(),
        Some("https://h/f?token=S3CR3T"),
        "it is asked for with it"
    );
    let told = format!("{} {} {:?}", loaded.told(), loaded.to_json(), loaded.config);
    assert!(!told.contains("S3CR3T"), "{told}");
}

#[test]
fn the_length_of_what_is_said_is_bounded() {
    let text: String = (0..5000).map(|at| format!("{}{at} = 1\n", "x".repeat(100))).collect();
    let told = problems(&text, &[]);
    assert_eq!(told.lines().count(), 101);
    assert!(told.ends_with("and 4900 more"), "{told}");
}

#[test]
fn files_are_found_or_said_to_be_missing() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("larder.toml");
    let none = |_: &str| None;
    let loaded = load(None, &file, None, &none).expect("defaults alone");
    assert_eq!((loaded.file, loaded.config), (None, Config::default()));
    let failure = load(Some(&file), &file, None, &|_| Some("[".to_owned())).expect_err("no file");
    let lines: Vec<&str> = failure.message.lines().collect();
    assert!(lines[0].ends_with("larder.toml` cannot be read: No such file or directory (os error 2)"), "{lines:?}");
    assert_eq!(lines.len(), 1 + SETTINGS.len(), "the variables are looked at all the same");
    write(&file, "region = \"x\"");
    for path in [None, Some(&*file)] {
        let loaded = load(path, &file, None, &none).expect("settings");
        assert_eq!(loaded.file.as_deref(), Some(&*file));
        assert_eq!(loaded.config.region.as_deref(), Some("x"));
    }
    let long = "#".repeat(usize::try_from(FILE_LEN_MAX).expect("small"));
    write(&file, &long);
    assert!(load(Some(&file), &file, None, &none).is_ok());
    write(&file, &(long + "#"));
    let failure = load(None, &file, None, &none).expect_err("too long");
    assert!(failure.message.ends_with("cannot be read: it is longer than 1 MiB"), "{}", failure.message);
    assert!(load(Some(directory.path()), &file, None, &none).is_err());
}

/// As deep and as wide as a file may be: the stack and the time hold.
#[test]
fn the_worst_files_are_refused_in_time() {
    for piece in ["[", "[[", "a=[", "a={a=", "a.", "[a.", "a=1\n", "\n[[prefetch]]", "\"", "a=\"", "sources=['{", "{"] {
        let text = piece.repeat(usize::try_from(FILE_LEN_MAX).expect("small") / piece.len());
        for text in [text.clone(), format!("{text}a = 1")] {
            match read(&text, &[], None) {
                Ok(loaded) => assert!(loaded.check().is_err() && loaded.refused.len() <= 101, "{piece}"),
                Err(failure) => assert_eq!(failure.exit, Exit::Usage, "{piece}"),
            }
        }
    }
}

#[test]
fn globs_may_nest_as_they_like() {
    for glob in ["{".repeat(400) + &"}".repeat(400), "{".repeat(2000), "[".repeat(1000), "**/".repeat(300)] {
        let _ = read(format!("[[prefetch]]\nsource = 's3://b/'\ninclude = ['{glob}']"), &[], None);
    }
}

/// Pieces of the language, so that what is made of them is often almost right.
fn almost_toml() -> impl Strategy<Value = String> {
    let names: Vec<String> = SETTINGS.iter().map(|setting| setting.name.to_owned()).collect();
    let pieces = [
        "\n",
        " = ",
        "[[prefetch]]",
        "[",
        "]",
        "\"",
        "\"s3://b/\"",
        "source",
        "include",
        ",",
        "{",
        "}",
        "'",
        ".",
        "#",
        "10s",
        "1",
    ];
    let piece = prop_oneof![
        proptest::sample::select(names),
        proptest::sample::select(pieces.map(str::to_owned).to_vec()),
        any::<char>().prop_map(String::from),
    ];
    proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_bytes_are_settings_or_a_refusal(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        check(&bytes)?;
    }

    #[test]
    fn any_near_miss_is_settings_or_a_refusal(text in almost_toml()) {
        check(text.as_bytes())?;
    }
}

fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    match read(bytes, &[], None) {
        Ok(loaded) => {
            prop_assert!(loaded.config.low_watermark < loaded.config.high_watermark);
            prop_assert!(!loaded.told().is_empty() && loaded.to_json().is_object());
        }
        Err(failure) => {
            for line in failure.message.lines() {
                let rest = line.strip_prefix("larder.toml:").unwrap_or_default();
                prop_assert!(rest.starts_with(|c: char| c.is_ascii_digit()), "{}", failure.message);
            }
        }
    }
    Ok(())
}
