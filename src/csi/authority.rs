//! What clients say as `:authority`, put right before an HTTP/2 library sees it.
//!
//! Over a unix socket there is none to name. kubelets of many versions give the socket's path
//! (kubernetes/kubernetes#109081), and gRPC's C core may percent-encode it. That is no authority (RFC
//! 3986, section 3.2), and libraries end such a request as malformed. Nobody here reads it, so every
//! one becomes the same letter. For that nothing has to be decoded but lengths: frames of HTTP/2 (RFC
//! 9113, section 4.1) and header fields of HPACK (RFC 7541, section 6), whose names come as an index
//! of either table or, from the C core, spelt out.
//!
//! A shorter value lets the reader's dynamic table keep old entries that the writer has dropped
//! already. They are the oldest, and the writer never speaks of them again.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a client sends first (RFC 9113, section 3.4).
const PREFACE_LEN: usize = 24;
const FRAME_HEAD_LEN: usize = 9;
/// Longer frames nobody has allowed a client to send: 16 KiB is what holds unless said otherwise.
const FRAME_LEN_MAX: usize = 16 << 10;
/// Bytes of all frames of one block of header fields; a library takes 16 KiB.
const BLOCK_LEN_MAX: usize = 32 << 10;
/// Entries of a dynamic table of 4 KiB, the most that is allowed unless said otherwise.
const TABLE_LEN_MAX: usize = 128;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_LEN: usize = 5;
/// Of `:authority` in the static table (RFC 7541, appendix A).
const AUTHORITY: u64 = 1;
/// The first index of the dynamic table.
const DYNAMIC: u64 = 62;
/// `:authority` as it is, and Huffman-coded (RFC 7541, appendix B).
const NAMES: [(bool, &[u8]); 2] = [(false, b":authority"), (true, b"\xb8\x3b\x53\x39\xec\x32\x7d\x7f")];
/// What becomes of every one: the shortest authority that there is, as a string. The reader's table is
/// never fuller than the writer's.
const RIGHT: &[u8] = b"\x01x";
/// A literal that nobody remembers, under the name that the static table has.
const RIGHT_OF_STATIC: &[u8] = b"\x01\x01x";
/// Read at once.
const READ_LEN: usize = 8 << 10;

/// Bytes of a client, with every authority put right. Knows no I/O.
#[derive(Debug)]
pub(super) struct Corrector {
    /// Bytes that go by as they are.
    passing: usize,
    /// The beginning of a frame that is looked at: its head, or all of it.
    held: Vec<u8>,
    block: Option<Block>,
    names: Names,
}

/// Header fields that go on in the next frame.
#[derive(Debug)]
struct Block {
    flags: u8,
    stream: [u8; 4],
    priority: Vec<u8>,
    fields: Vec<u8>,
    /// Bytes of its frames, those without a field among them.
    len: usize,
}

impl Corrector {
    pub(super) fn new() -> Self {
        Self { passing: PREFACE_LEN, held: Vec::new(), block: None, names: Names::default() }
    }

    /// Takes what a client has sent, and adds what may be read of it to `out`.
    ///
    /// # Errors
    /// `InvalidData` for header fields that are longer than may be, or torn.
    pub(super) fn take(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.passing > 0 {
                let (now, later) = bytes.split_at(self.passing.min(bytes.len()));
                out.extend_from_slice(now);
                self.passing -= now.len();
                bytes = later;
                continue;
            }
            let wanted = self.wanted()?;
            let (now, later) = bytes.split_at((wanted - self.held.len()).min(bytes.len()));
            self.held.extend_from_slice(now);
            bytes = later;
            if self.held.len() == self.wanted()? {
                self.frame(out)?;
            }
        }
        Ok(())
    }

    /// How much of the frame has to be held: its head, and what it carries where it is looked at.
    fn wanted(&self) -> io::Result<usize> {
        let Some((head, _)) = self.held.split_first_chunk::<FRAME_HEAD_LEN>() else { return Ok(FRAME_HEAD_LEN) };
        match length(*head) {
            len if len > FRAME_LEN_MAX => Err(wrong("a frame of more than 16 KiB")),
            _ if head[3] != HEADERS && self.block.is_none() => Ok(FRAME_HEAD_LEN),
            len => Ok(FRAME_HEAD_LEN + len),
        }
    }

    /// A frame, or its head.
    fn frame(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        let Some((head, payload)) = held.split_first_chunk::<FRAME_HEAD_LEN>() else { return Ok(()) };
        let &[_, _, _, kind, flags, ref stream @ ..] = head;
        let mut block = match (kind, self.block.take()) {
            (CONTINUATION, Some(block)) if block.stream == *stream => Block { flags: block.flags | flags, ..block },
            (_, Some(_)) => return Err(wrong("another frame in the middle of header fields")),
            (HEADERS, None) => {
                let Some((priority, fields)) = parts(flags, payload) else {
                    // The library says what is wrong with it.
                    out.extend_from_slice(&held);
                    return Ok(());
                };
                let (priority, fields) = (priority.to_vec(), fields.to_vec());
                let len = held.len();
                self.go_on(Block { flags: flags & !PADDED, stream: *stream, priority, fields, len }, out);
                return Ok(());
            }
            (_, None) => {
                self.passing = length(*head);
                out.extend_from_slice(head);
                return Ok(());
            }
        };
        block.len += held.len();
        if block.len > BLOCK_LEN_MAX {
            return Err(wrong("header fields of more than 32 KiB"));
        }
        block.fields.extend_from_slice(payload);
        self.go_on(block, out);
        Ok(())
    }

    /// Waits for the rest of a block, or passes it on.
    fn go_on(&mut self, mut block: Block, out: &mut Vec<u8>) {
        if block.flags & END_HEADERS == 0 {
            self.block = Some(block);
            return;
        }
        if let Some(right) = self.names.rewritten(&block.fields) {
            block.fields = right;
        }
        block.write(out);
    }
}

impl Block {
    /// In as few frames as hold it.
    fn write(&self, out: &mut Vec<u8>) {
        let (first, mut rest) = self.fields.split_at(self.fields.len().min(FRAME_LEN_MAX - self.priority.len()));
        let end = |rest: &[u8]| if rest.is_empty() { END_HEADERS } else { 0 };
        self.frame(HEADERS, self.flags & !END_HEADERS | end(rest), &[&self.priority, first], out);
        while !rest.is_empty() {
            let next;
            (next, rest) = rest.split_at(rest.len().min(FRAME_LEN_MAX));
            self.frame(CONTINUATION, end(rest), &[next], out);
        }
    }

    fn frame(&self, kind: u8, flags: u8, payload: &[&[u8]], out: &mut Vec<u8>) {
        let len: usize = payload.iter().map(|part| part.len()).sum();
        // At most 16 KiB: two bytes hold it.
        let [.., high, low] = len.to_be_bytes();
        out.extend_from_slice(&[0, high, low, kind, flags]);
        out.extend_from_slice(&self.stream);
        payload.iter().for_each(|part| out.extend_from_slice(part));
    }
}

fn length(head: [u8; FRAME_HEAD_LEN]) -> usize {
    u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the client sends {what}"))
}

/// Priority and header fields of a frame of headers, without its padding.
fn parts(flags: u8, payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let (padding, rest) = if flags & PADDED == 0 {
        (0, payload)
    } else {
        let (padding, rest) = payload.split_first()?;
        (usize::from(*padding), rest)
    };
    let rest = rest.get(..rest.len().checked_sub(padding)?)?;
    rest.split_at_checked(if flags & PRIORITY == 0 { 0 } else { PRIORITY_LEN })
}

/// Which entries of the writer's dynamic table are called `:authority`, the newest first. Those that
/// it has dropped stay until there are too many: nobody speaks of them.
#[derive(Debug, Default)]
struct Names(VecDeque<bool>);

impl Names {
    fn is_authority(&self, index: u64) -> bool {
        let dynamic = index.checked_sub(DYNAMIC).and_then(|index| usize::try_from(index).ok());
        index == AUTHORITY || dynamic.and_then(|index| self.0.get(index)) == Some(&true)
    }

    fn add(&mut self, is_authority: bool) {
        self.0.push_front(is_authority);
        self.0.truncate(TABLE_LEN_MAX);
    }

    /// A block of header fields with another authority; `None` for what is none.
    fn rewritten(&mut self, block: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(block.len());
        let mut at = Cursor { bytes: block, at: 0 };
        while let Some(&first) = block.get(at.at) {
            let began = at.at;
            // An index, a literal that is remembered, another size of the table, other literals.
            let (bits, is_literal, is_remembered) = match first {
                0x80.. => (7, false, false),
                0x40.. => (6, true, true),
                0x20.. => (5, false, false),
                _ => (4, true, false),
            };
            let index = at.number(bits)?;
            if is_literal {
                let is_authority = if index == 0 { NAMES.contains(&at.string()?) } else { self.is_authority(index) };
                let named = at.at;
                let (_, value) = at.string()?;
                if is_remembered {
                    self.add(is_authority);
                }
                // An entry that is longer than the writer's would push out others that it still has.
                if is_authority && !(is_remembered && value.is_empty()) {
                    out.extend_from_slice(&block[began..named]);
                    out.extend_from_slice(RIGHT);
                    continue;
                }
            } else if first >= 0x80 && index == AUTHORITY {
                // The one of the static table is empty.
                out.extend_from_slice(RIGHT_OF_STATIC);
                continue;
            }
            out.extend_from_slice(&block[began..at.at]);
        }
        Some(out)
    }
}

/// A connection whose client says what may be read.
#[derive(Debug)]
pub(super) struct Corrected<S> {
    stream: S,
    corrector: Corrector,
    /// What may be read, from `read` on.
    right: Vec<u8>,
    read: usize,
}

impl<S> Corrected<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, corrector: Corrector::new(), right: Vec::new(), read: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corrected<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.read == this.right.len() {
            let mut bytes = [0; READ_LEN];
            let mut got = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut got))?;
            if got.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.right.clear();
            this.read = 0;
            this.corrector.take(got.filled(), &mut this.right)?;
        }
        let right = &this.right[this.read..];
        let len = right.len().min(buf.remaining());
        buf.put_slice(&right[..len]);
        this.read += len;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corrected<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
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

    /// A string, and whether it is Huffman-coded (RFC 7541, section 5.2).
    fn string(&mut self) -> Option<(bool, &'a [u8])> {
        let is_coded = self.bytes.get(self.at)? & 0x80 != 0;
        let len = usize::try_from(self.number(7)?).ok()?;
        let end = self.at.checked_add(len)?;
        let string = self.bytes.get(self.at..end)?;
        self.at = end;
        Some((is_coded, string))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn string(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).expect("short")][..], text].concat()
    }

    /// `:method: POST`, `:authority` with that literal, a new name and value, an indexed name.
    fn block(authority: &[u8]) -> Vec<u8> {
        [&[0x83, 0x41], &string(authority)[..], b"\x40\x02te\x08trailers\x0f\x10\x03gzp\xbe"].concat()
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let [.., high, low] = payload.len().to_be_bytes();
        [&[0, high, low, kind, flags, 0, 0, 0, 1][..], payload].concat()
    }

    fn corrected(sent: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Corrector::new().take(sent, &mut out)?;
        Ok(out)
    }

    fn after_preface(frames: &[Vec<u8>]) -> Vec<u8> {
        [PREFACE, &frames.concat()].concat()
    }

    #[test]
    fn the_authority_alone_is_another() {
        let rewritten = |block: &[u8]| Names::default().rewritten(block);
        let path = b"/var/lib/kubelet/plugins/csi.larder.dev/csi.sock";
        assert_eq!(rewritten(&block(path)), Some(block(b"x")));
        // A length of more than seven bits.
        let mut long = vec![0x01, 0x7f, 0x49];
        long.extend(vec![b'x'; 200]);
        assert_eq!(rewritten(&long), Some([&[0x01][..], RIGHT].concat()));
        // An empty one, where nobody remembers it: the library says what is wrong with the other.
        assert_eq!(rewritten(&[0x83, 0x01, 0x00]), Some([&[0x83, 0x01][..], RIGHT].concat()));
        assert_eq!(rewritten(&[0x83, 0x41, 0x00]), Some(vec![0x83, 0x41, 0x00]));
        // The static table's own, which is empty.
        assert_eq!(rewritten(&[0x83, 0x81]), Some([&[0x83, 0x01][..], RIGHT].concat()));
    }

    /// gRPC's C core spells the name out, remembers it, and speaks of the entry in later calls.
    #[test]
    fn a_name_that_is_spelt_out_is_known_and_remembered() {
        for (is_coded, name) in NAMES {
            let mut named = string(name);
            named[0] |= u8::from(is_coded) << 7;
            for kind in [0x40, 0x00, 0x10] {
                let literal = [&[kind][..], &named, &string(b"tmp%2Fcsi.sock")].concat();
                let right = [&[kind][..], &named, RIGHT].concat();
                assert_eq!(Names::default().rewritten(&literal), Some(right), "{kind:#x} {name:?}");
            }
            let mut names = Names::default();
            let first = [&[0x40][..], &named, &string(b"%2Fa"), b"\x40\x02te\x08trailers"].concat();
            names.rewritten(&first).expect("a block");
            // Behind `te` by now; with a new value, and as it was.
            let second = [&[0x0f, 48][..], &string(b"%2Fb"), &[0xbf, 0x3f, 0xe1, 0x1f]].concat();
            assert_eq!(names.rewritten(&second), Some([&[0x0f, 48][..], RIGHT, &[0xbf, 0x3f, 0xe1, 0x1f]].concat()));
        }
    }

    #[test]
    fn frames_go_by_in_order() {
        let sent = |authority: &[u8]| {
            let headers = [
                frame(HEADERS, END_HEADERS, &block(authority)),
                frame(HEADERS, END_HEADERS | PRIORITY, &[&[7; 5][..], &block(authority)].concat()),
            ];
            after_preface(&[frame(4, 0, &[]), headers.concat(), frame(0, 1, b"data")])
        };
        assert_eq!(corrected(&sent(b"/a/path")).expect("passed on"), sent(b"x"));
        let padded = after_preface(&[frame(
            HEADERS,
            END_HEADERS | PADDED | PRIORITY,
            &[&[2][..], &[7; 5], &block(b"/a/path"), &[0, 0]].concat(),
        )]);
        let right = after_preface(&[frame(HEADERS, END_HEADERS | PRIORITY, &[&[7; 5][..], &block(b"x")].concat())]);
        assert_eq!(corrected(&padded).expect("passed on"), right);
        let long = after_preface(&[vec![0, 0x40, 1, HEADERS, 0, 0, 0, 0, 1]]);
        assert!(corrected(&long).is_err());
    }

    #[test]
    fn header_fields_in_several_frames_are_one_block() {
        let fields = block(b"/a/path");
        for cut in 0..fields.len() {
            let (first, second) = fields.split_at(cut);
            let sent = after_preface(&[
                frame(HEADERS, 1, first),
                frame(CONTINUATION, 0, &[]),
                frame(CONTINUATION, END_HEADERS, second),
                frame(0, 1, b"data"),
            ]);
            let right = after_preface(&[frame(HEADERS, END_HEADERS | 1, &block(b"x")), frame(0, 1, b"data")]);
            assert_eq!(corrected(&sent).expect("passed on"), right, "cut at {cut}");
        }
        // What does not fit one frame goes on in another again.
        let long = [&[0x40, 0x01, b'a', 0x7f, 0xb1, 0x7f][..], &vec![b'v'; 16_432]].concat();
        let fields = [block(b"/a/path"), long.clone()].concat();
        let (first, second) = fields.split_at(FRAME_LEN_MAX);
        let sent = after_preface(&[frame(HEADERS, 0, first), frame(CONTINUATION, END_HEADERS, second)]);
        let fields = [block(b"x"), long].concat();
        let (first, second) = fields.split_at(FRAME_LEN_MAX);
        let right = after_preface(&[frame(HEADERS, 0, first), frame(CONTINUATION, END_HEADERS, second)]);
        assert_eq!(corrected(&sent).expect("passed on"), right);
        // Without end, or with something in between.
        let endless = [vec![frame(HEADERS, 0, &[])], vec![frame(CONTINUATION, 0, &[]); BLOCK_LEN_MAX / 9]].concat();
        assert!(corrected(&after_preface(&endless)).is_err());
        assert!(corrected(&after_preface(&[frame(HEADERS, 0, first), frame(0, 0, b"data")])).is_err());
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "what the attribute makes of it")]
    async fn both_ends_are_those_of_the_stream() {
        let sent = after_preface(&[frame(HEADERS, END_HEADERS, &block(b"/a/path"))]);
        let mut got = Vec::new();
        Corrected::new(tokio::io::join(&sent[..], tokio::io::sink())).read_to_end(&mut got).await.expect("read");
        assert_eq!(got, after_preface(&[frame(HEADERS, END_HEADERS, &block(b"x"))]));
        let error = Corrected::new(reset_stream()).read_to_end(&mut Vec::new()).await.expect_err("reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    /// A stream that its client has reset.
    fn reset_stream() -> impl AsyncRead + AsyncWrite + Unpin {
        struct Reset;
        impl AsyncRead for Reset {
            fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
        }
        tokio::io::join(Reset, tokio::io::sink())
    }

    proptest! {
        #[test]
        fn any_bytes_are_passed_on_or_refused(
            frames in prop::collection::vec((0_u8..12, any::<u8>(), prop::collection::vec(any::<u8>(), 0..64)), 0..8),
            cut in 1_usize..40,
        ) {
            let frames: Vec<Vec<u8>> = frames.iter().map(|(kind, flags, payload)| frame(*kind, *flags, payload)).collect();
            let sent = after_preface(&frames);
            let whole = corrected(&sent);
            // However it arrives.
            let (mut corrector, mut out) = (Corrector::new(), Vec::new());
            let pieces = sent.chunks(cut).try_for_each(|piece| corrector.take(piece, &mut out));
            prop_assert_eq!(whole.is_ok(), pieces.is_ok());
            if let Ok(whole) = whole {
                prop_assert_eq!(&whole, &out);
                prop_assert!(out.len() <= 3 * sent.len());
            }
        }
    }
}
