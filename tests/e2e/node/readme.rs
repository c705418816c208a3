//! What the README tells people to type.

use std::process::{Command, Stdio};

use larder_origins::{Checksums, Front, Origin, SampleModel};
use serde_json::Value;

use super::Node;
use crate::support::{read_tree, upload, wait};

const README: &str = include_str!("../../../README.md");
const SOURCE: &str = "s3://models/llama-3.1-8b/";

/// The fenced block of that language that has `marker` in it, without its fences.
fn block(language: &str, marker: &str) -> &'static str {
    let fence = format!("```{language}\n");
    let mut blocks = README.split(&fence).skip(1).filter_map(|rest| rest.split("```").next());
    blocks.find(|block| block.contains(marker)).expect("the README has such a block")
}

/// The commands of a console block: lines after a `$`, with those they are continued on.
fn commands(block: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut continued = false;
    for line in block.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => commands.push(command.to_owned()),
            None if continued => {
                let command = commands.last_mut().expect("a command before it");
                command.push('\n');
                command.push_str(line);
            }
            None => {}
        }
        continued = (continued || line.starts_with("$ ")) && line.ends_with('\\');
    }
    commands
}

#[test]
fn curl_alone_gets_a_model_and_reads_its_events() {
    let origin = Origin::start(Front::S3).expect("an origin");
    let model = SampleModel::new(5, 1, 1 << 20);
    upload(origin.bucket(), "llama-3.1-8b/", &model, Checksums::single_part());
    let node = Node::started(&origin);
    let typed = commands(block("console", "curl"));
    assert_eq!(typed.len(), 3, "{typed:?}");
    let run = |command: &str| {
        let command = command.replace("/run/larder/larder.sock", node.socket().to_str().expect("text"));
        let mut shell = Command::new("bash");
        shell.args(["-c", &command]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let ran = wait(shell.spawn().expect("bash"));
        assert_eq!(ran.code, Some(0), "{command}: {ran:?}");
        ran
    };
    let events = run(&typed[0]).events();
    let ready = events.last().expect("an event");
    assert_eq!((&ready["event"], &ready["source"]), (&Value::from("ready"), &Value::from(SOURCE)), "{ready}");
    assert!(read_tree(ready["path"].as_str().expect("a path").as_ref()) == model.files);
    assert!(ready["lease"].is_string(), "the shell has a lease: {ready}");
    let status: Value = serde_json::from_str(&run(&typed[1]).stdout).expect("JSON");
    assert_eq!(status["models"], 1, "{status}");
    let contract: Value = serde_json::from_str(&run(&typed[2]).stdout).expect("JSON");
    assert!(contract["paths"]["/v1/ensure"].is_object(), "{contract}");
    node.until("the shell's lease has ended with it", |status| status["leases"].as_array().is_some_and(Vec::is_empty));
}

#[test]
fn the_settings_of_the_readme_are_right() {
    let mut node = Node::new([("AWS_REGION", "us-east-1")]);
    node.set_list(block("toml", "[[prefetch]]"));
    let settings = node.write_settings();
    let ran = node.larder(&["daemon", "--check", "--config", settings.to_str().expect("text")]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains(SOURCE), "{ran:?}");
}
