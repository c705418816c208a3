//! The few bytes of FUSE that the keeper speaks itself: the INIT handshake, which it answers once
//! for every daemon to come, and the copy of it with which a daemon greets its own library.
//!
//! Layouts and numbers are those of linux/fuse.h, ABI 7.45; integers are in the machine's order.

use crate::protocol::number;

const OPCODE_INIT: u32 = 26;
/// `sizeof(struct fuse_in_header)`.
const IN_HEADER_LEN: usize = 40;
/// `struct fuse_init_in` up to `flags`, all that there was before ABI 7.36.
const INIT_IN_LEN_MIN: usize = 16;
const INIT_IN_LEN: usize = 64;
/// `sizeof(struct fuse_out_header)` and of `struct fuse_init_out`.
const INIT_ANSWER_LEN: usize = 16 + 64;

const ABI_MAJOR: u32 = 7;
/// Passthrough and its `max_stack_depth` came with this one.
const ABI_MINOR: u32 = 40;
const MAX_WRITE: u32 = 1 << 20;
/// Of 4 KiB: a read of 1 MiB is one request.
const MAX_PAGES: u16 = 256;
/// Reads that wait for bytes still on their way count against it; past it they would hold up
/// reads of files that are complete.
const MAX_BACKGROUND: u16 = 4096;
const CONGESTION_THRESHOLD: u16 = MAX_BACKGROUND / 4 * 3;
const TIME_GRANULARITY_NS: u32 = 1;
/// Backing files may not lie on an overlay; in return a pod may put an overlay over the mount.
const MAX_STACK_DEPTH: u32 = 1;

/// `FUSE_INIT_EXT`: the upper half of the flags counts.
const INIT_EXT: u64 = 1 << 30;
/// `FUSE_PASSTHROUGH`: reads of a file with a backing id do not come to the daemon.
pub const PASSTHROUGH: u64 = 1 << 37;
/// What is asked for, where the kernel has it.
pub const WANTED: u64 = 1 << 0 // ASYNC_READ
    | 1 << 5 // BIG_WRITES: without it, requests stay at one page
    | 1 << 13 // DO_READDIRPLUS
    | 1 << 14 // READDIRPLUS_AUTO
    | 1 << 15 // ASYNC_DIO
    | 1 << 18 // PARALLEL_DIROPS
    | 1 << 22 // MAX_PAGES
    | 1 << 23 // CACHE_SYMLINKS
    | INIT_EXT
    | PASSTHROUGH
    | 1 << 39 // HAS_RESEND
    | 1 << 40; // ALLOW_IDMAP

/// `FUSE_NOTIFY_RESEND` (a `struct fuse_out_header`: its length, 7, no request). Written to the
/// descriptor, it makes the kernel hand out again what the daemon before this one had read and
/// not answered.
pub const RESEND: [u8; 16] = {
    let mut message = [0; 16];
    let (len, code) = (16u32.to_ne_bytes(), 7u32.to_ne_bytes());
    let mut at = 0;
    while at < 4 {
        message[at] = len[at];
        message[4 + at] = code[at];
        at += 1;
    }
    message
};

/// What the kernel offers in its INIT request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The number of the request.
    pub unique: u64,
    /// 7 for as long as anyone remembers.
    pub abi_major: u32,
    /// Of the kernel; both sides keep to the lower one.
    pub abi_minor: u32,
    /// Bytes.
    pub max_readahead: u32,
    /// Both halves.
    pub flags: u64,
}

/// What was agreed upon, for as long as the connection lives: its terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// As offered.
    pub abi_major: u32,
    /// As offered.
    pub abi_minor: u32,
    /// Those offered and wanted.
    pub flags: u64,
    /// As offered, in bytes.
    pub max_readahead: u32,
    /// Bytes.
    pub max_write: u32,
}

impl Agreed {
    /// As fields of a message.
    #[must_use]
    pub fn fields(&self) -> [String; 5] {
        [
            self.abi_major.to_string(),
            self.abi_minor.to_string(),
            format!("{:x}", self.flags),
            self.max_readahead.to_string(),
            self.max_write.to_string(),
        ]
    }

    /// From fields of a message. `None` if they are something else.
    #[must_use]
    pub fn parse(fields: &[&[u8]]) -> Option<Self> {
        let [abi_major, abi_minor, flags, max_readahead, max_write] = fields else { return None };
        Some(Self {
            abi_major: number(abi_major)?,
            abi_minor: number(abi_minor)?,
            flags: u64::from_str_radix(std::str::from_utf8(flags).ok()?, 16).ok()?,
            max_readahead: number(max_readahead)?,
            max_write: number(max_write)?,
        })
    }
}

impl Offer {
    /// Reads an INIT request. `None` if it is something else.
    #[must_use]
    pub fn parse(request: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(request.get(at..at + 4)?.try_into().ok()?));
        if word(0)? as usize != request.len()
            || word(4)? != OPCODE_INIT
            || request.len() < IN_HEADER_LEN + INIT_IN_LEN_MIN
        {
            return None;
        }
        let flags = u64::from(word(IN_HEADER_LEN + 12)?);
        let more = if flags & INIT_EXT == 0 { 0 } else { word(IN_HEADER_LEN + 16)? };
        Some(Self {
            unique: u64::from_ne_bytes(request.get(8..16)?.try_into().ok()?),
            abi_major: word(IN_HEADER_LEN)?,
            abi_minor: word(IN_HEADER_LEN + 4)?,
            max_readahead: word(IN_HEADER_LEN + 8)?,
            flags: flags | u64::from(more) << 32,
        })
    }

    /// What comes of it.
    #[must_use]
    pub fn agree(&self) -> Agreed {
        Agreed {
            abi_major: self.abi_major,
            abi_minor: self.abi_minor,
            flags: self.flags & WANTED,
            max_readahead: self.max_readahead,
            max_write: MAX_WRITE,
        }
    }

    /// The answer to the kernel: `struct fuse_out_header`, then `struct fuse_init_out`.
    #[must_use]
    pub fn answer(&self) -> Vec<u8> {
        let Agreed { flags, max_readahead, max_write, .. } = self.agree();
        let max_stack_depth = if flags & PASSTHROUGH == 0 { 0 } else { MAX_STACK_DEPTH };
        let mut answer = Vec::with_capacity(INIT_ANSWER_LEN);
        answer.extend((INIT_ANSWER_LEN as u32).to_ne_bytes());
        answer.extend(0u32.to_ne_bytes()); // no error
        answer.extend(self.unique.to_ne_bytes());
        for word in [ABI_MAJOR, ABI_MINOR, max_readahead, flags as u32] {
            answer.extend(word.to_ne_bytes());
        }
        answer.extend(MAX_BACKGROUND.to_ne_bytes());
        answer.extend(CONGESTION_THRESHOLD.to_ne_bytes());
        answer.extend(max_write.to_ne_bytes());
        answer.extend(TIME_GRANULARITY_NS.to_ne_bytes());
        answer.extend(MAX_PAGES.to_ne_bytes());
        answer.extend(0u16.to_ne_bytes()); // map_alignment, of DAX
        answer.extend(((flags >> 32) as u32).to_ne_bytes());
        answer.extend(max_stack_depth.to_ne_bytes());
        answer.resize(INIT_ANSWER_LEN, 0);
        answer
    }
}

/// An INIT request that offers exactly what the keeper has agreed upon with the kernel.
///
/// A FUSE library that insists on a handshake has it over a SEQPACKET socket pair into which the
/// daemon writes this; then the daemon puts the real descriptor in the place of the socket
/// (`dup3`). The answer on the other end is of no use to anyone.
#[must_use]
pub fn init_request(agreed: &Agreed) -> [u8; IN_HEADER_LEN + INIT_IN_LEN] {
    let mut request = [0; IN_HEADER_LEN + INIT_IN_LEN];
    request[8..16].copy_from_slice(&1u64.to_ne_bytes());
    let words = [
        (0, (IN_HEADER_LEN + INIT_IN_LEN) as u32),
        (4, OPCODE_INIT),
        (IN_HEADER_LEN, agreed.abi_major),
        (IN_HEADER_LEN + 4, agreed.abi_minor),
        (IN_HEADER_LEN + 8, agreed.max_readahead),
        (IN_HEADER_LEN + 12, agreed.flags as u32),
        (IN_HEADER_LEN + 16, (agreed.flags >> 32) as u32),
    ];
    for (at, word) in words {
        request[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    request
}
