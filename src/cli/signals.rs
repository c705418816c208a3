//! SIGINT and SIGTERM: the first ends a command cleanly, the second at once.
//!
//! A thread of its own waits for them, as in the daemon: whatever else waits, for a disk or for a
//! reader of its output, the process ends when it is told to.

use std::process;
use std::sync::OnceLock;
use std::thread::{self, Builder};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::console;
use crate::fetch::Cancel;
use crate::report::{Exit, output};

/// How long a command may take to end cleanly.
const END_WITHIN: Duration = Duration::from_secs(10);

/// What the first signal uses. A command without it has nothing to end cleanly.
static CANCEL: OnceLock<Cancel> = OnceLock::new();

/// Waits for signals from now on. Where no thread is to be had, they do what they do by default.
pub fn listen() {
    let _ = Builder::new().name("signals".into()).spawn(wait);
}

/// The switch of the command that runs.
pub fn cancel() -> &'static Cancel {
    CANCEL.get_or_init(Cancel::default)
}

fn wait() {
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
    let mut signals = signals.forever();
    if signals.next().is_none() {
        return;
    }
    output::hurry();
    let Some(cancel) = CANCEL.get() else { end() };
    cancel.cancel();
    let deadline = || {
        thread::sleep(END_WITHIN);
        end();
    };
    if Builder::new().name("deadline".into()).spawn(deadline).is_err() || signals.next().is_some() {
        end();
    }
}

fn end() -> ! {
    console::clear_bars_now();
    process::exit(i32::from(Exit::Interrupted as u8));
}
