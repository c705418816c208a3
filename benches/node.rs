//! A node at work: a herd of pods with a daemon that dies on the way, a warm start, a warm CSI
//! volume, and a pull in a small memory cgroup.
//!
//! `cargo bench --bench node [-- herd|warm|csi|cgroup]`. `LARDER_BENCH_GIB` is the model of the herd
//! (2), `LARDER_BENCH_CGROUP_GIB` that of the cgroup (20), `LARDER_BENCH_WARM` the number of warm
//! starts (1,000). `LARDER_INIT` names the binary of the init image, built by `init-image/build`.

#[path = "../tests/e2e/csi/kubelet.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod kubelet;
mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use larder_origins::{Checksums, Fault, Front, Nginx, Noise, Origin};
use support::daemon::{Daemon, larder_init};
use support::keeper::Keeper;
use support::measure::{Cost, run};
use support::{aws_environment, clear, setting, workspace, write_noise};

const PODS: usize = 64;
const WARM_FLAG: &str = "--warm-runs";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if args.first().is_some_and(|flag| flag == WARM_FLAG) {
        return warm_runs(&args[1..]);
    }
    let wanted = |name: &str| args.is_empty() || args.iter().any(|arg| arg == name);
    if wanted("warm") {
        warm();
    }
    if wanted("csi") {
        csi();
    }
    if wanted("herd") {
        herd();
    }
    if wanted("cgroup") {
        cgroup();
    }
}

/// 64 pods start at once with nothing here; the daemon is killed twice before they have it.
fn herd() {
    let work = workspace("herd");
    let shards = 8;
    let shard_len = usize::try_from((setting("LARDER_BENCH_GIB", 2) << 30) / shards).expect("fits");
    let origin = Origin::start(Front::S3).expect("an origin");
    let mut bytes = 0;
    for shard in 0..shards {
        let noise = Noise::new(shard).bytes(shard_len);
        bytes += noise.len() as u64;
        origin.bucket().put(&format!("m/model-{shard}.safetensors"), noise, Checksums::multipart());
    }
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(24 << 20)));
    let mut daemon = Daemon::new(work.path(), aws_environment(&origin.url()));
    daemon.start();
    origin.forget_seen();
    let started = Instant::now();
    let mut pods: Vec<_> = (0..PODS)
        .map(|pod| daemon.init("s3://models/m/", &work.path().join(format!("pod-{pod}"))).spawn().expect("a pod"))
        .collect();
    for third in 1..=2 {
        while origin.bytes_sent() < bytes / 3 * third {
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon.kill();
        std::thread::sleep(Duration::from_millis(500));
        daemon.start();
    }
    let failed = pods.iter_mut().map(|pod| pod.wait().expect("a pod")).filter(|status| !status.success()).count();
    let took = started.elapsed();
    let (peak, _) = daemon.cost();
    println!(
        "{PODS} pods, {:.1} GiB, the daemon killed twice: {failed} failed, {:.4} bytes sent per byte of the model, {:.1} s, {} MiB peak",
        bytes as f64 / f64::from(1 << 30),
        origin.bytes_sent() as f64 / bytes as f64,
        took.as_secs_f64(),
        peak >> 20
    );
    let trees: Vec<_> = (0..PODS).map(|pod| std::fs::canonicalize(work.path().join(format!("pod-{pod}")))).collect();
    assert!(failed == 0 && trees.iter().all(|tree| tree.as_ref().ok() == trees[0].as_ref().ok()), "one tree for all");
    for shard in 0..shards {
        let file = trees[0].as_ref().expect("a tree").join(format!("model-{shard}.safetensors"));
        assert!(std::fs::read(file).expect("a file") == Noise::new(shard).bytes(shard_len), "the bytes are right");
    }
}

/// A model is here: what a pod pays at its start.
fn warm() {
    let work = workspace("warm");
    let source = work.path().join("model");
    write_noise(&source, "model.safetensors", 1, 64 << 20);
    write_noise(&source, "config.json", 2, 900);
    let origin = Origin::start(Front::S3).expect("an origin");
    for name in ["model.safetensors", "config.json"] {
        let bytes = std::fs::read(source.join(name)).expect("a file");
        origin.bucket().put(&format!("m/{name}"), bytes, Checksums::multipart());
    }
    let mut daemon = Daemon::new(work.path(), aws_environment(&origin.url()));
    let start = daemon.start();
    println!("the daemon answers {:.1} ms after its start", start.as_secs_f64() * 1e3);
    run(&mut daemon.init("s3://models/m/", &work.path().join("pod")));
    // In a process of its own: a child begins with its parent's peak, and this one holds a model.
    let mut command = Command::new(std::env::current_exe().expect("this bench"));
    command.arg(WARM_FLAG).arg(daemon.socket()).arg(work.path()).arg(setting("LARDER_BENCH_WARM", 1000).to_string());
    assert!(command.status().expect("it runs").success());
}

/// A model is here: what kubelet waits for when a pod with a CSI volume starts, from its call to our
/// answer, for a small model and for a large one.
fn csi() {
    let work = workspace("csi");
    let origin = Origin::start(Front::S3).expect("an origin");
    let models = [("small", 2, 1 << 20), ("large", 256, 8 << 20)];
    for (name, files, len) in models {
        for file in 0..files {
            let noise = Noise::new(file + files).bytes(len);
            origin.bucket().put(&format!("{name}/model-{file}.safetensors"), noise, Checksums::multipart());
        }
    }
    let Some(keeper) = Keeper::start(work.path()) else { return };
    let mut daemon = Daemon::new(work.path(), aws_environment(&origin.url()));
    daemon.set(&format!("node = \"bench\"\nmount = \"keeper:{}\"", keeper.socket().display()));
    daemon.start();
    let driver = work.path().join("kubelet/plugins/csi.larder.dev/csi.sock");
    while !driver.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let count = usize::try_from(setting("LARDER_BENCH_WARM", 1000)).expect("a number");
    let mut took = [Vec::new(), Vec::new()];
    for number in 0..=count {
        for ((name, ..), took) in models.iter().zip(&mut took) {
            let source = format!("s3://models/{name}/");
            let kubelet = work.path().join("kubelet");
            let volume = kubelet::Volume::new(&kubelet, &format!("{name}-{number}"), &[("source", &source)]);
            let called = Instant::now();
            volume.publish().expect("published");
            // The first one brings it.
            if number > 0 {
                took.push(called.elapsed());
            }
            volume.unpublish().expect("taken away");
        }
    }
    for ((name, files, len), mut took) in models.into_iter().zip(took) {
        took.sort();
        let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)].as_secs_f64() * 1e3;
        let mib = files * len as u64 / (1 << 20);
        println!(
            "{count} warm CSI volumes, {name} model ({files} files, {mib} MiB), kubelet's call to our answer: median {:.2} ms, p99 {:.2} ms, worst {:.2} ms",
            at(50),
            at(99),
            at(100)
        );
    }
}

fn warm_runs(args: &[String]) {
    let [socket, work, count] = args else { panic!("want a socket, a directory and a count") };
    let count: usize = count.parse().expect("a number");
    let binary = larder_init();
    let mut costs: Vec<Cost> = (0..count)
        .map(|number| {
            let mut command = Command::new(&binary);
            command.env_clear().env("LARDER_SOCKET", socket).env("LARDER_POD_UID", "bench");
            command.arg("s3://models/m/").arg(Path::new(work).join(format!("warm-{number}")));
            run(command.stderr(Stdio::null()))
        })
        .collect();
    let peak = costs.iter().filter_map(|cost| cost.rss).max().map_or_else(
        || "below this bench's own".to_owned(),
        |rss| format!("{:.1} MiB", rss as f64 / f64::from(1 << 20)),
    );
    costs.sort_by_key(|cost| cost.wall);
    let at = |percent: usize| costs[(costs.len() * percent / 100).min(costs.len() - 1)].wall.as_secs_f64() * 1e3;
    println!(
        "{count} warm starts, process start to exit: median {:.2} ms, p99 {:.2} ms, worst {:.2} ms; peak RSS {peak}",
        at(50),
        at(99),
        at(100)
    );
}

/// The same pull with and without a memory cgroup of 512 MiB, in turn.
fn cgroup() {
    let limit = 512_u64 << 20;
    let group = Path::new("/sys/fs/cgroup/memory").join(format!("larder-bench-{}", std::process::id()));
    if std::fs::create_dir(&group).is_err() {
        return println!("SKIPPED cgroup: needs root and memory cgroups v1");
    }
    let work = workspace("cgroup");
    let root = work.path().join("root");
    let Ok(nginx) = Nginx::start(&root) else { return println!("SKIPPED cgroup: needs nginx") };
    let (gib, shards) = (setting("LARDER_BENCH_CGROUP_GIB", 20), 4);
    for shard in 0..shards {
        write_noise(&root.join("big"), &format!("model-{shard}.safetensors"), shard, (gib << 30) / shards);
    }
    nginx.write_listing("big").expect("a listing");
    std::fs::write(group.join("memory.limit_in_bytes"), limit.to_string()).expect("a limit");
    let rounds = setting("LARDER_BENCH_ROUNDS", 2);
    let (mut within, mut without) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        for limited in [round % 2 == 0, round % 2 == 1] {
            let place = work.path().join("node");
            clear(&place);
            std::thread::sleep(Duration::from_secs(3));
            let mut daemon = Daemon::new(&place, aws_environment(&nginx.url()));
            if limited {
                daemon.start_in(&group)
            } else {
                daemon.start()
            };
            let cost = run(&mut daemon.init("s3://big/", &place.join("pod")));
            let (peak, cpu) = daemon.cost();
            println!(
                "  {:<22} {:>6.1} s, {:>5.2} CPU-s/GiB, {:>4} MiB peak",
                if limited { "in 512 MiB" } else { "without" },
                cost.wall.as_secs_f64(),
                cpu.as_secs_f64() / gib as f64,
                peak >> 20
            );
            if limited { &mut within } else { &mut without }.push(cost.wall.as_secs_f64());
        }
    }
    let oom = std::fs::read_to_string(group.join("memory.oom_control")).unwrap_or_default();
    let kills = oom.lines().find(|line| line.starts_with("oom_kill ")).unwrap_or("oom_kill ?");
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    println!("{gib} GiB in a cgroup of 512 MiB: {:.2} of the speed without, {kills}", mean(&without) / mean(&within));
    clear(&work.path().join("node"));
    let _ = std::fs::remove_dir(&group);
}
