//! What a bad day costs: 1 % of 503s, 0.5 % of stalls and 0.1 % of truncated bodies, against the
//! same origin on a good day.
//!
//! The rates are per request, so the origin is one that larder asks often: many small files beside
//! the shards, each connection slowed to what object storage gives one.

mod support;

use std::process::Command;
use std::sync::Mutex;

use larder_origins::{Checksums, Fault, Front, Noise, Origin};
use support::measure::{Side, compare, run};
use support::{aws_environment, clear, setting, workspace};

const SHARDS: u64 = 8;
const SHARD_LEN: usize = 192 << 20;
const SMALL: u64 = 600;
const BYTES_PER_SECOND: u64 = 60 << 20;

fn main() {
    let rounds = setting("LARDER_BENCH_ROUNDS", 5);
    let work = workspace("faults");
    let store = work.path().join("store");
    let origin = Origin::start(Front::S3).expect("an origin");
    let mut bytes = 0;
    for shard in 0..SHARDS {
        let noise = Noise::new(shard).bytes(SHARD_LEN);
        bytes += noise.len() as u64;
        origin.bucket().put(&format!("m/shard-{shard}.safetensors"), noise, Checksums::multipart());
    }
    for small in 0..SMALL {
        let noise = Noise::new(1000 + small).bytes(200_000);
        bytes += noise.len() as u64;
        origin.bucket().put(&format!("m/small/{small}"), noise, Checksums::multipart());
    }
    let (mut good, mut bad) = (Side::new("a good day", bytes), Side::new("a bad day", bytes));
    let (mut requests, mut sent) = (0, 0);
    for round in 0..=rounds {
        for faulty in [false, true] {
            clear(&store);
            let noise = Mutex::new(Noise::new(round));
            origin.misbehave_on_reads(move |_, request| {
                let mut noise = noise.lock().expect("no panic");
                let len = request.range().map_or(0, |(first, last)| last - first);
                let dice = if faulty { noise.below(1000) } else { 999 };
                match dice {
                    0..10 => Some(Fault::slow_down()),
                    10..15 => Some(Fault::Stall(noise.below(len.max(1)))),
                    15 => Some(Fault::Truncate(noise.below(len.max(1)))),
                    _ => Some(Fault::Slow(BYTES_PER_SECOND)),
                }
            });
            origin.forget_seen();
            let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
            command.args(["prefetch", "-q", "s3://models/m/"]).env("LARDER_STORE", &store);
            let cost = run(command.envs(aws_environment(&origin.url())));
            if round > 0 {
                if faulty { &mut bad } else { &mut good }.costs.push(cost);
                if faulty {
                    requests += origin.reads();
                    sent += origin.bytes_sent();
                }
            }
        }
    }
    compare("1 % of 503s, 0.5 % of stalls, 0.1 % of truncated bodies", &bad, &good);
    println!(
        "  {} requests a round, {:.4} bytes sent per byte of the model",
        requests / rounds as usize,
        sent as f64 / (bytes * rounds) as f64
    );
}
