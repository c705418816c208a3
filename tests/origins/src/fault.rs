//! What an origin does wrong, once.

use std::sync::Arc;
use std::time::Duration;

use crate::http::{Answer, Link, Way};

/// One misbehaviour, applied to one answer.
#[derive(Debug, Clone)]
pub enum Fault {
    /// An error answer: status, S3 error code, `Retry-After`.
    Refuse(u16, &'static str, Option<String>),
    /// The bucket is in that region.
    Elsewhere(&'static str),
    /// RST after that many bytes of the body.
    Reset(u64),
    /// A clean end after that many bytes of the body.
    Truncate(u64),
    /// Silence after that many bytes of the body.
    Stall(u64),
    /// No answer at all for that long.
    Late(Duration),
    /// That many bytes per second.
    Slow(u64),
    /// No faster than a link that others share.
    Shared(Arc<Link>),
    /// 206 with the `Content-Range` of another range.
    OtherRange,
    /// The right head and bytes from elsewhere in the object.
    OtherBytes,
    /// 200 with the whole object, range or not.
    Whole,
    /// The bit 0x10 of that byte of the body flipped.
    Flip(u64),
    /// More bytes than were asked for, under a right-looking head.
    TooMuch,
}

impl Fault {
    /// An `503 SlowDown` without `Retry-After`.
    #[must_use]
    pub const fn slow_down() -> Self {
        Self::Refuse(503, "SlowDown", None)
    }

    /// Spoils `answer`.
    #[must_use]
    pub(crate) fn spoil(&self, mut answer: Answer) -> Answer {
        let whole = answer.body.len();
        match self {
            Self::Refuse(status, code, retry_after) => {
                let body = format!(
                    "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>made by the fault origin</Message></Error>"
                );
                let refusal = Answer::new(*status, body).with("Content-Type", "application/xml");
                return match retry_after {
                    Some(value) => refusal.with("Retry-After", value),
                    None => refusal,
                };
            }
            Self::Elsewhere(region) => {
                let body = format!(
                    "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>PermanentRedirect</Code><Message>elsewhere</Message><Region>{region}</Region></Error>"
                );
                return Answer::new(301, body)
                    .with("Content-Type", "application/xml")
                    .with("x-amz-bucket-region", region);
            }
            Self::Reset(at) => answer.way = Way::Reset(*at),
            Self::Truncate(at) => answer.way = Way::End(*at),
            Self::Stall(at) => answer.way = Way::Stall(*at),
            Self::Slow(rate) => answer.way = Way::Slow(*rate),
            Self::Shared(link) => answer.link = Some(Arc::clone(link)),
            Self::Late(delay) => answer.delay = *delay,
            Self::Flip(at) => answer.flip = Some(*at),
            Self::OtherRange => {
                for (name, value) in &mut answer.headers {
                    if name.eq_ignore_ascii_case("content-range") {
                        let len = answer.range.as_ref().map_or(whole, ExactSizeIterator::len);
                        *value = format!("bytes {}-{}/{whole}", 7, 7 + len - 1);
                    }
                }
            }
            Self::OtherBytes => {
                answer.range = answer.range.map(|range| {
                    let shift = range.start.min(4096);
                    if shift == 0 && range.end < whole {
                        range.start + 1..range.end + 1
                    } else {
                        range.start - shift..range.end - shift
                    }
                });
            }
            Self::Whole => {
                answer.status = 200;
                answer.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("content-range"));
                answer.range = None;
            }
            Self::TooMuch => {
                answer.range = answer.range.map(|range| range.start..(range.end + 1000).min(whole));
            }
        }
        answer
    }
}
