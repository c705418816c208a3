//! How a call ends when it ends badly. The codes are those of `larder` (its `src/report/exit.rs`).

/// An argument, a setting or the pod's own set-up is wrong.
pub const USAGE: u8 = 64;
/// The origin, or here the daemon, could not be reached for too long.
pub const UNREACHABLE: u8 = 69;
/// A defect of larder, or something that is not larder's daemon.
pub const DEFECT: u8 = 70;
/// The disk is full, read-only, or failing.
pub const DISK: u8 = 74;
/// Another process is at it.
pub const BUSY: u8 = 75;
/// The process was told to end.
pub const INTERRUPTED: u8 = 130;

/// Shown by `--help`.
pub const TABLE: &str = "\
Exit codes:
    0  done
   64  usage: an argument, a setting or a mount of the pod is wrong
   65  integrity: bytes do not match their checksum or digest
   66  not found: no such bucket, prefix, object or model
   69  no daemon at the socket, or the origin could not be reached for too long
   70  a defect of larder
   74  disk: full, read-only, or failing
   75  busy: another larder-init writes to DEST
   77  denied: the origin refuses, or there are no credentials
  130  interrupted; the next call goes on from there
";

/// An error as the user reads it: one sentence, the next thing to try, and a code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What happened, to which object, and why.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// How the process ends; never 0.
    pub exit_code: u8,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(exit_code: u8, message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, exit_code }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}
