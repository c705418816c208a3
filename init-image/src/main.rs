//! `larder-init SOURCE DEST`: asks the node's daemon for a model and leaves it at DEST.
//!
//! The protocol and the placing are in the library beside this file; here is what a person sees.

mod args;
mod console;
mod deliver;
#[cfg(all(feature = "lean", target_os = "linux", target_env = "gnu", target_feature = "crt-static"))]
mod lean;
mod output;
mod signals;

use std::process::ExitCode;

use args::Command;
use console::Console;
use larder_init::failure::{self, Failure};

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(panicked));
    signals::end_when_told();
    let arguments = std::env::args_os().skip(1).collect();
    let settings = match args::parse(arguments, &|name| std::env::var_os(name)) {
        Ok(Command::Deliver(settings)) => settings,
        Ok(Command::Print(text)) => return Console::default().print(&text),
        Err(failure) => return Console::default().failure(&failure),
    };
    let mut console = Console::new(settings.json, settings.quiet);
    match settings.pairs.iter().try_for_each(|pair| deliver::deliver(&settings, pair, &mut console)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => console.failure(&failure),
    }
}

/// A panic in one line, and the exit code of a defect.
fn panicked(info: &std::panic::PanicHookInfo<'_>) {
    let (payload, place) = (info.payload(), info.location().map(ToString::to_string).unwrap_or_default());
    let message = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    let sentence = ["a defect of larder-init: panic at ", &place, ": ", message.unwrap_or("no message")].concat();
    Console::default().failure(&Failure::new(failure::DEFECT, sentence.replace(char::is_control, " ")));
    std::process::exit(failure::DEFECT.into());
}
