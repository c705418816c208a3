//! One value, from TOML or from a variable, to what it means; and how a wrong one is shown.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::problem::Wrong;
use super::{LogFormat, MountAt};

/// What fits `sockaddr_un` with its closing zero byte.
pub(super) const SOCKET_LEN_MAX: usize = 107;
const PATH_LEN_MAX: usize = 4095;
/// Filters, regions and globs; more is no sensible one and costs to compile.
pub(super) const TEXT_LEN_MAX: usize = 1024;
/// Of a DNS subdomain (RFC 1123), as Kubernetes names objects.
const NODE_LEN_MAX: usize = 253;
/// Characters of a wrong value that are shown.
const SHOWN_LEN_MAX: usize = 80;

/// A value before it means anything.
#[derive(Debug, Clone, Copy)]
pub(super) enum Raw<'a> {
    /// From the file.
    Toml(&'a Spanned<DeValue<'a>>),
    /// From the environment.
    Text(&'a str),
}

impl<'a> Raw<'a> {
    fn text(self) -> Option<&'a str> {
        match self {
            Self::Toml(value) => value.get_ref().as_str(),
            Self::Text(text) => Some(text),
        }
    }

    /// The value in a form in which a number and the text of it are the same.
    fn scalar(self) -> Option<String> {
        match self {
            Self::Toml(value) => match value.get_ref() {
                DeValue::String(text) => Some(text.trim().to_owned()),
                DeValue::Integer(number) => Some(number.to_string()),
                _ => None,
            },
            Self::Text(text) => Some(text.trim().to_owned()),
        }
    }

    /// `is 12`.
    fn is(self) -> String {
        format!("is {}", self.shown())
    }

    fn shown(self) -> String {
        match self {
            Self::Text(text) => shown(text),
            Self::Toml(value) => match value.get_ref() {
                DeValue::String(text) => shown(text),
                DeValue::Integer(number) => shown(&number.to_string()),
                DeValue::Float(number) => shown(&number.to_string()),
                DeValue::Boolean(truth) => truth.to_string(),
                DeValue::Datetime(time) => shown(&time.to_string()),
                DeValue::Array(_) => "a list".to_owned(),
                DeValue::Table(_) => "a table".to_owned(),
            },
        }
    }

    fn wrong(self) -> Wrong {
        Wrong::form(self.is())
    }

    fn because(self, want: impl Into<String>) -> Wrong {
        Wrong::because(self.is(), want)
    }
}

/// A wrong text as it may be shown: short, without what could be a password or a token.
pub(super) fn shown(text: &str) -> String {
    let (keys, authority) = match text.split_once("://") {
        // Keys and file names may have any character in them.
        Some(("s3" | "gs" | "file", rest)) => (true, rest.split('/').next().unwrap_or_default()),
        _ => (false, text),
    };
    if authority.contains('@') {
        return "a text with an `@` in it, which is not shown because it may hold a password".to_owned();
    }
    let query = text.find(['?', '#']).filter(|_| !keys && text.contains("://"));
    let seen = query.map_or(text, |at| &text[..at]);
    let mut short: String = seen.chars().take(SHOWN_LEN_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("`{}`", short.chars().map(visible).collect::<String>())
}

fn visible(c: char) -> String {
    if c.is_control() { c.escape_default().to_string() } else { c.to_string() }
}

/// `true` or `false`; a variable has it as text, the file must not.
pub(super) fn boolean(raw: Raw<'_>) -> Result<bool, Wrong> {
    let truth = match raw {
        Raw::Toml(value) => value.get_ref().as_bool(),
        Raw::Text(text) => text.trim().parse().ok(),
    };
    truth.ok_or_else(|| raw.wrong())
}

/// `80` or `80%`.
pub(super) fn percent(raw: Raw<'_>, range: RangeInclusive<u8>) -> Result<u8, Wrong> {
    let scalar = raw.scalar().ok_or_else(|| raw.wrong())?;
    let number = scalar.strip_suffix('%').unwrap_or(&scalar).trim_end();
    digits(number).and_then(|n| u8::try_from(n).ok()).filter(|n| range.contains(n)).ok_or_else(|| raw.wrong())
}

/// `500ms`, `10s`, `2m` or `2min`, `1h`; nothing else has a unit that everybody reads alike.
pub(super) fn duration(raw: Raw<'_>, range: RangeInclusive<Duration>) -> Result<Duration, Wrong> {
    let scalar = raw.scalar().ok_or_else(|| raw.wrong())?;
    let (number, unit) = split_unit(&scalar);
    let number = digits(number).ok_or_else(|| raw.wrong())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "" if number == 0 => 1,
        "" => return Err(raw.because("the unit is missing: want 500ms, 10s, 2m or 1h")),
        _ => return Err(raw.wrong()),
    };
    let duration = number.checked_mul(millis).map(Duration::from_millis);
    duration.filter(|duration| range.contains(duration)).ok_or_else(|| raw.wrong())
}

/// `32MiB`, `1GiB`, `0`, with or without `/s`; without a unit it is bytes.
pub(super) fn size(raw: Raw<'_>) -> Result<u64, Wrong> {
    let scalar = raw.scalar().ok_or_else(|| raw.wrong())?;
    let (number, unit) = split_unit(scalar.strip_suffix("/s").unwrap_or(&scalar));
    let number = digits(number).ok_or_else(|| raw.wrong())?;
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(raw.wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(|| raw.wrong())
}

fn split_unit(text: &str) -> (&str, &str) {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (&text[..at], text[at..].trim())
}

/// A whole number without a sign: `u64::from_str` takes `+5`.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// An absolute path.
pub(super) fn path(raw: Raw<'_>) -> Result<PathBuf, Wrong> {
    let text = raw.text().ok_or_else(|| raw.wrong())?;
    if !Path::new(text).is_absolute() {
        return Err(raw.wrong());
    }
    if text.len() > PATH_LEN_MAX || text.chars().any(char::is_control) {
        return Err(raw.because("want a path of at most 4095 bytes without control characters"));
    }
    Ok(text.into())
}

/// Where models are mounted, if they are.
pub(super) fn mount(raw: Raw<'_>) -> Result<Option<MountAt>, Wrong> {
    match raw.text().ok_or_else(|| raw.wrong())?.strip_prefix("keeper:") {
        Some(path) => socket(Raw::Text(path)).map(|path| Some(MountAt::Keeper(path))).map_err(|_| raw.wrong()),
        None if raw.text() == Some("") => Ok(None),
        None => path(raw).map(|path| Some(MountAt::Directory(path))),
    }
}

/// The path of a socket.
pub(super) fn socket(raw: Raw<'_>) -> Result<PathBuf, Wrong> {
    let path = path(raw)?;
    if path.as_os_str().len() > SOCKET_LEN_MAX {
        return Err(raw.because("too long: the kernel takes at most 107 bytes as the path of a socket"));
    }
    Ok(path)
}

/// `ip:port`, or nothing.
pub(super) fn address(raw: Raw<'_>) -> Result<Option<SocketAddr>, Wrong> {
    let text = raw.text().ok_or_else(|| raw.wrong())?.trim();
    if matches!(text, "" | "none") {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| match text.strip_prefix(':').and_then(digits) {
        Some(port) => raw.because(format!("the address is missing: want 0.0.0.0:{port} for all of them")),
        None => raw.wrong(),
    })
}

/// The name of a node, which is a subdomain of DNS, or nothing.
pub(super) fn node(raw: Raw<'_>) -> Result<Option<String>, Wrong> {
    let text = raw.text().ok_or_else(|| raw.wrong())?;
    let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    if text.len() > NODE_LEN_MAX || !text.chars().all(named) {
        return Err(raw.wrong());
    }
    Ok(Some(text.to_owned()).filter(|text| !text.is_empty()))
}

/// The name of a region, or nothing.
pub(super) fn region(raw: Raw<'_>) -> Result<Option<String>, Wrong> {
    let text = raw.text().ok_or_else(|| raw.wrong())?;
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if text.len() > TEXT_LEN_MAX || !text.chars().all(named) {
        return Err(raw.wrong());
    }
    Ok(Some(text.to_owned()).filter(|text| !text.is_empty()))
}

/// A base URL without secrets, or nothing. `remote` refuses the same when a source is opened; here
/// it is said before the daemon starts.
pub(super) fn endpoint(raw: Raw<'_>) -> Result<Option<String>, Wrong> {
    let text = raw.text().ok_or_else(|| raw.wrong())?;
    if text.is_empty() {
        return Ok(None);
    }
    if text.contains('@') {
        return Err(raw.because(
            "larder keeps endpoints on disk: want http://host:port or https://host, and credentials by the credential chain",
        ));
    }
    let plain = text.len() <= TEXT_LEN_MAX && !text.contains(['?', '#']) && !text.chars().any(char::is_control);
    let base = |url: url::Url| matches!(url.scheme(), "http" | "https") && url.has_host();
    // The libraries take it for a `Uri`, which knows no blanks and no letters beyond ASCII.
    if !plain || !url::Url::parse(text).is_ok_and(base) || text.parse::<http::Uri>().is_err() {
        return Err(raw.wrong());
    }
    Ok(Some(text.to_owned()))
}

/// A tracing filter, without blanks beside its commas: the parser cuts what begins with one in the
/// wrong places, and panics if that is inside a character.
pub(super) fn filter(raw: Raw<'_>) -> Result<String, Wrong> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let text = raw.text().ok_or_else(|| raw.wrong())?;
    let filter = text.split(',').map(str::trim).collect::<Vec<_>>().join(",");
    // A word alone that is no level is taken for the name of a target, and nothing else is logged.
    let word = !filter.contains(['=', ',', '[', ':']);
    if text.len() > TEXT_LEN_MAX || (word && !LEVELS.iter().any(|level| filter.eq_ignore_ascii_case(level))) {
        return Err(raw.wrong());
    }
    match tracing_subscriber::EnvFilter::builder().parse(&filter) {
        Ok(_) => Ok(filter),
        Err(_) => Err(raw.wrong()),
    }
}

/// `text` or `json`.
pub(super) fn log_format(raw: Raw<'_>) -> Result<LogFormat, Wrong> {
    let formats = [LogFormat::Text, LogFormat::Json];
    let text = raw.text().ok_or_else(|| raw.wrong())?;
    formats.into_iter().find(|format| format.as_str() == text).ok_or_else(|| raw.wrong())
}

/// The texts of a list with where each begins, and what else is in it. In a variable there are
/// commas between them.
pub(super) fn list(raw: Raw<'_>) -> (Vec<(Option<usize>, &str)>, Vec<Wrong>) {
    let value = match raw {
        Raw::Text(text) => return (text.split(',').map(|item| (None, item.trim())).collect(), Vec::new()),
        Raw::Toml(value) => value,
    };
    let Some(items) = value.get_ref().as_array() else { return (Vec::new(), vec![raw.wrong()]) };
    let mut texts = Vec::new();
    let mut wrong = Vec::new();
    for item in items {
        let at = Some(item.span().start);
        match item.get_ref().as_str() {
            Some(text) => texts.push((at, text)),
            None => wrong.push(Wrong::form(format!("has {} in it", Raw::Toml(item).shown())).at(at)),
        }
    }
    (texts, wrong)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANY: RangeInclusive<Duration> = Duration::ZERO..=Duration::MAX;

    #[test]
    fn durations() {
        let read = |text| duration(Raw::Text(text), ANY).ok();
        assert_eq!(read("10s"), Some(Duration::from_secs(10)));
        assert_eq!(read(" 2 m "), Some(Duration::from_mins(2)));
        assert_eq!(read("2min"), Some(Duration::from_mins(2)));
        assert_eq!(read("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(read("1h"), Some(Duration::from_hours(1)));
        assert_eq!(read("0"), Some(Duration::ZERO));
        for text in ["", "s", "10", "1.5s", "-1s", "+1s", "1d", "10 s s", "99999999999999999h", "1e3s"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert!(duration(Raw::Text("10"), ANY).expect_err("no unit").sentence("x", "").contains("unit is missing"));
    }

    #[test]
    fn sizes() {
        let read = |text| size(Raw::Text(text)).ok();
        assert_eq!(read("32MiB"), Some(32 << 20));
        assert_eq!(read("1 GiB/s"), Some(1 << 30));
        assert_eq!(read("0"), Some(0));
        assert_eq!(read("512"), Some(512));
        for text in ["", "MiB", "32MB", "32Mi", "1.5GiB", "-1", "20000000TiB", "99999999999999999999"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn percents_addresses_and_switches() {
        let read = |text| percent(Raw::Text(text), 1..=99).ok();
        assert_eq!((read("80"), read("80%"), read("80 %")), (Some(80), Some(80), Some(80)));
        assert_eq!((read("0"), read("100"), read("256"), read("0.8"), read("%")), (None, None, None, None, None));
        let read = |text| address(Raw::Text(text)).ok();
        assert_eq!((read(""), read("none")), (Some(None), Some(None)));
        assert_eq!(read("[::]:9464").flatten().map(|address| address.port()), Some(9464));
        assert_eq!((read("localhost:9464"), read("9464"), read(":9464")), (None, None, None));
        let read = |text| boolean(Raw::Text(text)).ok();
        assert_eq!((read("true"), read("false"), read("yes"), read("1")), (Some(true), Some(false), None, None));
    }

    #[test]
    fn filters() {
        let read = |text| filter(Raw::Text(text)).ok();
        for text in ["info", "WARN", "off", "larder=debug", "larder::fetch=trace,warn", "larder[pull]=debug"] {
            assert_eq!(read(text).as_deref(), Some(text));
        }
        assert_eq!(read(" info , larder=debug").as_deref(), Some("info,larder=debug"));
        assert_eq!(read(" a𐖔="), Some("a𐖔=".to_owned()), "no panic");
        for text in ["", "verbose", "inof", "larder=loud", "larder=debug,=,["] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        for text in [
            "https://u:S3CR3T@host",
            "u:S3CR3T@host",
            "https://u:S3C/S3CR3T@host",
            "s3://k:S3CR3T@bucket/",
            "https://host/f?token=S3CR3T",
            "https://host/f#S3CR3T",
        ] {
            assert!(!shown(text).contains("S3CR3T"), "{}", shown(text));
            let told = endpoint(Raw::Text(text)).expect_err("refused").sentence("endpoint_url", "a URL");
            assert!(!told.contains("S3CR3T"), "{told}");
        }
        assert_eq!(shown("s3://b/who?@home"), "`s3://b/who?@home`");
        assert_eq!(shown("a\nb"), "`a\\nb`");
        assert_eq!(shown(&"x".repeat(200)), format!("`{}…`", "x".repeat(80)));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_in_one_line(text in any::<String>()) {
            let raw = Raw::Text(&text);
            let wrongs = [
                boolean(raw).err(), percent(raw, 1..=99).err(), duration(raw, ANY).err(), size(raw).err(),
                path(raw).err(), socket(raw).err(), address(raw).err(), region(raw).err(), node(raw).err(), endpoint(raw).err(),
                filter(raw).err(), log_format(raw).err(),
            ];
            for wrong in wrongs.into_iter().flatten() {
                let told = wrong.sentence("`x`", "y");
                prop_assert!(!told.contains(['\n', '\r', '\u{1b}']) && told.len() < 600, "{}", told);
            }
        }
    }
}
