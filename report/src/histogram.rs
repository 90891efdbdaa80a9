//! Latency distributions as text: an HDR histogram of microseconds, in its V2 format, deflated, in base64.
//!
//! It is the interchange format of the HDR histogram libraries, so that others can read it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
pub use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use thiserror::Error;

/// An hour, in microseconds: what is longer counts as that.
const GREATEST_US: u64 = 3_600_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;

/// An empty histogram of microseconds, of three significant digits.
pub fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, GREATEST_US, SIGNIFICANT_DIGITS).expect("the bounds are right")
}

/// A histogram of these microseconds.
pub fn of(microseconds: impl IntoIterator<Item = u64>) -> Histogram<u64> {
    let mut histogram = empty();
    for value in microseconds {
        histogram.saturating_record(value.clamp(1, GREATEST_US));
    }
    histogram
}

/// As text.
pub fn encode(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new().serialize(histogram, &mut bytes).expect("a vector takes all bytes");
    STANDARD.encode(bytes)
}

/// From text.
///
/// # Errors
///
/// When the text is no histogram.
pub fn decode(text: &str) -> Result<Histogram<u64>, HistogramError> {
    let bytes = STANDARD.decode(text.trim()).map_err(|fault| HistogramError(fault.to_string()))?;
    let decoded: Histogram<u64> = Deserializer::new()
        .deserialize(&mut bytes.as_slice())
        .map_err(|fault| HistogramError(fault.to_string()))?;
    Ok(decoded)
}

/// A text is no histogram.
#[derive(Debug, Error)]
#[error("it is no HDR histogram (V2, deflated, base64): {0}")]
pub struct HistogramError(String);

/// The value at a quantile of 0 to 1, in milliseconds.
pub(crate) fn quantile_ms(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    to_ms(histogram.value_at_quantile(quantile))
}

fn to_ms(microseconds: u64) -> f64 {
    microseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_read_again() {
        let histogram = of((1..=1000).map(|step| step * 17).chain([u64::MAX, 0]));
        let read = decode(&encode(&histogram)).unwrap();
        assert_eq!((read.len(), read.max()), (1002, histogram.max()));
        assert!(encode(&histogram).starts_with("HIST"), "the format's cookie");
        let median = quantile_ms(&read, 0.5);
        assert!((median - 8.5).abs() < 0.02, "{median}");
    }

    #[test]
    fn what_is_no_histogram_is_refused() {
        for text in ["", "*", "SGVsbG8gd29ybGQ="] {
            assert!(decode(text).unwrap_err().to_string().contains("no HDR histogram"), "{text}");
        }
        let text = encode(&of([5, 6, 7]));
        assert!(decode(&text[..text.len() / 2 / 4 * 4]).is_err());
    }
}
