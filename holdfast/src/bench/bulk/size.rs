//! The size of a transfer, as `64KiB` or `1MiB`, or `64k` or `1m` for short.

use std::fmt;
use std::str::FromStr;

const GREATEST: u64 = 1 << 32;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{text}' is no size of at most 4 GiB; mend: 64KiB, 1MiB or a number of bytes");
        let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(at);
        let unit: u64 = match unit {
            "" | "B" => 1,
            "KiB" | "k" => 1 << 10,
            "MiB" | "m" => 1 << 20,
            "GiB" | "g" => 1 << 30,
            _ => return Err(wrong()),
        };
        let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        bytes.filter(|bytes| *bytes <= GREATEST).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 1 << 20 && bytes % (1 << 20) == 0 => write!(f, "{} MiB", bytes >> 20),
            bytes if bytes >= 1 << 10 && bytes % (1 << 10) == 0 => write!(f, "{} KiB", bytes >> 10),
            bytes => write!(f, "{bytes} B"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Size;

    #[test]
    fn sizes_are_read_and_slips_refused() {
        for (text, bytes, shown) in [
            ("64KiB", 64 << 10, "64 KiB"),
            ("16MiB", 16 << 20, "16 MiB"),
            ("1m", 1 << 20, "1 MiB"),
            ("1000", 1000, "1000 B"),
        ] {
            let size: Size = text.parse().expect("a size");
            assert_eq!((size.0, size.to_string()), (bytes, shown.to_owned()));
        }
        for text in ["", "KiB", "1KB", "5GiB", "-1", "99999999999999999999"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
