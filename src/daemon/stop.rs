//! The order to stop, and the deadline that a stuck runtime cannot miss.
//!
//! A thread of its own waits for signals: should the runtime hang, it still ends the process in
//! time, before whoever sent the signal sends the one that nobody can answer.

use std::process;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::watch;

use crate::report::{Exit, Failure};

/// Tells when to stop.
#[derive(Debug)]
pub struct Stop {
    asked: watch::Receiver<Option<Instant>>,
}

impl Stop {
    /// Waits for SIGTERM and SIGINT from now on; the process ends no later than `within` after the
    /// first, and at once with the second.
    ///
    /// # Errors
    /// When signals cannot be waited for.
    pub fn listen(within: Duration) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::new(Exit::Defect, format!("cannot wait for signals: {error}"));
        let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(failed)?;
        let (sender, asked) = watch::channel(None);
        let waiting = move || {
            let mut signals = signals.forever();
            if signals.next().is_none() {
                return;
            }
            let deadline = Instant::now() + within;
            sender.send_replace(Some(deadline));
            let watchdog = move || {
                std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
                tracing::error!("stopping took longer than `stop_within`: ended here, what has arrived stays");
                process::exit(i32::from(Exit::Defect as u8));
            };
            if std::thread::Builder::new().name("deadline".into()).spawn(watchdog).is_err() {
                process::exit(i32::from(Exit::Interrupted as u8));
            }
            if signals.next().is_some() {
                process::exit(i32::from(Exit::Interrupted as u8));
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(waiting).map_err(failed)?;
        Ok(Self { asked })
    }

    /// Whether the order has come.
    pub fn is_asked(&self) -> bool {
        self.asked.borrow().is_some()
    }

    /// Waits for the order; when the process must have ended.
    pub async fn asked(&self) -> Instant {
        let mut asked = self.asked.clone();
        // The thread that sends lives as long as the process.
        asked.wait_for(Option::is_some).await.ok().and_then(|deadline| *deadline).unwrap_or_else(Instant::now)
    }
}
