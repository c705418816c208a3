//! One model to one place.

use std::path::Path;
use std::time::Duration;

use larder_init::client::{Client, Lease, Wish};
use larder_init::ensure::{Ensure, Granted};
use larder_init::failure::Failure;
use larder_init::place::{self, Copied};

use crate::args::{Pair, Settings};
use crate::console::Console;

/// How often to ask again for a model that is not where the daemon says it is: one that restarts
/// may be between two mounts.
const ATTEMPTS_MAX: u32 = 4;
/// Before asking again; the wait grows with each attempt.
const PAUSE: Duration = Duration::from_millis(100);

/// Asks for the model and places it.
pub fn deliver(settings: &Settings, pair: &Pair, console: &mut Console) -> Result<(), Failure> {
    let source = &pair.source;
    let lease = lease(settings, console);
    let wish = Wish {
        source: source.clone(),
        include: settings.include.clone(),
        exclude: settings.exclude.clone(),
        fresh: settings.fresh,
        lazy: settings.lazy,
        lease: lease.clone(),
    };
    let mut ensure = Ensure::new(Client::new(&settings.socket), wish, settings.timeout);
    let mut attempt = 1;
    loop {
        let mut granted = ensure.run(&mut |news| console.news(source, &news))?;
        let error = match put(settings, pair, &granted, console) {
            Ok(copied) => {
                if matches!(lease, Lease::Owner(_)) && granted.ready.lease.is_none() {
                    console.warning("the daemon gave no lease: the model may be evicted while this pod uses it");
                }
                console.placed(source, &pair.dest.to_string_lossy(), &granted.ready, copied);
                return Ok(());
            }
            Err(error) => error,
        };
        // Under a lease that holds, a model does not go away: then this is no race to run again.
        let may_heal = error.is_of_the_model() && !(settings.copy && granted.is_held());
        if !may_heal || attempt == ATTEMPTS_MAX {
            return Err(explain(error, settings, &granted));
        }
        std::thread::sleep(PAUSE * attempt);
        attempt += 1;
    }
}

/// Who holds the lease: this process as long as it copies, or the pod.
fn lease(settings: &Settings, console: &Console) -> Lease {
    if settings.copy {
        return Lease::Connection;
    }
    if let Some(uid) = &settings.pod_uid {
        return Lease::Owner(["pod:", uid].concat());
    }
    console.warning(
        "the model may be evicted while this pod uses it: set LARDER_POD_UID from metadata.uid (downward API)",
    );
    Lease::None
}

fn put(
    settings: &Settings,
    pair: &Pair,
    granted: &Granted,
    console: &mut Console,
) -> Result<Option<Copied>, place::Error> {
    let ready = &granted.ready;
    let model = match &settings.model_root {
        Some(root) => root.rewrite(&ready.path),
        None => ready.path.clone(),
    };
    if !settings.copy {
        return place::link(&model, &pair.dest).map(|()| None);
    }
    let mut tell = |copied| console.copying(&pair.source, copied, ready.bytes_total);
    place::copy(&model, &pair.dest, ready.files, ready.bytes_total, &mut tell).map(Some)
}

/// Adds what must be mounted where, when that is what is wrong.
fn explain(error: place::Error, settings: &Settings, granted: &Granted) -> Failure {
    let is_unseen = error.is_unseen();
    let failure = Failure::from(error);
    if !is_unseen {
        return failure;
    }
    let path = &granted.ready.path;
    let hint = match &settings.model_root {
        Some(root) if path.starts_with(&root.node) => format!(
            "mount the hostPath directory `{}` at `{}` with mountPropagation HostToContainer",
            root.node.display(),
            root.here.display()
        ),
        Some(root) => format!(
            "the node's path is `{}`, which is not below `{}` as LARDER_MODEL_ROOT has it",
            path.display(),
            root.node.display()
        ),
        None => {
            let directory = path.parent().filter(|parent| *parent != Path::new("/")).unwrap_or(path).display();
            format!(
                "mount the hostPath directory `{directory}`, or one above it, at the same path with mountPropagation HostToContainer; or set LARDER_MODEL_ROOT=FROM=TO"
            )
        }
    };
    failure.hint(hint)
}
