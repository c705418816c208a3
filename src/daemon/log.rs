//! The daemon's log, on stderr. A line that cannot be written is lost, and counted.

use std::io;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;
use crate::report::{output, tell_panics};

/// Starts it. The filter was checked with the settings.
pub fn start(filter: &str, format: LogFormat) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let color =
        std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && io::IsTerminal::is_terminal(&io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Stderr).with_target(false);
    // Otherwise it complains by `eprintln!`, which panics.
    let log = log.log_internal_errors(false);
    // A second log in one process would be a defect of ours, and no reason not to serve.
    let _ = match format {
        LogFormat::Text => log.with_ansi(color).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    tell_panics(|sentence| tracing::error!("{sentence}"));
}

/// Takes every line.
struct Stderr;

impl io::Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        output::log_line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
