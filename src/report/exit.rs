//! The one table of exit codes (sysexits.h where it has a word for it).

use crate::domain::{DigestError, SourceError};
use crate::fetch::Shortage;
use crate::store::Amount;
use crate::{fetch, remote, store};

/// Shown by `--help`, copied in the README.
pub const TABLE: &str = "\
Exit codes:
    0  done
   64  usage: an argument or a setting is wrong
   65  integrity: bytes do not match their checksum or digest
   66  not found: no such bucket, prefix, object or model
   69  origin trouble: it, or the daemon, cannot be reached or failed too long
   70  a defect of larder
   74  disk: full, read-only, or failing
   75  busy: another process owns the store, or somebody uses the model
   77  denied: the origin or the daemon refuses, or there are no credentials
  130  interrupted; the next call goes on from there";

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It is done.
    Done = 0,
    /// An argument or a setting is wrong.
    Usage = 64,
    /// Bytes do not match.
    Integrity = 65,
    /// Nothing there.
    NotFound = 66,
    /// The origin failed.
    Origin = 69,
    /// A defect of larder.
    Defect = 70,
    /// The disk failed.
    Disk = 74,
    /// Somebody else has it.
    Busy = 75,
    /// The origin refuses.
    Denied = 77,
    /// Stopped on request.
    Interrupted = 130,
}

/// An error as the user reads it: one sentence, the next thing to try, and a code.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What happened, to which object, and why.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// How the process ends.
    pub exit: Exit,
}

impl Failure {
    /// A failure without a hint.
    #[must_use]
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, exit }
    }

    /// A failure and what to do next.
    #[must_use]
    pub fn hinted(exit: Exit, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: Some(hint.into()), exit }
    }

    /// Ctrl-C or SIGTERM, and what that leaves.
    #[must_use]
    pub fn interrupted(hint: &str) -> Self {
        Self::hinted(Exit::Interrupted, "interrupted", hint)
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::new(Exit::Usage, error.to_string())
    }
}

impl From<DigestError> for Failure {
    fn from(error: DigestError) -> Self {
        Self::new(Exit::Usage, error.to_string())
    }
}

impl From<remote::Error> for Failure {
    fn from(error: remote::Error) -> Self {
        use remote::Error as E;
        let message = error.to_string();
        match error {
            E::NotFound { .. } => Self::hinted(
                Exit::NotFound,
                message,
                "list the bucket with your usual tool; prefixes are case-sensitive",
            ),
            E::Denied { .. } => Self::hinted(
                Exit::Denied,
                message,
                "larder needs to list the prefix and read its objects (s3:ListBucket and s3:GetObject, storage.objects.list and .get); try --anonymous for public buckets",
            ),
            E::Credentials { .. } => Self::hinted(
                Exit::Denied,
                message,
                "set up credentials as for the AWS or Google command line, or pass --anonymous for public buckets",
            ),
            E::Settings { .. } => Self::new(Exit::Usage, message),
            E::BadKey { .. } => {
                Self::hinted(Exit::Usage, message, "rename the object, or leave it out by narrowing the prefix")
            }
            E::Throttled { .. } | E::Unavailable { .. } | E::BadAnswer { .. } => Self::hinted(
                Exit::Origin,
                message,
                "check the endpoint and the network; the next call goes on where this one stopped",
            ),
            E::Changed { .. } => Self::new(Exit::Origin, message),
        }
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        use store::Error as E;
        let message = match &error {
            E::Full { path, needed, free } => format!(
                "not enough room in `{}`: {} needed, {} free",
                path.display(),
                super::text::bytes(*needed),
                super::text::bytes(*free)
            ),
            _ => error.to_string(),
        };
        let full = error.is_disk_full();
        match error {
            E::Busy { .. } => Self::hinted(Exit::Busy, message, "wait for it, or name another store with --store"),
            E::Foreign { .. } => Self::hinted(Exit::Usage, message, "name an empty directory"),
            E::TooLong { .. } => Self::hinted(
                Exit::Usage,
                message,
                "ask for a narrower prefix or for fewer of its files, or give the objects shorter keys",
            ),
            E::Damaged { .. } => Self::hinted(Exit::Integrity, message, "`larder verify --repair` fetches it again"),
            E::Absent(_) => Self::hinted(Exit::NotFound, message, "`larder ls` shows what is here"),
            E::Full { .. } => Self::hinted(
                Exit::Disk,
                message,
                "make room there (`larder rm` deletes what `larder ls` shows), or use another disk with --store",
            ),
            E::NoInodes { .. } => Self::hinted(
                Exit::Disk,
                message,
                "`df -i` shows them: delete files there (`larder rm` deletes what `larder ls` shows), or use a file system with more of them with --store",
            ),
            E::Unwritable { .. } => Self::hinted(
                Exit::Disk,
                message,
                "what is here is given out; check the disk and mount it writable: the daemon sees that by itself",
            ),
            E::Io { .. } if full => {
                Self::hinted(Exit::Disk, message, "make room: what has arrived stays, the next call goes on from there")
            }
            E::Io { source, .. } if source.kind() == std::io::ErrorKind::FileTooLarge => {
                Self::hinted(Exit::Disk, message, super::rlimits::on_a_file())
            }
            E::Io { .. } => Self::new(Exit::Disk, message),
        }
    }
}

impl From<fetch::Error> for Failure {
    fn from(error: fetch::Error) -> Self {
        use fetch::Error as E;
        let message = error.to_string();
        match error {
            E::NoRoom(shortage) => no_room(&shortage),
            E::Remote(error) => error.into(),
            E::Store(error) => error.into(),
            E::GaveUp { last, .. } => Self { message, ..last.into() },
            E::Integrity { .. } => Self::hinted(
                Exit::Integrity,
                message,
                "the object or its recorded checksum is damaged at the origin, or something between changes bytes: upload it again",
            ),
            E::KeepsChanging { .. } => Self::hinted(Exit::Origin, message, "wait until its upload is finished"),
            E::NothingSelected { .. } => Self::new(Exit::NotFound, message),
            E::BadGlob { .. } => Self::new(Exit::Usage, message),
            E::Interrupted => Self::interrupted("what has arrived stays: the same command goes on from there"),
            E::Defect(_) => Self::hinted(Exit::Defect, message, "please report it, with what you did"),
        }
    }
}

fn no_room(shortage: &Shortage) -> Failure {
    use super::text::bytes;
    let of_bytes = |amount: Amount| bytes(amount.bytes);
    let of_inodes = |amount: Amount| amount.inodes.to_string();
    let mut lacks = Vec::new();
    if shortage.needed.bytes > shortage.free.bytes {
        lacks.push(lack("room", shortage, shortage.high_watermarks.map(|(bytes, _)| bytes), of_bytes));
    }
    // Also where neither alone says why.
    if shortage.needed.inodes > shortage.free.inodes || lacks.is_empty() {
        lacks.push(lack("inodes", shortage, shortage.high_watermarks.map(|(_, inodes)| inodes), of_inodes));
    }
    Failure::hinted(
        Exit::Disk,
        lacks.join("; "),
        "`larder status` shows who uses and who pinned what; unpin or remove models, or give the store a larger disk",
    )
}

/// One thing that there is not enough of.
fn lack(what: &str, shortage: &Shortage, high: Option<u8>, amount: impl Fn(Amount) -> String) -> String {
    let Shortage { path, needed, free, evictable, pinned, leased, .. } = shortage;
    let below = high.map_or_else(String::new, |percent| format!(" below the high watermark of {percent} %"));
    let others = evictable.map_or_else(String::new, |evictable| {
        format!(", {} evictable, {} pinned, {} in use", amount(evictable), amount(*pinned), amount(*leased))
    });
    let (needed, free) = (amount(*needed), amount(*free));
    format!("not enough {what} in `{}`: {needed} needed, {free} free{below}{others}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(failure: &Failure) -> String {
        format!("{}: {}\n{}", failure.exit as u8, failure.message, failure.hint.as_deref().unwrap_or_default())
    }

    #[test]
    fn a_full_disk_and_an_interrupt_say_what_to_do() {
        let full = store::Error::Full { path: "/data".into(), needed: 3 << 30, free: 1 << 30 };
        insta::assert_snapshot!(told(&full.into()), @"
        74: not enough room in `/data`: 3.0 GiB needed, 1.0 GiB free
        make room there (`larder rm` deletes what `larder ls` shows), or use another disk with --store
        ");
        insta::assert_snapshot!(told(&fetch::Error::Interrupted.into()), @"
        130: interrupted
        what has arrived stays: the same command goes on from there
        ");
    }

    #[test]
    fn a_refusal_names_what_there_is_not_enough_of() {
        let shortage = |needed, free| Shortage {
            path: "/data".into(),
            needed,
            free,
            high_watermarks: Some((80, 90)),
            evictable: Some(Amount::new(2 << 30, 10)),
            pinned: Amount::new(1 << 30, 1200),
            leased: Amount::new(0, 3),
        };
        let of = |needed, free| told(&fetch::Error::NoRoom(Box::new(shortage(needed, free))).into());
        insta::assert_snapshot!(of(Amount::new(5, 60_000), Amount::new(9 << 30, 12)), @"
        74: not enough inodes in `/data`: 60000 needed, 12 free below the high watermark of 90 %, 10 evictable, 1200 pinned, 3 in use
        `larder status` shows who uses and who pinned what; unpin or remove models, or give the store a larger disk
        ");
        let both = of(Amount::new(4 << 30, 5), Amount::new(1 << 30, 0));
        assert!(both.contains("not enough room in `/data`: 4.0 GiB needed, 1.0 GiB free"), "{both}");
        assert!(both.contains("; not enough inodes in `/data`: 5 needed, 0 free"), "{both}");
    }
}
