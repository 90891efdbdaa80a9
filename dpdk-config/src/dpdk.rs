//! `[dpdk]`: memory, log and the name under which DPDK keeps its folder.

use crate::{HugePages, MemoryPlan, PageSize, Problems, Wire, WireDevice};
use serde::Deserialize;

/// `[dpdk]` as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawDpdk {
    /// `auto`, `off`, `2M` or `1G`.
    pub huge_pages: Option<String>,
    /// Memory taken at the start, in MiB; none: what the wires need.
    pub memory_mb: Option<u64>,
    /// Name of DPDK's folder under its runtime directory.
    pub file_prefix: Option<String>,
    /// `error`, `warning`, `notice`, `info` or `debug`.
    pub log_level: Option<String>,
}

/// How much DPDK says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// Only what failed.
    Error,
    /// And what may fail.
    #[default]
    Warning,
    /// And what is worth a note.
    Notice,
    /// And what it does.
    Info,
    /// And everything else.
    Debug,
}

impl LogLevel {
    const fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Notice => "notice",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// `[dpdk]`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dpdk {
    /// Which pages.
    pub huge_pages: HugePages,
    /// Memory taken at the start, in MiB.
    pub memory_mib: u64,
    /// Name of DPDK's folder.
    pub file_prefix: String,
    /// How much DPDK says.
    pub log_level: LogLevel,
}

/// What DPDK needs for itself: rings, port structures, tables of the drivers.
const OWN_MIB: u64 = 32;
/// More than any one host has.
const MEMORY_MAX_MIB: u64 = 1 << 20;
const FILE_PREFIX_MAX: usize = 32;

impl Dpdk {
    /// Checks the section, given the wires whose frames must fit the memory.
    pub fn check(raw: &RawDpdk, wires: &[Wire], problems: &mut Problems) -> Self {
        let needed = wires.iter().map(Wire::memory_mib).fold(OWN_MIB, u64::saturating_add);
        Self {
            huge_pages: huge_pages(raw, problems),
            memory_mib: memory(raw, needed, problems),
            file_prefix: file_prefix(raw, problems),
            log_level: log_level(raw, problems),
        }
    }

    /// The EAL arguments, without the program's name and without `--lcores`, which the safe layer
    /// adds. Virtual devices are plugged in later, one by one, so that each has its own error; cards
    /// must be named now, as DPDK else takes every card that is bound to a driver of its kind.
    #[must_use]
    pub fn eal_arguments(&self, memory: &MemoryPlan, wires: &[Wire]) -> Vec<String> {
        let mut arguments = memory.eal_arguments();
        arguments.push(format!("--file-prefix={}", self.file_prefix));
        arguments.push("--no-telemetry".to_owned());
        arguments.push(format!("--log-level=*:{}", self.log_level.word()));
        let before = arguments.len();
        for wire in wires {
            if let WireDevice::Pci { address } = wire.device() {
                arguments.push(format!("-a{address}"));
            }
        }
        if arguments.len() == before {
            arguments.push("--no-pci".to_owned());
        }
        arguments
    }
}

fn huge_pages(raw: &RawDpdk, problems: &mut Problems) -> HugePages {
    match raw.huge_pages.as_deref() {
        None | Some("auto") => HugePages::Auto,
        Some("off") => HugePages::Off,
        Some("2M") => HugePages::Required(PageSize::TwoMib),
        Some("1G") => HugePages::Required(PageSize::OneGib),
        Some(other) => {
            problems.add(
                "dpdk.huge_pages",
                format!("{other:?} is neither a size nor a choice"),
                "huge_pages = \"auto\", \"off\", \"2M\" or \"1G\"",
            );
            HugePages::Auto
        }
    }
}

fn memory(raw: &RawDpdk, needed: u64, problems: &mut Problems) -> u64 {
    let given = raw.memory_mb.unwrap_or(needed);
    if given < needed {
        problems.add(
            "dpdk.memory_mb",
            format!("the frames of the wires need {needed} MiB, but only {given} are given"),
            format!("memory_mb = {needed}, or leave it out, or lower `frames` of a wire"),
        );
    }
    if given > MEMORY_MAX_MIB {
        problems.add(
            "dpdk.memory_mb",
            format!("{given} MiB are more than any host has"),
            format!("leave it out: {needed} MiB are enough"),
        );
    }
    given
}

fn file_prefix(raw: &RawDpdk, problems: &mut Problems) -> String {
    let given = raw.file_prefix.as_deref().unwrap_or("holdfast");
    let fits = (1..=FILE_PREFIX_MAX).contains(&given.len())
        && given.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
        && !given.starts_with('-');
    if !fits {
        problems.add(
            "dpdk.file_prefix",
            format!("{given:?} cannot name a folder of DPDK"),
            format!("use 1 to {FILE_PREFIX_MAX} letters, digits, '_' or '-'"),
        );
    }
    given.to_owned()
}

fn log_level(raw: &RawDpdk, problems: &mut Problems) -> LogLevel {
    match raw.log_level.as_deref() {
        None | Some("warning") => LogLevel::Warning,
        Some("error") => LogLevel::Error,
        Some("notice") => LogLevel::Notice,
        Some("info") => LogLevel::Info,
        Some("debug") => LogLevel::Debug,
        Some(other) => {
            problems.add(
                "dpdk.log_level",
                format!("{other:?} is no level"),
                "log_level = \"error\", \"warning\", \"notice\", \"info\" or \"debug\"",
            );
            LogLevel::Warning
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RawCores, RawWire, check};

    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(default)]
        dpdk: RawDpdk,
        #[serde(default)]
        cores: RawCores,
        #[serde(default)]
        wire: Vec<RawWire>,
    }

    fn parsed(text: &str) -> File {
        toml::from_str(text).expect("well-formed")
    }

    #[test]
    fn the_arguments_of_a_plain_file_are_these() {
        let file = parsed("[[wire]]\nname = 'wan'\nkind = 'tap'\niface = 'hf0'\nframes = 4096");
        let checked = check(&file.dpdk, &file.cores, &file.wire).expect("nothing wrong");
        let memory = MemoryPlan::decide(checked.dpdk.huge_pages, checked.dpdk.memory_mib, &[]).expect("auto");
        let memory_mib = checked.dpdk.memory_mib;
        assert_eq!(
            checked.dpdk.eal_arguments(&memory, &checked.wires),
            [
                "--no-huge",
                "--no-shconf",
                format!("-m{}", 2 * memory_mib).as_str(),
                "--file-prefix=holdfast",
                "--no-telemetry",
                "--log-level=*:warning",
                "--no-pci"
            ]
        );
    }

    #[test]
    fn only_the_cards_named_are_given_to_dpdk() {
        let file = parsed("[[wire]]\nname = 'wan'\nkind = 'pci'\naddress = '0000:03:00.1'");
        let checked = check(&file.dpdk, &file.cores, &file.wire).expect("nothing wrong");
        let arguments = checked.dpdk.eal_arguments(&MemoryPlan::Huge { memory_mib: 128 }, &checked.wires);
        assert!(arguments.contains(&"-a0000:03:00.1".to_owned()), "{arguments:?}");
        assert!(!arguments.contains(&"--no-pci".to_owned()), "{arguments:?}");
    }

    #[test]
    fn all_problems_of_all_sections_are_reported_at_once() {
        let file = parsed(
            "[dpdk]\nhuge_pages = '3M'\nmemory_mb = 1\nfile_prefix = '../etc'\nlog_level = 'loud'\n\
             [cores]\nidle = 'nap'\n\
             [[wire]]\nname = 'wan'\nkind = 'carrier-pigeon'",
        );
        let problems = check(&file.dpdk, &file.cores, &file.wire).expect_err("much is wrong");
        let keys: Vec<&str> = problems.0.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "wire[0].kind",
                "cores.idle",
                "dpdk.huge_pages",
                "dpdk.memory_mb",
                "dpdk.file_prefix",
                "dpdk.log_level"
            ]
        );
        assert!(problems.0.iter().all(|problem| !problem.mend.is_empty()));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_name() {
        let fault = toml::from_str::<File>("[dpdk]\nhugepages = 'auto'").err().expect("unknown key");
        assert!(fault.to_string().contains("hugepages"), "{fault}");
    }

    #[test]
    fn a_file_prefix_cannot_leave_its_folder_or_become_an_argument() {
        for prefix in ["", "..", "a/b", "a b", "-x", "a,b", "a=b", "naïve", &"x".repeat(33)] {
            let raw = RawDpdk { file_prefix: Some(prefix.to_owned()), ..RawDpdk::default() };
            let mut problems = Problems::default();
            Dpdk::check(&raw, &[], &mut problems);
            assert_eq!(problems.0.len(), 1, "{prefix:?}");
        }
    }
}
