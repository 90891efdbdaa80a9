//! Where `/proc`, `/sys` and `/dev` are.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// More than any file read here has.
const FILE_MAX: u64 = 1 << 20;

/// The folder that holds `proc`, `sys` and `dev`: `/`, or a test's own.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Default for Root {
    fn default() -> Self {
        Self(PathBuf::from("/"))
    }
}

impl Root {
    /// A folder in place of `/`.
    #[must_use]
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.0.join(below)
    }

    /// A file's text without the white space around it.
    pub(crate) fn read(&self, below: impl AsRef<Path>) -> io::Result<String> {
        let mut text = String::new();
        File::open(self.0.join(below))?.take(FILE_MAX).read_to_string(&mut text)?;
        Ok(text.trim().to_owned())
    }

    /// A file's text when it holds a number.
    pub(crate) fn number(&self, below: impl AsRef<Path>) -> io::Result<u64> {
        let text = self.read(below)?;
        text.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no number")))
    }

    /// Names in a folder, sorted; none when it is not there.
    pub(crate) fn names(&self, below: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.0.join(below)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.filter_map(Result::ok).filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

/// The part of a text after `key:` on one of its lines, as `/proc/*/status` writes it.
pub(crate) fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

/// Numbers of a list as the kernel writes them: `0-3,8`. Anything else in it is left out.
pub(crate) fn list(text: &str) -> Vec<u32> {
    /// More processors or nodes than Linux can be built for.
    const MOST: u32 = 8192;
    let mut numbers = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<u32>(), last.trim().parse::<u32>()) {
            numbers.extend(first..=last.min(MOST));
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_the_kernel_is_read_whatever_is_in_it() {
        let table: [(&str, &[u32]); 7] = [
            ("", &[]),
            ("0", &[0]),
            ("0-3,8\n", &[0, 1, 2, 3, 8]),
            ("(null)", &[]),
            ("5-2", &[]),
            ("1,x,2-", &[1]),
            ("99999999999", &[]),
        ];
        for (text, numbers) in table {
            assert_eq!(list(text), numbers, "{text:?}");
        }
        assert!(list("0-4000000000").len() < 10_000);
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "CapEffX:\t1\nCapEff:\t0000000000001000\n";
        assert_eq!(field(text, "CapEff"), Some("0000000000001000"));
        assert_eq!(field(text, "Cap"), None);
    }
}
