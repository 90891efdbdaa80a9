//! A place in a line of a script, and what to say when something else was expected there.

use std::time::Duration;

/// A line that does not say what a script can say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: expected {expected}, found {found}")]
pub struct SyntaxError {
    /// Line in the script, from 1.
    pub line: usize,
    /// Column in the line, from 1.
    pub column: usize,
    /// What would have been right.
    pub expected: String,
    /// What is there.
    pub found: String,
}

/// Reads a line from left to right.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    line: usize,
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) const fn new(line: usize, text: &'a str) -> Self {
        Self { line, text, at: 0 }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Skips spaces; true when nothing else is left.
    pub(crate) fn at_end(&mut self) -> bool {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
        self.rest().is_empty()
    }

    /// The error that something else should be here.
    pub(crate) fn wrong(&mut self, expected: &str) -> SyntaxError {
        let found = if self.at_end() {
            "the end of the line".to_owned()
        } else {
            format!("'{}'", self.rest().split_whitespace().next().unwrap_or_default())
        };
        SyntaxError { line: self.line, column: self.at + 1, expected: expected.to_owned(), found }
    }

    /// Skips exactly this text, without regard to what follows.
    pub(crate) fn eat(&mut self, text: &str) -> bool {
        if !self.at_end() && self.rest().starts_with(text) {
            self.at += text.len();
            return true;
        }
        false
    }

    /// Skips this word if it stands here alone.
    pub(crate) fn eat_word(&mut self, word: &str) -> bool {
        let mut ahead = *self;
        if ahead.eat(word) && !ahead.rest().starts_with(is_word) {
            *self = ahead;
            return true;
        }
        false
    }

    pub(crate) fn expect(&mut self, text: &str) -> Result<(), SyntaxError> {
        if self.eat(text) { Ok(()) } else { Err(self.wrong(&format!("'{text}'"))) }
    }

    pub(crate) fn expect_end(&mut self) -> Result<(), SyntaxError> {
        if self.at_end() { Ok(()) } else { Err(self.wrong("the end of the line")) }
    }

    /// A name: letters, digits, `_`, `-` and `.`.
    pub(crate) fn word(&mut self, expected: &str) -> Result<&'a str, SyntaxError> {
        self.at_end();
        let rest = self.rest();
        let len = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        if len == 0 {
            return Err(self.wrong(expected));
        }
        self.at += len;
        Ok(&rest[..len])
    }

    /// Everything up to the next space.
    pub(crate) fn token(&mut self, expected: &str) -> Result<&'a str, SyntaxError> {
        if self.at_end() {
            return Err(self.wrong(expected));
        }
        let rest = self.rest();
        let len = rest.find(char::is_whitespace).unwrap_or(rest.len());
        self.at += len;
        Ok(&rest[..len])
    }

    /// A number, in decimal or behind `0x`; `k` and `M` stand for 1024 and its square.
    pub(crate) fn number(&mut self, expected: &str) -> Result<u64, SyntaxError> {
        let before = *self;
        let result = self.word(expected).ok().and_then(|word| {
            if let Some(hex) = word.strip_prefix("0x") {
                return u64::from_str_radix(hex, 16).ok();
            }
            let (digits, unit) = match word.as_bytes().last() {
                Some(b'k') => (&word[..word.len() - 1], 1024),
                Some(b'M') => (&word[..word.len() - 1], 1024 * 1024),
                _ => (word, 1),
            };
            digits.parse::<u64>().ok()?.checked_mul(unit)
        });
        result.ok_or_else(|| {
            *self = before;
            self.wrong(expected)
        })
    }

    /// A number that fits.
    pub(crate) fn small<T: TryFrom<u64>>(&mut self, expected: &str) -> Result<T, SyntaxError> {
        let before = *self;
        let number = self.number(expected)?;
        T::try_from(number).map_err(|_| {
            *self = before;
            self.wrong(expected)
        })
    }

    /// A time: `20ms`, `1.5s`, `300us`, `0`.
    pub(crate) fn duration(&mut self) -> Result<Duration, SyntaxError> {
        const EXPECTED: &str = "a time such as 20ms, 1.5s or 300us";
        let before = *self;
        let result = self.word(EXPECTED).ok().and_then(|word| {
            let digits = word.find(|c: char| c.is_alphabetic()).unwrap_or(word.len());
            let unit = match &word[digits..] {
                "s" => 1.0,
                "ms" => 1e-3,
                "us" => 1e-6,
                "" if &word[..digits] == "0" => 1.0,
                _ => return None,
            };
            let number = word[..digits].parse::<f64>().ok()?;
            Duration::try_from_secs_f64(number * unit).ok()
        });
        result.ok_or_else(|| {
            *self = before;
            self.wrong(EXPECTED)
        })
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_line_column_expectation_and_find() {
        let mut cursor = Cursor::new(7, "seal  ?");
        assert!(cursor.eat_word("seal"));
        let error = cursor.number("a number").expect_err("no number");
        assert_eq!(error.to_string(), "line 7, column 7: expected a number, found '?'");
        let error = Cursor::new(1, " ").number("a number").expect_err("no number");
        assert_eq!(error.to_string(), "line 1, column 2: expected a number, found the end of the line");
    }

    #[test]
    fn numbers_and_times_have_units() {
        assert_eq!(Cursor::new(1, "64k").number("n"), Ok(65536));
        assert_eq!(Cursor::new(1, "0xff").number("n"), Ok(255));
        assert_eq!(Cursor::new(1, "1.5s").duration(), Ok(Duration::from_millis(1500)));
        assert_eq!(Cursor::new(1, "250us").duration(), Ok(Duration::from_micros(250)));
        assert!(Cursor::new(1, "5").duration().is_err());
        assert!(Cursor::new(1, "70000").small::<u16>("n").is_err());
    }

    #[test]
    fn a_word_is_not_eaten_in_pieces() {
        let mut cursor = Cursor::new(1, "sealed");
        assert!(!cursor.eat_word("seal"));
        assert!(cursor.eat_word("sealed"));
        assert_eq!(cursor.expect_end(), Ok(()));
    }
}
