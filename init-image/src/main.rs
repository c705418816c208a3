//! `larder-init SOURCE DEST`: asks the node's daemon for a model and leaves it at DEST.
//!
//! The protocol and the placing are in the library beside this file; here is what a person sees.

mod args;
mod console;
mod deliver;
#[cfg(all(feature = "lean", target_os = "linux", target_env = "gnu", target_feature = "crt-static"))]
mod lean;
mod signals;

use std::process::ExitCode;

use args::Command;
use console::Console;

fn main() -> ExitCode {
    signals::end_when_told();
    let arguments = std::env::args_os().skip(1).collect();
    let settings = match args::parse(arguments, &|name| std::env::var_os(name)) {
        Ok(Command::Deliver(settings)) => settings,
        Ok(Command::Print(text)) => {
            Console::default().data(&text);
            return ExitCode::SUCCESS;
        }
        Err(failure) => return Console::default().failure(&failure),
    };
    let mut console = Console::new(settings.json, settings.quiet);
    match settings.pairs.iter().try_for_each(|pair| deliver::deliver(&settings, pair, &mut console)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => console.failure(&failure),
    }
}
