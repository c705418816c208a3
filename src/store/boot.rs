//! Which boot of the machine this is.
//!
//! What the page cache holds survives the death of a process but not of the machine. So bytes
//! that were never synced may be trusted within the boot that wrote them and must be hashed
//! again in any later one.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// The kernel's id of this boot: 36 characters of hex and dashes.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct BootId(String);

impl BootId {
    /// Reads `/proc/sys/kernel/random/boot_id` (proc(5)). Where that cannot be read, makes an id
    /// that no later process will have, so that everything unsynced is hashed again.
    #[must_use]
    pub fn current() -> Self {
        let text = super::fsx::read_to_string_bounded("/proc/sys/kernel/random/boot_id".as_ref(), 64);
        match text.map(|text| text.trim().to_owned()) {
            Ok(id) if id.len() == 36 && id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') => Self(id),
            _ => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Self(format!("unknown-{}-{}", std::process::id(), now.as_nanos()))
            }
        }
    }

    /// A boot with a name of the test's choice.
    #[cfg(test)]
    pub(super) fn named(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// The id as a file name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
