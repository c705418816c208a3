//! The labels and all values each can have. A closed set: no source and no path is ever a label,
//! so nobody who asks for something can make the number of series grow.

/// A label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// All its values; none where the value is known only when the process runs.
    pub values: &'static [&'static str],
}

/// An enumeration whose members, cast to `usize`, are the places of their words in `LABEL.values`.
macro_rules! label {
    ($(#[$doc:meta])* $type:ident $name:literal { $($(#[$member_doc:meta])* $member:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $type {
            $($(#[$member_doc])* $member,)+
        }

        impl $type {
            pub(super) const LABEL: Label = Label { name: $name, values: &[$($word),+] };
        }
    };
}

label! {
    /// How a request for a model was answered.
    Outcome "outcome" {
        /// The model was here.
        Hit = "hit",
        /// It waited for a pull that another request had started.
        Join = "join",
        /// It started a pull.
        Pull = "pull",
        /// The origin could not be asked, and what was here was given.
        Stale = "stale",
        /// It may be read while it arrives.
        Lazy = "lazy",
        /// It failed.
        Error = "error",
    }
}

label! {
    /// Where bytes were found not to match their checksum or digest.
    Where "where" {
        /// On their way from the origin.
        Transfer = "transfer",
        /// On disk, when they were read again.
        Scrub = "scrub",
    }
}

label! {
    /// Why a request to the origin was sent again.
    Cause "cause" {
        /// The origin asked to slow down.
        Throttled = "throttled",
        /// The answer came too slowly.
        Stalled = "stalled",
        /// The bytes did not match the origin's checksum.
        Mismatch = "mismatch",
        /// Anything else: a connection cut, a server's error.
        Other = "other",
    }
}

label! {
    /// The socket a control request came to.
    Socket "socket" {
        /// The one that pods may ask.
        Use = "use",
        /// The one that may change what is kept.
        Admin = "admin",
    }
}

label! {
    /// Who connects.
    Listener "listener" {
        /// Pods, at the socket that they may ask.
        Use = "use",
        /// Administrators, at the socket that may change what is kept.
        Admin = "admin",
        /// Scrapes and probes.
        Scrape = "scrape",
        /// kubelet, for volumes.
        Csi = "csi",
        /// kubelet, to register the driver.
        Registration = "registration",
    }
}

impl Listener {
    /// As its label has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        Self::LABEL.values[self as usize]
    }
}

label! {
    /// Why a connection was ended here.
    Cut "why" {
        /// Another one needed its place.
        Displaced = "displaced",
        /// It was idle for too long.
        Silent = "silent",
        /// All others were at work, and there was no place for it.
        Refused = "refused",
    }
}

label! {
    /// The class of a control request's HTTP status.
    Code "code" {
        /// It was done.
        Success = "2xx",
        /// Whoever asked has to ask for something else, or later.
        Refusal = "4xx",
        /// The daemon, the origin or the disk failed.
        Failure = "5xx",
    }
}

label! {
    /// How a file of the mount was opened.
    How "how" {
        /// It is complete, and the kernel reads it by itself.
        Passthrough = "passthrough",
        /// It is complete, and the daemon reads it for the kernel.
        Cached = "cached",
        /// It was still arriving.
        Arriving = "arriving",
    }
}

label! {
    /// What is written to the cluster.
    Write "kind" {
        /// Labels of the own node.
        Labels = "labels",
        /// The startup taint of the own node, taken away.
        Taint = "taint",
        /// The own `NodeCache`.
        Status = "status",
        /// Events of pods whose models are on their way.
        Event = "event",
    }
}

label! {
    /// What came of a write to the cluster.
    Written "outcome" {
        /// It was done.
        Done = "done",
        /// This node may not, or what it writes to is not defined there.
        Refused = "refused",
        /// It failed, and is tried again.
        Failed = "failed",
    }
}

impl Code {
    /// The class of a status. The daemon sends neither 1xx nor 3xx; they would count as done.
    pub(super) fn of(status: u16) -> Self {
        match status {
            ..400 => Self::Success,
            400..500 => Self::Refusal,
            500.. => Self::Failure,
        }
    }
}

/// The version of larder, which only the process knows.
pub(super) const VERSION: Label = Label { name: "version", values: &[] };
