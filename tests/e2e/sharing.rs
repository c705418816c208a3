//! What is here is not fetched again, under whatever name it is asked for.

use larder_origins::{Checksums, Noise, SampleModel};
use serde_json::json;

use crate::support::{Larder, origin_with_model, upload};

#[test]
fn a_model_that_shares_nine_of_ten_files_moves_one() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let base = SampleModel::new(20, 4, 3 << 20);
    let mut tuned = base.clone();
    assert_eq!(tuned.files.len(), 10);
    tuned.files.insert("model-00004-of-00004.safetensors".into(), Noise::new(77).bytes(3 << 20));
    upload(origin.bucket(), "base/", &base, Checksums::single_part());
    upload(origin.bucket(), "tuned/", &tuned, Checksums::single_part());
    let larder = Larder::at(&origin);
    larder.prefetch("s3://models/base");
    let done = larder.prefetch("s3://models/tuned");
    assert_eq!(done["bytes_moved"], 3 << 20, "{done}");
    larder.holds("s3://models/tuned", &tuned.files);

    // What is shared is said, and stays when one of the two goes.
    let inspected = larder.ok(&["inspect", "--json", "s3://models/tuned"]).last_event();
    let shared = |path: &str| {
        let files = inspected["files"].as_array().expect("files").clone();
        files.into_iter().find(|file| file["path"] == path).expect("listed")["shared_with"].clone()
    };
    assert_eq!(shared("model-00001-of-00004.safetensors"), json!(["s3://models/base"]));
    assert_eq!(shared("model-00004-of-00004.safetensors"), json!([]));
    larder.ok(&["rm", "s3://models/base"]);
    larder.holds("s3://models/tuned", &tuned.files);
    larder.ok(&["verify"]);
}

#[test]
fn the_same_model_under_another_prefix_moves_nothing_and_says_why() {
    for checksums in [Checksums::single_part(), Checksums::multipart(), Checksums { sha256: true, ..Checksums::none() }]
    {
        let (origin, model) = origin_with_model(checksums);
        upload(origin.bucket(), "copy/", &model, checksums);
        let larder = Larder::at(&origin);
        larder.prefetch("s3://models/m");
        let before = origin.reads();
        let done = larder.prefetch("s3://models/copy");
        assert_eq!((&done["bytes_moved"], origin.reads()), (&json!(0), before), "{checksums:?}: {done}");
        assert!(!done["equal_by"].as_object().expect("proofs").is_empty(), "{done}");
        larder.holds("s3://models/copy", &model.files);
        let ran = Larder::at(&origin);
        ran.prefetch("s3://models/m");
        let told = ran.ok(&["prefetch", "s3://models/copy"]).stderr;
        assert!(told.contains("proven equal to what was here by"), "{told}");
    }
}

#[test]
fn without_a_proof_equal_sizes_and_etags_are_not_enough() {
    let (origin, model) = origin_with_model(Checksums::none());
    upload(origin.bucket(), "copy/", &model, Checksums::none());
    let larder = Larder::at(&origin);
    larder.prefetch("s3://models/m");
    let done = larder.prefetch("s3://models/copy");
    assert_eq!(done["bytes_moved"], model.len(), "{done}");
}

#[test]
fn a_file_that_changed_at_the_origin_is_fetched_and_the_rest_is_not() {
    let (origin, mut model) = origin_with_model(Checksums::single_part());
    let larder = Larder::at(&origin);
    let old = larder.prefetch("s3://models/m")["digest"].clone();
    let new = Noise::new(5).bytes(4 << 20);
    origin.bucket().put("m/model-00002-of-00003.safetensors", new.clone(), Checksums::single_part());
    model.files.insert("model-00002-of-00003.safetensors".into(), new);
    let done = larder.prefetch("s3://models/m");
    assert_eq!(done["bytes_moved"], 4 << 20);
    assert_ne!(done["digest"], old);
    larder.holds("s3://models/m", &model.files);
}

/// Whoever makes two files can make them collide in MD5 and CRC, so what one bucket says of its
/// objects proves nothing about another bucket's.
#[test]
fn across_buckets_only_a_cryptographic_checksum_proves() {
    let server = larder_origins::S3Server::start().expect("a server");
    server.create_bucket("others").expect("a bucket");
    let bytes = Noise::new(8).bytes(3 << 20);
    for bucket in ["models", "others"] {
        server.put(bucket, "m/w.safetensors", &bytes).expect("an upload");
    }
    let larder = Larder::new(server.environment());
    larder.prefetch("s3://models/m");
    let done = larder.prefetch("s3://others/m");
    assert_eq!(done["bytes_moved"], 3 << 20, "{done}");
    assert_eq!(done["equal_by"], json!({}), "{done}");
}
