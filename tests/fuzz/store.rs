//! What lies on the disk: manifests, the catalog, records of sources, journals, notes. Whoever can
//! write there can make the checks right, so here they are made right.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use larder::csi::{Plugin, Tables};
use larder::domain::{Checksum, Digest, Grid, Manifest, Version};
use larder::store::{Known, ObjectId, SourceRecord, Store};
use larder::telemetry::Metrics;
use larder_keeper::Errands;

use crate::control::cache;
use crate::engine::{Target, outcome, sentence};

/// In memory where that can be: what is tried here is no disk.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

fn check(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_owned()
}

/// A checked line. One that begins with `!` is not right.
fn line(payload: &[u8]) -> Vec<u8> {
    let check = if payload.first() == Some(&b'!') { "0123456789abcdef".to_owned() } else { check(payload) };
    [check.as_bytes(), b" ", payload, b"\n"].concat()
}

fn id(size: u64) -> ObjectId {
    ObjectId { origin: "test".into(), uri: "s3://b/k".into(), version: Version::Etag("\"1\"".into()), size }
}

const DIGEST: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

#[test]
fn manifests() {
    let seed = format!(
        r#"{{"larder_manifest":1,"files":[{{"path":"config.json","size":512,"digest":"{DIGEST}"}},{{"path":"sub/a \"b\".bin","size":18446744073709551615,"digest":"{DIGEST}"}}]}}"#
    );
    let words = "{\"path\":\"|\"size\":|\"digest\":|\"larder_manifest\":1|../|/|},{";
    Target::named("manifests").seed(seed).words(words).run(|input| match Manifest::decode(input) {
        Ok(manifest) => {
            let canonical = manifest.encode();
            let again = Manifest::decode(&canonical).expect("a manifest");
            assert_eq!(again, manifest);
            assert_eq!(again.encode(), canonical);
            assert_eq!(again.digest(), Digest::of(&canonical));
            outcome((manifest.files().len().min(4), manifest.size() > 1 << 40))
        }
        Err(error) => sentence(&error.to_string()),
    });
}

#[test]
fn catalog() {
    let directory = directory();
    let log = directory.path().join("v1/catalog.log");
    let known = |size, checked| {
        serde_json::to_string(&Known {
            id: id(size),
            digest: DIGEST.parse().expect("a digest"),
            checked,
            stated_md5: None,
        })
        .expect("JSON")
    };
    let seed =
        [known(5, None), known(7, Some(Checksum::Crc32c(7))), known(9, Some(Checksum::Sha256([7; 32])))].join("\n");
    let words = "\"crc64nvme\":|\"md5\":[|\"stated_md5\":|\"generation\":|\"modified\":|\"checked\":null|\n|!";
    drop(Store::open(directory.path()).expect("a store"));
    Target::named("catalog").seed(seed).words(words).run(|input| {
        let lines: Vec<Vec<u8>> = input.split(|byte| *byte == b'\n').map(line).collect();
        fs::write(&log, lines.concat()).expect("a log");
        let store = Store::open(directory.path()).expect("a store that opens");
        let dropped = store.recovered().catalog_lines_dropped;
        let entries = lines.iter().filter_map(|line| serde_json::from_slice::<Known>(&line[17..line.len() - 1]).ok());
        let found = entries.filter(|entry| store.known(&entry.id).is_some()).count();
        // It goes on from there, and nothing is lost any more.
        let new = Known { id: id(11), digest: Digest::of(b"new"), checked: None, stated_md5: None };
        store.learn(&new).expect("room for a line");
        drop(store);
        let store = Store::open(directory.path()).expect("a store that opens again");
        assert_eq!(store.recovered().catalog_lines_dropped, 0);
        let text = String::from_utf8_lossy(&fs::read(&log).expect("a log")).into_owned();
        assert!(text.contains(&serde_json::to_string(&new).expect("JSON")), "what was learnt is not there");
        outcome((dropped.min(4), found.min(4)))
    });
}

#[test]
fn records() {
    let directory = directory();
    let mut record = SourceRecord::new("s3://b/m/".into(), "test".into(), vec!["*.json".into()], Vec::new());
    record.manifest = Some(DIGEST.parse().expect("a digest"));
    let files = format!(
        r#"[{{"path":"a/b.json","uri":"s3://b/m/a/b.json","version":{{"etag":"\"1\""}},"size":5,"digest":"{DIGEST}","checked":{{"crc32c":1}}}},{{"path":"c","uri":"s3://b/m/c","version":{{"generation":7}},"size":18446744073709551615,"digest":null,"checked":null}}]"#
    );
    let seed = serde_json::to_string(&record).expect("JSON").replace("\"files\":[]", &format!("\"files\":{files}"));
    let words = "\"files\":[|\"manifest\":null|\"include\":[|\"listed_at\":|\"modified\":1|../|{\"path\":|\"size\":";
    drop(Store::open(directory.path()).expect("a store"));
    Target::named("records").seed(seed).words(words).run(|input| {
        let (name, payload) = input.split_at(usize::from(input.first().is_some_and(|first| *first == b'#')));
        let document = line(payload);
        let sources = directory.path().join("v1/sources");
        fs::write(sources.join("0123456789abcdef0123456789abcdef.json"), &document).expect("a document");
        fs::write(directory.path().join("v1/listings").join(format!("{DIGEST}.json")), &document).expect("a document");
        let store = Store::open(directory.path()).expect("a store that opens");
        let kept = store.view().kept().expect("what is kept");
        for record in kept.iter().filter_map(|kept| kept.record.as_ref()) {
            let text = serde_json::to_vec(record).expect("JSON");
            assert_eq!(serde_json::from_slice::<SourceRecord>(&text).ok().as_ref(), Some(record));
            let present = store.view().presence().files(record);
            assert_eq!(present.len(), record.files.len());
            let _ = (
                store.view().bytes_present(record),
                record.size(),
                record.listing(),
                record.id(),
                store.is_unproven(record),
            );
        }
        let census = store.census().map_or_else(|error| sentence(&error.to_string()), |_| 0);
        let listing = store.view().listing(&DIGEST.parse().expect("a digest")).expect("a listing or none").is_some();
        drop(store);
        let files: usize = kept.iter().filter_map(|kept| kept.record.as_ref()).map(|record| record.files.len()).sum();
        let _ = fs::remove_file(sources.join("0123456789abcdef0123456789abcdef.json"));
        outcome((name.len(), kept.len(), census, listing, files.min(4)))
    });
}

/// The records of a journal are right, and say anything.
#[test]
fn journal() {
    let directory = directory();
    let sizes = [(3 << 20) + 5, 0, 1 << 40, u64::MAX];
    let store = Store::open(directory.path()).expect("a store");
    let path = |id: &ObjectId, kind: &str| directory.path().join("v1/partial").join(format!("{}.{kind}", id.file_id()));
    drop(store.partial(id(sizes[0]), None).expect("a partial"));
    let header = fs::read(path(&id(sizes[0]), "journal")).expect("a journal");
    let header = &header[17..];
    let record = |index: u32, number: u64| [&index.to_le_bytes()[..], &number.to_le_bytes(), &[7; 32]].concat();
    let seed = |at: u8, records: &[Vec<u8>]| [&[at], header, &records.concat()].concat();
    let all = [record(0, 1), record(1 << 31 | 1, 70_000), record(2, 9), record(3, 0), record(1 << 31 | 3, 2)];
    Target::named("journal").seed(seed(0, &all)).seed(seed(1, &all)).seed(seed(2, &all)).seed(seed(3, &all)).run(|input| {
        let Some((first, rest)) = input.split_first() else { return 0 };
        let size = sizes[usize::from(*first) % sizes.len()];
        let id = id(size);
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        // The line speaks of this object, or it is never looked into.
        let said = serde_json::to_string(&id).expect("JSON");
        let ours = serde_json::to_string(&self::id(sizes[0])).expect("JSON");
        let header = String::from_utf8_lossy(&rest[..end]).replace(&ours, &said);
        let mut journal = line(header.as_bytes());
        for record in rest.get(end + 1..).unwrap_or_default().chunks(44) {
            journal.extend(record);
            journal.extend(&blake3::hash(record).as_bytes()[..8]);
        }
        fs::write(path(&id, "journal"), &journal).expect("a journal");
        let file = fs::File::create(path(&id, "bytes")).expect("a file");
        let is_small = size < 1 << 30 && file.set_len(size).is_ok();
        let record = serde_json::json!({
            "larder_source": 1, "source": "s3://b/", "origin": "test", "include": [], "exclude": [], "manifest": null, "listed_at": 1,
            "files": [{"path": "k", "uri": id.uri, "version": id.version, "size": size, "digest": null, "checked": null}],
        });
        let record: SourceRecord = serde_json::from_value(record).expect("a record");
        let present = store.view().bytes_present(&record);
        assert!(present <= size, "{present} bytes of {size}");
        let left = store.left(&id);
        let _ = left.map(|left| left.read_if_there(0, &mut [0; 64]));
        if !is_small {
            let _ = fs::remove_file(path(&id, "journal"));
            return outcome((size, present.min(3)));
        }
        let partial = store.partial(id, None).expect("a partial");
        let grid = Grid::of_size(size);
        assert!(partial.bytes_present() <= size);
        let missing = partial.missing_runs();
        assert!(missing.iter().all(|run| run.start < run.end && run.end <= grid.chunk_count()), "{missing:?}");
        outcome((size, partial.present().missing_runs().count(), missing.len(), partial.records().is_some()))
    });
}

/// Whatever notes there are, what reads them starts.
#[test]
fn notes() {
    let directory = directory();
    drop(Store::open(directory.path()).expect("a store"));
    let seeds = [
        r#"{"owner":{"volume":{"id":"0123456789abcdef0123456789abcdef","pod":"5d0c-1","name":"team/server-0"}},"digest":"D","since":1,"seen":true}"#,
        r#"{"owner":{"process":{"pid":1,"started":2,"boot":"x"}},"digest":"D","since":18446744073709551615,"seen":false}"#,
        r#"{"owner":{"pod":"../../etc"},"digest":"D","since":1,"seen":false}"#,
        r#"{"holders":["prefetch list","admin"]}"#,
        r#"{"after":"D","finished":1}"#,
        r#"{"target":"/var/lib/kubelet/pods/x/mount","pod":{"uid":"5d0c-1","namespace":"team","name":"server-0","service_account":"default"},"source":"s3://b/m/","digest":"D","arriving":true,"since":1}"#,
    ];
    let target = seeds.iter().fold(Target::named("notes"), |target, seed| target.seed(seed.replace('D', DIGEST)));
    let words = "\"owner\":|{\"pod\":|{\"connection\":|\"since\":|\"seen\":true|\"target\":\"|\"arriving\":|\"holders\":[|\"after\":null";
    target.words(words).run(|input| {
        let document = line(input);
        for shelf in ["leases", "pins", "state", "volumes"] {
            fs::write(directory.path().join("v1").join(shelf).join("scrub"), &document).expect("a note");
        }
        let cache = cache(directory.path());
        let plugin = Plugin::new(
            Arc::clone(&cache),
            Errands::new("/nowhere"),
            "node".into(),
            Path::new("/nowhere"),
            Box::new(|_, _| Ok(())),
            Arc::new(larder::csi::NoCluster),
            Arc::new(Tables::new(&Arc::new(Metrics::new("0")))),
        );
        drop(plugin.expect("a plugin"));
        let left = ["leases", "pins", "state", "volumes"]
            .map(|shelf| directory.path().join("v1").join(shelf).join("scrub").exists());
        outcome(left)
    });
}
