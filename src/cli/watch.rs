//! Shows a pull while it runs: bars on a terminal, a line now and then elsewhere, events as JSON.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::console::Console;
use super::text;
use crate::fetch::Progress;

/// A screen has no room for more files than this.
const FILES_SHOWN_MAX: usize = 8;
const BAR_INTERVAL: Duration = Duration::from_millis(100);
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
    } else if std::io::stderr().is_terminal() {
        bars(source, &progress).await;
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
    (per_second > 0).then(|| Duration::from_secs(missing / per_second))
}

async fn lines(console: Console, progress: &Progress, mut rate: Rate) {
    loop {
        tokio::time::sleep(LINE_INTERVAL).await;
        let total = progress.bytes_total.load(Relaxed);
        if total == 0 {
            console.note(&format!("asking the origin for {}", text::duration(rate.started.elapsed())));
            continue;
        }
        let (done, per_second) = (progress.bytes_done(), rate.per_second(progress));
        let left = left(progress, per_second).map_or_else(|| "unknown time".to_owned(), text::duration);
        console.note(&format!(
            "{} of {} ({} %), {}/s, {left} left, {} of {} files, {} connections{}",
            text::bytes(done),
            text::bytes(total),
            done.saturating_mul(100) / total,
            text::bytes(per_second),
            progress.files_done.load(Relaxed),
            progress.files_total.load(Relaxed),
            progress.connections.load(Relaxed),
            trouble(progress),
        ));
    }
}

/// What went wrong and was mended, in a few words.
#[must_use]
pub fn trouble(progress: &Progress) -> String {
    let counts = [
        (progress.retries.load(Relaxed), "retries"),
        (progress.throttled.load(Relaxed), "of them throttled"),
        (progress.stalls.load(Relaxed), "stalled"),
        (progress.mismatches.load(Relaxed), "checksum mismatches"),
    ];
    counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!(", {count} {what}")).collect()
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

/// Clears its bars when dropped, so that what follows starts on a clean line.
struct Screen(MultiProgress);

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.0.clear();
    }
}

async fn bars(source: &str, progress: &Progress) {
    let screen = Screen(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
    let style = |template: &str| {
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
    };
    let total = screen.0.add(ProgressBar::new(0));
    total.set_style(style(
        "{msg}\n[{bar:40}] {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left",
    ));
    let mut files: Vec<(Arc<crate::fetch::FileProgress>, ProgressBar)> = Vec::new();
    loop {
        tokio::time::sleep(BAR_INTERVAL).await;
        total.set_length(progress.bytes_total.load(Relaxed));
        total.set_position(progress.bytes_done());
        total.set_message(format!(
            "{source}: {} of {} files, {} connections{}",
            progress.files_done.load(Relaxed),
            progress.files_total.load(Relaxed),
            progress.connections.load(Relaxed),
            trouble(progress)
        ));
        let active = progress.active();
        files.retain(|(file, bar)| {
            let stays = active.iter().any(|other| Arc::ptr_eq(file, other));
            if !stays {
                screen.0.remove(bar);
            }
            stays
        });
        for file in active {
            if files.len() < FILES_SHOWN_MAX && !files.iter().any(|(other, _)| Arc::ptr_eq(&file, other)) {
                let bar = screen.0.add(ProgressBar::new(file.size));
                bar.set_style(style("  [{bar:20}] {percent:>3} %  {msg}"));
                bar.set_message(file.path.clone());
                files.push((file, bar));
            }
        }
        files.iter().for_each(|(file, bar)| bar.set_position(file.done()));
    }
}
