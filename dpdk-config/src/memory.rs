//! Which memory DPDK takes: huge pages or ordinary ones, and how much.

use crate::Problem;
use std::fmt;

const MIB: u64 = 1 << 20;

/// Size of a huge page of x86-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageSize {
    /// 2 MiB.
    TwoMib,
    /// 1 GiB.
    OneGib,
}

impl PageSize {
    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::TwoMib => 2 * MIB,
            Self::OneGib => 1024 * MIB,
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TwoMib => "2M",
            Self::OneGib => "1G",
        })
    }
}

/// `huge_pages`: what the operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Huge pages when enough are free, ordinary memory otherwise.
    #[default]
    Auto,
    /// Ordinary memory.
    Off,
    /// Huge pages, enough of them of this size; a fault when there are not.
    Required(PageSize),
}

/// Huge pages of one size that nobody uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreePages {
    /// Bytes of one.
    pub page_bytes: u64,
    /// How many are free.
    pub free: u64,
}

/// Which memory DPDK will be told to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryPlan {
    /// Huge pages.
    Huge {
        /// Bytes taken at the start, in MiB.
        memory_mib: u64,
    },
    /// Ordinary pages.
    Ordinary {
        /// Bytes taken at the start, in MiB; there will be no more.
        memory_mib: u64,
        /// Whether huge pages were wanted and too few are free.
        for_want_of_huge_pages: bool,
    },
}

impl MemoryPlan {
    /// Decides, given what is free on the host.
    ///
    /// # Errors
    /// When a size is required and too few of it are free. The host is at fault.
    pub fn decide(wanted: HugePages, memory_mib: u64, free: &[FreePages]) -> Result<Self, Problem> {
        let bytes_free = |size: Option<PageSize>| -> u64 {
            free.iter()
                .filter(|pages| size.is_none_or(|size| size.bytes() == pages.page_bytes))
                .map(|pages| pages.page_bytes.saturating_mul(pages.free))
                .fold(0, u64::saturating_add)
        };
        match wanted {
            HugePages::Off => Ok(Self::Ordinary { memory_mib, for_want_of_huge_pages: false }),
            HugePages::Auto if bytes_free(None) / MIB >= memory_mib => Ok(Self::Huge { memory_mib }),
            HugePages::Auto => Ok(Self::Ordinary { memory_mib, for_want_of_huge_pages: true }),
            HugePages::Required(size) => {
                let free_mib = bytes_free(Some(size)) / MIB;
                if free_mib >= memory_mib {
                    return Ok(Self::Huge { memory_mib });
                }
                Err(Problem {
                    key: "dpdk.huge_pages".to_owned(),
                    what: format!(
                        "{memory_mib} MiB of {size} huge pages are required, but only {free_mib} MiB are free"
                    ),
                    mend: "holdfast check-host --apply, or huge_pages = \"auto\"".to_owned(),
                })
            }
        }
    }

    /// The EAL arguments that say so. Nothing is shared with other processes either way: several run
    /// side by side. (`--in-memory` and `--no-huge` exclude each other in DPDK.)
    #[must_use]
    pub fn eal_arguments(&self) -> Vec<String> {
        match self {
            Self::Huge { memory_mib } => vec!["--in-memory".to_owned(), format!("-m{memory_mib}")],
            Self::Ordinary { memory_mib, .. } => {
                // DPDK lets no frame cross an ordinary page, so that each may take up to twice its length.
                let memory_mib = memory_mib.saturating_mul(2);
                vec!["--no-huge".to_owned(), "--no-shconf".to_owned(), format!("-m{memory_mib}")]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn pages(page_bytes: u64, free: u64) -> FreePages {
        FreePages { page_bytes, free }
    }

    #[test]
    fn huge_pages_are_taken_only_when_enough_are_free_or_they_are_required() {
        use HugePages::{Auto, Off, Required};
        use PageSize::{OneGib, TwoMib};
        let two = TwoMib.bytes();
        let one = OneGib.bytes();
        let table: [(HugePages, &[FreePages], Option<bool>); 9] = [
            (Auto, &[], Some(false)),
            (Auto, &[pages(two, 63)], Some(false)),
            (Auto, &[pages(two, 64)], Some(true)),
            (Auto, &[pages(one, 1)], Some(true)),
            (Off, &[pages(one, 4)], Some(false)),
            (Required(TwoMib), &[pages(one, 4)], None),
            (Required(TwoMib), &[pages(two, 64)], Some(true)),
            (Required(OneGib), &[pages(two, 1024)], None),
            (Required(OneGib), &[pages(one, u64::MAX)], Some(true)),
        ];
        for (wanted, free, huge) in table {
            let plan = MemoryPlan::decide(wanted, 128, free);
            match huge {
                None => {
                    let problem = plan.expect_err("too few are free");
                    assert!(problem.mend.contains("check-host --apply"), "{problem}");
                }
                Some(huge) => {
                    let plan = plan.expect("a plan");
                    assert_eq!(matches!(plan, MemoryPlan::Huge { .. }), huge, "{wanted:?} {free:?}");
                }
            }
        }
    }

    #[test]
    fn in_memory_and_no_huge_are_never_given_together() {
        let huge = MemoryPlan::Huge { memory_mib: 64 }.eal_arguments();
        let ordinary = MemoryPlan::Ordinary { memory_mib: 64, for_want_of_huge_pages: false }.eal_arguments();
        assert_eq!(huge, ["--in-memory", "-m64"]);
        assert_eq!(ordinary, ["--no-huge", "--no-shconf", "-m128"]);
    }
}
