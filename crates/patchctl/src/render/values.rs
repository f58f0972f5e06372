//! Single values as people read them: sizes, times, spans.

use jiff::{Timestamp, tz::TimeZone};

/// Bytes with a decimal unit, as package managers show them.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes;
    let mut unit = 0;
    // Whole numbers until the last step, so that 999,999 does not become "1000.0 kB".
    while value >= 999_950 && unit + 1 < UNITS.len() {
        value /= 1000;
        unit += 1;
    }
    let tenths = value.saturating_add(50) / 100;
    let name = UNITS.get(unit).copied().unwrap_or("B");
    if tenths >= 1000 {
        format!("{} {name}", tenths / 10)
    } else {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    }
}

/// A change of the space used, with its sign.
pub(crate) fn delta(bytes: i64) -> String {
    let sign = match bytes {
        0 => "",
        1.. => "+",
        _ => "-",
    };
    format!("{sign}{}", size(bytes.unsigned_abs()))
}

/// A point in time, in this machine's zone.
pub(crate) fn time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// The same without seconds, where columns are many.
pub(crate) fn minute(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string()
}

/// Like [`time`], or a word for none.
pub(crate) fn time_or(at: Option<Timestamp>, none: &str) -> String {
    at.map_or_else(|| none.to_owned(), time)
}

/// Seconds in the two largest units that matter.
pub(crate) fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    if days > 0 {
        format!("{days} d {hours} h")
    } else if hours > 0 {
        format!("{hours} h {minutes} min")
    } else if minutes > 0 {
        format!("{minutes} min {} s", seconds % 60)
    } else {
        format!("{seconds} s")
    }
}

/// `yes` or `no`.
pub(crate) fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// A value's name as it stands in JSON, for enumerations that have no text of their own.
pub(crate) fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word.replace('_', " "),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1_549, "1.5 kB"),
            (99_949, "99.9 kB"),
            (123_456, "123 kB"),
            (999_999, "1.0 MB"),
            (12_345_678, "12.3 MB"),
            (u64::MAX, "18446 PB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!((delta(-1500), delta(0), delta(2000)), ("-1.5 kB".into(), "0 B".into(), "+2.0 kB".into()));
        assert!(delta(i64::MIN).starts_with("-9223 PB"));
    }

    #[test]
    fn spans_have_two_units() {
        assert_eq!(
            [5, 65, 3_700, 90_000].map(span),
            ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"].map(str::to_owned)
        );
    }
}
