//! Shows what takes time while it runs: bars on a terminal, a line now and then elsewhere, events
//! as JSON. Knows not where it runs: in this process or in the daemon.

use std::time::{Duration, Instant};

use super::console::{Bar, Bars, Console};
use crate::cache::{Event, Moving, MovingFile, Waiting};
use crate::report::text;

/// How often it is worth to look.
pub const INTERVAL: Duration = Duration::from_millis(1000 / BARS_PER_SECOND as u64);
/// The same where each look is a message from the daemon.
pub const REMOTE_INTERVAL: Duration = Duration::from_millis(200);

const BARS_PER_SECOND: u8 = 10;
const LINE_INTERVAL: Duration = Duration::from_secs(5);
const EVENT_INTERVAL: Duration = Duration::from_secs(1);

/// What takes time, on whatever is there to show it; gone with the value.
pub struct Watch {
    console: Console,
    bars: Option<Bars>,
    due: Instant,
}

impl Watch {
    /// Shows nothing yet.
    pub fn new(console: Console) -> Self {
        let draws = !console.json && !console.quiet;
        let first = if console.json { EVENT_INTERVAL } else { LINE_INTERVAL };
        let bars = if draws { Bars::new(BARS_PER_SECOND) } else { None };
        Self { console, bars, due: Instant::now() + first }
    }

    /// How far a pull is. Called as often as anybody likes.
    pub fn show(&mut self, moving: &Moving) {
        if let Some(screen) = &self.bars {
            let (headline, bars) = drawn(moving);
            screen.show(headline, bars);
        } else if self.is_due() {
            if self.console.json {
                self.console.passing_event(&serde_json::json!(Event::Progress(moving.clone())));
            } else {
                self.console.passing_note(&line(moving));
            }
        }
    }

    /// How far hashing is, in bytes.
    pub fn show_hashing(&mut self, done: u64, total: u64) {
        let line = format!("{} of {} hashed", text::bytes(done), text::bytes(total));
        if let Some(screen) = &self.bars {
            screen.show("hashing what is on disk".to_owned(), vec![Bar { done, size: total, text: line }]);
        } else if !self.console.json && self.is_due() {
            self.console.passing_note(&line);
        }
    }

    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = now >= self.due;
        if due {
            // Not from when it was shown: a second stays a second however often somebody looks.
            let interval = if self.console.json { EVENT_INTERVAL } else { LINE_INTERVAL };
            self.due = (self.due + interval).max(now);
        }
        due
    }
}

/// Two lines for the whole and one for each file that is on its way.
fn drawn(moving: &Moving) -> (String, Vec<Bar>) {
    let source = &moving.source;
    if moving.bytes_total == 0 {
        return (format!("{source}: {}", listing(moving)), Vec::new());
    }
    let mut bars = vec![Bar { done: moving.bytes_done, size: moving.bytes_total, text: amounts(moving) }];
    let of_file = |file: &MovingFile| Bar {
        done: file.bytes,
        size: file.size,
        text: format!("{}, {}", file.path, text::bytes(file.size)),
    };
    bars.extend(moving.files.iter().map(of_file));
    let headline = moving.waiting.as_ref().map_or_else(|| counts(moving), waiting);
    (format!("{source}: {headline}"), bars)
}

fn line(moving: &Moving) -> String {
    if moving.bytes_total == 0 {
        return listing(moving);
    }
    match &moving.waiting {
        Some(why) => {
            format!("{} of {}, {}", text::bytes(moving.bytes_done), text::bytes(moving.bytes_total), waiting(why))
        }
        None => format!("{}, {}", amounts(moving), counts(moving)),
    }
}

/// Why nothing comes, and for how long that is borne.
pub fn waiting(waiting: &Waiting) -> String {
    let Waiting { why, seconds, seconds_left } = waiting;
    format!("waiting for the origin, {} (for {} more): {why}", left(*seconds), left(*seconds_left))
}

fn listing(moving: &Moving) -> String {
    if let Some(why) = &moving.waiting {
        return waiting(why);
    }
    format!("waiting for the origin to list its files, {}", text::duration(time(moving.seconds)))
}

/// `12.0 MiB of 96.2 MiB, 20.0 MiB/s, 5 s left`; what is not known yet is not said.
fn amounts(moving: &Moving) -> String {
    let (done, total) = (text::bytes(moving.bytes_done), text::bytes(moving.bytes_total));
    let left = moving.seconds_left.map_or_else(String::new, |seconds| format!(", {} left", left(seconds)));
    format!("{done} of {total}, {}/s{left}", text::bytes(moving.bytes_per_second))
}

/// Seconds as they come in events.
pub fn time(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// Whole seconds: more was never known.
pub fn left(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        _ => text::duration(Duration::from_secs(seconds)),
    }
}

/// `3 of 9 files, 8 connections`, and what went wrong meanwhile.
fn counts(moving: &Moving) -> String {
    let mut clauses = vec![
        format!("{} of {} files", moving.files_done, moving.files_total),
        text::count(moving.connections as usize, "connection"),
    ];
    clauses.extend(trouble(moving.retries, moving.mismatches));
    let why = [(moving.throttled, "throttled"), (moving.stalls, "stalled")];
    clauses.extend(why.iter().filter(|(count, _)| *count > 0).map(|(count, how)| format!("{count} {how}")));
    clauses.join(", ")
}

/// What went wrong and was mended, in a few words.
pub fn trouble(retries: u32, mismatches: u32) -> Vec<String> {
    let mut clauses = Vec::new();
    if retries > 0 {
        clauses.push(if retries == 1 { "1 retry".to_owned() } else { format!("{retries} retries") });
    }
    if mismatches > 0 {
        clauses.push(format!("{} did not match and came again", text::count(mismatches as usize, "file")));
    }
    clauses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_on_its_way_in_one_line() {
        let mut moving = Moving { source: "s3://b/m".into(), seconds: 1.44, ..Moving::default() };
        assert_eq!(line(&moving), "waiting for the origin to list its files, 1.4 s");
        assert_eq!(drawn(&moving).0, "s3://b/m: waiting for the origin to list its files, 1.4 s");
        moving = Moving {
            bytes_done: 12 << 20,
            bytes_total: 96 << 20,
            bytes_per_second: 20 << 20,
            files_done: 3,
            files_total: 9,
            connections: 8,
            ..moving
        };
        assert_eq!(line(&moving), "12.0 MiB of 96.0 MiB, 20.0 MiB/s, 3 of 9 files, 8 connections");
        moving = Moving {
            seconds_left: Some(5),
            retries: 2,
            mismatches: 1,
            throttled: 1,
            files: vec![MovingFile { path: "w".into(), bytes: 1, size: 2 << 20 }],
            ..moving
        };
        assert_eq!(
            line(&moving),
            "12.0 MiB of 96.0 MiB, 20.0 MiB/s, 5 s left, 3 of 9 files, 8 connections, 2 retries, 1 file did not match and came again, 1 throttled"
        );
        let (headline, bars) = drawn(&moving);
        assert!(headline.starts_with("s3://b/m: 3 of 9 files, "), "{headline}");
        assert_eq!(
            bars.iter().map(|bar| bar.text.as_str()).collect::<Vec<_>>(),
            ["12.0 MiB of 96.0 MiB, 20.0 MiB/s, 5 s left", "w, 2.0 MiB"]
        );
        let why = "`s3://b/m/w`: connection refused".to_owned();
        moving.waiting = Some(Waiting { why, seconds: 12, seconds_left: 288 });
        let told = "waiting for the origin, 12 s (for 4 min 48 s more): `s3://b/m/w`: connection refused";
        assert_eq!(line(&moving), format!("12.0 MiB of 96.0 MiB, {told}"));
        assert_eq!(drawn(&moving).0, format!("s3://b/m: {told}"));
        assert_eq!(line(&Moving { bytes_total: 0, ..moving.clone() }), told);
        moving.waiting = None;
        moving.seconds_left = Some(200);
        assert!(line(&moving).contains(", 3 min 20 s left,"));
    }
}
