//! `kill -9` at any moment: what is here is right, what is missing comes later.

use std::time::{Duration, Instant};

use larder_origins::{Checksums, Fault, Noise};

use crate::support::{Larder, origin_with_model, read_tree};

const KILLS: u32 = 200;
/// What a kill may cost per connection: a batch on its way to the disk, a batch gathering, what a
/// server that trickles has in the socket, and less than a sixteenth of a chunk that is written
/// and not worth a record yet.
const LOSS_PER_CONNECTION_MAX: u64 = 2 * (512 << 10) + (512 << 10) + (64 << 10);

#[test]
fn killed_at_two_hundred_random_moments() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(12 << 20)));
    let mut noise = Noise::new(2026);
    let (mut kills, mut rounds) = (0, 0);
    let (mut twice, mut most) = (0, 0);
    while kills < KILLS {
        rounds += 1;
        let larder = Larder::at(&origin);
        let mut killed = 0_u64;
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
                // A directory appears whole or not at all, also one that no name leads to yet.
                let models = larder.store().join("v1/models");
                for directory in std::fs::read_dir(&models).into_iter().flatten() {
                    let directory = directory.expect("an entry").path();
                    assert!(read_tree(&directory) == model.files, "{} is unfinished", directory.display());
                }
            }
        }
        kills += u32::try_from(killed).expect("few");
        larder.holds("s3://models/m", &model.files);
        larder.ok(&["verify"]);
        let again = origin.bytes_sent().saturating_sub(model.len());
        let allowed = killed * origin.in_flight_max() * LOSS_PER_CONNECTION_MAX;
        assert!(again <= allowed, "{again} bytes moved twice in {killed} kills, {allowed} allowed");
        (twice, most) = (twice + again, most + allowed);
    }
    eprintln!("{kills} kills in {rounds} models: {twice} bytes moved twice, {most} allowed");
}

/// What a kill costs, counted by larder itself: what was recorded is not asked for again, to the
/// byte inside a chunk.
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
    let allowed = origin.in_flight_max() * LOSS_PER_CONNECTION_MAX;
    origin.behave();
    origin.forget_seen();
    let done = larder.prefetch("s3://models/m");
    let here = done["bytes_here"].as_u64().expect("a number");
    assert!(here + allowed >= sent, "{here} of {sent} sent bytes are kept, {allowed} may be lost");
    eprintln!("{} of {sent} sent bytes lost, {allowed} allowed", sent.saturating_sub(here));
    let begins_inside =
        |seen: &larder_origins::Seen| seen.request.range().is_some_and(|(first, _)| first % (1 << 20) != 0);
    assert!(origin.seen().iter().any(begins_inside), "no request goes on inside a chunk");
    assert_eq!(done["bytes_moved"].as_u64(), Some(model.len() - here), "nothing that is here comes again: {done}");
    larder.holds("s3://models/m", &model.files);
}
