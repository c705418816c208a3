//! `larder daemon`: reads the settings, and shows them or runs by them.

use std::path::Path;

use super::args::Daemon;
use super::console::Console;
use crate::config::Config;
use crate::daemon;
use crate::report::{Exit, Failure};

/// Runs until SIGTERM, or checks the settings.
pub fn run(console: Console, store: Option<&Path>, args: &Daemon) -> Result<Exit, Failure> {
    let loaded = Config::load(args.config.as_deref(), store, &|name| std::env::var(name).ok())?;
    if !args.check {
        return daemon::run(&loaded, || {});
    }
    loaded.check()?;
    if console.json {
        console.row(&loaded.to_json());
    } else {
        console.data(&loaded.told());
    }
    Ok(Exit::Done)
}
