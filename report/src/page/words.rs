//! Figures and rows in words, the same everywhere.

use crate::run::{Bulk, Mode};

/// A figure with about three significant digits, and no more zeros than it needs.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "-".to_owned(),
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.0995 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// A figure, or a dash.
pub(crate) fn number_or_dash(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), number)
}

/// A number of bytes.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 30 && bytes % (1 << 30) == 0 => format!("{} GiB", bytes >> 30),
        bytes if bytes >= 1 << 20 && bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 && bytes % (1 << 10) == 0 => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    }
}

/// A number of things; from ten thousand on in thousands, where it has whole ones.
pub(crate) fn count(count: u64) -> String {
    if count >= 10_000 && count % 1000 == 0 { format!("{}k", count / 1000) } else { count.to_string() }
}

/// The epochs' length.
pub(crate) fn epochs(epoch_ms: u64, adaptive: bool) -> String {
    let how = if adaptive { ", adaptive" } else { "" };
    format!("{epoch_ms} ms{how}")
}

/// A mode, and whether its epochs were adaptive.
pub(crate) fn mode(mode: Mode, adaptive: bool) -> String {
    if adaptive && mode != Mode::Native { format!("{mode}, adaptive") } else { mode.to_string() }
}

/// What streams or transfers were of.
pub(crate) fn bulk(row: &Bulk) -> String {
    let connections = match row.connections {
        1 => "1 connection".to_owned(),
        count => format!("{count} connections"),
    };
    match (row.bytes, row.setup) {
        (Some(size), setup) => {
            let how = if setup == Some(true) { "with set-up" } else { "open connection" };
            let many = if row.connections == 1 { String::new() } else { format!(", {connections}") };
            format!("{}, {how}{many}", bytes(size))
        }
        (None, _) => connections,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        for (value, shown) in [
            (1234.4, "1234"),
            (99.96, "100"),
            (12.34, "12.3"),
            (1.234, "1.23"),
            (0.0, "0.00"),
            (0.0123, "0.012"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(number(value), shown);
        }
        assert_eq!(
            (bytes(1 << 20), bytes(64 << 10), bytes(1000)),
            ("1 MiB".into(), "64 KiB".into(), "1000 B".into())
        );
        assert_eq!(
            (count(5000), count(50_000), count(65_536)),
            ("5000".into(), "50k".into(), "65536".into())
        );
        assert_eq!(epochs(25, true), "25 ms, adaptive");
        assert_eq!(
            (mode(Mode::Aware, true), mode(Mode::Native, true)),
            ("aware, adaptive".into(), "native".into())
        );
    }
}
