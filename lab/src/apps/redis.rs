//! Redis without persistence, and `redis-benchmark`: SET and GET of [`CLIENTS`] clients, one command each under
//! way.
//!
//! `redis-benchmark` counts requests, not time: a round first says how many a second there are. It checks no
//! values, and has no seed.

use super::figures::{AppFigures, histogram};
use super::{App, AppsError, Unpacked, left, run, unpacked};
use crate::client::Client;
use crate::guest::GuestSpec;
use crate::initramfs::Part;
use hdrhistogram::Histogram;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

const PORT: u16 = 6379;
/// Many, as nginx's connections are; a command takes a fraction of the time of a page.
const CLIENTS: u64 = 512;
/// What is stored: enough keys that a SET dirties a page of its own.
const KEYS: &str = "10000";
const VALUE_BYTES: &str = "64";
pub(super) const SERVER: &str = "/usr/bin/redis-server";
const BENCHMARK: &str = "/usr/bin/redis-benchmark";
const CONFIGURATION: &str = "/etc/redis.conf";
/// Once a second, its housekeeping dirties little memory while it is idle.
const SETTINGS: &str = "\
bind * -::*
protected-mode no
daemonize no
save \"\"
appendonly no
loglevel warning
hz 1
jemalloc-bg-thread no
tcp-backlog 511
";
/// The first round: a few commands of each client.
const FIRST_ROUND: u64 = 5 * CLIENTS;

pub(super) fn serve(spec: &mut GuestSpec, unpacked: &Unpacked, parts: &mut Vec<Part>) {
    parts.push(unpacked.part(SERVER));
    parts.push(Part::file(CONFIGURATION, SETTINGS.as_bytes()));
    spec.start_at_boot(SERVER, &[CONFIGURATION]);
}

pub(super) fn measure(
    client: &Client,
    guest: IpAddr,
    (time, until): (Duration, Instant),
) -> Result<AppFigures, AppsError> {
    drop(client.connect_listening(SocketAddr::new(guest, PORT), left(until))?);
    let take = |command, requests| benchmark(client, guest, command, requests, until);
    let half = time.as_secs_f64() / 2.0;
    let mut requests = FIRST_ROUND;
    // The first is too short to say more than how long the second may be.
    for share in [0.2, 1.0] {
        let round = take("set", requests)?;
        requests = ((round.requests_s * half * share) as u64).max(2 * CLIENTS);
    }
    let (mut latency, mut seconds, mut count) = (histogram(), 0.0, 0);
    for round in [take("set", requests)?, take("get", requests)?] {
        latency.add(&round.latency).expect("a histogram that grows");
        seconds += round.requests as f64 / round.requests_s;
        count += round.requests;
    }
    let requests_s = Some(count as f64 / seconds);
    let mut figures = AppFigures { requests: count, requests_s, ..AppFigures::default() };
    figures.set_latency(latency);
    Ok(figures)
}

/// What one run of one command said.
#[derive(Debug)]
struct Round {
    requests: u64,
    requests_s: f64,
    latency: Histogram<u64>,
}

fn benchmark(
    client: &Client,
    guest: IpAddr,
    command: &str,
    requests: u64,
    until: Instant,
) -> Result<Round, AppsError> {
    let mut words = unpacked()?.command(BENCHMARK, until);
    let (host, port, clients, requests) =
        (guest.to_string(), PORT.to_string(), CLIENTS.to_string(), requests.to_string());
    let options = ["-h", &host, "-p", &port, "-c", &clients, "-n", &requests, "-t", command];
    let more = ["-r", KEYS, "-d", VALUE_BYTES, "--precision", "3"];
    words.extend(options.into_iter().chain(more).map(String::from));
    let said = run(client, &words)?;
    parse(&said).ok_or_else(|| {
        let end: String = said.lines().rev().take(5).collect::<Vec<_>>().join("; ");
        AppsError::Nothing { app: App::Redis, fault: format!("redis-benchmark ended with {end}") }
    })
}

/// Reads the report of one command: its spectrum of latencies has all of them, as lines such as
/// `50.000% <= 0.367 milliseconds (cumulative count 51000)`.
fn parse(said: &str) -> Option<Round> {
    let report = said.split_once("Latency by percentile distribution:")?.1;
    let (spectrum, rest) = report.split_once("Cumulative distribution")?;
    let mut latency = histogram();
    let mut before = 0;
    for line in spectrum.lines() {
        let Some((_, line)) = line.split_once("<= ") else { continue };
        let (milliseconds, count) = line.split_once(" milliseconds (cumulative count ")?;
        let (milliseconds, count): (f64, u64) =
            (milliseconds.parse().ok()?, count.trim_end_matches(')').parse().ok()?);
        latency.record_n((milliseconds * 1e3).round() as u64, count.checked_sub(before)?).ok()?;
        before = count;
    }
    let rate = rest.split_once("throughput summary: ")?.1.split(' ').next()?;
    let requests_s = rate.parse().ok().filter(|rate| *rate > 0.0)?;
    (before > 0).then_some(Round { requests: before, requests_s, latency })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "SET: rps=0.0 (overall: nan) avg_msec=nan (overall: nan)\r====== SET ======
  200 requests completed in 0.02 seconds
  50 parallel clients

Latency by percentile distribution:
0.000% <= 0.247 milliseconds (cumulative count 1)
50.000% <= 1.423 milliseconds (cumulative count 100)
99.609% <= 3.000 milliseconds (cumulative count 200)
100.000% <= 3.000 milliseconds (cumulative count 200)

Cumulative distribution of latencies:
0.000% <= 0.103 milliseconds (cumulative count 0)
100.000% <= 3.103 milliseconds (cumulative count 200)

Summary:
  throughput summary: 10000.00 requests per second
  latency summary (msec):
          avg       min       p50       p95       p99       max
        1.500     0.240     1.423     2.903     3.000     3.000
";

    #[test]
    fn a_report_is_read_with_its_whole_spectrum() {
        let round = parse(SAID).expect("a report");
        assert_eq!((round.requests, round.latency.len()), (200, 200));
        assert!((round.requests_s - 10000.0).abs() < 1e-9);
        assert_eq!((round.latency.min(), round.latency.value_at_quantile(0.5)), (247, 1423));
        assert_eq!(round.latency.value_at_quantile(0.99), 3001);
    }

    #[test]
    fn what_is_no_report_is_none() {
        assert!(parse("Could not connect to Redis at 10.0.0.1:6379: Connection refused").is_none());
        assert!(parse(&SAID.replace("10000.00", "nan")).is_none());
        assert!(parse(SAID.split_once("Summary").expect("a summary").0).is_none());
    }
}
