//! Runs the binary under test with an environment of its own.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use larder_origins::{Bucket, Checksums, Front, Origin, SampleModel};
use serde_json::Value;

/// No command of a test may take longer.
const PATIENCE: Duration = Duration::from_mins(5);

/// A store and the environment in which commands see an origin.
pub struct Larder {
    home: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

/// A finished command.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Larder {
    pub fn new<K: AsRef<str>, V: AsRef<str>>(environment: impl IntoIterator<Item = (K, V)>) -> Self {
        let home = tempfile::Builder::new().prefix("larder-test-").tempdir().expect("a directory under /tmp");
        let environment =
            environment.into_iter().map(|(k, v)| (k.as_ref().to_owned(), v.as_ref().to_owned())).collect();
        Self { home, environment }
    }

    /// For an S3-shaped origin of ours, with a static credential.
    pub fn at(origin: &Origin) -> Self {
        Self::new(s3_environment(origin))
    }

    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.environment.retain(|(key, _)| key != name);
        self.environment.push((name.to_owned(), value.into()));
    }

    pub fn store(&self) -> PathBuf {
        self.home.path().join("store")
    }

    /// A directory for the test's own files, gone with the value.
    pub fn scratch(&self) -> &Path {
        self.home.path()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.home.path());
        command.env("LARDER_STORE", self.store()).envs(self.environment.iter().cloned());
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).spawn().expect("larder starts")
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        wait(self.spawn(args))
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "larder {args:?}: {ran:?}");
        ran
    }

    /// Runs a command that must fail with that code, and returns what it told.
    #[track_caller]
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(code), "larder {args:?}: {ran:?}");
        assert_eq!(ran.stdout, "", "an error is no data");
        ran.stderr
    }

    /// Prefetches with `--json` and returns the last event.
    #[track_caller]
    pub fn prefetch(&self, source: &str) -> Value {
        self.ok(&["prefetch", "--json", source]).last_event()
    }

    /// The files under a model's directory.
    pub fn files(&self, source: &str) -> BTreeMap<String, Vec<u8>> {
        read_tree(Path::new(self.ok(&["path", source]).stdout.trim_end()))
    }

    /// Asserts that a model's directory holds exactly these bytes.
    #[track_caller]
    pub fn holds(&self, source: &str, expected: &BTreeMap<String, Vec<u8>>) {
        let got = self.files(source);
        assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (name, bytes) in expected {
            assert!(got[name] == *bytes, "`{name}` differs");
        }
    }
}

impl Ran {
    pub fn events(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
    }

    #[track_caller]
    pub fn last_event(&self) -> Value {
        self.events().pop().unwrap_or_else(|| panic!("no event: {self:?}"))
    }
}

pub fn s3_environment(origin: &Origin) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ENDPOINT_URL", origin.url()),
        ("AWS_ACCESS_KEY_ID", "key".into()),
        ("AWS_SECRET_ACCESS_KEY", "secret".into()),
        ("AWS_REGION", "us-east-1".into()),
    ]
}

/// Collects what a child prints and waits for its end, but not for ever.
pub fn wait(mut child: Child) -> Ran {
    let reader = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            if let Some(mut pipe) = pipe {
                pipe.read_to_string(&mut text).expect("text");
            }
            text
        })
    };
    let stdout = reader(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let stderr = reader(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        if started.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("larder did not end within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(3));
    };
    let text = |thread: std::thread::JoinHandle<String>| thread.join().expect("a reader");
    Ran { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// Runs another program that must succeed.
pub fn program(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

pub fn read_tree(root: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, directory: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(root, &path, files);
            } else {
                let name = path.strip_prefix(root).expect("below").to_string_lossy().into_owned();
                files.insert(name, std::fs::read(&path).expect("a file"));
            }
        }
    }
    let mut files = BTreeMap::new();
    walk(root, root, &mut files);
    files
}

/// Puts a model under a prefix of a bucket.
pub fn upload(bucket: &Bucket, prefix: &str, model: &SampleModel, checksums: Checksums) {
    for (path, bytes) in &model.files {
        bucket.put(&format!("{prefix}{path}"), bytes.clone(), checksums);
    }
}

/// An S3-shaped origin with a small sharded model under `m/`.
pub fn origin_with_model(checksums: Checksums) -> (Origin, SampleModel) {
    let origin = Origin::start(Front::S3).expect("an origin");
    let model = SampleModel::new(1, 3, 6 << 20);
    upload(origin.bucket(), "m/", &model, checksums);
    (origin, model)
}

/// Prints why a test that needs more than this machine has did nothing.
pub fn skipped(test: &str, reason: &str) {
    eprintln!("SKIPPED {test}: {reason}");
}
