//! Checked lines: the one codec of everything textual in the store.
//!
//! A line is `<16 hex digits> <payload>\n`; the digits are the first 8 bytes of BLAKE3 of the
//! payload. A torn or flipped line fails its check and is dropped alone: newlines never occur
//! inside a payload, which is JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;

pub(super) const CHECK_LEN: usize = 16;

fn check(payload: &[u8]) -> [u8; CHECK_LEN] {
    let mut text = [0; CHECK_LEN];
    text.copy_from_slice(&blake3::hash(payload).to_hex().as_bytes()[..CHECK_LEN]);
    text
}

/// One checked line, newline included.
pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let payload = serde_json::to_vec(value).expect("records hold strings, numbers and lists only");
    let mut line = Vec::with_capacity(payload.len() + CHECK_LEN + 2);
    line.extend_from_slice(&check(&payload));
    line.push(b' ');
    line.extend_from_slice(&payload);
    line.push(b'\n');
    line
}

/// Reads one line back, without its newline. `None` when the check or the form is wrong.
pub(super) fn decode<T: DeserializeOwned>(line: &[u8]) -> Option<T> {
    let (head, payload) = line.split_at_checked(CHECK_LEN + 1)?;
    if head[CHECK_LEN] != b' ' || head[..CHECK_LEN] != check(payload) {
        return None;
    }
    serde_json::from_slice(payload).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_or_a_torn_tail_does_not_decode() {
        let line = encode(&vec!["a", "b\nc"]);
        let body = &line[..line.len() - 1];
        assert_eq!(decode::<Vec<String>>(body), Some(vec!["a".into(), "b\nc".into()]));
        for at in 0..body.len() {
            let mut bad = body.to_vec();
            bad[at] ^= 4;
            assert_eq!(decode::<Vec<String>>(&bad), None, "flip at {at}");
            assert_eq!(decode::<Vec<String>>(&body[..at]), None, "torn at {at}");
        }
    }
}
