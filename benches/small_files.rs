//! 2,000 files of 16 to 64 KiB, against rclone where it is installed (Debian: rclone).

mod support;

use std::process::Command;

use larder_origins::{Nginx, Noise, which};
use support::measure::{Side, compare, run};
use support::{aws_environment, clear, setting, workspace, write_noise};

fn main() {
    let rounds = setting("LARDER_BENCH_ROUNDS", 5);
    let work = workspace("small");
    let root = work.path().join("root");
    let mut noise = Noise::new(7);
    let mut bytes = 0;
    for number in 0..2000 {
        let len = (16 << 10) + noise.below(48 << 10);
        bytes += len;
        write_noise(&root.join("many").join(format!("d{}", number % 20)), &format!("f{number}"), number, len);
    }
    let nginx = match Nginx::start(&root) {
        Ok(nginx) => nginx,
        Err(error) => return eprintln!("SKIPPED: {error}"),
    };
    nginx.write_listing("many").expect("a listing");
    let Some(rclone) = which("rclone") else { return eprintln!("SKIPPED: rclone is not installed") };
    let (mut theirs, mut ours) = (Side::new("rclone copy", bytes), Side::new("larder prefetch", bytes));
    for round in 0..=rounds {
        // New directories for every round, and nothing is removed before the end: for minutes ext4
        // searches past inodes that were just deleted (`recently_deleted` in fs/ext4/ialloc.c),
        // and whoever came next would pay for it.
        let (target, store) = (work.path().join(format!("target-{round}")), work.path().join(format!("store-{round}")));
        clear(&target);
        clear(&store);
        let remote =
            format!(":s3,provider=Other,env_auth=true,force_path_style=true,endpoint=\"{}\":many", nginx.url());
        let mut command = Command::new(&rclone);
        command.args(["copy", "--config", "/dev/null", "--retries", "1", "--fast-list", &remote]).arg(&target);
        // Debian's rclone cannot do with a CA bundle of the environment, and needs none here.
        let cost = run(command.envs(aws_environment(&nginx.url())).env_remove("AWS_CA_BUNDLE"));
        let arrived = std::fs::read_dir(&target).expect("a directory").count();
        assert_eq!(arrived, 20, "rclone brought everything");
        rustix::fs::sync();
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.args(["prefetch", "-q", "s3://many/"]).env("LARDER_STORE", &store);
        let own = run(command.envs(aws_environment(&nginx.url())));
        if round > 0 {
            theirs.costs.push(cost);
            ours.costs.push(own);
        }
    }
    compare("2,000 files of 16 to 64 KiB", &ours, &theirs);
}
