//! Figures of the epochs of one virtual machine.

use crate::pages::PAGE_SIZE;
use crate::reduction::ReductionFigures;
use hdrhistogram::Histogram;
use holdfast_epoch::EpochId;
use serde::Serialize;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A distribution in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SpreadUs {
    /// Median.
    pub p50_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// Largest.
    pub max_us: u64,
}

/// The figures at one moment, since the supervisor started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StatsSnapshot {
    /// Epochs sealed.
    pub epochs_sealed: u64,
    /// Epochs that the backup confirmed.
    pub epochs_committed: u64,
    /// Epochs given up; their pages went into a later one.
    pub epochs_aborted: u64,
    /// From `stop` to `cont`.
    pub pause: SpreadUs,
    /// How much slower than the world's the guest's clock goes, in millionths: the share of the time that it
    /// stood still, over the last ten seconds or so. QEMU stops the clock in every pause.
    pub guest_clock_lag_ppm: u64,
    /// Part of the pause: `stop`.
    pub pause_stop: SpreadUs,
    /// Part of the pause: ending the epoch in the gate.
    pub pause_cut: SpreadUs,
    /// Part of the pause: finding the dirty pages.
    pub pause_scan: SpreadUs,
    /// Part of the pause: copying them.
    pub pause_copy: SpreadUs,
    /// Part of the pause, beside scan and copy: saving devices and vCPUs.
    pub pause_save: SpreadUs,
    /// Part of the pause: `cont`.
    pub pause_cont: SpreadUs,
    /// From the seal to the backup's confirmation.
    pub commit_latency: SpreadUs,
    /// Pages in an epoch, median.
    pub dirty_pages_p50: u64,
    /// Pages in an epoch, 99th percentile.
    pub dirty_pages_p99: u64,
    /// Bytes of pages and states replicated, before reduction.
    pub replicated_bytes: u64,
    /// Bytes handed to the link for them.
    pub wire_bytes: u64,
    /// Bytes of speculative output that went to the backup ahead of their epochs; not in the two above.
    pub streamed_bytes: u64,
    /// Which way the pages went of which these bytes are.
    pub reduction: ReductionFigures,
    /// Full synchronisations done.
    pub full_syncs: u64,
    /// Duration of the last full synchronisation.
    pub last_sync_ms: u64,
    /// Pages sent in the last full synchronisation, rounds included.
    pub last_sync_pages: u64,
}

/// The parts of one pause. Scan and copy go on beside the save, so that they may add up to more than the
/// pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PauseParts {
    /// `stop`.
    pub pause_stop_us: u64,
    /// Ending the epoch in the gate.
    pub pause_cut_us: u64,
    /// Finding the dirty pages.
    pub pause_scan_us: u64,
    /// Copying them.
    pub pause_copy_us: u64,
    /// Saving devices and vCPUs.
    pub pause_save_us: u64,
    /// `cont`.
    pub pause_cont_us: u64,
}

/// One epoch, from the guest's running to the commit. Times are of one clock that begins with the supervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EpochRecord {
    /// Its number.
    pub number: u64,
    /// When the guest began to run in it.
    pub began_us: u64,
    /// When it was stopped.
    pub stopped_us: u64,
    /// From `stop` to `cont`.
    pub pause_us: u64,
    /// Of what the pause was made.
    #[serde(flatten)]
    pub parts: PauseParts,
    /// When the last byte of it was handed to the link; none as long as it was not.
    pub sent_us: Option<u64>,
    /// When the backup's confirmation was here; none as long as it was not.
    pub committed_us: Option<u64>,
    /// Pages that were dirty.
    pub dirty_pages: u64,
    /// Pages that were copied while the guest ran in it.
    pub ahead_pages: u64,
    /// Copies made in the pause: of a page that was written again after it was copied there is another one.
    pub pause_pages: u64,
    /// Bytes handed to the link for pages and states.
    pub wire_bytes: u64,
    /// Bytes of speculative output that went ahead of it.
    pub streamed_bytes: u64,
}

/// So many epochs are remembered.
const REMEMBERED: usize = 512;

/// Where the figures are gathered; owned by one thread.
#[derive(Debug)]
pub(crate) struct Spread(Histogram<u64>);

impl Spread {
    /// From 1 microsecond (or page) to `2^40`, in three digits.
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, 1 << 40, 3).expect("the bounds are valid"))
    }

    pub(crate) fn add(&mut self, span: Duration) {
        self.add_count(micros(span));
    }

    pub(crate) fn add_count(&mut self, count: u64) {
        self.0.saturating_record(count);
    }

    pub(crate) fn at(&self, quantile: f64) -> u64 {
        if self.0.is_empty() { 0 } else { self.0.value_at_quantile(quantile) }
    }

    pub(crate) fn shown(&self) -> SpreadUs {
        SpreadUs {
            p50_us: self.at(0.5),
            p99_us: self.at(0.99),
            max_us: if self.0.is_empty() { 0 } else { self.0.max() },
        }
    }
}

/// The parts of one pause.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SealTimes {
    /// How long the guest had run.
    pub(crate) ran: Duration,
    pub(crate) pause: Duration,
    pub(crate) stop: Duration,
    pub(crate) cut: Duration,
    pub(crate) scan: Duration,
    pub(crate) copy: Duration,
    pub(crate) save: Duration,
    pub(crate) cont: Duration,
    pub(crate) pages: u64,
    pub(crate) ahead_pages: u64,
    pub(crate) pause_pages: u64,
}

impl SealTimes {
    fn parts(&self) -> PauseParts {
        PauseParts {
            pause_stop_us: micros(self.stop),
            pause_cut_us: micros(self.cut),
            pause_scan_us: micros(self.scan),
            pause_copy_us: micros(self.copy),
            pause_save_us: micros(self.save),
            pause_cont_us: micros(self.cont),
        }
    }
}

/// Where all figures of a machine are gathered; locked for a moment a few times an epoch.
#[derive(Debug)]
pub(crate) struct Stats {
    sealed: u64,
    committed: u64,
    aborted: u64,
    pause: Spread,
    stop: Spread,
    cut: Spread,
    scan: Spread,
    copy: Spread,
    save: Spread,
    cont: Spread,
    latency: Spread,
    pages: Spread,
    replicated_bytes: u64,
    wire_bytes: u64,
    streamed_bytes: u64,
    reduction: ReductionFigures,
    full_syncs: u64,
    last_sync: (Duration, u64),
    /// Of the time, that the guest stood still lately.
    paused_share: f64,
    started: Instant,
    /// The last ones, oldest first.
    epochs: VecDeque<EpochRecord>,
    /// `wire_bytes` and `streamed_bytes` when the last epoch was sent.
    sent_before: (u64, u64),
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// Over which time the share of the pauses is taken.
const LATELY: Duration = Duration::from_secs(10);

impl Stats {
    pub(crate) fn new() -> Self {
        Self {
            sealed: 0,
            committed: 0,
            aborted: 0,
            pause: Spread::new(),
            stop: Spread::new(),
            cut: Spread::new(),
            scan: Spread::new(),
            copy: Spread::new(),
            save: Spread::new(),
            cont: Spread::new(),
            latency: Spread::new(),
            pages: Spread::new(),
            replicated_bytes: 0,
            wire_bytes: 0,
            streamed_bytes: 0,
            reduction: ReductionFigures::default(),
            full_syncs: 0,
            last_sync: (Duration::ZERO, 0),
            paused_share: 0.0,
            started: Instant::now(),
            epochs: VecDeque::with_capacity(REMEMBERED),
            sent_before: (0, 0),
        }
    }

    pub(crate) fn sealed(&mut self, epoch: EpochId, stopped: Instant, times: &SealTimes) {
        self.sealed += 1;
        self.pause.add(times.pause);
        self.stop.add(times.stop);
        self.cut.add(times.cut);
        self.scan.add(times.scan);
        self.copy.add(times.copy);
        self.save.add(times.save);
        self.cont.add(times.cont);
        self.pages.add_count(times.pages);
        if self.epochs.len() == REMEMBERED {
            self.epochs.pop_front();
        }
        let stopped_us = self.micros(stopped);
        self.epochs.push_back(EpochRecord {
            number: epoch.get(),
            began_us: stopped_us.saturating_sub(micros(times.ran)),
            stopped_us,
            pause_us: micros(times.pause),
            parts: times.parts(),
            dirty_pages: times.pages,
            ahead_pages: times.ahead_pages,
            pause_pages: times.pause_pages,
            ..EpochRecord::default()
        });
        let cycle = (times.ran + times.pause).as_secs_f64();
        if cycle > 0.0 {
            let weight = 1.0 - (-cycle / LATELY.as_secs_f64()).exp();
            self.paused_share += weight * (times.pause.as_secs_f64() / cycle - self.paused_share);
        }
    }

    /// All of a sealed epoch was handed to the link.
    pub(crate) fn sent_whole(&mut self, epoch: EpochId) {
        let now_us = self.micros(Instant::now());
        let (wire, streamed) =
            std::mem::replace(&mut self.sent_before, (self.wire_bytes, self.streamed_bytes));
        let (wire_bytes, streamed_bytes) = (self.wire_bytes - wire, self.streamed_bytes - streamed);
        if let Some(record) = self.remembered(epoch) {
            record.sent_us = Some(now_us);
            (record.wire_bytes, record.streamed_bytes) = (wire_bytes, streamed_bytes);
        }
    }

    pub(crate) fn committed(&mut self, epoch: EpochId, latency: Duration) {
        self.committed += 1;
        self.latency.add(latency);
        let now_us = self.micros(Instant::now());
        if let Some(record) = self.remembered(epoch) {
            record.committed_us = Some(now_us);
        }
    }

    /// Its record; one of the last few.
    fn remembered(&mut self, epoch: EpochId) -> Option<&mut EpochRecord> {
        self.epochs.iter_mut().rev().find(|record| record.number == epoch.get())
    }

    fn micros(&self, at: Instant) -> u64 {
        micros(at.saturating_duration_since(self.started))
    }

    /// The last epochs that were sealed, oldest first.
    pub(crate) fn epochs(&self) -> Vec<EpochRecord> {
        self.epochs.iter().copied().collect()
    }

    pub(crate) fn aborted(&mut self, epochs: u64) {
        self.aborted += epochs;
    }

    pub(crate) fn sent(&mut self, content: usize, wire: usize) {
        self.replicated_bytes += content as u64;
        self.wire_bytes += wire as u64;
    }

    /// Pages were sent, in so many bytes.
    pub(crate) fn sent_pages(&mut self, pages: usize, wire: usize, figures: &ReductionFigures) {
        self.sent(pages * PAGE_SIZE, wire);
        self.reduction.add(figures);
    }

    /// Copies of sent pages went with their session.
    pub(crate) const fn let_go(&mut self) {
        self.reduction.kept_bytes = 0;
    }

    pub(crate) fn streamed(&mut self, bytes: usize) {
        self.streamed_bytes += bytes as u64;
    }

    pub(crate) fn synchronised(&mut self, took: Duration, pages: u64) {
        self.full_syncs += 1;
        self.last_sync = (took, pages);
    }

    pub(crate) fn shown(&self) -> StatsSnapshot {
        StatsSnapshot {
            epochs_sealed: self.sealed,
            epochs_committed: self.committed,
            epochs_aborted: self.aborted,
            pause: self.pause.shown(),
            guest_clock_lag_ppm: (self.paused_share * 1e6) as u64,
            pause_stop: self.stop.shown(),
            pause_cut: self.cut.shown(),
            pause_scan: self.scan.shown(),
            pause_copy: self.copy.shown(),
            pause_save: self.save.shown(),
            pause_cont: self.cont.shown(),
            commit_latency: self.latency.shown(),
            dirty_pages_p50: self.pages.at(0.5),
            dirty_pages_p99: self.pages.at(0.99),
            replicated_bytes: self.replicated_bytes,
            wire_bytes: self.wire_bytes,
            streamed_bytes: self.streamed_bytes,
            reduction: self.reduction,
            full_syncs: self.full_syncs,
            last_sync_ms: u64::try_from(self.last_sync.0.as_millis()).unwrap_or(u64::MAX),
            last_sync_pages: self.last_sync.1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_epochs_are_remembered_with_what_each_cost() {
        let mut stats = Stats::new();
        let ms = Duration::from_millis;
        let times = SealTimes { ran: ms(20), pause: ms(5), save: ms(3), pages: 7, ..SealTimes::default() };
        for number in 1..=REMEMBERED as u64 + 3 {
            let epoch = EpochId::new(number);
            stats.sent(4096, 100);
            stats.streamed(1000);
            stats.sealed(epoch, stats.started + ms(25 * number), &times);
            if number > REMEMBERED as u64 {
                stats.sent_whole(epoch);
            }
        }
        stats.committed(EpochId::new(1), ms(1));
        stats.committed(EpochId::new(REMEMBERED as u64 + 2), ms(1));
        let epochs = stats.epochs();
        assert_eq!((epochs.len(), epochs[0].number), (REMEMBERED, 4));
        let [.., before, last] = &epochs[..] else { panic!("there are some") };
        assert_eq!(last.number, REMEMBERED as u64 + 3);
        assert_eq!((last.stopped_us - last.began_us, last.pause_us, last.dirty_pages), (20_000, 5_000, 7));
        assert_eq!((last.wire_bytes, last.streamed_bytes), (100, 1000));
        assert_eq!(last.parts, PauseParts { pause_save_us: 3_000, ..PauseParts::default() });
        assert!(last.sent_us.is_some() && last.committed_us.is_none());
        assert!(before.committed_us >= before.sent_us && before.committed_us.is_some());
        assert_eq!(epochs[0].sent_us, None);
    }
}
