//! Durations with their unit: "50us", "300s", "1h".

use std::time::Duration;

/// Units, longest first, in microseconds.
const UNITS: [(&str, u64); 5] = [
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// Parses a whole number and a unit, or returns what is wrong.
pub(super) fn parse(text: &str) -> Result<Duration, &'static str> {
    let digits_end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    if digits.is_empty() {
        return Err("does not begin with a whole number");
    }
    if unit.is_empty() {
        return Err("has no unit");
    }
    let Some((_, unit_us)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err("not a whole number and one of the units");
    };
    let count: u64 = digits.parse().map_err(|_| "too long")?;
    count
        .checked_mul(*unit_us)
        .map(Duration::from_micros)
        .ok_or("too long")
}

/// The duration in the longest unit that divides it, in the format of [`parse`].
pub(super) fn display(duration: Duration) -> String {
    let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let (name, unit_us) = UNITS
        .into_iter()
        .find(|(_, unit_us)| us >= *unit_us && us % unit_us == 0)
        .unwrap_or(("us", 1));
    format!("{}{name}", us / unit_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read() {
        for (text, us) in [
            ("50us", 50),
            ("2ms", 2_000),
            ("300s", 300_000_000),
            ("5m", 300_000_000),
            ("1h", 3_600_000_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_micros(us)), "{text}");
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for us in [
            0,
            1,
            999,
            1_000,
            50_000,
            1_000_000,
            60_000_000,
            86_400_000_000,
            86_401_000_000,
        ] {
            let duration = Duration::from_micros(us);
            assert_eq!(parse(&display(duration)), Ok(duration), "{us}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "s",
            "300",
            "-1s",
            "1.5s",
            "300 s",
            " 300s",
            "300S",
            "5µs",
            "1ns",
            "1h30m",
            "99999999999999999999s",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("18446744073709551615h"), Err("too long"));
    }
}
