//! Everything an origin does wrong ends in the right bytes or in a clear error.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use larder_origins::{Checksums, Fault, Noise, Request};
use serde_json::Value;

use crate::support::{Larder, origin_with_model};

/// Pulls a model while every third read (and every listing's first try) goes wrong that way.
fn survives(fault: Fault) -> Value {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(move |number, _| (number % 3 == 0).then(|| fault.clone()));
    let larder = Larder::at(&origin);
    let done = larder.prefetch("s3://models/m");
    larder.holds("s3://models/m", &model.files);
    larder.ok(&["verify"]);
    done
}

fn number(done: &Value, name: &str) -> u64 {
    done[name].as_u64().unwrap_or_else(|| panic!("{name}: {done}"))
}

#[test]
fn slow_down_is_obeyed_and_outlived() {
    let done = survives(Fault::slow_down());
    assert!(number(&done, "throttled") > 0);
}

#[test]
fn retry_after_is_waited_for() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let told_at: Mutex<BTreeMap<String, Instant>> = Mutex::default();
    let too_early = std::sync::Arc::new(Mutex::new(Vec::new()));
    let early = std::sync::Arc::clone(&too_early);
    origin.misbehave_on_reads(move |_, request| {
        let range = format!("{} {:?}", request.path, request.range());
        let mut told_at = told_at.lock().expect("no panic");
        match told_at.get(&range) {
            None => {
                told_at.insert(range, Instant::now());
                Some(Fault::Refuse(503, "SlowDown", Some("2".into())))
            }
            Some(at) => {
                if at.elapsed() < Duration::from_millis(1990) {
                    early.lock().expect("no panic").push(range);
                }
                None
            }
        }
    });
    let larder = Larder::at(&origin);
    larder.prefetch("s3://models/m");
    larder.holds("s3://models/m", &model.files);
    assert_eq!(*too_early.lock().expect("no panic"), Vec::<String>::new());
}

#[test]
fn server_errors_are_retried() {
    let done = survives(Fault::Refuse(500, "InternalError", None));
    assert!(number(&done, "retries") > 0);
}

#[test]
fn a_reset_body_goes_on_from_its_last_good_byte() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|number, _| (number % 2 == 0).then_some(Fault::Reset(1_234_567)));
    let larder = Larder::at(&origin);
    let done = larder.prefetch("s3://models/m");
    larder.holds("s3://models/m", &model.files);
    // A reset throws away what the receiver had not read yet, so a few bytes may be asked again.
    assert!(number(&done, "bytes_moved") >= model.len());
}

#[test]
fn a_truncated_body_costs_no_byte_twice() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|number, _| (number % 2 == 0).then_some(Fault::Truncate(1_234_567)));
    let larder = Larder::at(&origin);
    origin.forget_seen();
    larder.prefetch("s3://models/m");
    larder.holds("s3://models/m", &model.files);
    let listing = 8 << 10;
    assert!(origin.bytes_sent() <= model.len() + listing, "{} sent for {}", origin.bytes_sent(), model.len());
}

#[test]
fn a_stalled_body_is_noticed_in_seconds() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    // One part of a shard, not whichever read happens to come second: a small file would be over
    // before it stalls.
    let stalled = AtomicBool::new(false);
    origin.misbehave_on_reads(move |_, request| {
        let is_part = request.range().is_some_and(|(first, last)| last - first > 1 << 20);
        (is_part && !stalled.swap(true, Ordering::Relaxed)).then_some(Fault::Stall(700_000))
    });
    let larder = Larder::at(&origin);
    origin.forget_seen();
    let started = Instant::now();
    let done = larder.prefetch("s3://models/m");
    larder.holds("s3://models/m", &model.files);
    assert_eq!(number(&done, "stalls"), 1, "{done}");
    // No fixed minute: the others moved at full speed, so seconds are long.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    let extra = origin.bytes_sent().saturating_sub(model.len());
    assert!(extra <= model.len() / 50, "{extra} extra bytes");
}

#[test]
fn an_answer_that_never_starts_is_asked_for_again() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|number, _| (number == 3).then_some(Fault::Late(Duration::from_secs(30))));
    let larder = Larder::at(&origin);
    let started = Instant::now();
    larder.prefetch("s3://models/m");
    larder.holds("s3://models/m", &model.files);
    assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
}

#[test]
fn another_range_than_asked_for_is_refused_and_asked_again() {
    survives(Fault::OtherRange);
}

#[test]
fn the_whole_object_instead_of_a_range_is_refused_and_asked_again() {
    survives(Fault::Whole);
}

#[test]
fn more_bytes_than_asked_for_change_nothing() {
    survives(Fault::TooMuch);
}

#[test]
fn wrong_bytes_under_a_right_head_are_caught_by_the_origins_checksum() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|number, request| {
        (number < 12 && request.path.ends_with("model-00001-of-00003.safetensors") && number % 3 == 1)
            .then_some(Fault::OtherBytes)
    });
    let larder = Larder::at(&origin);
    larder.prefetch("s3://models/m");
    larder.holds("s3://models/m", &model.files);
}

#[test]
fn a_flipped_byte_is_caught_counted_and_fetched_again() {
    for checksums in [Checksums::multipart(), Checksums::single_part(), Checksums { sha256: true, ..Checksums::none() }]
    {
        let (origin, model) = origin_with_model(checksums);
        let flipped = Mutex::new(false);
        origin.misbehave_on_reads(move |_, request| {
            let mut flipped = flipped.lock().expect("no panic");
            let hit = !*flipped && request.path.ends_with("model-00002-of-00003.safetensors");
            *flipped |= hit;
            hit.then_some(Fault::Flip(54_321))
        });
        let larder = Larder::at(&origin);
        let done = larder.prefetch("s3://models/m");
        assert_eq!(number(&done, "mismatches"), 1, "{done}");
        larder.holds("s3://models/m", &model.files);
    }
}

#[test]
fn bytes_that_are_always_wrong_are_never_sealed() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|_, request| {
        request.path.ends_with("model-00002-of-00003.safetensors").then_some(Fault::Flip(54_321))
    });
    let larder = Larder::at(&origin);
    let told = larder.fails(65, &["prefetch", "s3://models/m"]);
    assert!(told.contains("`s3://models/m/model-00002-of-00003.safetensors`"), "{told}");
    assert!(told.contains("CRC64NVME") && told.contains("3 full transfers"), "{told}");
    larder.fails(66, &["path", "s3://models/m"]);
    let listed = larder.ok(&["ls", "--json"]).last_event();
    assert_ne!(listed["state"], "complete");
}

/// Every read of a shard carries the ETag; one that changes half-way restarts that file.
#[test]
fn an_object_that_changes_mid_pull_is_never_mixed() {
    let (origin, mut model) = origin_with_model(Checksums::multipart());
    let origin = std::sync::Arc::new(origin);
    let new = Noise::new(99).bytes(7 << 20);
    model.files.insert("model-00003-of-00003.safetensors".into(), new.clone());
    let changer = std::sync::Arc::downgrade(&origin);
    let reads = std::sync::atomic::AtomicU32::new(0);
    origin.misbehave_on_reads(move |_, request| {
        if !request.path.ends_with("model-00003-of-00003.safetensors") {
            return None;
        }
        match reads.fetch_add(1, Ordering::Relaxed) {
            // Half of the old version arrives,
            0 => Some(Fault::Truncate(3 << 20)),
            // and before the rest is asked for there is a new one.
            1 => {
                let origin = changer.upgrade()?;
                origin.bucket().put("m/model-00003-of-00003.safetensors", new.clone(), Checksums::multipart());
                None
            }
            _ => None,
        }
    });
    let larder = Larder::at(&origin);
    larder.prefetch("s3://models/m");
    larder.holds("s3://models/m", &model.files);
    let unpinned: Vec<Request> = origin
        .seen()
        .into_iter()
        .filter(|seen| seen.is_read && seen.request.header("if-match").is_none())
        .map(|seen| seen.request)
        .collect();
    assert!(unpinned.is_empty(), "{unpinned:?}");
}

#[test]
fn an_object_that_changes_all_the_time_is_given_up_with_a_sentence() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let origin = std::sync::Arc::new(origin);
    let changer = std::sync::Arc::downgrade(&origin);
    let seed = std::sync::atomic::AtomicU64::new(1000);
    origin.misbehave_on_reads(move |_, request| {
        if request.path.ends_with("config.json")
            && let Some(origin) = changer.upgrade()
        {
            let seed = seed.fetch_add(1, Ordering::Relaxed);
            origin.bucket().put("m/config.json", Noise::new(seed).bytes(100), Checksums::multipart());
        }
        // The change comes after this read was answered with the old version's ETag check.
        None
    });
    let larder = Larder::at(&origin);
    let told = larder.fails(69, &["prefetch", "s3://models/m"]);
    assert!(told.contains("`s3://models/m/config.json` changed 4 times while it was being pulled"), "{told}");
}

#[test]
fn an_origin_that_only_fails_is_given_up_with_attempts_and_time() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(Fault::Refuse(500, "InternalError", None)));
    let larder = Larder::at(&origin);
    let told = larder.fails(69, &["prefetch", "--retry-for", "2s", "s3://models/m"]);
    assert!(
        told.contains("500 InternalError") && told.contains("attempts in") && told.contains("`s3://models/m/"),
        "{told}"
    );
}

#[test]
fn uneven_connections_share_the_work() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|number, _| Some(Fault::Slow(if number % 4 == 0 { 1 << 20 } else { 20 << 20 })));
    let larder = Larder::at(&origin);
    larder.prefetch("s3://models/m");
    larder.holds("s3://models/m", &model.files);
}

#[test]
fn everything_at_once() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let noise = Mutex::new(Noise::new(42));
    origin.misbehave_on_reads(move |_, _| {
        let mut noise = noise.lock().expect("no panic");
        let at = noise.below(2 << 20);
        match noise.below(14) {
            0 => Some(Fault::slow_down()),
            1 => Some(Fault::Reset(at)),
            2 => Some(Fault::Truncate(at)),
            3 => Some(Fault::OtherRange),
            4 => Some(Fault::Whole),
            5 => Some(Fault::Refuse(500, "InternalError", None)),
            6 => Some(Fault::TooMuch),
            7 => Some(Fault::Slow(4 << 20)),
            _ => None,
        }
    });
    for _ in 0..5 {
        let larder = Larder::at(&origin);
        larder.prefetch("s3://models/m");
        larder.holds("s3://models/m", &model.files);
    }
}
