//! `kill -9` at any moment: what is here is right, what is missing comes later.

use std::time::{Duration, Instant};

use larder_origins::{Checksums, Fault, Noise};

use crate::support::{Larder, origin_with_model};

const KILLS: u32 = 200;
/// The most connections that a pull of three shards and a few small files can have.
const CONNECTIONS_MAX: u64 = 64;
/// What a kill may cost per connection: the chunk being filled, and what the kernel's socket
/// buffers hold, sent by the origin and read by nobody.
const LOSS_PER_CONNECTION_MAX: u64 = (1 << 20) + (6 << 20);

#[test]
fn killed_at_two_hundred_random_moments() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(12 << 20)));
    let mut noise = Noise::new(2026);
    let (mut kills, mut rounds) = (0, 0);
    while kills < KILLS {
        rounds += 1;
        let larder = Larder::at(&origin);
        let mut killed = 0_u64;
        let (mut moved, mut connections) = (0, 1);
        origin.forget_seen();
        loop {
            let mut child = larder.spawn(&["prefetch", "-q", "s3://models/m"]);
            let end = Instant::now() + Duration::from_micros(noise.below(400_000));
            let mut finished = None;
            while finished.is_none() && Instant::now() < end {
                std::thread::sleep(Duration::from_micros(500));
                finished = child.try_wait().expect("a child");
            }
            if let Some(status) = finished {
                assert!(status.success(), "{status}");
                break;
            }
            child.kill().expect("a child");
            child.wait().expect("a child");
            killed += 1;
            // Nothing unfinished is ever visible as finished: either the model is not there, or
            // (killed between publishing and exiting) it is, byte for byte.
            let path = larder.run(&["path", "s3://models/m"]);
            if path.code == Some(0) {
                larder.holds("s3://models/m", &model.files);
            } else {
                assert_eq!(path.code, Some(66), "{path:?}");
                for (name, bytes) in crate::support::read_tree(&larder.store().join("v1/models")) {
                    panic!("{name} with {} bytes is visible", bytes.len());
                }
            }
            moved = origin.bytes_sent();
            connections = connections.max(CONNECTIONS_MAX.min(origin.reads() as u64));
        }
        kills += u32::try_from(killed).expect("few");
        larder.holds("s3://models/m", &model.files);
        larder.ok(&["verify"]);
        let again = origin.bytes_sent().saturating_sub(model.len());
        let allowed = killed * (CONNECTIONS_MAX.min(connections) * LOSS_PER_CONNECTION_MAX);
        assert!(again <= allowed, "{again} bytes moved twice in {killed} kills, of {moved}");
    }
    eprintln!("{kills} kills in {rounds} models");
}

/// What a kill costs, counted by larder itself: chunks that were recorded are not asked for again.
#[test]
fn a_resumed_pull_asks_only_for_what_was_not_recorded() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(2 << 20)));
    let larder = Larder::at(&origin);
    let mut child = larder.spawn(&["prefetch", "-q", "s3://models/m"]);
    std::thread::sleep(Duration::from_secs(2));
    child.kill().expect("a child");
    child.wait().expect("a child");
    let sent = origin.bytes_sent();
    let reads = origin.reads() as u64;
    origin.behave();
    let done = larder.prefetch("s3://models/m");
    let here = done["bytes_here"].as_u64().expect("a number");
    // Each connection held at most one chunk that was not complete; socket buffers are small
    // against 2 MiB/s.
    assert!(here + reads * (1 << 20) + (8 << 20) >= sent, "{here} of {sent} sent bytes are kept, {reads} reads");
    assert!(here > 0, "{done}");
    larder.holds("s3://models/m", &model.files);
}
