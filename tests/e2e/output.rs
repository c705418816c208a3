//! Output that cannot be written: nothing panics, nothing that is done changes, and no failure
//! becomes a success.

use std::fs::OpenOptions;
use std::io::{self, PipeReader, Write as _};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use larder_origins::{Checksums, Fault};
use rustix::process::{Pid, Signal, kill_process};
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

/// A pipe that is full, and whose reader takes nothing for as long as it is kept.
fn stuck() -> (PipeReader, Stdio) {
    let (reader, mut writer) = io::pipe().expect("a pipe");
    rustix::io::ioctl_fionbio(&writer, true).expect("non-blocking");
    while writer.write(&[b'x'; 512]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).expect("blocking");
    (reader, writer.into())
}

/// How it ended, if it did.
fn ended(child: &mut Child, within: Duration) -> Option<i32> {
    let began = Instant::now();
    while began.elapsed() < within {
        if let Some(status) = child.try_wait().expect("a child") {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// Much more than what is promised, for a busy machine.
const LONG: Duration = Duration::from_mins(1);

#[test]
fn what_has_been_done_is_let_go_whoever_reads_of_it() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let larder = Larder::at(&origin);
    for (code, flags) in [(0, &["prefetch"][..]), (74, &["--json", "prefetch"])] {
        let (_reader, pipe) = stuck();
        let mut command = larder.command(&[flags, &[SOURCE]].concat());
        let mut child = if code == 0 { command.stderr(pipe) } else { command.stdout(pipe) }.spawn().expect("starts");
        // Still waiting for its reader, it has let the store go.
        let began = Instant::now();
        while wait(larder.command(&["path", SOURCE]).spawn().expect("starts")).code != Some(0) {
            assert!(began.elapsed() < LONG, "{flags:?}");
        }
        let pinned = larder.run(&["pin", SOURCE]);
        assert_eq!(pinned.code, Some(0), "{flags:?}: {pinned:?}");
        assert_eq!(ended(&mut child, LONG), Some(code), "{flags:?}");
        larder.holds(SOURCE, &model.files);
        larder.ok(&["rm", SOURCE]);
    }
}

#[test]
fn a_signal_ends_a_command_whose_output_is_not_read() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let larder = Larder::at(&origin);
    larder.ok(&["prefetch", SOURCE]);
    let verbs: [&[&str]; 6] = [
        &["prefetch", SOURCE],
        &["--json", "prefetch", SOURCE],
        &["ls"],
        &["inspect", SOURCE],
        &["verify"],
        &["--help"],
    ];
    for (at, args) in verbs.into_iter().enumerate() {
        let (_reader, pipe) = stuck();
        let (_other, other) = stuck();
        let mut child = larder.command(args).stdout(pipe).stderr(other).spawn().expect("larder starts");
        std::thread::sleep(Duration::from_millis(500));
        let signal = if at % 2 == 0 { Signal::INT } else { Signal::TERM };
        kill_process(Pid::from_child(&child), signal).expect("a signal");
        // One that has done its work says how that went.
        let code = ended(&mut child, Duration::from_secs(8)).unwrap_or_else(|| panic!("{args:?} does not end"));
        assert!([0, 74, 130].contains(&code), "larder {args:?}: {code}");
    }
}

/// Neither progress nor a log that nobody reads holds a pull up.
#[test]
fn a_pull_goes_on_without_a_reader() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|number, _| Some(if number < 2 { Fault::slow_down() } else { Fault::Slow(4 << 20) }));
    let larder = Larder::at(&origin);
    let ((_out, stdout), (_err, stderr)) = (stuck(), stuck());
    let mut child =
        larder.command(&["-vv", "--json", "prefetch", SOURCE]).stdout(stdout).stderr(stderr).spawn().expect("starts");
    let began = Instant::now();
    while larder.run(&["path", SOURCE]).code != Some(0) {
        assert!(began.elapsed() < LONG, "it is held up");
    }
    let _ = child.kill();
    let _ = child.wait();
    larder.holds(SOURCE, &model.files);
}

#[test]
fn an_init_container_whose_log_nobody_reads_places_its_model() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let node = Node::started(&origin);
    for flags in [&["--copy"][..], &["--copy", "--json"]] {
        let dest = node.path(&format!("dest-{}", flags.len()));
        let ((_out, stdout), (_err, stderr)) = (stuck(), stuck());
        let mut command = node.init_command(flags);
        let mut child = command.arg(SOURCE).arg(&dest).stdout(stdout).stderr(stderr).spawn().expect("starts");
        assert_eq!(ended(&mut child, LONG), Some(0), "{flags:?}");
        assert!(crate::support::read_tree(&dest) == model.files);
    }
    let (_err, stderr) = stuck();
    let mut child = node.init_command(&["s3://models/none", "x"]).stderr(stderr).spawn().expect("starts");
    assert_eq!(ended(&mut child, LONG), Some(66));
}
