//! Google Cloud Storage, through the client that users run.

use std::io::{Read as _, Write as _};

use larder_origins::{Checksums, Fault, Front, Issuer, Origin, SampleModel};
use serde_json::json;

use crate::support::{Larder, upload};

/// What GCS keeps of every object: a generation, an MD5 and a CRC32C.
const GCS: Checksums = Checksums { crc64nvme: false, crc32c: true, sha256: false, md5_etag: true, no_etag: false };

fn gcs_with_model() -> (Origin, SampleModel) {
    let origin = Origin::start(Front::Gcs).expect("an origin");
    let model = SampleModel::new(30, 3, 6 << 20);
    upload(origin.bucket(), "m/", &model, GCS);
    (origin, model)
}

fn larder_at(origin: &Origin) -> Larder {
    Larder::new([("STORAGE_EMULATOR_HOST", origin.url())])
}

#[test]
fn a_model_comes_by_generation_and_crc32c() {
    let (origin, model) = gcs_with_model();
    origin.set_page_len(4);
    let larder = larder_at(&origin);
    let done = larder.prefetch("gs://models/m/");
    assert_eq!(done["bytes_moved"], model.len());
    assert_eq!(done["verified"], json!({"CRC32C": model.files.len()}));
    larder.holds("gs://models/m/", &model.files);
    let reads: Vec<_> = origin.seen().into_iter().filter(|seen| seen.is_read).collect();
    assert!(reads.iter().all(|seen| seen.request.query("generation").is_some()), "every read is pinned");
    assert_eq!(larder.prefetch("gs://models/m/")["bytes_moved"], 0);
    let file = &larder.ok(&["inspect", "--json", "gs://models/m/"]).last_event()["files"][0];
    assert!(file["version"].as_str().expect("a version").starts_with("generation:"), "{file}");
}

#[test]
fn the_same_bytes_under_another_prefix_do_not_move() {
    let (origin, model) = gcs_with_model();
    upload(origin.bucket(), "copy/", &model, GCS);
    let larder = larder_at(&origin);
    larder.prefetch("gs://models/m/");
    let done = larder.prefetch("gs://models/copy/");
    assert_eq!(done["bytes_moved"], 0, "{done}");
}

#[test]
fn faults_end_in_the_right_bytes() {
    let (origin, model) = gcs_with_model();
    origin.misbehave_on_reads(|number, _| match number % 9 {
        0 => Some(Fault::slow_down()),
        2 => Some(Fault::Truncate(300_000)),
        4 => Some(Fault::Reset(900_000)),
        6 => Some(Fault::Refuse(500, "backendError", None)),
        _ => None,
    });
    let larder = larder_at(&origin);
    larder.prefetch("gs://models/m/");
    larder.holds("gs://models/m/", &model.files);
}

#[test]
fn bytes_that_do_not_match_crc32c_are_never_sealed() {
    let (origin, _) = gcs_with_model();
    origin.misbehave_on_reads(|_, request| {
        request.path.ends_with("00001-of-00003.safetensors").then_some(Fault::Flip(5))
    });
    let larder = larder_at(&origin);
    let told = larder.fails(65, &["prefetch", "gs://models/m/"]);
    assert!(told.contains("CRC32C"), "{told}");
}

#[test]
fn an_object_overwritten_mid_pull_is_never_mixed() {
    let (origin, mut model) = gcs_with_model();
    let origin = std::sync::Arc::new(origin);
    let new = larder_origins::Noise::new(98).bytes(7 << 20);
    model.files.insert("model-00003-of-00003.safetensors".into(), new.clone());
    let changer = std::sync::Arc::downgrade(&origin);
    origin.misbehave_on_reads(move |_, request| {
        if request.path.ends_with("model-00003-of-00003.safetensors")
            && let Some(origin) = changer.upgrade()
        {
            let stored = origin.bucket().get("m/model-00003-of-00003.safetensors").expect("there");
            if stored.bytes.len() != new.len() {
                origin.bucket().put("m/model-00003-of-00003.safetensors", new.clone(), GCS);
            }
        }
        None
    });
    let larder = larder_at(&origin);
    larder.prefetch("gs://models/m/");
    larder.holds("gs://models/m/", &model.files);
}

#[test]
fn a_bucket_that_is_not_there_and_one_that_refuses() {
    let (origin, _) = gcs_with_model();
    let larder = larder_at(&origin);
    let told = larder.fails(66, &["prefetch", "gs://elsewhere/m"]);
    assert!(told.contains("`gs://elsewhere/m`: no such bucket"), "{told}");
    let told = larder.fails(66, &["prefetch", "gs://models/none"]);
    assert!(told.contains("nothing matches"), "{told}");
    origin.misbehave(|_| Some(Fault::Refuse(403, "forbidden", None)));
    let told = larder.fails(77, &["prefetch", "gs://models/m/"]);
    assert!(told.contains("access denied"), "{told}");
}

#[test]
fn keys_with_a_nul_are_refused_by_name() {
    let (origin, _) = gcs_with_model();
    origin.bucket().put("m/a\0b", b"x".to_vec(), GCS);
    let told = larder_at(&origin).fails(64, &["prefetch", "gs://models/m/"]);
    assert!(told.contains(r#"key "a\0b" has a control character"#), "{told}");
    assert_eq!(origin.reads(), 0, "not a byte has moved");
}

/// The metadata server of a GCE or GKE node, with credentials that live three minutes and the
/// refresh that google-cloud-auth does by itself.
#[test]
fn the_metadata_servers_token_is_sent() {
    let (origin, model) = gcs_with_model();
    let issuer = Issuer::start(std::time::Duration::from_mins(3)).expect("an issuer");
    let valid = issuer.judge();
    origin.misbehave(move |request| (!valid(request)).then_some(Fault::Refuse(401, "authError", None)));
    let host = issuer.url().trim_start_matches("http://").to_owned();
    let larder = Larder::new([("GCE_METADATA_HOST", host)]);
    let endpoint = origin.url();
    larder.ok(&["prefetch", "gs://models/m/", "--endpoint-url", &endpoint]);
    larder.holds("gs://models/m/", &model.files);
    assert!(issuer.issued() > 0);
}

#[test]
fn an_endpoint_with_a_password_is_refused_unseen() {
    let (origin, _) = gcs_with_model();
    let endpoint = origin.url().replace("http://", "http://us3r:p4ssw0rd@");
    let mut larder = Larder::new::<&str, &str>([]);
    let told = larder.fails(64, &["prefetch", "--anonymous", "--endpoint-url", &endpoint, "gs://models/m/"]);
    assert!(told.contains("user name or password") && !told.contains("p4ssw0rd"), "{told}");
    larder.set("STORAGE_EMULATOR_HOST", endpoint);
    let told = larder.fails(64, &["prefetch", "gs://models/m/"]);
    assert!(told.contains("user name or password") && !told.contains("p4ssw0rd"), "{told}");
    assert!(origin.seen().is_empty(), "nothing was asked");
}

/// A listing that hears nothing gives up after half a minute and asks again.
#[test]
fn a_silent_listing_has_an_end() {
    let (origin, model) = gcs_with_model();
    let silent = std::sync::atomic::AtomicBool::new(true);
    origin.misbehave(move |request| {
        let first = request.path.ends_with("/o") && silent.swap(false, std::sync::atomic::Ordering::Relaxed);
        first.then_some(Fault::Late(std::time::Duration::from_secs(45)))
    });
    let larder = larder_at(&origin);
    let ran = larder.ok(&["prefetch", "-vv", "gs://models/m/"]);
    assert!(ran.stderr.contains("no page of the listing within 30 s"), "{ran:?}");
    larder.holds("gs://models/m/", &model.files);
}

/// google-cloud-storage does not compare the range that came with the one that was asked for.
#[test]
fn ranges_from_elsewhere_are_never_sealed() {
    for fault in [Fault::OtherRange, Fault::OtherBytes] {
        let (origin, _) = gcs_with_model();
        origin.misbehave_on_reads(move |_, request| {
            request.path.ends_with("00001-of-00003.safetensors").then(|| fault.clone())
        });
        let larder = larder_at(&origin);
        let ran = larder.run(&["prefetch", "gs://models/m/"]);
        // A range that only says it is another one has the right bytes.
        if ran.code == Some(0) {
            larder.ok(&["verify", "gs://models/m/"]);
        } else {
            assert!(ran.code == Some(65) && ran.stderr.contains("CRC32C"), "{ran:?}");
        }
    }
}

/// A server whose every page is empty and names another one.
#[test]
fn a_listing_without_an_end_is_given_up() {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for (number, mut stream) in listener.incoming().flatten().enumerate() {
            let page = json!({"nextPageToken": number.to_string()}).to_string();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", page.len());
            let _ = stream.read(&mut [0; 4096]).and_then(|_| stream.write_all((head + &page).as_bytes()));
        }
    });
    let larder = Larder::new([("STORAGE_EMULATOR_HOST", url)]);
    let told = larder.fails(69, &["prefetch", "gs://models/m/"]);
    assert!(told.contains("100 pages without an object"), "{told}");
}
