//! The JSON API of Google Cloud Storage, as far as reading a model needs it: list objects, and
//! media reads with range, generation and `x-goog-hash`, as its reference describes them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::bucket::{Bucket, Stored};
use crate::http::{Answer, Request};
use crate::origin::{BUCKET, read};

fn refuse(status: u16, reason: &str, message: &str) -> Answer {
    let body =
        json!({"error": {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}});
    Answer::new(status, body.to_string()).with("Content-Type", "application/json")
}

fn crc32c(stored: &Stored) -> Option<String> {
    stored.crc32c.clone()
}

pub fn answer(bucket: &Bucket, request: &Request, page_len: usize) -> Answer {
    let Some(rest) = request.path.strip_prefix("/storage/v1/b/") else {
        return refuse(404, "notFound", "Not Found");
    };
    let (name, rest) = rest.split_once('/').unwrap_or((rest, ""));
    if name != BUCKET {
        return refuse(404, "notFound", "The specified bucket does not exist.");
    }
    if rest == "o" {
        return list(bucket, request, page_len);
    }
    let key = rest.strip_prefix("o/").unwrap_or_default();
    let Some(stored) = bucket.get(key) else {
        return refuse(404, "notFound", &format!("No such object: {BUCKET}/{key}"));
    };
    if request.query("generation").is_some_and(|wanted| wanted != stored.generation.to_string()) {
        return refuse(404, "notFound", &format!("No such object: {BUCKET}/{key}"));
    }
    if request.query("alt") != Some("media") {
        return Answer::new(200, item(key, &stored).to_string()).with("Content-Type", "application/json");
    }
    let mut hashes = vec![format!("md5={}", STANDARD.encode(stored.md5))];
    hashes.extend(crc32c(&stored).map(|crc| format!("crc32c={crc}")));
    read(request, &stored)
        .with("x-goog-generation", stored.generation)
        .with("x-goog-metageneration", 1)
        .with("x-goog-stored-content-encoding", "identity")
        .with("x-goog-stored-content-length", stored.bytes.len())
        .with("x-goog-storage-class", "STANDARD")
        .with("x-goog-hash", hashes.join(","))
}

fn item(key: &str, stored: &Stored) -> serde_json::Value {
    let mut item = json!({
        "kind": "storage#object",
        "name": key,
        "bucket": BUCKET,
        "size": stored.bytes.len().to_string(),
        "generation": stored.generation.to_string(),
        "md5Hash": STANDARD.encode(stored.md5),
    });
    if let Some(crc) = crc32c(stored) {
        item["crc32c"] = json!(crc);
    }
    item
}

fn list(bucket: &Bucket, request: &Request, page_len: usize) -> Answer {
    let after = request.query("pageToken");
    let mut keys = bucket.list(request.query("prefix").unwrap_or(""));
    keys.retain(|(key, _)| after.is_none_or(|after| key.as_str() > after));
    let next = (keys.len() > page_len).then(|| keys[page_len - 1].0.clone());
    keys.truncate(page_len);
    let mut page = json!({"kind": "storage#objects"});
    if !keys.is_empty() {
        page["items"] = keys.iter().map(|(key, stored)| item(key, stored)).collect();
    }
    if let Some(next) = next {
        page["nextPageToken"] = json!(next);
    }
    Answer::new(200, page.to_string()).with("Content-Type", "application/json")
}
