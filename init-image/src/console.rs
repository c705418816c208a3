//! Where text goes: events to stdout, everything else to stderr, and numbers as people read them.
//!
//! The wording is that of `larder`; only integers are formatted, which keeps the code for floats
//! out of the binary.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use larder_init::client::{Event, Progress, Ready};
use larder_init::ensure::News;
use larder_init::failure::{self, Failure};
use larder_init::json::Writer;
use larder_init::place::Copied;

use crate::output::{self, Stream};

/// A warm start says one line, at its end.
const LINE_FIRST: Duration = Duration::from_secs(2);
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// How long a line waits for a reader that has stopped reading: a container's log keeps no pod from
/// starting. The lines behind it do not wait at all, until there is room again.
const READER_PATIENCE: Duration = Duration::from_millis(100);
/// The same for why it failed.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// Speaks to whoever started us.
#[derive(Debug)]
pub struct Console {
    json: bool,
    quiet: bool,
    began: Instant,
    next_line: Instant,
    /// The daemon's own error event has been passed on.
    told_error: bool,
}

impl Default for Console {
    fn default() -> Self {
        Self::new(false, false)
    }
}

impl Console {
    /// The first progress line is due 2 s from now.
    pub fn new(json: bool, quiet: bool) -> Self {
        let began = Instant::now();
        Self { json, quiet, began, next_line: began + LINE_FIRST, told_error: false }
    }

    /// Text to stdout, which is a log here: one that cannot be written must not keep a pod from starting.
    #[expect(clippy::unused_self, reason = "said through the same door as everything else")]
    pub fn data(&self, text: &str) {
        output::say(Stream::Stdout, text.as_bytes(), READER_PATIENCE);
    }

    /// The same where nothing else is wanted: how that ends.
    pub fn print(&self, text: &str) -> ExitCode {
        let mut stdout = std::io::stdout();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                let message = ["stdout cannot be written: ", &error.to_string()].concat();
                self.failure(&Failure::new(failure::DISK, message))
            }
            _ => ExitCode::SUCCESS,
        }
    }

    /// A line to stderr.
    fn say(&self, parts: &[&str]) {
        self.say_within(parts, READER_PATIENCE);
    }

    #[expect(clippy::unused_self, reason = "said through the same door as everything else")]
    fn say_within(&self, parts: &[&str], patience: Duration) {
        let mut line = parts.concat();
        line.push('\n');
        // In one write, so that the lines of containers do not mix; with nobody to read it, it is
        // of no use to fail.
        output::say(Stream::Stderr, line.as_bytes(), patience);
    }

    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        if self.json || self.quiet || now < self.next_line {
            return false;
        }
        self.next_line = now + LINE_INTERVAL;
        true
    }

    /// Something a person should know.
    pub fn warning(&self, message: &str) {
        if !self.quiet {
            self.say(&["warning: ", message]);
        }
    }

    /// What happens while `source` is asked for.
    pub fn news(&mut self, source: &str, news: &News<'_>) {
        match news {
            News::Event { event, line } => {
                if self.json {
                    self.data(&[line, "\n"].concat());
                    self.told_error = matches!(event, Event::Error(_));
                }
                match event {
                    Event::Progress(progress) if self.is_due() => {
                        let line = progress_line(progress, self.began.elapsed());
                        self.say(&[source, ": ", &line]);
                    }
                    Event::Warning(message) => self.warning(message),
                    _ => {}
                }
            }
            News::Waiting { why } => {
                if self.is_due() {
                    self.say(&[source, ": waiting: ", why]);
                }
            }
        }
    }

    /// How far a copy is.
    pub fn copying(&mut self, source: &str, copied: Copied, bytes_total: u64) {
        if self.is_due() {
            self.say(&[source, ": copied ", &bytes(copied.bytes), " of ", &bytes(bytes_total)]);
        }
    }

    /// The one line about a model that is where it should be.
    pub fn placed(&self, source: &str, dest: &str, ready: &Ready, copied: Option<Copied>) {
        if self.json || self.quiet {
            return;
        }
        let how = match copied {
            None if ready.arriving => "still arriving, linked",
            None => "linked",
            Some(copied) if copied.reflinked > 0 => "reflinked",
            Some(_) => "copied",
        };
        self.say(&[
            source,
            ": ",
            &count(ready.files, "file"),
            " (",
            &bytes(ready.bytes_total),
            "), ",
            &bytes(if ready.arriving { ready.bytes_here } else { ready.bytes_moved }),
            if ready.arriving { " here, " } else { " moved, " },
            &duration(self.began.elapsed()),
            ", ",
            how,
            " at ",
            dest,
        ]);
    }

    /// The last words, and the exit code.
    pub fn failure(&self, failure: &Failure) -> ExitCode {
        if self.json && !self.told_error {
            let event = Writer::new().string("event", "error").string("message", &failure.message);
            let event = match &failure.hint {
                Some(hint) => event.string("hint", hint),
                None => event.literal("hint", "null"),
            };
            self.data(&[&event.literal("exit_code", &failure.exit_code.to_string()).finish(), "\n"].concat());
        }
        self.say_within(&["error: ", &failure.message], LAST_PATIENCE);
        if let Some(hint) = &failure.hint {
            self.say_within(&["  hint: ", hint], LAST_PATIENCE);
        }
        ExitCode::from(if failure.exit_code == 0 { failure::DEFECT } else { failure.exit_code })
    }
}

fn progress_line(progress: &Progress, elapsed: Duration) -> String {
    let Progress { bytes_done, bytes_total, .. } = *progress;
    if bytes_total == 0 {
        return ["asking the origin for ", &duration(elapsed)].concat();
    }
    let percent = (u128::from(bytes_done) * 100 / u128::from(bytes_total)) as u64;
    let left = progress.seconds_left.map(Duration::from_secs).map_or_else(|| "unknown time".to_owned(), duration);
    let mut line = [
        &bytes(bytes_done),
        " of ",
        &bytes(bytes_total),
        " (",
        &percent.to_string(),
        " %), ",
        &bytes(progress.bytes_per_second),
        "/s, ",
        &left,
        " left, ",
        &progress.files_done.to_string(),
        " of ",
        &count(progress.files_total, "file"),
        ", ",
        &count(progress.connections, "connection"),
    ]
    .concat();
    if progress.retries > 0 {
        line.push_str(&[", ", &progress.retries.to_string(), " retries"].concat());
    }
    if progress.waiters > 1 {
        line.push_str(&[", ", &progress.waiters.to_string(), " waiting for it"].concat());
    }
    line
}

/// `1 file`, `2 files`.
fn count(number: u64, noun: &str) -> String {
    [number.to_string().as_str(), " ", noun, if number == 1 { "" } else { "s" }].concat()
}

/// `1.5 GiB`; whole bytes below 1 KiB. Rounded to the nearest tenth.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = [" KiB", " MiB", " GiB", " TiB", " PiB", " EiB"];
    if count < 1024 {
        return [&count.to_string(), " B"].concat();
    }
    for (index, unit) in UNITS.iter().enumerate() {
        let shift = 10 * (index + 1);
        // Tenths of the unit, rounded: at most 2^60 * 10 / 2^10.
        let whole = count >> shift;
        let rest = u128::from(count & ((1 << shift) - 1));
        let tenths = whole * 10 + ((rest * 10 + (1 << (shift - 1))) >> shift) as u64;
        if tenths < 10_240 || index == UNITS.len() - 1 {
            return [&(tenths / 10).to_string(), ".", &(tenths % 10).to_string(), unit].concat();
        }
    }
    String::new()
}

/// `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`.
fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let two = |first: u64, unit: &str, second: u64, smaller: &str| {
        [&first.to_string(), unit, &second.to_string(), smaller].concat()
    };
    match seconds {
        0..10 => two(seconds, ".", u64::from(time.subsec_millis() / 100), " s"),
        10..60 => [&seconds.to_string(), " s"].concat(),
        60..3600 => two(seconds / 60, " min ", seconds % 60, " s"),
        _ => two(seconds / 3600, " h ", seconds % 3600 / 60, " min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_in_larder() {
        for (count, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            ((1 << 30) - 1, "1.0 GiB"),
            (15 << 30, "15.0 GiB"),
            (1_100_000_000_000, "1.0 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), expected, "{count}");
        }
        for (millis, expected) in
            [(0, "0.0 s"), (470, "0.4 s"), (12_900, "12 s"), (200_000, "3 min 20 s"), (7_500_000, "2 h 5 min")]
        {
            assert_eq!(duration(Duration::from_millis(millis)), expected);
        }
        assert_eq!((count(1, "file"), count(0, "file")), ("1 file".to_owned(), "0 files".to_owned()));
    }

    #[test]
    fn progress_in_one_line() {
        let progress = Progress {
            bytes_done: 3 << 30,
            bytes_total: 4 << 30,
            bytes_per_second: 512 << 20,
            seconds_left: Some(2),
            files_done: 1,
            files_total: 8,
            connections: 16,
            retries: 2,
            waiters: 3,
            ..Progress::default()
        };
        assert_eq!(
            progress_line(&progress, Duration::ZERO),
            "3.0 GiB of 4.0 GiB (75 %), 512.0 MiB/s, 2.0 s left, 1 of 8 files, 16 connections, 2 retries, 3 waiting for it"
        );
        let asking = progress_line(&Progress::default(), Duration::from_secs(3));
        assert_eq!(asking, "asking the origin for 3.0 s");
    }
}
