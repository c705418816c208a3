//! The verbs, one after the other, as a new user tries them.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use larder_origins::{Checksums, Front, Moto, Nginx, Origin, S3Server, SampleModel, which};
use serde_json::{Value, json};

use crate::support::{Larder, origin_with_model, program, read_tree, skipped, upload, wait};

fn s3_server_with(model: &SampleModel) -> S3Server {
    let server = S3Server::start().expect("a server");
    for (path, bytes) in &model.files {
        server.put("models", &format!("llama/{path}"), bytes).expect("an upload");
    }
    server
}

#[test]
fn from_a_signed_bucket_to_a_directory_and_back_to_nothing() {
    let model = SampleModel::new(1, 3, 9 << 20);
    let server = s3_server_with(&model);
    server.put("models", "llama/original/", b"").expect("a directory marker");
    let larder = Larder::new(server.environment());

    let first = larder.prefetch("s3://models/llama/");
    assert_eq!(first["event"], "done");
    assert_eq!(first["files"], model.files.len());
    assert_eq!(first["bytes_moved"], model.len());
    assert_eq!(server.bytes_sent(), model.len(), "every byte crossed the network once");
    larder.holds("s3://models/llama/", &model.files);

    let again = larder.prefetch("s3://models/llama/");
    assert_eq!((&again["bytes_moved"], &again["bytes_here"]), (&json!(0), &json!(model.len())));
    assert_eq!(server.bytes_sent(), model.len());

    let listed = larder.ok(&["ls", "--json"]).last_event();
    assert_eq!((&listed["source"], &listed["state"]), (&json!("s3://models/llama/"), &json!("complete")));
    assert!(larder.ok(&["ls"]).stdout.contains("s3://models/llama/"));

    // Named by source, by digest, and by the start of a digest.
    let digest = first["digest"].as_str().expect("a digest");
    let path = larder.ok(&["path", "s3://models/llama/"]).stdout;
    assert_eq!(larder.ok(&["path", digest]).stdout, path);
    assert_eq!(larder.ok(&["path", &digest[..12]]).stdout, path);

    let inspected = larder.ok(&["inspect", "--json", "s3://models/llama/"]).last_event();
    for file in inspected["files"].as_array().expect("files") {
        let bytes = &model.files[file["path"].as_str().expect("a path")];
        assert_eq!(file["digest"], blake3::hash(bytes).to_hex().as_str(), "{file}");
        assert!(file["version"].as_str().expect("a version").starts_with("etag:"));
    }
    let order: Vec<&str> =
        inspected["files"].as_array().expect("files").iter().filter_map(|f| f["path"].as_str()).collect();
    let shards: Vec<&&str> = order.iter().filter(|path| path.ends_with(".safetensors")).collect();
    assert_eq!(shards.len(), 3);
    assert!(shards.is_sorted(), "in the order of the index: {order:?}");

    larder.ok(&["verify"]);
    larder.ok(&["rm", "s3://models/llama/"]);
    assert_eq!(larder.ok(&["ls", "--json"]).stdout, "");
    let told = larder.fails(66, &["path", "s3://models/llama/"]);
    assert!(told.contains("`s3://models/llama/`"), "{told}");
    let left: u64 = read_tree(&larder.store()).values().map(|bytes| bytes.len() as u64).sum();
    assert!(left < 1 << 20, "{left} bytes are left");
}

#[test]
fn wrong_signatures_are_denied_in_one_sentence() {
    let server = s3_server_with(&SampleModel::new(1, 1, 1 << 20));
    let mut larder = Larder::new(server.environment());
    larder.set("AWS_SECRET_ACCESS_KEY", "wrong");
    let told = larder.fails(77, &["prefetch", "s3://models/llama/"]);
    assert!(told.contains("`s3://models/llama/`: access denied (403 SignatureDoesNotMatch"), "{told}");
    assert!(!told.contains("wrong"), "secrets stay out of messages: {told}");
}

/// A second implementation of S3 that shares no code with the first or with ours.
#[test]
fn from_moto_by_prefix_by_object_and_by_glob() {
    let moto = Moto::start().expect("moto_server (pip install 'moto[server]')");
    let larder = Larder::new(moto.environment());
    let model = SampleModel::new(2, 2, 6 << 20);
    let directory = larder.scratch().join("upload");
    for (path, bytes) in &model.files {
        let file = directory.join(path);
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
        std::fs::write(file, bytes).expect("a file");
    }
    let script = "import sys, os, boto3\n\
        s3 = boto3.client('s3')\n\
        s3.create_bucket(Bucket='models')\n\
        root = sys.argv[1]\n\
        s3.put_object(Bucket='models', Key='m/empty-directory/', Body=b'')\n\
        for d, _, names in os.walk(root):\n\
        \x20   for name in names:\n\
        \x20       path = os.path.join(d, name)\n\
        \x20       s3.upload_file(path, 'models', 'm/' + os.path.relpath(path, root))\n\
        s3.put_object(Bucket='models', Key='crc/w.bin', Body=open(os.path.join(root, 'model-00001-of-00002.safetensors'), 'rb'), ChecksumAlgorithm='SHA256')\n";
    // The interpreter beside moto_server is the one that has boto3.
    let python = which("python3").expect("python3");
    program(Command::new(python).arg("-c").arg(script).arg(&directory).envs(moto.environment()));

    let done = larder.prefetch("s3://models/m/");
    assert_eq!(done["bytes_moved"], model.len());
    larder.holds("s3://models/m/", &model.files);

    let one = larder.prefetch("s3://models/m/config.json");
    assert_eq!((&one["files"], &one["bytes_moved"]), (&json!(1), &json!(0)));
    assert_eq!(larder.files("s3://models/m/config.json").keys().collect::<Vec<_>>(), ["config.json"]);

    let fresh = Larder::new(moto.environment());
    let args = [
        "prefetch",
        "--json",
        "s3://models/m",
        "--include",
        "*.safetensors",
        "--include",
        "*.json",
        "--exclude",
        "tokenizer*",
    ];
    let some = fresh.ok(&args).last_event();
    let selected = [&["path"], &args[2..]].concat();
    let tree = fresh.ok(&selected).stdout;
    let names: Vec<String> = read_tree(Path::new(tree.trim_end())).into_keys().collect();
    assert_eq!(some["files"], names.len());
    assert!(
        names.contains(&"config.json".to_owned()) && !names.iter().any(|name| name.starts_with("tokenizer")),
        "{names:?}"
    );

    // The same bytes again, under a key with a SHA-256: told by what was compared with them when
    // they came, which is their MD5, and in a store of their own by the SHA-256.
    let told = larder.prefetch("s3://models/crc/");
    assert_eq!((&told["bytes_moved"], &told["verified"]), (&json!(0), &json!({"MD5": 1})), "{told}");
    let told = Larder::new(moto.environment()).prefetch("s3://models/crc/");
    assert_eq!(told["verified"], json!({"SHA-256": 1}), "{told}");
}

#[test]
fn every_checksum_an_origin_keeps_is_compared_and_named() {
    let origin = Origin::start(Front::S3).expect("an origin");
    let bytes = larder_origins::Noise::new(3).bytes(10 << 20);
    let kinds = [
        ("CRC64NVME", Checksums::multipart()),
        ("CRC32C", Checksums { crc32c: true, ..Checksums::none() }),
        ("SHA-256", Checksums { sha256: true, ..Checksums::none() }),
        ("MD5", Checksums { md5_etag: true, ..Checksums::none() }),
        ("BLAKE3 only", Checksums::none()),
    ];
    for (number, (name, checksums)) in kinds.into_iter().enumerate() {
        let mut own = bytes.clone();
        own[0] = u8::try_from(number).expect("small");
        origin.bucket().put("m/w.bin", own, checksums);
        let larder = Larder::at(&origin);
        let done = larder.prefetch("s3://models/m");
        assert_eq!(done["verified"], json!({name: 1}));
        let file = &larder.ok(&["inspect", "--json", "s3://models/m"]).last_event()["files"][0];
        if name == "BLAKE3 only" {
            assert_eq!(file["checked"], Value::Null);
        } else {
            assert_eq!(file["checked"]["algorithm"], name);
        }
    }
}

#[test]
fn a_directory_and_a_url_are_sources_too() {
    let origin = Origin::start(Front::S3).expect("an origin");
    let bytes = larder_origins::Noise::new(4).bytes(5 << 20);
    origin.bucket().put("w.bin", bytes.clone(), Checksums::single_part());
    let larder = Larder::new::<&str, &str>([]);
    let url = format!("{}/models/w.bin", origin.url());
    larder.prefetch(&url);
    assert_eq!(larder.files(&url)["w.bin"], bytes);

    let model = SampleModel::new(5, 2, 2 << 20);
    let directory = larder.scratch().join("model");
    for (path, bytes) in &model.files {
        let file = directory.join(path);
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
        std::fs::write(file, bytes).expect("a file");
    }
    let source = format!("file://{}", directory.display());
    larder.prefetch(&source);
    larder.holds(&source, &model.files);
}

#[test]
fn export_makes_a_copy_of_ones_own_or_links_where_asked() {
    let (origin, model) = origin_with_model(Checksums::single_part());
    let larder = Larder::at(&origin);
    larder.prefetch("s3://models/m");
    let copy = larder.scratch().join("copy");
    larder.ok(&["export", "s3://models/m", copy.to_str().expect("text")]);
    assert_eq!(read_tree(&copy), model.files);
    let shard = "model-00001-of-00003.safetensors";
    std::fs::write(copy.join(shard), b"mine now").expect("a copy can be written to");
    larder.holds("s3://models/m", &model.files);

    let links = larder.scratch().join("links");
    larder.ok(&["export", "--hard-link", "s3://models/m", links.to_str().expect("text")]);
    assert!(std::fs::metadata(links.join(shard)).expect("a file").nlink() >= 2);
}

#[test]
fn verify_finds_a_flipped_bit_and_repair_fetches_it_again() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let larder = Larder::at(&origin);
    larder.prefetch("s3://models/m");
    let victim = larder.store().join("v1").join("models");
    let digest = std::fs::read_dir(victim).expect("models").next().expect("one").expect("an entry").path();
    let file = digest.join("model-00002-of-00003.safetensors");
    let mut bytes = std::fs::read(&file).expect("a file");
    bytes[3 << 20] ^= 1;
    let mut permissions = std::fs::metadata(&file).expect("a file").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    std::fs::set_permissions(&file, permissions).expect("owned");
    std::fs::write(&file, bytes).expect("written in place, behind larder's back");

    let told = larder.run(&["verify", "s3://models/m"]);
    assert_eq!(told.code, Some(65), "{told:?}");
    assert!(told.stderr.contains("model-00002-of-00003.safetensors"), "{told:?}");
    larder.ok(&["verify", "--repair", "s3://models/m"]);
    larder.holds("s3://models/m", &model.files);
    larder.ok(&["verify"]);
}

#[test]
fn interrupted_by_control_c_it_says_so_and_goes_on_later() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(larder_origins::Fault::Slow(3 << 20)));
    let larder = Larder::at(&origin);
    let child = larder.spawn(&["prefetch", "s3://models/m"]);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a signal");
    let ran = wait(child);
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert!(ran.stderr.contains("error: interrupted\n  hint: what has arrived stays"), "{ran:?}");
    larder.fails(66, &["path", "s3://models/m"]);
    origin.behave();
    let done = larder.prefetch("s3://models/m");
    let moved = done["bytes_moved"].as_u64().expect("a number");
    assert!(moved < model.len() * 9 / 10, "what had arrived stays: {done}");
    assert_eq!(moved + done["bytes_here"].as_u64().expect("a number"), model.len());
    larder.holds("s3://models/m", &model.files);
}

#[test]
fn progress_is_json_events_or_plain_lines() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(larder_origins::Fault::Slow(2 << 20)));
    let larder = Larder::at(&origin);
    let events = larder.ok(&["prefetch", "--json", "s3://models/m"]).events();
    let progress: Vec<&Value> = events.iter().filter(|event| event["event"] == "progress").collect();
    assert!(!progress.is_empty());
    assert!(progress.iter().all(|event| event["bytes_total"] == model.len()), "{progress:?}");

    let lines = Larder::at(&origin);
    let ran = lines.ok(&["prefetch", "s3://models/m"]);
    assert_eq!(ran.stdout, "", "the summary is for people");
    assert!(!ran.stderr.contains('\u{1b}'), "no escapes away from a terminal: {}", ran.stderr);
    for part in ["s3://models/m: ", "moved in", "9 files, all checked against the origin's CRC64NVME", "v1/models/"] {
        assert!(ran.stderr.contains(part), "{part}: {ran:?}");
    }
    let quiet = Larder::at(&origin).ok(&["prefetch", "-q", "s3://models/m"]);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
}

#[test]
fn settings_of_aws_tools_are_honoured() {
    let (origin, model) = origin_with_model(Checksums::single_part());
    // The service's own endpoint wins over the general one.
    let mut larder = Larder::at(&origin);
    larder.set("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    larder.set("AWS_ENDPOINT_URL_S3", origin.url());
    larder.prefetch("s3://models/m");
    larder.holds("s3://models/m", &model.files);

    // A profile with everything in files.
    let mut profile = Larder::new::<&str, &str>([]);
    let aws = profile.scratch().join(".aws");
    std::fs::create_dir(&aws).expect("a directory");
    std::fs::write(aws.join("credentials"), "[team]\naws_access_key_id = a\naws_secret_access_key = b\n")
        .expect("a file");
    std::fs::write(
        aws.join("config"),
        format!("[profile team]\nregion = eu-west-1\nendpoint_url = {}\n", origin.url()),
    )
    .expect("a file");
    profile.set("AWS_PROFILE", "team");
    origin.forget_seen();
    profile.prefetch("s3://models/m");
    let signed = |scope: &str| {
        let seen = origin.seen();
        seen.iter().all(|s| s.request.header("authorization").is_some_and(|value| value.contains(scope)))
    };
    assert!(signed("/eu-west-1/s3/"), "the profile's region signs");

    // Anonymous: nothing is signed. Requester pays: every request says so.
    let mut anonymous = Larder::new([("AWS_ENDPOINT_URL", origin.url())]);
    anonymous.set("AWS_EC2_METADATA_DISABLED", "true");
    origin.forget_seen();
    anonymous.ok(&["prefetch", "--anonymous", "s3://models/m"]);
    assert!(origin.seen().iter().all(|seen| seen.request.header("authorization").is_none()));
    let payer = Larder::at(&origin);
    origin.forget_seen();
    payer.ok(&["prefetch", "--requester-pays", "s3://models/m"]);
    assert!(origin.seen().iter().all(|seen| seen.request.header("x-amz-request-payer") == Some("requester")));
}

#[test]
fn a_proxy_of_the_environment_carries_everything() {
    let (proxy, model) = origin_with_model(Checksums::single_part());
    let mut larder = Larder::at(&proxy);
    larder.set("AWS_ENDPOINT_URL", "http://bucket.example");
    larder.set("HTTP_PROXY", proxy.url());
    larder.prefetch("s3://models/m");
    larder.holds("s3://models/m", &model.files);
    let seen = proxy.seen();
    assert!(!seen.is_empty() && seen.iter().all(|seen| seen.request.header("host") == Some("bucket.example")));
}

#[test]
fn virtual_hosted_style_puts_the_bucket_into_the_host() {
    let (proxy, _) = origin_with_model(Checksums::single_part());
    let mut larder = Larder::at(&proxy);
    larder.set("AWS_ENDPOINT_URL", "http://objects.example");
    larder.set("HTTP_PROXY", proxy.url());
    larder.set("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true");
    // Our origin speaks path style only: what matters is what it is asked.
    larder.run(&["prefetch", "s3://models/m"]);
    let seen = proxy.seen();
    assert!(!seen.is_empty() && seen.iter().all(|seen| seen.request.header("host") == Some("models.objects.example")));
}

#[test]
fn a_private_ca_is_trusted_when_the_bundle_names_it() {
    let Some(openssl) = which("openssl") else {
        return skipped("a_private_ca_is_trusted_when_the_bundle_names_it", "openssl is not installed");
    };
    let larder = Larder::new::<&str, &str>([]);
    let root = larder.scratch().join("root");
    let model = SampleModel::new(6, 1, 2 << 20);
    for (path, bytes) in &model.files {
        let file = root.join("models/m").join(path);
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
        std::fs::write(file, bytes).expect("a file");
    }
    let (key, certificate) = (larder.scratch().join("key.pem"), larder.scratch().join("ca.pem"));
    let (ca_key, server) = (larder.scratch().join("ca-key.pem"), larder.scratch().join("server.pem"));
    let make = |subject: &str, key: &Path, out: &Path, extra: &[&std::ffi::OsStr]| {
        let mut command = Command::new(&openssl);
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        command.args(["-days", "2", "-subj", subject, "-keyout"]).arg(key).arg("-out").arg(out).args(extra);
        program(&mut command);
    };
    make("/CN=test authority", &ca_key, &certificate, &[]);
    let names = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE", "-CA"];
    let mut extra: Vec<&std::ffi::OsStr> = names.iter().map(AsRef::as_ref).collect();
    extra.extend([certificate.as_os_str(), "-CAkey".as_ref(), ca_key.as_os_str()]);
    make("/CN=127.0.0.1", &key, &server, &extra);
    let nginx = Nginx::start_tls(&root, &server, &key).expect("nginx (Debian: nginx-light)");
    nginx.write_listing("models").expect("a listing");

    let mut larder = larder;
    for (name, value) in [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_REGION", "us-east-1")] {
        larder.set(name, value);
    }
    larder.set("AWS_ENDPOINT_URL", nginx.url());
    let told = larder.fails(69, &["prefetch", "s3://models/m"]);
    assert!(told.contains("certificate"), "{told}");
    larder.set("AWS_CA_BUNDLE", certificate.to_str().expect("text"));
    larder.prefetch("s3://models/m");
    larder.holds("s3://models/m", &model.files);
}

#[test]
fn a_listing_of_many_pages_and_odd_names_arrives_whole() {
    let origin = Origin::start(Front::S3).expect("an origin");
    origin.set_page_len(7);
    let names =
        ["a b", "c+d", "e%20f", "g&h=i", "j'k\"l", "ä/ö/ü", "日本", "q?r#s", "[t]*", "~u$v,w;x@y:z", "back\\slash"];
    let mut expected = std::collections::BTreeMap::new();
    for (number, name) in
        names.iter().map(|name| (*name).to_owned()).chain((0..40).map(|n| format!("n/{n}"))).enumerate()
    {
        let bytes = format!("{number} {name}").into_bytes();
        origin.bucket().put(&format!("m/{name}"), bytes.clone(), Checksums::single_part());
        expected.insert(name, bytes);
    }
    let larder = Larder::at(&origin);
    larder.prefetch("s3://models/m");
    larder.holds("s3://models/m", &expected);
}

#[test]
fn completions_and_help_are_printed_without_a_store() {
    let larder = Larder::new::<&str, &str>([]);
    assert!(larder.ok(&["completions", "bash"]).stdout.contains("larder"));
    let help = larder.ok(&["--help"]).stdout;
    for code in ["64", "65", "66", "69", "74", "75", "77", "130"] {
        assert!(help.contains(code), "the table of exit codes is part of the help: {code}");
    }
    assert!(!larder.store().exists());
    assert_eq!(larder.run(&["prefetch"]).code, Some(64));
}

#[test]
fn several_sources_in_one_call_and_one_that_fails() {
    let (origin, model) = origin_with_model(Checksums::single_part());
    let other = SampleModel::new(9, 1, 1 << 20);
    upload(origin.bucket(), "n/", &other, Checksums::single_part());
    let larder = Larder::at(&origin);
    let ran = larder.run(&["prefetch", "s3://models/m", "s3://models/none", "s3://models/n"]);
    assert_eq!(ran.code, Some(66), "{ran:?}");
    larder.holds("s3://models/m", &model.files);
    larder.holds("s3://models/n", &other.files);
}
