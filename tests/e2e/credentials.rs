//! Credentials that live shorter than the pull, from each of the places users have them.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use larder_origins::{Checksums, Fault, Front, Issuer, Noise, Origin};

use crate::support::Larder;

const BYTES: usize = 8 << 20;
const SLICE: usize = 32 << 10;

/// Pulls one object so slowly that it takes about `pull`, with credentials that live `life`, and
/// asserts that no request was made with an expired one.
fn outlives(life: Duration, pull: Duration, larder: impl FnOnce(&Issuer) -> Larder) {
    let issuer = Issuer::start(life).expect("an issuer");
    let origin = Origin::start(Front::S3).expect("an origin");
    let bytes = Noise::new(11).bytes(BYTES);
    origin.bucket().put("m/w.bin", bytes.clone(), Checksums::multipart());
    let valid = issuer.judge();
    // Every read brings one slice in its turn and breaks off: many requests, spread over the time.
    let turn = pull / u32::try_from(BYTES / SLICE).expect("few");
    let next = Mutex::new(Instant::now());
    origin.misbehave(move |request| {
        if !valid(request) {
            return Some(Fault::Refuse(400, "ExpiredToken", None));
        }
        request.range()?;
        let at = {
            let mut next = next.lock().expect("no panic");
            *next = (*next).max(Instant::now()) + turn;
            *next
        };
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        Some(Fault::Truncate(SLICE as u64))
    });
    let mut larder = larder(&issuer);
    larder.set("AWS_ENDPOINT_URL_S3", origin.url());
    larder.set("AWS_REGION", "us-east-1");
    let started = Instant::now();
    larder.prefetch("s3://models/m");
    assert!(larder.files("s3://models/m")["w.bin"] == bytes);
    let refused = origin.seen().iter().filter(|seen| seen.status == 400).count();
    assert_eq!(refused, 0, "requests with an expired credential");
    assert!(started.elapsed() > life * 2, "the pull took {:?}: too short to show anything", started.elapsed());
    assert!(issuer.issued() >= 2, "refreshed {} times", issuer.issued());
    // Ahead of time, but not with every request.
    let lives = started.elapsed().as_secs_f64() / life.as_secs_f64();
    assert!((issuer.issued() as f64) < lives * 3.0 + 3.0, "{} credentials in {lives:.1} lives", issuer.issued());
}

fn imds(issuer: &Issuer) -> Larder {
    Larder::new([("AWS_EC2_METADATA_SERVICE_ENDPOINT", issuer.url())])
}

fn web_identity(issuer: &Issuer) -> Larder {
    let mut larder = Larder::new([("AWS_ENDPOINT_URL_STS", issuer.url())]);
    let token = larder.scratch().join("token");
    std::fs::write(&token, "projected-token").expect("a file");
    larder.set("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().expect("text"));
    larder.set("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/reader");
    larder
}

#[test]
fn a_minute_from_the_instance_metadata_carries_minutes() {
    outlives(Duration::from_mins(1), Duration::from_secs(150), imds);
}

#[test]
fn seconds_from_the_instance_metadata() {
    outlives(Duration::from_secs(8), Duration::from_secs(20), imds);
}

#[test]
fn seconds_from_eks_pod_identity() {
    outlives(Duration::from_secs(8), Duration::from_secs(20), |issuer| {
        let larder = Larder::new([("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/v1/credentials", issuer.url()))]);
        let token = larder.scratch().join("token");
        std::fs::write(&token, "pod-identity-token").expect("a file");
        let mut larder = larder;
        larder.set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().expect("text"));
        larder
    });
}

#[test]
fn seconds_from_a_web_identity() {
    outlives(Duration::from_secs(8), Duration::from_secs(20), web_identity);
}

/// A token service slower than a request's patience: the pull goes on with the old credential
/// meanwhile, and no request is made with none.
#[test]
fn a_chain_that_takes_seconds_holds_nothing_up() {
    outlives(Duration::from_secs(16), Duration::from_secs(36), |issuer| {
        issuer.set_delay(Duration::from_secs(2));
        web_identity(issuer)
    });
}
