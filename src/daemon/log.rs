//! The daemon's log, on stderr.

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Starts it. The filter was checked with the settings.
pub fn start(filter: &str, format: LogFormat) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // A second log in one process would be a defect of ours, and no reason not to serve.
    let _ = match format {
        LogFormat::Text => log.with_ansi(color).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
}
