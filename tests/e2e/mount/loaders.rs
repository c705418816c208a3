//! A model is loaded from the mount by what loads models: `safetensors` and `transformers`, offline,
//! as a user that nobody knows, whether it is here or still arriving.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use larder_origins::{Checksums, Fault, Front, Noise, Origin};
use serde_json::json;

use super::kept::{Kept, own, unprivileged};
use super::{lazily, mount_status, until_removed};
use crate::node::PATIENCE;
use crate::support::{program, skipped};

const WEIGHTS: &str = "model.safetensors";

/// Where `tests/run` installs the loaders. `None` where it did not.
fn loaders() -> Option<PathBuf> {
    let loaders = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-loaders");
    let found = loaders.join("ready").exists();
    if !found {
        skipped("loaders", "`tests/run` installs safetensors and transformers");
    }
    found.then_some(loaders)
}

#[test]
fn safetensors_and_transformers_load_what_is_here_and_what_arrives() {
    let Some(loaders) = loaders() else { return };
    let origin = Origin::start(Front::S3).expect("an origin");
    let Some(kept) = Kept::started(&origin) else { return };
    // Where a user that is not root finds them, wherever the repository is.
    let here = kept.node.path("loaders");
    fs::create_dir(&here).expect("a directory");
    rustix::mount::mount_bind(&loaders, &here).expect("a bind mount");
    let python = here.join("bin/python");
    let script = kept.node.path("loaders.py");
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/mount/loaders.py"), &script).expect("a copy");
    let copy = kept.node.path("copy");
    program(Command::new(&python).arg(&script).arg("make").arg(&copy));
    for file in fs::read_dir(&copy).expect("a directory") {
        let file = file.expect("an entry");
        let key = file.file_name().into_string().expect("text");
        let bytes = fs::read(file.path()).expect("a file");
        origin.bucket().put(&format!("n/{key}"), bytes.clone(), Checksums::multipart());
        origin.bucket().put(&format!("m/{key}"), bytes, Checksums::multipart());
    }
    let uid = 100_000 + Noise::new(u64::from(std::process::id())).below(1 << 30) as u32;
    let home = kept.node.path("home");
    own(&home);
    let load = |directory: &Path| {
        let mut words = unprivileged(uid).into_iter();
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words).arg(&python).arg(&script).arg("load").arg(directory).arg(&copy).current_dir(&home);
        command.env("HF_HUB_OFFLINE", "1").env("TRANSFORMERS_OFFLINE", "1").env("HOME", &home);
        let ran = program(&mut command);
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(said.contains(&format!("for user {uid}")), "{said}");
        eprint!("{}: {said}", directory.parent().and_then(Path::file_name).expect("a name").display());
    };
    let ready = kept.node.ready(&json!({"source": "s3://models/n/"}));
    load(Path::new(ready["path"].as_str().expect("a path")));
    // The same bytes from elsewhere, and none of them is here any more.
    until_removed(&kept.node, "s3://models/n/");
    // Not a byte of the weights before somebody has opened them, and then slowly.
    let opened = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&opened);
    origin.misbehave_on_reads(move |_, request| {
        while request.path.ends_with(WEIGHTS) && !gate.load(Relaxed) {
            thread::sleep(Duration::from_millis(10));
        }
        Some(Fault::Slow(2 << 20))
    });
    let arriving = lazily(&kept.node);
    thread::scope(|scope| {
        scope.spawn(|| {
            let began = Instant::now();
            while began.elapsed() < PATIENCE && mount_status(&kept.node)["opens_arriving"] == 0 {
                thread::sleep(Duration::from_millis(10));
            }
            opened.store(true, Relaxed);
        });
        load(&arriving);
    });
    let status = mount_status(&kept.node);
    assert!(status["opens_arriving"].as_u64() >= Some(1), "{status}");
    assert_eq!(status["reads_failed"], 0, "{status}\n{}", kept.logs());
}
