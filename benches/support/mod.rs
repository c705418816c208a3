//! What the benches share: timing child processes, the minimal loop, and tables.
//!
//! Absolute times mean little on shared machines. Both sides of a comparison run in turn, in one
//! process, and what is reported is the median of each and the ratio of the medians.

#![allow(dead_code, reason = "each bench uses its part")]

pub mod daemon;
pub mod keeper;
pub mod measure;
pub mod minimal;
pub mod reader;

use std::path::{Path, PathBuf};

/// A number from the environment, as in `LARDER_BENCH_ROUNDS=7 cargo bench --bench pull`.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// A directory on a real disk: `LARDER_BENCH_DIR`, or the build directory. `/tmp` may be memory.
pub fn workspace(name: &str) -> tempfile::TempDir {
    let base =
        std::env::var_os("LARDER_BENCH_DIR").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    tempfile::Builder::new().prefix(&format!("larder-bench-{name}-")).tempdir_in(base).expect("a directory to work in")
}

/// Writes files of noise below `directory`.
pub fn write_noise(directory: &Path, name: &str, seed: u64, len: u64) {
    use std::io::Write as _;
    std::fs::create_dir_all(directory).expect("a directory");
    let mut file = std::fs::File::create(directory.join(name)).expect("a file");
    let block = larder_origins::Noise::new(seed).bytes(8 << 20);
    let mut left = len;
    let mut number = 0_u64;
    while left > 0 {
        let take = usize::try_from(left.min(block.len() as u64)).expect("fits");
        // Each block differs from the one before it, or a file would be one chunk many times.
        number += 1;
        let mut head = number.to_le_bytes().to_vec();
        head.truncate(take);
        file.write_all(&head).and_then(|()| file.write_all(&block[head.len()..take])).expect("written");
        left -= take as u64;
    }
}

/// The environment of an AWS tool at a local endpoint.
pub fn aws_environment(url: &str) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ENDPOINT_URL", url.to_owned()),
        ("AWS_ACCESS_KEY_ID", "key".into()),
        ("AWS_SECRET_ACCESS_KEY", "secret".into()),
        ("AWS_REGION", "us-east-1".into()),
    ]
}

/// Removes a directory and waits for the disk, so that one run does not pay for another's.
pub fn clear(directory: &Path) {
    let _ = std::fs::remove_dir_all(directory);
    std::fs::create_dir_all(directory).expect("a directory");
    rustix::fs::sync();
}
