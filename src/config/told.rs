//! What holds and where it was set, for `larder daemon --check`.

use std::time::Duration;

use serde_json::{Value, json};

use super::setting::SETTINGS;
use super::{Loaded, MountAt, Prefetch, SetBy};
use crate::report::text;

impl Loaded {
    /// A table of every setting: its value as it would stand in the file, and where it was set.
    /// Then, if there are any, one of the prefetches.
    #[must_use]
    pub fn told(&self) -> String {
        let mut rows = Vec::new();
        for (setting, set_by) in SETTINGS.iter().zip(&self.set_by) {
            if setting.read.is_some() {
                rows.push(vec![setting.name.to_owned(), toml(&(setting.show)(&self.config)), set_by.to_string()]);
            }
        }
        let mut told = text::table(&["SETTING", "VALUE", "SET BY"], &rows);
        let row = |(entry, set_by): (&Prefetch, &SetBy)| {
            let (include, exclude) = (toml(&json!(entry.include)), toml(&json!(entry.exclude)));
            vec![entry.source.to_string(), include, exclude, entry.pin.to_string(), set_by.to_string()]
        };
        let rows: Vec<Vec<String>> = self.prefetch().map(row).collect();
        if !rows.is_empty() {
            told.push('\n');
            told += &text::table(&["PREFETCH", "INCLUDE", "EXCLUDE", "PIN", "SET BY"], &rows);
        }
        told
    }

    /// The same as JSON: `file`, or null if there was none, and of every setting `value` and
    /// `set_by`; `prefetch` is a list of these.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut settings = serde_json::Map::new();
        for (setting, set_by) in SETTINGS.iter().zip(&self.set_by) {
            let told = if setting.read.is_some() {
                json!({"value": (setting.show)(&self.config), "set_by": set_by.to_string()})
            } else {
                let entry = |(entry, set_by): (&Prefetch, &SetBy)| json!({"value": prefetch(entry), "set_by": set_by.to_string()});
                self.prefetch().map(entry).collect()
            };
            settings.insert(setting.name.to_owned(), told);
        }
        json!({"file": self.file.as_ref().map(|file| file.display().to_string()), "settings": settings})
    }
}

/// An entry as JSON; its source without what its query may hide.
pub(super) fn prefetch(entry: &Prefetch) -> Value {
    json!({
        "source": entry.source.to_string(),
        "include": entry.include,
        "exclude": entry.exclude,
        "pin": entry.pin,
    })
}

/// A value as it would stand in the file. JSON's texts are TOML's, too.
pub(super) fn toml(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Value::Object(pairs) => {
            let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key} = {}", toml(value))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        plain => plain.to_string(),
    }
}

/// Where models are mounted.
pub(super) fn mount(mount: Option<&MountAt>) -> String {
    match mount {
        None => String::new(),
        Some(MountAt::Directory(path)) => path.display().to_string(),
        Some(MountAt::Keeper(socket)) => format!("keeper:{}", socket.display()),
    }
}

/// In the largest unit that leaves a whole number.
pub(super) fn duration(time: Duration) -> String {
    let millis = time.as_millis();
    match () {
        () if millis == 0 => "0s".to_owned(),
        () if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        () if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        () if millis.is_multiple_of(1000) => format!("{}s", millis / 1000),
        () => format!("{millis}ms"),
    }
}

/// Likewise of bytes.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["", "KiB", "MiB", "GiB", "TiB"];
    let steps = if bytes == 0 { 0 } else { (bytes.trailing_zeros() / 10).min(4) };
    format!("{}{}", bytes >> (10 * steps), UNITS[steps as usize])
}
