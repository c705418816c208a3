//! What the process asks of the kernel before it starts.

use rustix::fs::Mode;
use rustix::process::{Resource, getrlimit, setrlimit, umask};

/// Takes every descriptor that is allowed, and lets others read what is made.
///
/// A connection, a partial and its journal take one each; the usual soft limit of 1,024 is less
/// than the callers of a busy node. Pods of any user read the files, whatever mask was inherited.
pub fn settle() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "the limit on open files stays as it was");
        }
    }
    umask(Mode::from_raw_mode(0o022));
}
