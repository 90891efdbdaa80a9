//! `holdfast-sim`: runs seeds, shrinks what fails, replays.

use clap::Parser;
use holdfast_sim::{Breakage, Failure, Scenario, Summary, run, shrink, trace};
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The seeded simulator of speculative communication.
#[derive(Debug, Parser)]
#[command(name = "holdfast-sim")]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// One seed alone, which is told in full.
    #[arg(long)]
    seed: Option<u64>,
    /// Print what happens, line by line; with --seed.
    #[arg(long)]
    trace: bool,
    /// What to leave out, as a failure printed it; with --seed.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Break something on purpose.
    #[arg(long)]
    broken: Option<Breakage>,
    /// Seeds that run side by side; by default as many as there are cores.
    #[arg(long)]
    jobs: Option<usize>,
    /// Go on after a failure, and count.
    #[arg(long)]
    keep_going: bool,
    /// Do not shrink what fails.
    #[arg(long)]
    whole: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // A panic is a verdict here, and is told with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    match arguments.seed {
        Some(seed) => replay(seed, &arguments),
        None => run_all(&arguments),
    }
}

fn run_all(arguments: &Arguments) -> ExitCode {
    let last = arguments.first + arguments.seeds;
    println!("seeds {} to {}{}", arguments.first, last - 1, breakage(arguments));
    let began = Instant::now();
    let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
    let jobs = arguments.jobs.unwrap_or_else(cores).max(1);
    let next = AtomicU64::new(arguments.first);
    // Beyond the first seed that fails, none is begun; those before it are finished.
    let stop = AtomicU64::new(last);
    let mut total = Total::default();
    let mut failures = Vec::new();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(|| work(arguments, &next, &stop))).collect();
        for worker in workers {
            if let Ok((part, failed)) = worker.join() {
                total.join(&part);
                failures.extend(failed);
            }
        }
    });
    failures.sort_by_key(|failure| failure.scenario.seed);
    let failed = failures.len();
    if !arguments.keep_going {
        failures.truncate(1);
    }
    for failure in failures {
        tell(failure, arguments);
    }
    println!("{failed} failed, {total}, in {:.1} s", began.elapsed().as_secs_f64());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn work(arguments: &Arguments, next: &AtomicU64, stop: &AtomicU64) -> (Total, Vec<Failure>) {
    let (mut total, mut failures) = (Total::default(), Vec::new());
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= stop.load(Ordering::Relaxed) {
            return (total, failures);
        }
        match run(&Scenario::of(seed), arguments.broken) {
            Ok(summary) => total.add(&summary),
            Err(failure) => {
                failures.push(failure);
                if !arguments.keep_going {
                    stop.fetch_min(seed, Ordering::Relaxed);
                }
            }
        }
    }
}

fn tell(failure: Failure, arguments: &Arguments) {
    let seed = failure.scenario.seed;
    println!("seed {seed} fails: {}", failure.violation);
    if arguments.whole {
        return;
    }
    let (smallest, cuts) = shrink(failure, arguments.broken);
    println!("the smallest scenario that fails so: {:#?}\n{}", smallest.scenario, smallest.violation);
    let without = if cuts.is_empty() { String::new() } else { format!(" --without {}", cuts.join(",")) };
    let broken = arguments.broken.map(|broken| format!(" --broken {broken}")).unwrap_or_default();
    let (_, lines) = trace(&smallest.scenario, arguments.broken);
    println!("its last lines of {}:", lines.len());
    for line in &lines[lines.len().saturating_sub(60)..] {
        println!("{line}");
    }
    println!("replay: holdfast-sim --seed {seed} --trace{broken}{without}");
}

fn replay(seed: u64, arguments: &Arguments) -> ExitCode {
    let mut scenario = Scenario::of(seed);
    for cut in &arguments.without {
        match shrink::apply(&scenario, cut) {
            Some(smaller) => scenario = smaller,
            None => {
                eprintln!("there is no {cut} to leave out");
                return ExitCode::from(2);
            }
        }
    }
    println!("{scenario:#?}");
    let (verdict, lines) = trace(&scenario, arguments.broken);
    if arguments.trace {
        for line in lines {
            println!("{line}");
        }
    }
    match verdict {
        Ok(summary) => {
            println!("seed {seed} passes: {summary:?}");
            ExitCode::SUCCESS
        }
        Err(violation) => {
            println!("seed {seed} fails: {violation}");
            ExitCode::FAILURE
        }
    }
}

fn breakage(arguments: &Arguments) -> String {
    arguments.broken.map(|broken| format!(", broken on purpose: {broken}")).unwrap_or_default()
}

/// Sums of what the runs tell.
#[derive(Debug, Default)]
struct Total {
    runs: u64,
    frames: u64,
    failovers: u64,
    forged: u64,
    lent: u64,
    commits: u64,
    delivered: u64,
    virtual_s: f64,
}

impl Total {
    fn join(&mut self, other: &Self) {
        self.runs += other.runs;
        self.frames += other.frames;
        self.failovers += other.failovers;
        self.forged += other.forged;
        self.lent += other.lent;
        self.commits += other.commits;
        self.delivered += other.delivered;
        self.virtual_s += other.virtual_s;
    }

    fn add(&mut self, summary: &Summary) {
        self.runs += 1;
        self.frames += summary.frames;
        self.failovers += u64::from(summary.failovers);
        self.forged += u64::from(summary.forged);
        self.lent += u64::from(summary.lent);
        self.commits += u64::from(summary.commits);
        self.delivered += summary.delivered;
        self.virtual_s += summary.lasted.as_secs_f64();
    }
}

impl std::fmt::Display for Total {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} passed: {:.0} s of virtual time, {} frames, {} forged, {} scales lent, {} commits, {} failovers, {} MB \
             delivered",
            self.runs,
            self.virtual_s,
            self.frames,
            self.forged,
            self.lent,
            self.commits,
            self.failovers,
            self.delivered / 1_000_000
        )
    }
}
