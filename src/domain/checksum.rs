//! Checksums an origin keeps of its own, as opposed to our BLAKE3 digests.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// One checksum of a whole object, as bytes in the origin's order (big-endian for CRCs).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Checksum {
    /// CRC-64/NVME, the S3 default since December 2024.
    Crc64Nvme(u64),
    /// CRC-32C (Castagnoli): S3 on request, every object of GCS.
    Crc32c(u32),
    /// SHA-256 of the whole object (S3, single-part uploads).
    Sha256([u8; 32]),
    /// MD5: the ETag of a single-part S3 object, `md5Hash` on GCS.
    Md5([u8; 16]),
}

/// A CRC that can be taken chunk by chunk, in any order, and combined.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CrcKind {
    /// CRC-64/NVME.
    Crc64Nvme,
    /// CRC-32C.
    Crc32c,
}

impl Checksum {
    /// Which CRC it is, if it is one.
    #[must_use]
    pub const fn crc_kind(&self) -> Option<CrcKind> {
        match self {
            Self::Crc64Nvme(_) => Some(CrcKind::Crc64Nvme),
            Self::Crc32c(_) => Some(CrcKind::Crc32c),
            Self::Sha256(_) | Self::Md5(_) => None,
        }
    }

    /// The algorithm's usual name.
    #[must_use]
    pub const fn algorithm(&self) -> &'static str {
        match self {
            Self::Crc64Nvme(_) => "CRC64NVME",
            Self::Crc32c(_) => "CRC32C",
            Self::Sha256(_) => "SHA-256",
            Self::Md5(_) => "MD5",
        }
    }

    /// Base64 as S3 and GCS headers carry it (hex for MD5, as ETags do).
    #[must_use]
    pub fn value(&self) -> String {
        match self {
            Self::Crc64Nvme(crc) => STANDARD.encode(crc.to_be_bytes()),
            Self::Crc32c(crc) => STANDARD.encode(crc.to_be_bytes()),
            Self::Sha256(bytes) => STANDARD.encode(bytes),
            Self::Md5(bytes) => bytes.iter().map(|b| format!("{b:02x}")).collect(),
        }
    }

    /// Whether equality of this checksum proves equality of bytes even where one person made both
    /// files: CRCs and MD5 collide on demand.
    #[must_use]
    pub const fn is_proof(&self) -> bool {
        matches!(self, Self::Sha256(_))
    }

    /// Parses base64 of a big-endian CRC-64/NVME.
    #[must_use]
    pub fn crc64nvme_from_base64(text: &str) -> Option<Self> {
        Some(Self::Crc64Nvme(u64::from_be_bytes(STANDARD.decode(text).ok()?.try_into().ok()?)))
    }

    /// Parses base64 of a big-endian CRC-32C.
    #[must_use]
    pub fn crc32c_from_base64(text: &str) -> Option<Self> {
        Some(Self::Crc32c(u32::from_be_bytes(STANDARD.decode(text).ok()?.try_into().ok()?)))
    }

    /// Parses base64 of a SHA-256.
    #[must_use]
    pub fn sha256_from_base64(text: &str) -> Option<Self> {
        Some(Self::Sha256(STANDARD.decode(text).ok()?.try_into().ok()?))
    }

    /// Parses base64 of an MD5 (GCS `md5Hash`).
    #[must_use]
    pub fn md5_from_base64(text: &str) -> Option<Self> {
        Some(Self::Md5(STANDARD.decode(text).ok()?.try_into().ok()?))
    }

    /// Reads an ETag of 32 hex digits as MD5. Multi-part ETags (`...-N`) and others are not one.
    #[must_use]
    pub fn md5_from_etag(etag: &str) -> Option<Self> {
        let hex = etag.trim_matches('"');
        if hex.len() != 32 || !hex.is_ascii() {
            return None;
        }
        let mut bytes = [0; 16];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).ok()?;
        }
        Some(Self::Md5(bytes))
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.algorithm(), self.value())
    }
}

/// What an origin claims of one object.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Claims {
    /// Checksums of the whole object, each algorithm at most once.
    pub checksums: Vec<Checksum>,
    /// Whether an MD5 among them is only an ETag that looks like one. Some servers make ETags of
    /// the same shape from something else, so a mismatch of it is no proof of damage.
    pub md5_is_etag: bool,
}

impl Claims {
    /// The claim to check in flight: the cheapest that is sound, CRCs before sequential hashes.
    #[must_use]
    pub fn to_check(&self) -> Option<Checksum> {
        let rank = |sum: &Checksum| match sum {
            Checksum::Crc64Nvme(_) => 0,
            Checksum::Crc32c(_) => 1,
            Checksum::Sha256(_) => 2,
            Checksum::Md5(_) => 3,
        };
        self.checksums.iter().copied().min_by_key(rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_of_other_shapes_are_no_md5() {
        assert!(Checksum::md5_from_etag("\"d41d8cd98f00b204e9800998ecf8427e\"").is_some());
        assert!(Checksum::md5_from_etag("\"d41d8cd98f00b204e9800998ecf8427e-3\"").is_none());
        assert!(Checksum::md5_from_etag("\"65f1-1000\"").is_none());
        assert!(Checksum::md5_from_etag("").is_none());
        assert!(Checksum::md5_from_etag("\u{e9}".repeat(16).as_str()).is_none());
    }

    #[test]
    fn values_round_trip() {
        let crc = Checksum::Crc32c(0x1234_5678);
        assert_eq!(Checksum::crc32c_from_base64(&crc.value()), Some(crc));
        let crc = Checksum::Crc64Nvme(7);
        assert_eq!(Checksum::crc64nvme_from_base64(&crc.value()), Some(crc));
        let sha = Checksum::Sha256([9; 32]);
        assert_eq!(Checksum::sha256_from_base64(&sha.value()), Some(sha));
    }

    #[test]
    fn a_crc_is_checked_before_a_sequential_hash() {
        let claims = Claims { checksums: vec![Checksum::Md5([0; 16]), Checksum::Crc32c(1)], md5_is_etag: true };
        assert_eq!(claims.to_check(), Some(Checksum::Crc32c(1)));
    }
}
