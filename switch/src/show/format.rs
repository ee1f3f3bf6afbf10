//! Numbers formatted for people.

use std::time::SystemTime;

/// Suffixes for steps of a thousand, smallest first.
const THOUSANDS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];

/// A count in at most five characters: exact up to 99999, then its first three digits (`123k`, `1.23M`). Digits are
/// cut off, not rounded, so that no count looks larger than it is.
pub(crate) fn count(count: u64) -> String {
    if count < 100_000 {
        return count.to_string();
    }
    let (mut unit, mut left) = ("", count);
    let mut thousandths = 0;
    for one in THOUSANDS {
        if left < 1000 {
            break;
        }
        (unit, thousandths, left) = (one, left % 1000, left / 1000);
    }
    match left {
        0..10 => format!("{left}.{:02}{unit}", thousandths / 10),
        10..100 => format!("{left}.{}{unit}", thousandths / 100),
        _ => format!("{left}{unit}"),
    }
}

/// A rate in at most five characters: `0`, `0.4`, `9.7`, then as [`count`]. A missing one is a dash.
pub(crate) fn rate(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(rate) if rate.is_nan() || rate <= 0.0 => "0".to_owned(),
        Some(rate) if rate < 0.1 => "<0.1".to_owned(),
        Some(rate) if rate < 9.95 => format!("{rate:.1}"),
        Some(rate) => count(rate.round() as u64),
    }
}

/// A time in at most five characters: `850ns`, `1.2us`, `34ms`, `12s`.
pub(crate) fn time_ns(ns: u64) -> String {
    let (mut unit, mut left, mut tenths) = ("ns", ns, 0);
    for one in ["us", "ms", "s"] {
        if left < 1000 {
            break;
        }
        (unit, tenths, left) = (one, left % 1000 / 100, left / 1000);
    }
    match (unit, left) {
        ("us" | "ms" | "s", 0..10) => format!("{left}.{tenths}{unit}"),
        _ => format!("{left}{unit}"),
    }
}

/// How long something has lasted, by its two largest units: `12s`, `3m 20s`, `2d 4h`.
pub(crate) fn lasting_s(s: u64) -> String {
    let (m, h, d) = (s / 60, s / 3600, s / 86_400);
    match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m {}s", s % 60),
        (0, _, _) => format!("{h}h {}m", m % 60),
        _ => format!("{d}d {}h", h % 24),
    }
}

/// The time of day, in UTC.
pub(crate) fn time_of_day(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs()) % 86_400;
    let (hour, minute) = (seconds / 3600, seconds / 60 % 60);
    format!("{hour:02}:{minute:02}:{:02} UTC", seconds % 60)
}

/// A number of bytes, exact, in binary units: `64KiB`, `1GiB`.
pub(crate) fn memory_size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = |(shift, _): &(u32, &str)| bytes > 0 && bytes.trailing_zeros() >= *shift;
    match units.into_iter().find(whole) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}

/// A number of bytes, rounded to one decimal of the largest unit that it reaches: `3.0GiB`.
pub(crate) fn memory_about(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => format!("{:.1}{unit}", bytes as f64 / (1_u64 << shift) as f64),
        None => format!("{bytes}B"),
    }
}

/// A share, with one decimal.
pub(crate) fn percent(percent: Option<f64>) -> String {
    percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.1}%"))
}

/// A value that may be missing.
pub(crate) fn or_dash<T>(value: Option<T>, format: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), format)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn counts_are_exact_while_they_are_short() {
        let shown = [
            0,
            7,
            99_999,
            100_000,
            999_999,
            1_000_000,
            12_345_678,
            u64::MAX,
        ]
        .map(count);
        let expected = ["0", "7", "99999", "100k", "999k", "1.00M", "12.3M", "18.4E"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn times_have_the_unit_that_makes_them_short() {
        let shown = [0, 850, 999, 1_000, 1_250, 34_567, 9_999_999, 12_000_000_000].map(time_ns);
        let expected = [
            "0ns", "850ns", "999ns", "1.0us", "1.2us", "34us", "9.9ms", "12s",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn times_that_last_have_two_units() {
        let shown = [0, 59, 60, 3599, 3600, 86_399, 86_400, 90_000].map(lasting_s);
        let expected = [
            "0s", "59s", "1m 0s", "59m 59s", "1h 0m", "23h 59m", "1d 0h", "1d 1h",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn memory_has_the_largest_unit_that_is_exact() {
        let shown = [0, 1000, 4096, 0xa0000, 3 << 30].map(memory_size);
        assert_eq!(shown, ["0B", "1000B", "4KiB", "640KiB", "3GiB"]);
    }

    #[test]
    fn memory_is_about_so_much() {
        let shown = [0, 1000, 4096, 0xa0000 + (3 << 30), u64::MAX].map(memory_about);
        assert_eq!(shown, ["0B", "1000B", "4.0KiB", "3.0GiB", "16777216.0TiB"]);
    }

    proptest! {
        #[test]
        fn any_count_fits_five_characters(n: u64, shift in 0u32..64) {
            prop_assert!(count(n >> shift).len() <= 5, "{}", count(n >> shift));
        }

        #[test]
        fn any_rate_fits_five_characters(any: Option<f64>, small in 0.0..1e6) {
            prop_assert!(rate(any).len() <= 5, "{}", rate(any));
            prop_assert!(rate(Some(small)).len() <= 5, "{}", rate(Some(small)));
        }

        #[test]
        fn any_time_below_1000_s_fits_five_characters(ns in 0u64..1_000_000_000_000) {
            prop_assert!(time_ns(ns).len() <= 5, "{}", time_ns(ns));
        }
    }
}
