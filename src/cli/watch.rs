//! Shows a pull while it runs: bars on a terminal, a line now and then elsewhere, events as JSON.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::console::{Bar, Bars, Console};
use crate::fetch::{FileProgress, Progress};
use crate::report::text;

/// A screen has no room for more files than this.
const FILES_SHOWN_MAX: usize = 8;
const BARS_PER_SECOND: u8 = 10;
const LINE_INTERVAL: Duration = Duration::from_secs(5);
const EVENT_INTERVAL: Duration = Duration::from_secs(1);
/// The rate is an average over about this long.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// Watches `progress` for as long as it is polled. Never returns; drop it to stop.
pub async fn watch(console: Console, source: &str, progress: Arc<Progress>) {
    let rate = Rate::new(&progress);
    if console.json {
        events(console, source, &progress, rate).await;
    } else if console.quiet {
        std::future::pending::<()>().await;
    } else if let Some(screen) = Bars::new(BARS_PER_SECOND) {
        bars(screen, source, &progress, rate).await;
    } else {
        lines(console, &progress, rate).await;
    }
}

/// Bytes per second, smoothed.
struct Rate {
    started: Instant,
    samples: std::collections::VecDeque<(Instant, u64)>,
}

impl Rate {
    fn new(progress: &Progress) -> Self {
        let now = Instant::now();
        Self { started: now, samples: [(now, progress.bytes_moved.load(Relaxed))].into() }
    }

    fn per_second(&mut self, progress: &Progress) -> u64 {
        let now = Instant::now();
        let moved = progress.bytes_moved.load(Relaxed);
        self.samples.push_back((now, moved));
        while self.samples.len() > 2 && now.duration_since(self.samples[0].0) > RATE_WINDOW {
            self.samples.pop_front();
        }
        let (since, before) = self.samples[0];
        let millis = u64::try_from(now.duration_since(since).as_millis()).unwrap_or(u64::MAX).max(1);
        moved.saturating_sub(before).saturating_mul(1000) / millis
    }
}

fn left(progress: &Progress, per_second: u64) -> Option<Duration> {
    let missing = progress.bytes_total.load(Relaxed).saturating_sub(progress.bytes_done());
    (per_second > 0).then(|| Duration::from_secs(missing.div_ceil(per_second)))
}

/// `12.0 MiB of 96.2 MiB, 20.0 MiB/s, 5 s left`; what is not known yet is not said.
fn amounts(progress: &Progress, per_second: u64) -> String {
    let (done, total) = (progress.bytes_done(), progress.bytes_total.load(Relaxed));
    let mut text = format!("{} of {}", text::bytes(done.min(total)), text::bytes(total));
    text += &format!(", {}/s", text::bytes(per_second));
    if let Some(left) = left(progress, per_second) {
        text += &match left.as_secs() {
            seconds @ 0..60 => format!(", {seconds} s left"),
            _ => format!(", {} left", text::duration(left)),
        };
    }
    text
}

/// `3 of 9 files, 8 connections`, and what went wrong meanwhile.
fn counts(progress: &Progress) -> String {
    let connections = progress.connections.load(Relaxed);
    let mut clauses = vec![
        format!("{} of {} files", progress.files_done.load(Relaxed), progress.files_total.load(Relaxed)),
        text::count(connections as usize, "connection"),
    ];
    clauses.extend(trouble(progress));
    let why = [(progress.throttled.load(Relaxed), "throttled"), (progress.stalls.load(Relaxed), "stalled")];
    clauses.extend(why.iter().filter(|(count, _)| *count > 0).map(|(count, how)| format!("{count} {how}")));
    clauses.join(", ")
}

async fn lines(console: Console, progress: &Progress, mut rate: Rate) {
    loop {
        tokio::time::sleep(LINE_INTERVAL).await;
        let total = progress.bytes_total.load(Relaxed);
        if total == 0 {
            console
                .note(&format!("waiting for the origin to list its files, {}", text::duration(rate.started.elapsed())));
            continue;
        }
        console.note(&format!("{}, {}", amounts(progress, rate.per_second(progress)), counts(progress)));
    }
}

/// What went wrong and was mended, in a few words.
#[must_use]
pub fn trouble(progress: &Progress) -> Vec<String> {
    let (retries, mismatches) = (progress.retries.load(Relaxed), progress.mismatches.load(Relaxed));
    let mut clauses = Vec::new();
    if retries > 0 {
        clauses.push(if retries == 1 { "1 retry".to_owned() } else { format!("{retries} retries") });
    }
    if mismatches > 0 {
        clauses.push(format!("{} did not match and came again", text::count(mismatches as usize, "file")));
    }
    clauses
}

async fn events(console: Console, source: &str, progress: &Progress, mut rate: Rate) {
    loop {
        tokio::time::sleep(EVENT_INTERVAL).await;
        let per_second = rate.per_second(progress);
        let files: Vec<_> = progress
            .active()
            .iter()
            .take(FILES_SHOWN_MAX)
            .map(|f| serde_json::json!({"path": f.path, "bytes": f.done(), "size": f.size}))
            .collect();
        console.event(&serde_json::json!({
            "event": "progress",
            "source": source,
            "bytes_done": progress.bytes_done(),
            "bytes_total": progress.bytes_total.load(Relaxed),
            "bytes_moved": progress.bytes_moved.load(Relaxed),
            "bytes_per_second": per_second,
            "seconds_left": left(progress, per_second).map(|left| left.as_secs()),
            "files_done": progress.files_done.load(Relaxed),
            "files_total": progress.files_total.load(Relaxed),
            "connections": progress.connections.load(Relaxed),
            "retries": progress.retries.load(Relaxed),
            "files": files,
        }));
    }
}

/// Two lines for the whole and one for each file that is on its way.
async fn bars(screen: Bars, source: &str, progress: &Progress, mut rate: Rate) {
    let mut files: Vec<Arc<FileProgress>> = Vec::new();
    loop {
        tokio::time::sleep(Duration::from_secs(1) / u32::from(BARS_PER_SECOND)).await;
        let per_second = rate.per_second(progress);
        let total = progress.bytes_total.load(Relaxed);
        if total == 0 {
            let waited = text::duration(rate.started.elapsed());
            screen.show(format!("{source}: waiting for the origin to list its files, {waited}"), Vec::new());
            continue;
        }
        let mut bars = vec![Bar { done: progress.bytes_done(), size: total, text: amounts(progress, per_second) }];
        // A file keeps its place until it is done.
        let active = progress.active();
        let is_in =
            |files: &[Arc<FileProgress>], file: &Arc<FileProgress>| files.iter().any(|other| Arc::ptr_eq(file, other));
        files.retain(|file| is_in(&active, file));
        for file in active {
            if files.len() < FILES_SHOWN_MAX && !is_in(&files, &file) {
                files.push(file);
            }
        }
        let of_file = |file: &Arc<FileProgress>| Bar {
            done: file.done(),
            size: file.size,
            text: format!("{}, {}", file.path, text::bytes(file.size)),
        };
        bars.extend(files.iter().map(of_file));
        screen.show(format!("{source}: {}", counts(progress)), bars);
    }
}
