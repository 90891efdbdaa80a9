//! Reserving huge pages: the one change that this crate makes to a host.

use crate::pages::size_text;
use crate::{HugePages, Root, huge_pages};
use std::fmt;
use std::io;
use thiserror::Error;

const MIB: u64 = 1 << 20;
/// Left to everything else on the host.
const LEFT_BYTES: u64 = 512 * MIB;

/// Pages wished for, on the whole host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Bytes of one page: 2 MiB or 1 GiB on x86-64.
    pub page_bytes: u64,
    /// How many there shall be at least.
    pub pages: u64,
}

/// What came of a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// What was wished for.
    pub wish: Wish,
    /// Pages by node before.
    pub before: Vec<(u32, u64)>,
    /// Pages by node afterwards, read back from the kernel.
    pub after: Vec<(u32, u64)>,
}

/// Why no pages were reserved; the host or the operator is at fault.
#[derive(Debug, Error)]
pub enum ReserveError {
    /// The kernel has no pages of this size.
    #[error("the kernel has no huge pages of {}\n  mend: use one of: {known}", size_text(*page_bytes))]
    UnknownSize {
        /// Bytes of the page wished for.
        page_bytes: u64,
        /// Sizes that it has.
        known: String,
    },
    /// It would leave too little memory for everything else.
    #[error(
        "{pages} more huge pages of {} would leave less than {} MiB of the {available_mib} MiB that are \
         available\n  mend: ask for at most {most} more",
        size_text(*page_bytes), LEFT_BYTES / MIB
    )]
    TooMuch {
        /// Bytes of one page.
        page_bytes: u64,
        /// Pages that would be added.
        pages: u64,
        /// Memory that is available now.
        available_mib: u64,
        /// How many could be added.
        most: u64,
    },
    /// All of them were needed, and the kernel gave fewer.
    #[error("{applied}")]
    Short {
        /// What it gave.
        applied: Applied,
    },
    /// The kernel's file could not be written.
    #[error(
        "{path} cannot be written: {fault}\n  mend: run `holdfast check-host --apply` as root, on the host and not in a container"
    )]
    Write {
        /// The file.
        path: String,
        /// Why.
        #[source]
        fault: io::Error,
    },
}

impl Applied {
    /// Pages of all nodes afterwards.
    #[must_use]
    pub fn got(&self) -> u64 {
        self.after.iter().map(|(_, pages)| pages).sum()
    }

    /// Whether there are as many as were wished for.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.got() >= self.wish.pages
    }

    /// Whether anything changed.
    #[must_use]
    pub fn changed(&self) -> bool {
        self.before != self.after
    }
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = size_text(self.wish.page_bytes);
        if !self.changed() && self.is_whole() {
            return write!(f, "nothing changed: {} huge pages of {size} were already there", self.got());
        }
        for ((node, before), (_, after)) in self.before.iter().zip(&self.after) {
            if before != after {
                writeln!(f, "huge pages of {size} on node {node}: {before} -> {after}")?;
            }
        }
        if self.is_whole() {
            write!(f, "{} huge pages of {size} are reserved until the next start of the host;", self.got())?;
            write!(f, " to keep them: ")?;
            if self.wish.page_bytes == 2 * MIB {
                write!(f, "echo vm.nr_hugepages={} > /etc/sysctl.d/60-holdfast.conf", self.got())
            } else {
                write!(f, "add hugepagesz={size} hugepages={} to the kernel's command line", self.got())
            }
        } else {
            write!(
                f,
                "the kernel gave {} of {} huge pages of {size}: its memory is in use or in pieces\n  \
                 mend: reserve them right after the start of the host (hugepagesz={size} hugepages={} on \
                 the kernel's command line), or ask for fewer",
                self.got(),
                self.wish.pages,
                self.wish.pages
            )
        }
    }
}

/// Adds huge pages until there are as many as wished for, spread over the nodes as evenly as what is
/// there allows. Never takes any away.
///
/// # Errors
/// [`ReserveError`]. That the kernel gave fewer than wished for is no error but a part of [`Applied`].
pub fn reserve(root: &Root, wish: Wish) -> Result<Applied, ReserveError> {
    let before = of_size(root, wish.page_bytes);
    if before.is_empty() {
        let mut known: Vec<u64> = huge_pages(root).iter().map(|pages| pages.page_bytes).collect();
        known.dedup();
        let known: Vec<String> = known.into_iter().map(size_text).collect();
        let known =
            if known.is_empty() { "none; set huge_pages = \"off\"".to_owned() } else { known.join(", ") };
        return Err(ReserveError::UnknownSize { page_bytes: wish.page_bytes, known });
    }
    let there: u64 = before.iter().map(|pages| pages.total).sum();
    let more = wish.pages.saturating_sub(there);
    if more > 0 {
        check_memory(root, wish.page_bytes, more)?;
        let targets = spread(&before, more);
        raise(root, &before, &targets)?;
        let short = |now: &[HugePages]| now.iter().map(|pages| pages.total).sum::<u64>() < wish.pages;
        if short(&of_size(root, wish.page_bytes)) {
            // Memory in pieces is put together once; what is still short then is reported.
            let path = "proc/sys/vm/compact_memory";
            if std::fs::write(root.path(path), "1").is_ok() {
                raise(root, &before, &targets)?;
            }
        }
    }
    let after = of_size(root, wish.page_bytes);
    let by_node = |pages: &[HugePages]| pages.iter().map(|one| (one.node, one.total)).collect();
    Ok(Applied { wish, before: by_node(&before), after: by_node(&after) })
}

fn of_size(root: &Root, page_bytes: u64) -> Vec<HugePages> {
    huge_pages(root).into_iter().filter(|pages| pages.page_bytes == page_bytes).collect()
}

fn check_memory(root: &Root, page_bytes: u64, more: u64) -> Result<(), ReserveError> {
    let meminfo = root.read("proc/meminfo").unwrap_or_default();
    let available = crate::root::field(&meminfo, "MemAvailable")
        .and_then(|text| text.strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map(|kib| kib.saturating_mul(1024));
    let Some(available) = available else { return Ok(()) };
    let most = available.saturating_sub(LEFT_BYTES) / page_bytes;
    if more > most {
        return Err(ReserveError::TooMuch { page_bytes, pages: more, available_mib: available / MIB, most });
    }
    Ok(())
}

/// How many pages each node shall have: the poorest get theirs first.
fn spread(before: &[HugePages], more: u64) -> Vec<u64> {
    let mut targets: Vec<u64> = before.iter().map(|pages| pages.total).collect();
    let nodes = targets.len() as u64;
    let level = (targets.iter().sum::<u64>() + more) / nodes;
    let mut left = more;
    for target in &mut targets {
        let step = level.saturating_sub(*target).min(left);
        *target += step;
        left -= step;
    }
    // What the even level did not use up: one each, then the rest on the first.
    for target in &mut targets {
        let step = left.min(1);
        *target += step;
        left -= step;
    }
    targets[0] += left;
    targets
}

fn raise(root: &Root, before: &[HugePages], targets: &[u64]) -> Result<(), ReserveError> {
    for (pages, &target) in before.iter().zip(targets) {
        if target <= pages.total {
            continue;
        }
        write(root, pages, target)?;
    }
    Ok(())
}

/// Tells the kernel how many pages of this size and node there shall be.
pub(crate) fn write(root: &Root, pages: &HugePages, target: u64) -> Result<(), ReserveError> {
    let folder = format!("hugepages-{}kB", pages.page_bytes / 1024);
    let by_node = format!("sys/devices/system/node/node{}/hugepages/{folder}/nr_hugepages", pages.node);
    // A kernel without NUMA has only the file for the whole host.
    let path = if root.path(&by_node).exists() {
        by_node
    } else {
        format!("sys/kernel/mm/hugepages/{folder}/nr_hugepages")
    };
    std::fs::write(root.path(&path), target.to_string())
        .map_err(|fault| ReserveError::Write { path: format!("/{path}"), fault })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::tests::host;

    const TWO_MIB: u64 = 2 * MIB;

    fn two_nodes(first: &str, second: &str) -> (tempfile::TempDir, Root) {
        host(&[
            ("sys/devices/system/node/online", "0-1"),
            ("proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable:    8000000 kB\n"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages", "0"),
            ("sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", first),
            ("sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages", second),
        ])
    }

    #[test]
    fn pages_are_added_where_there_are_fewest_and_never_taken_away() {
        let table = [
            (("0", "0"), 8, [4, 4]),
            (("0", "0"), 9, [5, 4]),
            (("6", "0"), 8, [6, 2]),
            (("9", "0"), 8, [9, 0]),
            (("2", "2"), 3, [2, 2]),
            (("7", "1"), 9, [7, 2]),
        ];
        for ((first, second), pages, expected) in table {
            let (_folder, root) = two_nodes(first, second);
            let applied = reserve(&root, Wish { page_bytes: TWO_MIB, pages }).expect("reserved");
            let after: Vec<u64> = applied.after.iter().map(|(_, pages)| *pages).collect();
            assert_eq!(after, expected, "{first} {second} {pages}");
            assert!(applied.is_whole());
        }
    }

    #[test]
    fn what_changed_is_said_and_so_is_that_nothing_did() {
        let (_folder, root) = two_nodes("0", "0");
        let wish = Wish { page_bytes: TWO_MIB, pages: 4 };
        let text = reserve(&root, wish).expect("reserved").to_string();
        assert!(text.contains("node 0: 0 -> 2\n") && text.contains("node 1: 0 -> 2\n"), "{text}");
        assert!(text.contains("vm.nr_hugepages=4"), "{text}");
        let again = reserve(&root, wish).expect("nothing to do");
        assert!(!again.changed());
        assert!(again.to_string().starts_with("nothing changed"), "{again}");
    }

    #[test]
    fn fewer_pages_than_wished_for_are_reported_as_what_they_are() {
        let wish = Wish { page_bytes: TWO_MIB, pages: 10 };
        let applied = Applied { wish, before: vec![(0, 0)], after: vec![(0, 7)] };
        assert!(!applied.is_whole());
        let text = applied.to_string();
        assert!(text.contains("0 -> 7") && text.contains("gave 7 of 10") && text.contains("mend:"), "{text}");
    }

    #[test]
    fn more_than_the_memory_bears_is_refused_with_what_it_bears() {
        let (_folder, root) = two_nodes("0", "0");
        let fault = reserve(&root, Wish { page_bytes: TWO_MIB, pages: 1 << 40 }).expect_err("too much");
        assert!(matches!(fault, ReserveError::TooMuch { most: 3650, .. }), "{fault}");
        assert_eq!(of_size(&root, TWO_MIB).iter().map(|pages| pages.total).sum::<u64>(), 0);
    }

    #[test]
    fn a_size_that_the_kernel_lacks_is_refused_with_those_it_has() {
        let (_folder, root) = two_nodes("0", "0");
        let fault = reserve(&root, Wish { page_bytes: 1 << 30, pages: 1 }).expect_err("no such size");
        assert!(fault.to_string().contains("one of: 2M"), "{fault}");
    }

    #[test]
    fn a_kernel_without_numa_is_raised_by_its_one_file() {
        let (_folder, root) = host(&[("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "1")]);
        let applied = reserve(&root, Wish { page_bytes: TWO_MIB, pages: 3 }).expect("reserved");
        assert_eq!(applied.after, [(0, 3)]);
    }
}
