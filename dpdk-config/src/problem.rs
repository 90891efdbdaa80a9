//! What is wrong with a configuration, where, and how to mend it.

use std::fmt;
use thiserror::Error;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path of the key: `wire[1].iface`.
    pub key: String,
    /// What is wrong with it.
    pub what: String,
    /// The line that mends it.
    pub mend: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n  mend: {}", self.key, self.what, self.mend)
    }
}

/// Everything that is wrong, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl Problems {
    /// Notes one more.
    pub fn add(&mut self, key: impl Into<String>, what: impl Into<String>, mend: impl Into<String>) {
        self.0.push(Problem { key: key.into(), what: what.into(), mend: mend.into() });
    }

    /// `value` when nothing is wrong.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}
