//! A daemon that runs and says nothing.

use std::time::{Duration, Instant};

use larder_origins::Checksums;
use rustix::process::{Pid, Signal, kill_process};

use super::Node;
use crate::support::origin_with_model;

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
