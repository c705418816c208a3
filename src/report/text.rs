//! Numbers and tables for people.

use std::time::{Duration, SystemTime};

/// `1.5 GiB`; whole bytes below 1 KiB.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let mut value = count as f64;
    let mut unit = "B";
    for name in UNITS {
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = name;
    }
    format!("{value:.1} {unit}")
}

/// Bytes per second over a time.
#[must_use]
pub fn rate(count: u64, elapsed: Duration) -> String {
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    format!("{}/s", bytes(count.saturating_mul(1000) / millis))
}

/// `34 ms`, `1.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`.
#[must_use]
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis().max(1)),
        1..10 => format!("{:.1} s", time.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// How long ago, in one word and a half.
#[must_use]
pub fn ago(time: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(time).unwrap_or_default().as_secs();
    match seconds {
        0..60 => "just now".to_owned(),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// Seconds since 1970.
#[must_use]
pub fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

/// The time that so many seconds since 1970 are; 1970 for one that no clock can show.
#[must_use]
pub fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Cells longer than this move what follows them to the right, in their own row alone.
const COLUMN_WIDTH_MAX: usize = 120;

/// Rows in columns two blanks apart; the last column is not padded.
#[must_use]
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |at: usize| {
        rows.iter()
            .filter_map(|row| row.get(at))
            .map(|cell| cell.chars().count())
            .chain([header[at].len()])
            .filter(|width| *width <= COLUMN_WIDTH_MAX)
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut header.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines.join("\n") + "\n"
}

/// Whole percent, rounded down: 100 is all of it.
#[must_use]
pub fn percent(part: u64, whole: u64) -> u64 {
    part.min(whole).saturating_mul(100).checked_div(whole).unwrap_or(0)
}

/// A word as it is typed in a shell.
#[must_use]
pub fn in_shell(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/:._-+=@%,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// `1 file`, `2 files`.
#[must_use]
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// The first of some names, and how many more there are.
#[must_use]
pub fn some(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [one] => format!("`{one}`"),
        [first, others @ ..] => format!("`{first}` and {}", count(others.len(), "more file")),
    }
}

/// A terminal that nobody widened.
const LINE_LEN_MAX: usize = 80;

/// Clauses with commas between them, in lines that break where a clause ends; all but the first
/// begin with `indent`. Only a clause that is longer itself makes a longer line.
#[must_use]
pub fn lines(first_indent: &str, indent: &str, clauses: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for (at, clause) in clauses.iter().enumerate() {
        let comma = if at + 1 < clauses.len() { "," } else { "" };
        if at == 0 {
            line = format!("{first_indent}{clause}{comma}");
        } else if line.chars().count() + clause.chars().count() + comma.len() < LINE_LEN_MAX {
            line.push_str(&format!(" {clause}{comma}"));
        } else {
            lines.push(std::mem::replace(&mut line, format!("{indent}{clause}{comma}")));
        }
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_names_are_the_first_and_a_number() {
        assert_eq!(some(&["a"]), "`a`");
        assert_eq!(some(&["a", "b"]), "`a` and 1 more file");
        assert_eq!(some(&["a", "b", "c"]), "`a` and 2 more files");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes((1 << 30) - 1), "1.0 GiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(rate(10 << 20, Duration::from_secs(2)), "5.0 MiB/s");
        assert_eq!(duration(Duration::ZERO), "1 ms");
        assert_eq!(duration(Duration::from_millis(400)), "400 ms");
        assert_eq!(duration(Duration::from_millis(1400)), "1.4 s");
        assert_eq!(duration(Duration::from_secs(200)), "3 min 20 s");
        assert_eq!(count(1, "file"), "1 file");
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(in_shell("s3://b/m/w-1.bin"), "s3://b/m/w-1.bin");
        for (word, typed) in [("", "''"), ("*.json", "'*.json'"), ("a b", "'a b'"), ("it's", r"'it'\''s'")] {
            assert_eq!(in_shell(word), typed);
        }
    }

    #[test]
    fn lines_break_between_clauses() {
        let clauses = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(lines("", "  ", &clauses(&["a", "b", "c"])), ["a, b, c"]);
        assert_eq!(lines("> ", "  ", &clauses(&["a"])), ["> a"]);
        let long = "x".repeat(76);
        // 80 columns with the comma.
        assert_eq!(lines("", "  ", &clauses(&[&long, "b", "c"])), [format!("{long}, b,"), "  c".to_owned()]);
        assert_eq!(lines("", "  ", &clauses(&[&long, "bc", "d"])), [format!("{long},"), "  bc, d".to_owned()]);
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["a".to_owned(), "bb".to_owned()], vec!["ccc".to_owned(), "d".to_owned()]];
        assert_eq!(table(&["X", "Y"], &rows), "X    Y\na    bb\nccc  d\n");
        let long = "g".repeat(COLUMN_WIDTH_MAX + 1);
        let rows = [vec!["a".into(), "b".into()], vec![long.clone(), "d".into()]];
        assert_eq!(table(&["X", "Y"], &rows), format!("X  Y\na  b\n{long}  d\n"));
    }
}
