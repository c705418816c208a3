//! JSON as the daemon's protocol needs it: a strict reader into a tree, and a writer of strings
//! and flat objects. Knows no I/O. Numbers stay text, so no code for floats is linked.

use std::fmt;

/// Deeper values are refused: the reader recurses.
const DEPTH_MAX: usize = 32;

/// A JSON value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// A number, as it was written.
    Number(String),
    /// A string, its escapes resolved.
    String(String),
    /// An array.
    Array(Vec<Value>),
    /// An object, its members in order. Of members with one name the first counts.
    Object(Vec<(String, Value)>),
}

/// Why a text is not JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Bytes before the place.
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.at)
    }
}

impl std::error::Error for Error {}

impl Value {
    /// Reads one value and nothing after it but white space.
    ///
    /// # Errors
    /// The first thing that is not JSON as RFC 8259 has it, values deeper than 32, and escapes
    /// of half a surrogate pair, which no string can hold.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut reader = Reader { text, at: 0 };
        let value = reader.value(0)?;
        reader.skip_blanks();
        if reader.at == text.len() { Ok(value) } else { Err(reader.wrong("more than one value")) }
    }

    /// The member of an object.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Object(members) => members.iter().find(|(key, _)| key == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The text of a string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// A number, its fraction cut off; `None` below zero, `u64::MAX` where it is larger.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Number(text) => scaled(text, 0),
            _ => None,
        }
    }

    /// A thousand times a number: the milliseconds of a number of seconds.
    #[must_use]
    pub fn as_thousandths(&self) -> Option<u64> {
        match self {
            Self::Number(text) => scaled(text, 3),
            _ => None,
        }
    }
}

/// `number * 10^shift` without its fraction. `number` is a JSON number.
fn scaled(number: &str, shift: i64) -> Option<u64> {
    let (negative, number) = number.strip_prefix('-').map_or((false, number), |rest| (true, rest));
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = || whole.bytes().chain(fraction.bytes());
    if digits().all(|digit| digit == b'0') {
        return Some(0);
    }
    if negative {
        return None;
    }
    // An exponent that no i64 holds is as good as infinite.
    let exponent = exponent.parse().unwrap_or(if exponent.starts_with('-') { i64::MIN } else { i64::MAX });
    let point = i64::try_from(whole.len()).unwrap_or(i64::MAX).saturating_add(exponent).saturating_add(shift);
    let mut value = 0_u64;
    let mut digits = digits();
    let mut place = 0;
    while place < point {
        let digit = digits.next().map_or(0, |digit| u64::from(digit - b'0'));
        let Some(next) = value.checked_mul(10).and_then(|value| value.checked_add(digit)) else {
            return Some(u64::MAX);
        };
        value = next;
        place += 1;
    }
    Some(value)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    const fn wrong(&self, what: &'static str) -> Error {
        Error { at: self.at, what }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        let is_there = self.peek() == Some(byte);
        self.at += usize::from(is_there);
        is_there
    }

    fn value(&mut self, depth: usize) -> Result<Value, Error> {
        if depth > DEPTH_MAX {
            return Err(self.wrong("too deep"));
        }
        self.skip_blanks();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => Ok(Value::String(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => {
                for (word, value) in [("null", Value::Null), ("true", Value::Bool(true)), ("false", Value::Bool(false))]
                {
                    if self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
                        self.at += word.len();
                        return Ok(value);
                    }
                }
                Err(self.wrong("no value"))
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, Error> {
        self.at += 1;
        let mut members = Vec::new();
        self.skip_blanks();
        if self.eat(b'}') {
            return Ok(Value::Object(members));
        }
        loop {
            self.skip_blanks();
            if self.peek() != Some(b'"') {
                return Err(self.wrong("no name of a member"));
            }
            let name = self.string()?;
            self.skip_blanks();
            if !self.eat(b':') {
                return Err(self.wrong("no colon"));
            }
            members.push((name, self.value(depth + 1)?));
            self.skip_blanks();
            if self.eat(b'}') {
                return Ok(Value::Object(members));
            }
            if !self.eat(b',') {
                return Err(self.wrong("neither a comma nor the end of the object"));
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, Error> {
        self.at += 1;
        let mut values = Vec::new();
        self.skip_blanks();
        if self.eat(b']') {
            return Ok(Value::Array(values));
        }
        loop {
            values.push(self.value(depth + 1)?);
            self.skip_blanks();
            if self.eat(b']') {
                return Ok(Value::Array(values));
            }
            if !self.eat(b',') {
                return Err(self.wrong("neither a comma nor the end of the array"));
            }
        }
    }

    fn number(&mut self) -> Result<Value, Error> {
        let start = self.at;
        self.eat(b'-');
        if !self.eat(b'0') {
            self.digits()?;
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            let _ = self.eat(b'+') || self.eat(b'-');
            self.digits()?;
        }
        Ok(Value::Number(self.text[start..self.at].to_owned()))
    }

    fn digits(&mut self) -> Result<(), Error> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { Err(self.wrong("no digit")) } else { Ok(()) }
    }

    fn string(&mut self) -> Result<String, Error> {
        self.at += 1;
        let mut string = String::new();
        loop {
            let start = self.at;
            while !matches!(self.peek(), None | Some(b'"' | b'\\' | 0..=0x1f)) {
                self.at += 1;
            }
            string.push_str(&self.text[start..self.at]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(string);
                }
                Some(b'\\') => string.push(self.escape()?),
                Some(_) => return Err(self.wrong("a control character in a string")),
                None => return Err(self.wrong("a string without an end")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Error> {
        self.at += 1;
        let letter = self.peek().ok_or_else(|| self.wrong("a string without an end"))?;
        self.at += 1;
        Ok(match letter {
            b'"' | b'\\' | b'/' => char::from(letter),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode(),
            _ => return Err(Error { at: self.at - 1, what: "an unknown escape" }),
        })
    }

    /// The character of `\uXXXX` or of a surrogate pair `\uXXXX\uXXXX`, after its `\u`.
    fn unicode(&mut self) -> Result<char, Error> {
        let first = self.four_hex()?;
        let code = match first {
            0xD800..=0xDBFF => {
                let second = if self.eat(b'\\') && self.eat(b'u') { self.four_hex()? } else { 0 };
                if !(0xDC00..=0xDFFF).contains(&second) {
                    return Err(self.wrong("half a surrogate pair"));
                }
                0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00)
            }
            _ => first,
        };
        char::from_u32(code).ok_or_else(|| self.wrong("half a surrogate pair"))
    }

    fn four_hex(&mut self) -> Result<u32, Error> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            code = code * 16 + digit.ok_or_else(|| self.wrong("no hexadecimal digit"))?;
            self.at += 1;
        }
        Ok(code)
    }
}

/// Appends `text` as a JSON string, quotes included.
pub fn push_string(out: &mut String, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..='\u{1f}' => {
                out.push_str("\\u00");
                out.push(char::from(HEX[c as usize >> 4]));
                out.push(char::from(HEX[c as usize & 15]));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Writes an object, member by member.
#[derive(Debug)]
pub struct Writer(String);

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// An object without members.
    #[must_use]
    pub fn new() -> Self {
        Self("{".to_owned())
    }

    fn name(&mut self, name: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        push_string(&mut self.0, name);
        self.0.push(':');
    }

    /// A member that is a string.
    #[must_use]
    pub fn string(mut self, name: &str, value: &str) -> Self {
        self.name(name);
        push_string(&mut self.0, value);
        self
    }

    /// A member that is an array of strings.
    #[must_use]
    pub fn strings(mut self, name: &str, values: &[String]) -> Self {
        self.name(name);
        self.0.push('[');
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                self.0.push(',');
            }
            push_string(&mut self.0, value);
        }
        self.0.push(']');
        self
    }

    /// A member written as it is: `true`, `null`, a number.
    #[must_use]
    pub fn literal(mut self, name: &str, value: &str) -> Self {
        self.name(name);
        self.0.push_str(value);
        self
    }

    /// The text of the object.
    #[must_use]
    pub fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Value {
        Value::Number(text.to_owned())
    }

    #[test]
    fn reads_every_kind_of_value() {
        let value = Value::parse(" {\"a\":[1,-2.5e+3,null,true,false,\"x\"] , \"b\":{} }\n").unwrap();
        let array = value.get("a").unwrap();
        let expected = [
            number("1"),
            number("-2.5e+3"),
            Value::Null,
            Value::Bool(true),
            Value::Bool(false),
            Value::String("x".to_owned()),
        ];
        assert_eq!(array, &Value::Array(expected.to_vec()));
        assert_eq!(value.get("b"), Some(&Value::Object(Vec::new())));
        assert_eq!(value.get("c"), None);
        assert_eq!(Value::Null.get("c"), None);
    }

    #[test]
    fn reads_every_escape() {
        let text = r#""\"\\\/\b\f\n\r\t\u0041\u00e9\uD83D\uDE00 \u0000""#;
        assert_eq!(Value::parse(text).unwrap().as_str(), Some("\"\\/\u{8}\u{c}\n\r\tA\u{e9}\u{1F600} \0"));
        assert_eq!(Value::parse("\"\u{e9}\u{1F600}\"").unwrap().as_str(), Some("\u{e9}\u{1F600}"));
    }

    #[test]
    fn refuses_what_is_not_json() {
        for text in [
            "",
            " ",
            "nul",
            "nulll",
            "{",
            "}",
            "[1,]",
            "[1 2]",
            "{\"a\"}",
            "{\"a\":}",
            "{a:1}",
            "{\"a\":1,}",
            "1 2",
            "01",
            "-",
            "1.",
            ".5",
            "1e",
            "+1",
            "NaN",
            "\"",
            "\"\\\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u12G4\"",
            "\"\\uD800\"",
            "\"\\uD800\\n\"",
            "\"\\uD800\\u0041\"",
            "\"\\uDC00\"",
            "\"\n\"",
            "'a'",
            "[1]]",
            "\u{feff}1",
        ] {
            assert!(Value::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(Value::parse(&nested(DEPTH_MAX)).is_ok());
        assert_eq!(Value::parse(&nested(DEPTH_MAX + 2)).unwrap_err().what, "too deep");
        assert!(Value::parse(&"[".repeat(1 << 20)).is_err());
        assert!(Value::parse(&"{\"a\":".repeat(1 << 20)).is_err());
    }

    #[test]
    fn numbers_become_integers() {
        for (text, whole, thousandths) in [
            ("0", Some(0), Some(0)),
            ("-0.0", Some(0), Some(0)),
            ("12", Some(12), Some(12_000)),
            ("12.3456", Some(12), Some(12_345)),
            ("0.0009", Some(0), Some(0)),
            ("1e-5", Some(0), Some(0)),
            ("1.5e2", Some(150), Some(150_000)),
            ("2E+3", Some(2000), Some(2_000_000)),
            ("1500e-3", Some(1), Some(1500)),
            ("-1", None, None),
            ("18446744073709551615", Some(u64::MAX), Some(u64::MAX)),
            ("18446744073709551616", Some(u64::MAX), Some(u64::MAX)),
            ("1e400", Some(u64::MAX), Some(u64::MAX)),
            ("1e99999999999999999999", Some(u64::MAX), Some(u64::MAX)),
            ("1e-99999999999999999999", Some(0), Some(0)),
            ("0e99999999999999999999", Some(0), Some(0)),
        ] {
            let value = Value::parse(text).unwrap();
            assert_eq!((value.as_u64(), value.as_thousandths()), (whole, thousandths), "{text}");
        }
        assert_eq!(Value::Null.as_u64(), None);
    }

    #[test]
    fn what_is_written_reads_back() {
        let hard = "a\"\\\n\r\t\u{0}\u{1f}\u{7f}\u{e9}\u{1F600}/";
        let text = Writer::new()
            .string("s", hard)
            .strings("l", &[hard.to_owned(), String::new()])
            .strings("e", &[])
            .literal("b", "true")
            .finish();
        let value = Value::parse(&text).unwrap();
        assert_eq!(value.get("s").unwrap().as_str(), Some(hard));
        assert_eq!(value.get("l"), Some(&Value::Array(vec![Value::String(hard.into()), Value::String(String::new())])));
        assert_eq!(value.get("e"), Some(&Value::Array(Vec::new())));
        assert_eq!(value.get("b"), Some(&Value::Bool(true)));
        assert_eq!(Writer::new().finish(), "{}");
    }
}
