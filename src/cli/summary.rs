//! What a pull brought, in words: how much moved, what it was compared with, where it is.

use super::console::Console;
use super::watch::{self, time};
use crate::cache::Ready;
use crate::report::text;

/// How a pull counts files for which it had no checksum of the origin's.
const BLAKE3_ONLY: &str = "BLAKE3 only";

/// Tells how a pull went, in words or as an event.
pub fn tell(console: Console, ready: &Ready) {
    if console.json {
        console.event(&event(ready));
        return;
    }
    let mut lines = text::lines("", "  ", &amounts(ready));
    lines.extend(text::lines("  ", "  ", &proofs(ready)));
    lines.push(format!("  {}", ready.path));
    console.result(&lines.join("\n"));
}

/// The `done` event of a pull. A prefetch holds no lease, so none is told of.
fn event(ready: &Ready) -> serde_json::Value {
    let mut event = serde_json::json!(ready);
    if let Some(object) = event.as_object_mut() {
        object.insert("event".to_owned(), "done".into());
        object.remove("lease");
    }
    event
}

/// How much there is, how much of it moved, and what that took.
fn amounts(ready: &Ready) -> Vec<String> {
    let source = &ready.source;
    let (total, moved) = (text::bytes(ready.bytes_total), text::bytes(ready.bytes_moved));
    let elapsed = text::duration(time(ready.seconds));
    let took = format!("in {elapsed} ({})", text::rate(ready.bytes_moved, time(ready.seconds)));
    let mut clauses = match ready.bytes_moved {
        0 => vec![format!("{source}: {total}"), format!("nothing had to move ({elapsed})")],
        bytes if bytes < ready.bytes_total => vec![format!("{source}: {moved} of {total} moved {took}")],
        bytes if bytes == ready.bytes_total => vec![format!("{source}: {moved} moved {took}")],
        // Files that changed at the origin, or did not match their checksum, came more than once.
        _ => vec![format!("{source}: {total}"), format!("{moved} moved for it {took}")],
    };
    clauses.extend(watch::trouble(ready.retries, ready.mismatches));
    clauses
}

/// What the bytes were compared with, and when: on their way here, by this call or an earlier one.
fn proofs(ready: &Ready) -> Vec<String> {
    let count = |files: u64| text::count(usize::try_from(files).unwrap_or(usize::MAX), "file");
    let equal: u64 = ready.equal_by.values().sum();
    let mut clauses = Vec::new();
    if equal > 0 {
        let by: Vec<&str> = ready.equal_by.keys().map(String::as_str).collect();
        let all = if equal == ready.files && equal > 1 { "all " } else { "" };
        clauses.push(format!("{all}{} proven equal to what was here by {}", count(equal), by.join(" or ")));
    }
    let without = ready.verified.get(BLAKE3_ONLY).copied().unwrap_or(0);
    let compared: Vec<(&str, u64)> =
        ready.verified.iter().filter(|(by, _)| *by != BLAKE3_ONLY).map(|(by, files)| (by.as_str(), *files)).collect();
    // What an equal file was compared with is part of its proof.
    if !compared.is_empty() && equal < ready.files {
        let checked = ready.files.saturating_sub(without);
        let they = if checked == 1 { "it" } else { "they" };
        let (when, now) = match ready.bytes_moved {
            0 => ("when", ", not now"),
            moved if moved == ready.bytes_total => ("as", ""),
            _ => ("when", ""),
        };
        let files = count(checked);
        let subject = match (without, ready.files) {
            (0, 1) => format!("{files}, "),
            (0, all) if equal > 0 => format!("all {all} "),
            (0, _) => format!("{files}, all "),
            _ => format!("{files} "),
        };
        let by = match &compared[..] {
            [(by, _)] => (*by).to_owned(),
            several => several.iter().map(|(by, files)| format!("{by} ({files})")).collect::<Vec<_>>().join(" and "),
        };
        clauses.push(format!("{subject}checked against the origin's {by} {when} {they} came{now}"));
    }
    let digests = if without == 1 { "its BLAKE3 digest is" } else { "BLAKE3 digests are" };
    if without > 0 {
        clauses.push(format!("the origin keeps no checksum for {} ({digests} recorded)", count(without)));
    }
    clauses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(counts: &[(&str, u64)]) -> std::collections::BTreeMap<String, u64> {
        counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[track_caller]
    fn told(files: u64, moved: u64, verified: &[(&str, u64)], equal_by: &[(&str, u64)]) -> String {
        let ready = Ready {
            source: "s3://models/llama/".into(),
            files,
            bytes_total: 90 << 20,
            bytes_moved: moved << 20,
            equal_by: counts(equal_by),
            verified: counts(verified),
            seconds: if moved == 0 { 0.034 } else { 1.5 },
            ..Ready::default()
        };
        let mut lines = text::lines("", "  ", &amounts(&ready));
        lines.extend(text::lines("  ", "  ", &proofs(&ready)));
        assert!(lines.iter().all(|line| line.len() <= 80), "{lines:#?}");
        lines.join("\n")
    }

    #[test]
    fn a_result_reads_well_at_80_columns() {
        insta::assert_snapshot!(told(9, 90, &[("CRC64NVME", 9)], &[]), @"
        s3://models/llama/: 90.0 MiB moved in 1.5 s (60.0 MiB/s)
          9 files, all checked against the origin's CRC64NVME as they came
        ");
        insta::assert_snapshot!(told(9, 0, &[("CRC64NVME", 9)], &[]), @"
        s3://models/llama/: 90.0 MiB, nothing had to move (34 ms)
          9 files, all checked against the origin's CRC64NVME when they came, not now
        ");
        insta::assert_snapshot!(told(9, 40, &[("CRC64NVME", 9)], &[]), @"
        s3://models/llama/: 40.0 MiB of 90.0 MiB moved in 1.5 s (26.7 MiB/s)
          9 files, all checked against the origin's CRC64NVME when they came
        ");
        insta::assert_snapshot!(told(9, 95, &[("CRC32C", 9)], &[]), @"
        s3://models/llama/: 90.0 MiB, 95.0 MiB moved for it in 1.5 s (63.3 MiB/s)
          9 files, all checked against the origin's CRC32C when they came
        ");
        insta::assert_snapshot!(told(1, 90, &[("MD5", 1)], &[]), @"
        s3://models/llama/: 90.0 MiB moved in 1.5 s (60.0 MiB/s)
          1 file, checked against the origin's MD5 as it came
        ");
        insta::assert_snapshot!(told(9, 90, &[(BLAKE3_ONLY, 9)], &[]), @"
        s3://models/llama/: 90.0 MiB moved in 1.5 s (60.0 MiB/s)
          the origin keeps no checksum for 9 files (BLAKE3 digests are recorded)
        ");
        insta::assert_snapshot!(told(9, 0, &[(BLAKE3_ONLY, 9)], &[]), @"
        s3://models/llama/: 90.0 MiB, nothing had to move (34 ms)
          the origin keeps no checksum for 9 files (BLAKE3 digests are recorded)
        ");
        insta::assert_snapshot!(told(9, 90, &[("CRC64NVME", 5), ("MD5", 3), (BLAKE3_ONLY, 1)], &[]), @"
        s3://models/llama/: 90.0 MiB moved in 1.5 s (60.0 MiB/s)
          8 files checked against the origin's CRC64NVME (5) and MD5 (3) as they came,
          the origin keeps no checksum for 1 file (its BLAKE3 digest is recorded)
        ");
        insta::assert_snapshot!(told(9, 0, &[("CRC64NVME", 9)], &[("ETag and CRC", 9)]), @"
        s3://models/llama/: 90.0 MiB, nothing had to move (34 ms)
          all 9 files proven equal to what was here by ETag and CRC
        ");
        insta::assert_snapshot!(told(9, 10, &[("CRC64NVME", 9)], &[("SHA-256", 8)]), @"
        s3://models/llama/: 10.0 MiB of 90.0 MiB moved in 1.5 s (6.7 MiB/s)
          8 files proven equal to what was here by SHA-256,
          all 9 checked against the origin's CRC64NVME when they came
        ");
    }
}
