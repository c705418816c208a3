//! Output that cannot be written: nothing panics, nothing that is done changes, and no failure
//! becomes a success.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::process::Stdio;

use larder_origins::{Checksums, Fault};
use serde_json::json;

use crate::node::{self, Node, damage};
use crate::support::{Larder, Ran, origin_with_model, wait};

/// A disk without room.
fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").expect("/dev/full").into()
}

/// A pipe whose reader has gone.
fn gone() -> Stdio {
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

/// A way for output to fail, and its name.
type Broken = (&'static str, fn() -> Stdio);

const BROKEN: [Broken; 2] = [("full", full), ("gone", gone)];

const SOURCE: &str = "s3://models/m";

/// Every verb that ends by itself, in an order in which each works, and how it ends.
fn verbs(target: &Path) -> Vec<(i32, Vec<&str>)> {
    let target = target.to_str().expect("text");
    vec![
        (0, vec!["-vv", "prefetch", SOURCE]),
        (0, vec!["prefetch", "--sync", "--pin", SOURCE]),
        (0, vec!["ls"]),
        (0, vec!["inspect", SOURCE]),
        (0, vec!["path", SOURCE]),
        (0, vec!["export", SOURCE, target]),
        (0, vec!["verify"]),
        (0, vec!["verify", "--repair"]),
        (0, vec!["pin", SOURCE]),
        (0, vec!["unpin", SOURCE]),
        (0, vec!["completions", "bash"]),
        (0, vec!["--help"]),
        (0, vec!["prefetch", "--help"]),
        (0, vec!["--version"]),
        (64, vec!["prefetch"]),
        (64, vec!["prefetch", "nothing"]),
        (69, vec!["status", "--socket", "/nowhere"]),
        (64, vec!["daemon", "--check", "--config", "/nowhere"]),
        (66, vec!["path", "s3://models/other"]),
        (0, vec!["rm", SOURCE]),
        (66, vec!["rm", SOURCE]),
    ]
}

#[test]
fn a_stderr_that_cannot_be_written_changes_nothing() {
    for (name, broken) in BROKEN {
        let (origin, _) = origin_with_model(Checksums::multipart());
        // With something to complain of, at each level.
        origin.misbehave_on_reads(|number, _| (number < 2).then(Fault::slow_down));
        let larder = Larder::at(&origin);
        for (code, args) in verbs(&larder.scratch().join("target")) {
            let ran = wait(larder.command(&args).stderr(broken()).spawn().expect("larder starts"));
            assert_eq!(ran.code, Some(code), "larder {args:?} with stderr {name}: {ran:?}");
        }
    }
}

#[test]
fn a_stdout_that_cannot_be_written_is_an_error_after_the_work() {
    for (name, broken) in BROKEN {
        let (origin, model) = origin_with_model(Checksums::multipart());
        let larder = Larder::at(&origin);
        let run = |args: &[&str]| wait(larder.command(args).stdout(broken()).spawn().expect("larder starts"));
        let lost = |ran: &Ran, args: &[&str]| {
            assert_eq!(ran.code, Some(74), "larder {args:?} with stdout {name}: {ran:?}");
            assert!(ran.stderr.contains("error: stdout cannot be written"), "larder {args:?}: {ran:?}");
        };
        let args = ["--json", "prefetch", SOURCE];
        lost(&run(&args), &args);
        larder.holds(SOURCE, &model.files);
        let target = larder.scratch().join("target");
        for args in [
            &["--json", "export", SOURCE, target.to_str().expect("text")][..],
            &["--json", "verify"],
            &["--json", "pin", SOURCE],
            &["--json", "unpin", SOURCE],
        ] {
            lost(&run(args), args);
        }
        assert!(target.join("config.json").exists());

        // Whoever reads a listing may have seen enough of it.
        for args in [
            &["ls"][..],
            &["--json", "ls"],
            &["inspect", SOURCE],
            &["--json", "inspect", SOURCE],
            &["path", SOURCE],
            &["completions", "zsh"],
            &["--help"],
            &["--version"],
        ] {
            let ran = run(args);
            if name == "gone" {
                assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "larder {args:?}: {ran:?}");
            } else {
                lost(&ran, args);
            }
        }

        // Of two failures the one of the work is told.
        assert_eq!(run(&["--json", "prefetch", "s3://models/other"]).code, Some(66));
        damage(&Path::new(larder.ok(&["path", SOURCE]).stdout.trim_end()).join("config.json"));
        for args in [&["--json", "verify"][..], &["verify"]] {
            assert_eq!(run(args).code, Some(65), "larder {args:?} with stdout {name}");
        }
        let args = ["--json", "verify", "--repair"];
        lost(&run(&args), &args);
        larder.ok(&["verify"]);
        let args = ["--json", "rm", SOURCE];
        lost(&run(&args), &args);
        assert_eq!(larder.ok(&["ls"]).stdout, "");
    }
}

/// A daemon whose log goes nowhere serves all the same: on a full disk, with its reader gone, and with
/// a reader that has stopped reading.
#[test]
fn a_daemon_whose_log_cannot_be_written_starts_serves_and_ends() {
    let ways = [
        ("full", r#"exec "$@" 2>/dev/full"#),
        ("gone", r#"exec "$@" 2> >(exit 0)"#),
        // Open for reading too, so that it has a reader, which does not read.
        ("stuck", r#"mkfifo "$HOME/log.pipe"; exec "$@" 2<> "$HOME/log.pipe""#),
    ];
    for (name, script) in ways {
        let (origin, model) = origin_with_model(Checksums::multipart());
        origin.misbehave_on_reads(|number, _| (number < 2).then(Fault::slow_down));
        let mut node = Node::at(&origin);
        let address = node.listen();
        node.set("log", "\"trace\"");
        node.set_binary(["bash", "-c", script, "bash", env!("CARGO_BIN_EXE_larder")]);
        node.start();
        let ready = node.ready(&json!({"source": SOURCE}));
        assert_eq!(ready["files"], model.files.len(), "log {name}");
        assert_eq!(node.larder(&["verify"]).code, Some(0), "log {name}");
        let scrape = node::http::ask_tcp(&address, "GET", "/metrics").expect("an answer").text();
        let lost = scrape.lines().find_map(|line| line.strip_prefix("larder_lost_log_lines_total ")).expect("a count");
        assert!(lost.parse::<u64>().expect("a number") > 0, "log {name}: {lost}");
        assert_eq!(node.terminate().0, Some(0), "log {name}");
    }
}

/// A model is where the pod expects it, whether its container's log takes what is said of it or not.
#[test]
fn an_init_container_whose_log_cannot_be_written_places_its_model() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let node = Node::started(&origin);
    for (name, broken) in BROKEN {
        for flags in [&["--copy"][..], &["--copy", "--json"]] {
            let dest = node.path(&format!("dest-{name}-{}", flags.len()));
            let mut command = node.init_command(flags);
            let ran = wait(command.arg(SOURCE).arg(&dest).stdout(broken()).stderr(broken()).spawn().expect("starts"));
            assert_eq!(ran.code, Some(0), "{flags:?} {name}");
            assert!(crate::support::read_tree(&dest) == model.files);
            let ran =
                wait(node.init_command(&["--json", "s3://models/none", "x"]).stdout(broken()).spawn().expect("starts"));
            assert_eq!(ran.code, Some(66), "{ran:?}");
        }
        let code = wait(node.init_command(&["--help"]).stdout(broken()).spawn().expect("starts")).code;
        assert_eq!(code, Some(if name == "full" { 74 } else { 0 }));
    }
}
