//! `[cores]`: which processor runs what, and what a polling core does when there is nothing to do.

use crate::{Problems, Wire};
use serde::Deserialize;

/// Highest processor number that the system's own sets hold.
const CPU_MAX: u32 = 1023;

/// `[cores]` as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawCores {
    /// A processor for each polling thread, the first of which has the wires that name none; none: one polling
    /// thread, which the system places.
    pub polling: Option<Vec<u32>>,
    /// Processor of the replication thread; none: the system places it.
    pub replication: Option<u32>,
    /// Processors of all other threads; none: where the process was started.
    pub control: Option<Vec<u32>>,
    /// `adaptive` or `poll`.
    pub idle: Option<String>,
}

/// What a polling core does when there is nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Spins for a while, then sleeps until something arrives.
    #[default]
    Adaptive,
    /// Never sleeps: for cores that do nothing else.
    Poll,
}

/// `[cores]`, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreMap {
    /// A processor for each polling thread; empty: one thread that the system places.
    pub polling: Vec<u32>,
    /// Processor of the replication thread.
    pub replication: Option<u32>,
    /// Processors of all other threads; empty: where the process was started.
    pub control: Vec<u32>,
    /// What a polling core does when there is nothing to do.
    pub idle: IdlePolicy,
}

impl CoreMap {
    /// Checks the section; what is wrong goes to `problems`.
    pub fn check(raw: &RawCores, problems: &mut Problems) -> Self {
        let map = Self {
            polling: raw.polling.clone().unwrap_or_default(),
            replication: raw.replication,
            control: raw.control.clone().unwrap_or_default(),
            idle: match raw.idle.as_deref() {
                None | Some("adaptive") => IdlePolicy::Adaptive,
                Some("poll") => IdlePolicy::Poll,
                Some(other) => {
                    problems.add(
                        "cores.idle",
                        format!("{other:?} is no idle policy"),
                        "idle = \"adaptive\" (shares its core) or \"poll\" (has it alone)",
                    );
                    IdlePolicy::Adaptive
                }
            },
        };
        for (key, cpu) in map.all() {
            if cpu > CPU_MAX {
                problems.add(
                    key,
                    format!("there is no processor {cpu}"),
                    format!("name one of 0 to {CPU_MAX}; `holdfast check-host` lists those of this host"),
                );
            }
        }
        for (index, cpu) in map.polling.iter().enumerate() {
            if map.polling[..index].contains(cpu) {
                problems.add(
                    format!("cores.polling[{index}]"),
                    format!("processor {cpu} is named twice"),
                    "give each polling thread its own processor",
                );
            }
        }
        if map.idle == IdlePolicy::Poll {
            if map.polling.is_empty() {
                problems.add(
                    "cores.polling",
                    "idle = \"poll\" takes a processor for itself, but none is named",
                    "polling = [1], or idle = \"adaptive\"",
                );
            }
            let others = map.control.iter().copied().chain(map.replication);
            for cpu in others.filter(|cpu| map.polling.contains(cpu)) {
                problems.add(
                    "cores",
                    format!("processor {cpu} polls without pause, and other threads are to run on it"),
                    "move them to other processors, or set idle = \"adaptive\"",
                );
            }
        }
        map
    }

    /// Place of the polling thread that has this wire, in the order of `polling`.
    #[must_use]
    pub fn place(&self, wire: &Wire) -> usize {
        wire.core.and_then(|core| self.place_of(core)).unwrap_or(0)
    }

    /// Place of the polling thread on that processor, in the order of `polling`; none: there is none.
    #[must_use]
    pub fn place_of(&self, processor: u32) -> Option<usize> {
        self.polling.iter().position(|cpu| *cpu == processor)
    }

    /// Notes every processor named that is not among `present`, the processors this process may use.
    pub fn check_against(&self, present: &[u32], problems: &mut Problems) {
        for (key, cpu) in self.all() {
            if cpu <= CPU_MAX && !present.contains(&cpu) {
                problems.add(
                    key,
                    format!("processor {cpu} is not there, or this process may not use it"),
                    format!("name one of {}", ranges(present)),
                );
            }
        }
    }

    fn all(&self) -> impl Iterator<Item = (String, u32)> {
        let polling =
            self.polling.iter().enumerate().map(|(index, &cpu)| (format!("cores.polling[{index}]"), cpu));
        let control =
            self.control.iter().enumerate().map(|(index, &cpu)| (format!("cores.control[{index}]"), cpu));
        polling.chain(self.replication.map(|cpu| ("cores.replication".to_owned(), cpu))).chain(control)
    }
}

/// Processors as people write them: `0-3,8`.
fn ranges(cpus: &[u32]) -> String {
    let mut sorted = cpus.to_vec();
    sorted.sort_unstable();
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for cpu in sorted {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => parts.push((cpu, cpu)),
        }
    }
    let parts: Vec<String> = parts
        .into_iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(text: &str) -> Vec<String> {
        let raw: RawCores = toml::from_str(text).expect("well-formed");
        let mut problems = Problems::default();
        CoreMap::check(&raw, &mut problems);
        problems.0.into_iter().map(|problem| problem.key).collect()
    }

    #[test]
    fn nothing_written_means_one_adaptive_thread_wherever_it_fits() {
        assert_eq!(problems_of(""), Vec::<String>::new());
        let mut problems = Problems::default();
        assert_eq!(CoreMap::check(&RawCores::default(), &mut problems), CoreMap::default());
    }

    #[test]
    fn each_fault_is_named_by_its_key() {
        let table = [
            ("idle = 'nap'", vec!["cores.idle"]),
            ("polling = [4000]\ncontrol = [0, 5000]", vec!["cores.polling[0]", "cores.control[1]"]),
            ("polling = [1, 2, 1]", vec!["cores.polling[2]"]),
            ("idle = 'poll'", vec!["cores.polling"]),
            ("idle = 'poll'\npolling = [1]\nreplication = 1", vec!["cores"]),
            ("polling = [1]\nreplication = 1", vec![]),
        ];
        for (text, keys) in table {
            assert_eq!(problems_of(text), keys, "{text}");
        }
    }

    #[test]
    fn a_processor_that_is_not_there_is_named_with_those_that_are() {
        let map = CoreMap { polling: vec![1, 9], ..CoreMap::default() };
        let mut problems = Problems::default();
        map.check_against(&[0, 1, 2, 3, 6], &mut problems);
        assert_eq!(problems.0.len(), 1);
        assert_eq!(problems.0[0].key, "cores.polling[1]");
        assert_eq!(problems.0[0].mend, "name one of 0-3,6");
    }
}
