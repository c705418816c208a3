//! What kubelet says as `:authority`, put right before an HTTP/2 library sees it.
//!
//! kubelets of many versions give the path of the socket there (kubernetes/kubernetes#109081). That
//! is no authority (RFC 3986, section 3.2), and libraries end such a request as malformed. Nobody
//! here reads it, so every one becomes `localhost`. For that nothing has to be decoded but lengths:
//! frames of HTTP/2 (RFC 9113, section 4.1) and header fields of HPACK (RFC 7541, section 6).
//!
//! A shorter value lets the reader's dynamic table keep old entries that the writer has dropped
//! already. They are the oldest, and the writer never speaks of them again.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// What a client sends first (RFC 9113, section 3.4).
const PREFACE_LEN: usize = 24;
const FRAME_HEAD_LEN: usize = 9;
/// Longer frames nobody has allowed kubelet to send: 16 KiB is what holds unless said otherwise.
const FRAME_LEN_MAX: usize = 16 << 10;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Of `:authority` in the static table (RFC 7541, appendix A).
const AUTHORITY: u64 = 1;
/// `localhost` as a string that is not Huffman-coded.
const LOCALHOST: &[u8] = b"\x09localhost";

/// Passes on what a client sends until it is done.
///
/// # Errors
/// Of either side; `InvalidData` for a frame that is longer than may be.
pub(super) async fn put_right(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut bytes = vec![0; PREFACE_LEN];
    from.read_exact(&mut bytes).await?;
    to.write_all(&bytes).await?;
    loop {
        let mut head = [0; FRAME_HEAD_LEN];
        match from.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return to.shutdown().await,
            read => read?,
        };
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if len > FRAME_LEN_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "kubelet sends a frame of more than 16 KiB"));
        }
        bytes.resize(len, 0);
        from.read_exact(&mut bytes).await?;
        if head[3] == HEADERS
            && let Some(right) = headers(head[4], &bytes)
            && let Ok(len) = u32::try_from(right.len())
        {
            head[..3].copy_from_slice(&len.to_be_bytes()[1..]);
            bytes = right;
        }
        to.write_all(&head).await?;
        to.write_all(&bytes).await?;
    }
}

/// The payload of a frame of headers with another authority; `None` where it stays as it is.
fn headers(flags: u8, payload: &[u8]) -> Option<Vec<u8>> {
    // A block that goes on in other frames is longer than any of kubelet's.
    if flags & END_HEADERS == 0 {
        return None;
    }
    let padding = if flags & PADDED == 0 { 0 } else { usize::from(*payload.first()?) };
    let start = usize::from(flags & PADDED != 0) + if flags & PRIORITY == 0 { 0 } else { 5 };
    let end = payload.len().checked_sub(padding)?;
    let block = rewritten(payload.get(start..end)?)?;
    Some([&payload[..start], &block, &payload[end..]].concat())
}

/// A block of header fields with another authority.
fn rewritten(block: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(block.len());
    let mut at = Cursor { bytes: block, at: 0 };
    while let Some(&first) = block.get(at.at) {
        let began = at.at;
        let (bits, is_literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let index = at.number(bits)?;
        if is_literal {
            if index == 0 {
                at.string()?;
            }
            let named = at.at;
            at.string()?;
            if index == AUTHORITY {
                out.extend_from_slice(&block[began..named]);
                out.extend_from_slice(LOCALHOST);
                continue;
            }
        }
        out.extend_from_slice(&block[began..at.at]);
    }
    Some(out)
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// An integer with a prefix of so many bits (RFC 7541, section 5.1).
    fn number(&mut self, bits: u32) -> Option<u64> {
        let full = (1_u64 << bits) - 1;
        let mut number = u64::from(self.byte()?) & full;
        if number < full {
            return Some(number);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            number += u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// Skips a string (RFC 7541, section 5.2).
    fn string(&mut self) -> Option<()> {
        let len = usize::try_from(self.number(7)?).ok()?;
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len())?;
        self.at = end;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `:method: POST`, `:authority` with that literal, a new name and value, an indexed name.
    fn block(authority: &[u8]) -> Vec<u8> {
        let mut block = vec![0x83, 0x41];
        block.push(u8::try_from(authority.len()).expect("short"));
        block.extend_from_slice(authority);
        block.extend_from_slice(b"\x40\x02te\x08trailers\x0f\x10\x03gzp\xbe");
        block
    }

    #[test]
    fn the_authority_alone_is_another() {
        let path = b"/var/lib/kubelet/plugins/csi.larder.dev/csi.sock";
        assert_eq!(rewritten(&block(path)), Some(block(b"localhost")));
        let payload = [&[0; 5][..], &block(path)].concat();
        assert_eq!(headers(END_HEADERS | PRIORITY, &payload), Some([&[0; 5][..], &block(b"localhost")].concat()));
        let payload = [&[2][..], &block(path), &[0, 0]].concat();
        let right = [&[2][..], &block(b"localhost"), &[0, 0]].concat();
        assert_eq!(headers(END_HEADERS | PADDED, &payload), Some(right));
        assert_eq!(headers(0, &block(path)), None);
        // A length of more than seven bits.
        let mut long = vec![0x01, 0x7f, 0x49];
        long.extend(vec![b'x'; 200]);
        assert_eq!(rewritten(&long), Some([&[0x01][..], LOCALHOST].concat()));
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "what the attribute makes of it")]
    async fn frames_go_by_in_order() {
        let frame = |kind: u8, flags: u8, payload: &[u8]| {
            let len = u8::try_from(payload.len()).expect("short");
            [&[0, 0, len, kind, flags, 0, 0, 0, 1][..], payload].concat()
        };
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let sent = [&preface[..], &frame(4, 0, &[]), &frame(1, 4, &block(b"/a/path")), &frame(0, 1, b"data")].concat();
        let right =
            [&preface[..], &frame(4, 0, &[]), &frame(1, 4, &block(b"localhost")), &frame(0, 1, b"data")].concat();
        let mut got = Vec::new();
        put_right(&sent[..], &mut got).await.expect("passed on");
        assert_eq!(got, right);
        let long = [&preface[..], &[0, 0x40, 1, 0, 0, 0, 0, 0, 1]].concat();
        assert!(put_right(&long[..], &mut Vec::new()).await.is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_passed_on_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..256), flags: u8) {
            if let Some(out) = headers(flags, &bytes) {
                prop_assert!(out.len() <= bytes.len() + LOCALHOST.len() * bytes.len());
            }
        }
    }
}
