//! A cold pull against the least that any pull can do: CPU-seconds per GiB, wall time, peak RSS.
//!
//! `cargo bench --bench pull`, with `LARDER_BENCH_ROUNDS`, `LARDER_BENCH_GIB` (of the one object;
//! the model is as large) and `LARDER_BENCH_DIR`. Needs nginx (Debian: nginx-light).

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use larder_origins::Nginx;
use support::measure::{Side, compare, run};
use support::{aws_environment, clear, minimal, setting, workspace, write_noise};

/// Between two runs, for the disk and (in a virtual machine) the host to be done with the last.
const PAUSE: Duration = Duration::from_secs(3);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|flag| flag == minimal::FLAG) {
        return minimal::main(&args[1..]);
    }
    let rounds = setting("LARDER_BENCH_ROUNDS", 5);
    let gib = setting("LARDER_BENCH_GIB", 4);
    let work = workspace("pull");
    let root = work.path().join("root");
    let nginx = match Nginx::start(&root) {
        Ok(nginx) => nginx,
        Err(error) => return eprintln!("SKIPPED: {error}"),
    };

    write_noise(&root.join("one"), "model.safetensors", 1, gib << 30);
    side_by_side("one object", &nginx, work.path(), &["one"], rounds);
    std::fs::remove_dir_all(root.join("one")).expect("removed");

    let shard_len = (gib << 30) / 8;
    for shard in 1..=8 {
        write_noise(&root.join("tree"), &format!("model-{shard:05}-of-00008.safetensors"), shard, shard_len);
    }
    for small in 0..10 {
        write_noise(&root.join("tree"), &format!("small-{small}.json"), small, 1000 + small * 3000);
    }
    side_by_side("8 shards and 10 small files", &nginx, work.path(), &["tree"], rounds);
}

fn side_by_side(title: &str, nginx: &Nginx, work: &Path, buckets: &[&str], rounds: u64) {
    let bucket = buckets[0];
    nginx.write_listing(bucket).expect("a listing");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(work.join("root").join(bucket)).expect("a bucket") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("text");
        files.push((format!("{bucket}/{name}"), entry.metadata().expect("a file").len()));
    }
    files.sort();
    let bytes = files.iter().map(|(_, size)| size).sum();
    let (target, store) = (work.join("target"), work.join("store"));
    let (mut floor, mut ours) = (Side::new("recv + BLAKE3 + pwrite", bytes), Side::new("larder prefetch", bytes));
    for round in 0..=rounds {
        // Whoever comes second finds the memory that the first one freed: each does in turn.
        for ours_now in [round % 2 == 0, round % 2 == 1] {
            clear(&target);
            clear(&store);
            std::thread::sleep(PAUSE);
            let cost = if ours_now {
                let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
                command.args(["prefetch", "-q", &format!("s3://{bucket}/")]).env("LARDER_STORE", &store);
                run(command.envs(aws_environment(&nginx.url())))
            } else {
                run(&mut minimal::command(&nginx.url(), &target, &files))
            };
            // The first round warms the page cache of the origin's files.
            if round > 0 {
                if ours_now { &mut ours } else { &mut floor }.costs.push(cost);
            }
        }
    }
    clear(&target);
    clear(&store);
    compare(title, &ours, &floor);
}
