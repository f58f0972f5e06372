//! The simple form: days of the week, hour, minute, duration.

use jiff::civil::Weekday;

use super::{
    LONGEST, WindowError,
    rule::{Rule, number},
};

const NAMES: [(&str, Weekday); 7] = [
    ("monday", Weekday::Monday),
    ("tuesday", Weekday::Tuesday),
    ("wednesday", Weekday::Wednesday),
    ("thursday", Weekday::Thursday),
    ("friday", Weekday::Friday),
    ("saturday", Weekday::Saturday),
    ("sunday", Weekday::Sunday),
];

/// The rule, and the duration in minutes.
pub(super) fn parse(
    days: &str,
    hour: &str,
    minute: &str,
    duration: &str,
) -> Result<(Rule, u32), WindowError> {
    let days = weekdays(days)?;
    let hour = number("HOUR", hour.trim(), 0..=23)?;
    let minute = number("MIN", minute.trim(), 0..=59)?;
    let duration = number("DURATION", duration.trim(), 1..=LONGEST)?;
    Ok((Rule::weekly(days, hour, minute), duration))
}

/// The days; none of them means all.
fn weekdays(text: &str) -> Result<Vec<Weekday>, WindowError> {
    let words = text.split([',', ' ', '\t']).filter(|word| !word.is_empty());
    let mut days = Vec::new();
    let mut is_empty = true;
    let mut is_every = false;
    for word in words {
        is_empty = false;
        if word == "*" || word.eq_ignore_ascii_case("daily") {
            is_every = true;
            continue;
        }
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        let (first, last) = (weekday(first)?, weekday(last)?);
        let mut day = first;
        loop {
            if !days.contains(&day) {
                days.push(day);
            }
            if day == last {
                break;
            }
            day = day.next();
        }
    }
    if is_empty {
        return Err(WindowError::new(
            "DOW",
            "it is empty; write a day such as Sun, Mon-Fri, or * for every day",
        ));
    }
    if is_every || days.len() == NAMES.len() {
        days.clear();
    }
    Ok(days)
}

/// A day by its name, of which the first three letters are enough.
fn weekday(text: &str) -> Result<Weekday, WindowError> {
    let lower = text.to_ascii_lowercase();
    let found = NAMES.iter().find(|(name, _)| lower.len() >= 3 && name.starts_with(&lower));
    found.map(|(_, day)| *day).ok_or_else(|| {
        let problem = format!("{text:?} is not a weekday; write Mon, Tue, Wed, Thu, Fri, Sat or Sun");
        WindowError::new("DOW", problem)
    })
}
