//! Runs that were never measured: figures of a plausible shape from a seeded generator, for tests alone.

use holdfast_report::histogram;
use holdfast_report::run::{
    Application, Bulk, Clock, Configuration, Epoch, Latency, Machine, Mode, Recording, Round, Row, Run, Unit,
};
use holdfast_report::statistics::Random;

const EPOCHS_MS: [u64; 3] = [10, 25, 50];
const SIZES: [u64; 4] = [4 << 10, 64 << 10, 1 << 20, 16 << 20];
const ROUNDS: usize = 5;
/// Spread of a round's figures.
const NOISE: f64 = 0.06;
const APPS: [&str; 5] = ["nginx", "redis", "shuffle", "rsync", "iperf3"];

/// Figures of a seed.
struct Figures(Random);

impl Figures {
    /// Between 0 and 1.
    fn share(&mut self) -> f64 {
        (self.0.draw() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Around 1, skewed to above, as times are.
    fn skewed(&mut self, spread: f64) -> f64 {
        let three = (0..3).map(|_| self.share()).sum::<f64>() / 3.0;
        (spread * (three - 0.5) * 3.0).exp()
    }

    /// What rounds found whose figures lie around those of `centre`.
    fn rounds(&mut self, centre: Round) -> Vec<Round> {
        let mut around = |figure: Option<f64>| figure.map(|figure| figure * self.skewed(NOISE));
        (0..ROUNDS)
            .map(|_| Round {
                mbit_s: around(centre.mbit_s),
                requests_s: around(centre.requests_s),
                p50_ms: around(centre.p50_ms),
                p99_ms: around(centre.p99_ms),
            })
            .collect()
    }

    fn samples(&mut self, count: usize, centre: f64, spread: f64) -> Vec<f64> {
        (0..count).map(|_| centre * self.skewed(spread)).collect()
    }
}

/// A whole run; `speed` multiplies all rates.
pub(crate) fn run(seed: u64, speed: f64) -> Run {
    let mut random = Figures(Random(seed));
    let mut run = Run {
        bench: "paper".into(),
        machine: Machine {
            holdfast: Some("0.1.0".into()),
            commit: Some("0123456789ab".into()),
            qemu: Some("7.2".into()),
            dpdk: Some("DPDK 22.11".into()),
            kernel: Some("6.12 (synthetic)".into()),
            guest_kernel: Some("6.1 (synthetic)".into()),
            applications: [("nginx".to_owned(), "1.22.1 (synthetic)".to_owned())].into(),
            cpu: Some("SYNTHETIC: nothing here was measured".into()),
            cores: Some(2),
            memory_mib: Some(24_000),
            started: Some(format!("2000-01-01T00:00:{:02}Z", seed % 60)),
            took_s: Some(1234.5),
            more: serde_json::Map::new(),
        },
        configuration: Configuration {
            quick: Some(false),
            seed: Some(1),
            rounds: Some(5),
            wire: Some(String::new()),
            modes: Mode::ALL.to_vec(),
            epochs_ms: EPOCHS_MS.to_vec(),
            seconds: Some(5.0),
            more: serde_json::Map::new(),
        },
        ..Run::default()
    };
    for epoch_ms in EPOCHS_MS {
        for mode in Mode::ALL {
            for adaptive in [false, true] {
                if mode != Mode::Native || !adaptive {
                    cell(&mut run, &mut random, (mode, epoch_ms, adaptive), speed);
                }
            }
        }
    }
    run
}

type Cell = (Mode, u64, bool);

fn cell(run: &mut Run, random: &mut Figures, of: Cell, speed: f64) {
    for connections in [1, 16] {
        run.rows.push(Row::Stream(stream(random, of, connections, speed)));
    }
    for setup in [true, false] {
        for bytes in SIZES {
            run.rows.push(Row::Transfer(transfer(random, of, bytes, setup, speed)));
        }
    }
    run.rows.push(Row::Latency(latency(random, of)));
    if of.1 != 10 {
        for app in APPS {
            run.rows.push(Row::Application(application(random, of, app, speed)));
        }
    }
    if of.0 != Mode::Native {
        run.epochs.push(recording(random, of));
        let (mode, epoch_ms, adaptive) = of;
        let lag = 40_000.0 / epoch_ms as f64 * 10.0 * random.skewed(0.2);
        run.clock.push(Clock { mode, epoch_ms, adaptive, guest_clock_lag_ppm: Some(lag) });
    }
}

/// How much of native's speed a mode keeps.
fn kept((mode, epoch_ms, adaptive): Cell) -> f64 {
    let pause = 1.0 - 4.0 / epoch_ms as f64;
    match mode {
        Mode::Native => 1.0,
        Mode::Commit if adaptive => 0.3,
        Mode::Commit => 4.0 / epoch_ms as f64,
        Mode::Speculative => pause * 0.85,
        Mode::Aware => pause * 1.02,
    }
}

fn wait_ms((mode, epoch_ms, adaptive): Cell) -> f64 {
    match (mode, adaptive) {
        (Mode::Native, _) => 0.12,
        (_, true) => 6.0,
        (_, false) => epoch_ms as f64,
    }
}

fn empty((mode, epoch_ms, adaptive): Cell, connections: u64) -> Bulk {
    Bulk { connections, ..Bulk::new(mode, epoch_ms, adaptive) }
}

fn stream(random: &mut Figures, of: Cell, connections: u64, speed: f64) -> Bulk {
    let mut row = empty(of, connections);
    row.seconds = Some(5);
    row.fairness = Some(0.97);
    row.samples = random.samples(25, 2500.0 * kept(of) * speed, 0.12);
    row.samples_unit = Some(Unit::MbitS);
    row.rounds = random.rounds(Round { mbit_s: Some(2500.0 * kept(of) * speed), ..Round::default() });
    row.throughput_mbit_s = row.samples.iter().sum::<f64>() / row.samples.len() as f64;
    row
}

fn transfer(random: &mut Figures, of: Cell, bytes: u64, setup: bool, speed: f64) -> Bulk {
    let mut row = empty(of, 1);
    (row.bytes, row.setup) = (Some(bytes), Some(setup));
    let waits = if setup { 2.0 } else { 1.0 };
    let window = if of.0 == Mode::Aware { 1.0 } else { 1.0 + bytes as f64 / 2e6 };
    let centre = (waits * wait_ms(of) * window + bytes as f64 * 8e-3 / (2500.0 * kept(of))) / speed;
    row.samples = random.samples(15, centre, 0.25);
    row.samples_unit = Some(Unit::Ms);
    row.rounds = random.rounds(Round { p50_ms: Some(centre), ..Round::default() });
    row.completion_p50_ms = Some(centre);
    row.completion_p90_ms = Some(centre * 1.2);
    row.throughput_mbit_s = bytes as f64 * 8e-3 / centre;
    row
}

fn latency(random: &mut Figures, of: Cell) -> Latency {
    let wait_us = wait_ms(of) * 1000.0;
    let times = (0..4000).map(|_| {
        let tail = if random.share() < 0.02 { 3.0 * random.share() + 1.0 } else { 1.0 };
        (wait_us * (0.5 + random.share()) * tail) as u64
    });
    let histogram = histogram::of(times);
    let ms = |share: f64| histogram.value_at_quantile(share) as f64 / 1000.0;
    let (mode, epoch_ms, adaptive) = of;
    let (p50_ms, p99_ms) = (Some(wait_ms(of)), Some(wait_ms(of) * 2.0));
    let rounds = random.rounds(Round { p50_ms, p99_ms, ..Round::default() });
    Latency {
        mode,
        epoch_ms,
        adaptive,
        requests: histogram.len(),
        p50_ms: ms(0.5),
        p90_ms: ms(0.9),
        p99_ms: ms(0.99),
        max_ms: ms(1.0),
        histogram: Some(histogram::encode(&histogram)),
        rounds,
    }
}

fn application(random: &mut Figures, of: Cell, app: &str, speed: f64) -> Application {
    let (mode, epoch_ms, adaptive) = of;
    let of_bytes = matches!(app, "iperf3" | "rsync");
    let centre = if of_bytes { 2000.0 } else { 5000.0 } * kept(of) * speed;
    let samples = random.samples(6, centre, 0.08);
    let requests = latency(random, of);
    let rate = Some(centre);
    let rounds = random.rounds(match of_bytes {
        true => Round { mbit_s: rate, ..Round::default() },
        false => Round {
            requests_s: rate,
            p50_ms: Some(wait_ms(of) / speed),
            p99_ms: Some(wait_ms(of) * 2.0 / speed),
            ..Round::default()
        },
    });
    Application {
        app: app.into(),
        mode,
        epoch_ms,
        adaptive,
        requests_s: (!of_bytes).then_some(centre),
        p50_ms: (!of_bytes).then_some(requests.p50_ms),
        p99_ms: (!of_bytes).then_some(requests.p99_ms),
        mbit_s: of_bytes.then_some(centre),
        samples,
        rounds,
        errors: 0,
        latency: (app == "nginx").then_some(requests.histogram).flatten(),
    }
}

fn recording(random: &mut Figures, (mode, epoch_ms, adaptive): Cell) -> Recording {
    let mut now_us = 0.0;
    let epochs = (0..200)
        .map(|number| {
            let began_us = now_us;
            let length = if adaptive { 4000.0 + 6000.0 * random.share() } else { epoch_ms as f64 * 1000.0 };
            let pause_us = began_us + length;
            let captured_us = pause_us + 2500.0 * random.skewed(0.5);
            let sent_us = captured_us + 3000.0 * random.skewed(0.5);
            let committed_us = sent_us + 800.0 * random.skewed(0.8);
            now_us = captured_us;
            let dirty_pages = (150.0 + epoch_ms as f64 * 3.0 * random.skewed(0.9)) as u64;
            Epoch {
                number: 100 + number,
                began_us,
                pause_us,
                captured_us,
                sent_us,
                committed_us,
                dirty_pages,
                wire_bytes: dirty_pages * 900,
                stream_bytes: epoch_ms * 250_000,
            }
        })
        .collect();
    Recording { mode, epoch_ms, adaptive, epochs }
}
