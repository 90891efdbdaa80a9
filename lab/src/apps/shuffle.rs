//! The shuffle of MapReduce: the guest is a mapper's host, the client all reducers.
//!
//! A map output is one file with the reducers' partitions behind one another, served over HTTP, as Hadoop's
//! shuffle does. A wave: every reducer opens a connection, asks at once for its partition of every map output, as
//! Hadoop's fetcher does with a host, and takes them in order. The next wave begins when the slowest reducer has
//! all, as a reduce does. Its latency, with the connections' set-up, is what a job waits for.

use super::figures::{AppFigures, Tally};
use super::http::{Connection, Resource};
use super::nginx::PORT;
use super::tree::{self, PARTITION_BYTES, PARTITIONS, WEB_ROOT};
use super::{App, AppsError, left};
use crate::client::{Client, ClientError};
use holdfast_guest_init::stream::Stream;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

pub(super) fn measure(
    client: &Client,
    guest: IpAddr,
    (time, until): (Duration, Instant),
) -> Result<AppFigures, AppsError> {
    let target = SocketAddr::new(guest, PORT);
    drop(client.connect_listening(target, left(until))?);
    let stream = tree::stream();
    let maps = tree::map_outputs();
    let began = Instant::now();
    let reducer = |number: u64| {
        let part = |map| Resource::part(map, WEB_ROOT, number * PARTITION_BYTES, PARTITION_BYTES);
        Reducer { client, target, partitions: maps.iter().map(part).collect(), stream: &stream, until }
    };
    let reducers: Vec<Reducer<'_>> = (0..PARTITIONS).map(reducer).collect();
    let mut all = Tally::new();
    // One at least; the last one counts whole, and its time with it.
    while all.errors == 0 && (all.requests == 0 || began.elapsed() < time) {
        let wave = Instant::now();
        thread::scope(|scope| {
            let threads: Vec<_> = reducers.iter().map(|reducer| scope.spawn(|| reducer.fetch())).collect();
            for thread in threads {
                all.add(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
        });
        if all.errors == 0 {
            all.took(wave.elapsed());
        }
    }
    match all.fault {
        Some(fault) if all.requests == 0 => Err(AppsError::Nothing { app: App::Shuffle, fault }),
        _ => Ok(all.figures(began.elapsed())),
    }
}

/// One reducer's part of a wave.
struct Reducer<'a> {
    client: &'a Client,
    target: SocketAddr,
    partitions: Vec<Resource>,
    stream: &'a Stream,
    until: Instant,
}

impl Reducer<'_> {
    fn fetch(&self) -> Tally {
        let mut tally = Tally::new();
        if let Err(fault) = self.fetch_into(&mut tally) {
            tally.failed(fault);
        }
        tally
    }

    fn fetch_into(&self, tally: &mut Tally) -> Result<(), ClientError> {
        let target = self.target;
        let failed = |source| ClientError::Exchange { what: "fetch partitions", target, source };
        let opened = self.client.connect(target, left(self.until))?;
        let mut connection = Connection::new(opened, self.until).map_err(failed)?;
        connection.ask(&self.partitions).map_err(failed)?;
        for partition in &self.partitions {
            if !connection.answer(partition, self.stream).map_err(failed)? {
                tally.wrong("a byte of a partition is wrong");
            }
            tally.requests += 1;
            tally.bytes += partition.bytes;
        }
        Ok(())
    }
}
