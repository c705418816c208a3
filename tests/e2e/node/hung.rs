//! A daemon that runs and says nothing.

use std::time::{Duration, Instant};

use larder_origins::{Checksums, Fault};
use rustix::process::{Pid, Signal, kill_process};

use super::Node;
use crate::support::{origin_with_model, wait};

/// What is promised is 5 s; a busy machine may take longer, and the answer of before took 20 s.
const ANSWER_MAX: Duration = Duration::from_secs(12);

#[test]
fn the_status_of_a_daemon_that_hangs_is_said_soon() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let node = Node::started(&origin);
    let daemon = Pid::from_raw(node.pid().cast_signed()).expect("a process");
    kill_process(daemon, Signal::STOP).expect("a signal");
    let began = Instant::now();
    let ran = node.larder(&["status"]);
    let elapsed = began.elapsed();
    kill_process(daemon, Signal::CONT).expect("a signal");
    assert_eq!(ran.code, Some(69), "{ran:?}");
    assert!(ran.stderr.contains("not a word within 5 s, so it is stopped or hangs"), "{ran:?}");
    assert!(elapsed < ANSWER_MAX, "{elapsed:?}");
    assert_eq!(node.larder(&["status"]).code, Some(0));
}

/// Every verb that asks a daemon.
#[test]
fn no_command_waits_for_a_daemon_that_hangs() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let node = Node::started(&origin);
    let daemon = Pid::from_raw(node.pid().cast_signed()).expect("a process");
    let source = "s3://models/m/";
    // The next one is asked while it pulls.
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(1 << 10)));
    let pulling = node.command(&["prefetch", source]).spawn().expect("larder starts");
    while origin.reads() == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_process(daemon, Signal::STOP).expect("a signal");
    let verbs: [&[&str]; 6] = [
        &["prefetch", source],
        &["pin", "--no-wait", source],
        &["unpin", source],
        &["release", "x"],
        &["verify"],
        &["rm", source],
    ];
    let mut children = vec![pulling];
    children.extend(verbs.map(|args| node.command(args).spawn().expect("larder starts")));
    let interrupted = node.command(&["rm", source]).spawn().expect("larder starts");
    let began = Instant::now();
    // One that has less time says so itself.
    let init = node.init(&["--timeout=2", source, "dest"]);
    kill_process(Pid::from_child(&interrupted), Signal::INT).expect("a signal");
    let interrupted = wait(interrupted);
    let ran: Vec<_> = children.into_iter().map(wait).collect();
    let elapsed = began.elapsed();
    kill_process(daemon, Signal::CONT).expect("a signal");
    for (at, ran) in ran.iter().enumerate() {
        let told = format!("larder's daemon, pid {} (`larder daemon`), does not answer at `", node.pid());
        assert_eq!(ran.code, Some(69), "{at}: {ran:?}");
        assert!(ran.stderr.contains(&told) && ran.stderr.contains("stopped or hangs"), "{at}: {ran:?}");
    }
    assert_eq!(interrupted.code, Some(130), "{interrupted:?}");
    assert_eq!(init.code, Some(69), "{init:?}");
    assert!(init.stderr.contains("gave up after 2 s: "), "{init:?}");
    assert!(elapsed < Duration::from_mins(1), "{elapsed:?}");
}
