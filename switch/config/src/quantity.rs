//! Quantities with their unit: rates ("1Gbit/s"), sizes ("256KiB"), frequencies ("500k/s").

/// What a quantity is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quantity {
    /// Bits per second.
    Rate,
    /// Bytes.
    Size,
    /// Packets per second.
    Packets,
}

impl Quantity {
    /// Its units, largest first. The first of equal ones is written.
    const fn units(self) -> &'static [(&'static str, u64)] {
        match self {
            Quantity::Rate => &[
                ("Tbit/s", 1_000_000_000_000),
                ("Gbit/s", 1_000_000_000),
                ("Mbit/s", 1_000_000),
                ("kbit/s", 1_000),
                ("bit/s", 1),
            ],
            Quantity::Size => &[
                ("GiB", 1 << 30),
                ("GB", 1_000_000_000),
                ("MiB", 1 << 20),
                ("MB", 1_000_000),
                ("KiB", 1 << 10),
                ("kB", 1_000),
                ("B", 1),
            ],
            Quantity::Packets => &[("M/s", 1_000_000), ("k/s", 1_000), ("/s", 1)],
        }
    }

    /// An example, for messages.
    pub const fn example(self) -> &'static str {
        match self {
            Quantity::Rate => "1Gbit/s",
            Quantity::Size => "256KiB",
            Quantity::Packets => "500k/s",
        }
    }

    /// Accepted form, for the schema.
    pub fn pattern(self) -> String {
        let names: Vec<&str> = self.units().iter().map(|(name, _)| *name).collect();
        format!("^[0-9]+(\\.[0-9]{{1,3}})? ?({})$", names.join("|"))
    }

    /// The units, for messages.
    pub fn unit_names(self) -> String {
        let names: Vec<&str> = self.units().iter().map(|(name, _)| *name).collect();
        names.join(", ")
    }

    /// Parses a number, with up to three decimals, and a unit; or returns what is wrong.
    pub fn parse(self, text: &str) -> Result<u64, &'static str> {
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let end = text.find(|c| !is_number(c)).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || (number.contains('.') && decimals.is_empty()) {
            return Err("does not begin with a number");
        }
        if unit.is_empty() {
            return Err("has no unit");
        }
        if decimals.len() > 3 || decimals.contains('.') {
            return Err("has more than three decimals");
        }
        let unit = unit.trim_start();
        let Some((_, factor)) = self.units().iter().find(|(name, _)| *name == unit) else {
            return Err("has an unknown unit");
        };
        let digits = format!("{whole}{decimals:0<3}");
        let thousandths: u64 = digits.parse().map_err(|_| "too large")?;
        let product = u128::from(thousandths) * u128::from(*factor);
        if product % 1000 != 0 {
            return Err("is a fraction of the smallest unit");
        }
        u64::try_from(product / 1000).map_err(|_| "too large")
    }

    /// The value in the largest unit that divides it, in the format of [`parse`](Self::parse).
    pub fn display(self, value: u64) -> String {
        let fits = |(_, factor): &&(&str, u64)| value >= *factor && value.is_multiple_of(*factor);
        let unit = self.units().iter().find(fits);
        let (name, factor) = unit.or(self.units().last()).copied().unwrap_or(("", 1));
        format!("{}{name}", value / factor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_unit_is_read() {
        for (quantity, text, value) in [
            (Quantity::Rate, "1Gbit/s", 1_000_000_000),
            (Quantity::Rate, "2.5Gbit/s", 2_500_000_000),
            (Quantity::Rate, "64 kbit/s", 64_000),
            (Quantity::Size, "256KiB", 262_144),
            (Quantity::Size, "1.5kB", 1_500),
            (Quantity::Packets, "500k/s", 500_000),
            (Quantity::Packets, "7/s", 7),
        ] {
            assert_eq!(quantity.parse(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "",
            "Gbit/s",
            "1",
            "1 Gb/s",
            "1.2345Gbit/s",
            "1.Gbit/s",
            "0.1bit/s",
            "-1Gbit/s",
            "1.2.3Gbit/s",
        ] {
            assert!(Quantity::Rate.parse(text).is_err(), "{text}");
        }
        assert_eq!(Quantity::Rate.parse("99999999999Tbit/s"), Err("too large"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(value: u64) {
            for quantity in [Quantity::Rate, Quantity::Size, Quantity::Packets] {
                prop_assert_eq!(quantity.parse(&quantity.display(value / 1000)), Ok(value / 1000));
            }
        }
    }
}
