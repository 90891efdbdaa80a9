//! A bounded run of one target over its corpus.

use crate::mutator::{Random, mutate};
use crate::{Features, Target};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Inputs kept beside the corpus, so that mutations build on mutations.
const POOL: usize = 64;
/// Inputs of a corpus at most.
const CORPUS: usize = 64;
/// Inputs with new features that are kept at most.
const KEPT: usize = 4096;

/// A run of one target.
#[derive(Clone, Debug)]
pub struct Session {
    target: Target,
    seed: u64,
    corpus: Vec<Vec<u8>>,
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Inputs that were run.
    pub runs: u64,
    /// Of them, those of the corpus.
    pub corpus: usize,
    /// Different features that were seen.
    pub features: usize,
    /// Inputs beyond the corpus that brought a new one.
    pub kept: Vec<Vec<u8>>,
}

/// An input that a target does not survive.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The input.
    pub input: Vec<u8>,
    /// What was wrong.
    pub what: String,
}

impl Session {
    /// A run over the target's folder of the corpus; an empty folder is as good as one empty input.
    ///
    /// # Panics
    /// When the corpus cannot be read.
    #[must_use]
    pub fn new(target: Target, seed: u64) -> Self {
        let mut corpus: Vec<Vec<u8>> = files(&folder(&target))
            .iter()
            .map(|path| std::fs::read(path).expect("a readable file of the corpus"))
            .collect();
        corpus.push(Vec::new());
        Self { target, seed, corpus }
    }

    /// Runs the corpus, then mutations of it until the time is over.
    ///
    /// # Errors
    /// The first input that the target does not survive.
    pub fn run(&self, time: Duration) -> Result<Tally, Finding> {
        let begin = Instant::now();
        let mut seen = HashSet::new();
        for input in &self.corpus {
            seen.extend(self.once(input)?);
        }
        let mut random = Random::new(self.seed);
        let (mut kept, mut pool): (Vec<Vec<u8>>, Vec<Vec<u8>>) = Default::default();
        let mut runs = self.corpus.len() as u64;
        while begin.elapsed() < time {
            let [first, second] = [0; 2].map(|_| {
                let source = match random.below(4) {
                    0 if !pool.is_empty() => &pool,
                    1 | 2 if !kept.is_empty() => &kept,
                    _ => &self.corpus,
                };
                &source[random.below(source.len())]
            });
            let (mut input, other) = (first.clone(), second.clone());
            mutate(&mut random, &mut input, &other, self.target.max_len);
            let features = self.once(&input)?;
            runs += 1;
            let before = seen.len();
            seen.extend(features);
            if seen.len() > before && kept.len() < KEPT {
                kept.push(input);
            } else if pool.len() < POOL {
                pool.push(input);
            } else if random.below(8) == 0 {
                let place = random.below(POOL);
                pool[place] = input;
            }
        }
        Ok(Tally { runs, corpus: self.corpus.len(), features: seen.len(), kept })
    }

    /// Makes the target's corpus anew: the fewest inputs, of the corpus and of what a run has kept, that
    /// bring about as much as all of them; at most [`CORPUS`]. Says how many.
    ///
    /// # Errors
    /// An input that the target does not survive.
    ///
    /// # Panics
    /// When the corpus cannot be written.
    pub fn distill(&self, kept: &[Vec<u8>]) -> Result<usize, Finding> {
        let mut candidates = Vec::new();
        for input in self.corpus.iter().chain(kept).filter(|input| !input.is_empty()) {
            let features: HashSet<u16> = self.once(input)?.into_iter().collect();
            candidates.push((input, features));
        }
        let (mut seen, mut chosen) = (HashSet::new(), Vec::new());
        while chosen.len() < CORPUS {
            let news = |features: &HashSet<u16>| features.difference(&seen).count();
            // The most that is new, in the fewest bytes.
            let best =
                candidates.iter().max_by_key(|(input, features)| (news(features), usize::MAX - input.len()));
            let Some((input, features)) = best.filter(|(_, features)| news(features) > 0) else { break };
            chosen.push(*input);
            seen.extend(features.iter().copied());
        }
        for path in files(&folder(&self.target)) {
            std::fs::remove_file(path).expect("a file of the corpus");
        }
        for input in &chosen {
            let path = folder(&self.target).join(format!("{:016x}", hash(input)));
            std::fs::write(path, input).expect("a file in the corpus");
        }
        Ok(chosen.len())
    }

    fn once(&self, input: &[u8]) -> Result<Features, Finding> {
        let result = catch_unwind(AssertUnwindSafe(|| (self.target.run)(input)));
        let what = match result {
            Ok(Ok(features)) => return Ok(features),
            Ok(Err(what)) => what,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                format!("it panicked: {}", text.unwrap_or("see above"))
            }
        };
        Err(Finding { input: self.shrunk(input, &what), what })
    }

    /// A shorter input with the same finding: pieces are left out as long as it stays.
    fn shrunk(&self, input: &[u8], what: &str) -> Vec<u8> {
        let class =
            |what: &str| what.chars().filter(|c| c.is_alphabetic() || *c == ':').take(24).collect::<String>();
        let fails = |bytes: &[u8]| {
            let result = catch_unwind(AssertUnwindSafe(|| (self.target.run)(bytes)));
            match result {
                Ok(Ok(_)) => false,
                Ok(Err(found)) => class(&found) == class(what),
                Err(_) => what.starts_with("it panicked"),
            }
        };
        let mut best = input.to_vec();
        let mut size = best.len() / 2;
        let begin = Instant::now();
        while size > 0 && begin.elapsed() < Duration::from_secs(20) {
            let mut at = 0;
            while at < best.len() {
                let mut shorter = best.clone();
                shorter.drain(at..(at + size).min(best.len()));
                if fails(&shorter) {
                    best = shorter;
                } else {
                    at += size;
                }
            }
            size /= 2;
        }
        best
    }
}

impl Finding {
    /// Writes the input where it can be replayed from, and says where.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn save(&self, target: &Target) -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz");
        std::fs::create_dir_all(&folder).expect("a folder under target/");
        let path = folder.join(format!("{}-{:016x}", target.name, hash(&self.input)));
        std::fs::write(&path, &self.input).expect("a file under target/");
        path
    }
}

/// FNV-1a: a name for an input.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder of the corpus for each target");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    paths
}
