//! A bounded run of one target over its corpus.

use crate::Target;
use crate::mutator::{Random, mutate};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Inputs kept beside the corpus, so that mutations build on mutations.
const POOL: usize = 256;

/// A run of one target.
#[derive(Clone, Debug)]
pub struct Session {
    target: Target,
    seed: u64,
    corpus: Vec<Vec<u8>>,
}

/// What a run did.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    /// Inputs that were run.
    pub runs: u64,
    /// Of them, those of the corpus.
    pub corpus: usize,
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
        for input in &self.corpus {
            self.once(input)?;
        }
        let mut random = Random::new(self.seed);
        let mut pool: Vec<Vec<u8>> = Vec::new();
        let mut runs = self.corpus.len() as u64;
        while begin.elapsed() < time {
            let [first, second] = [0; 2].map(|_| {
                let known = &self.corpus[random.below(self.corpus.len())];
                if pool.is_empty() || random.below(2) == 0 { known } else { &pool[random.below(pool.len())] }
            });
            let (mut input, other) = (first.clone(), second.clone());
            mutate(&mut random, &mut input, &other, self.target.max_len);
            self.once(&input)?;
            runs += 1;
            if pool.len() < POOL {
                pool.push(input);
            } else if random.below(8) == 0 {
                let place = random.below(POOL);
                pool[place] = input;
            }
        }
        Ok(Tally { runs, corpus: self.corpus.len() })
    }

    fn once(&self, input: &[u8]) -> Result<(), Finding> {
        let result = catch_unwind(AssertUnwindSafe(|| (self.target.run)(input)));
        let what = match result {
            Ok(Ok(())) => return Ok(()),
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
                Ok(Ok(())) => false,
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
        let hash = self.input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz");
        std::fs::create_dir_all(&folder).expect("a folder under target/");
        let path = folder.join(format!("{}-{hash:016x}", target.name));
        std::fs::write(&path, &self.input).expect("a file under target/");
        path
    }
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
