//! Where text goes: data to stdout, everything else to stderr.
#![expect(clippy::print_stderr, reason = "the one place that prints")]

use std::io::Write as _;

use super::exit::Failure;

/// How to speak to whoever started us.
#[derive(Debug, Clone, Copy)]
pub struct Console {
    /// JSON on stdout.
    pub json: bool,
    /// Only data and errors.
    pub quiet: bool,
}

impl Console {
    /// Data, as it is. A reader that went away (`larder ls | head`) ends the process quietly.
    #[expect(clippy::unused_self, reason = "said through the same door as everything else")]
    pub fn data(self, text: &str) {
        let mut out = std::io::stdout().lock();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            std::process::exit(0);
        }
    }

    /// One JSON object on a line of its own.
    pub fn event(self, value: &serde_json::Value) {
        self.data(&format!("{value}\n"));
    }

    /// A line about what happens.
    pub fn note(self, line: &str) {
        if !self.quiet {
            eprintln!("{line}");
        }
    }

    /// A line about what happened, unless events carry it.
    pub fn result(self, line: &str) {
        if !self.json && !self.quiet {
            eprintln!("{line}");
        }
    }

    /// An error, in words or as an event.
    pub fn failure(self, failure: &Failure) {
        if self.json {
            self.event(&serde_json::json!({
                "event": "error",
                "message": failure.message,
                "hint": failure.hint,
                "exit_code": failure.exit as u8,
            }));
        }
        eprintln!("error: {}", failure.message);
        if let Some(hint) = &failure.hint {
            eprintln!("  hint: {hint}");
        }
    }
}
