//! The daemon that faces the network may do nothing, and serves the mount all the same.

use std::fs;
use std::path::Path;

use larder_origins::safetensors;
use serde_json::json;

use super::kept::{Kept, UID};
use super::{assert_reads, lazily, mount_status, slow_origin};
use crate::support::upload;
use larder_origins::{Checksums, SampleModel};

#[test]
fn a_daemon_without_any_privilege_serves_what_is_here_and_what_arrives() {
    let whole = safetensors("w", 11, 12 << 20);
    let origin = slow_origin(&whole, 4 << 20);
    let model = SampleModel::new(3, 2, 2 << 20);
    upload(origin.bucket(), "n/", &model, Checksums::multipart());
    let Some(kept) = Kept::started(&origin) else { return };
    let node = &kept.node;
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("a status");
    let line = |name: &str| {
        let mut lines = status.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        lines.next().unwrap_or_else(|| panic!("no {name} in\n{status}")).split_whitespace().collect::<Vec<_>>()
    };
    let uid = UID.to_string();
    assert_eq!((line("Uid"), line("Gid")), (vec![uid.as_str(); 4], vec![uid.as_str(); 4]), "{status}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(line(set), ["0000000000000000"], "{set}\n{status}");
    }
    assert_eq!((line("NoNewPrivs"), line("Groups")), (vec!["1"], vec![]), "{status}");

    let ready = node.ready(&json!({"source": "s3://models/n/"}));
    assert_reads(Path::new(ready["path"].as_str().expect("a path")), &model);
    let arriving = lazily(node).join("model.safetensors");
    assert!(fs::read(&arriving).expect("a file") == whole, "what was arriving is wrong");
    let status = mount_status(node);
    assert_eq!((&status["kept"], &status["sealed"]), (&json!(true), &json!("passthrough")), "{status}");
    assert_eq!(status["opens_passed"], model.files.len(), "{status}");
    assert_eq!((&status["opens_arriving"], &status["reads_failed"]), (&json!(1), &json!(0)), "{status}");
    // The bytes that the daemon read are those of the file that was arriving.
    assert!(status["bytes_read"].as_u64() >= Some(whole.len() as u64), "{status}");
    assert!(status["bytes_read"].as_u64() < Some(2 * whole.len() as u64), "{status}");
}
