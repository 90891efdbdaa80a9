//! What is measured, in which order, and how long it may take.
//!
//! A round goes through groups: epochs of one length, or adaptive ones. In a group all modes have their turn
//! within the same minutes, so that a machine whose speed drifts favours none of them; native's figures
//! carry the epoch of those beside which they were taken.

use crate::bench::stage::Setting;
use crate::config::Mode;
use holdfast_lab::apps::App;
use std::time::Duration;

/// Lengths of an epoch at which transfers are timed; 25 and 50 ms have aims.
const TRANSFERS_AT_MS: [u64; 2] = [25, 50];
/// Of larger transfers the connection's set-up is no part that could be seen.
const SETUP_UP_TO_BYTES: u64 = 1 << 20;
/// Where many connections share.
const MANY_AT_MS: u64 = 50;
/// Where applications run, but for adaptive epochs.
const APPLICATIONS_AT_MS: u64 = 25;
/// The longest epoch of adaptive ones.
const ADAPTIVE_MS: u64 = 50;
/// A change of mode with its synchronisation, as it was seen.
const CHANGE: Duration = Duration::from_secs(2);

/// How much is measured.
#[derive(Clone, Debug)]
pub(super) struct Extent {
    pub(super) rounds: u32,
    pub(super) epochs_ms: Vec<u64>,
    pub(super) modes: Vec<Mode>,
    pub(super) apps: Vec<App>,
    pub(super) sizes: Vec<u64>,
    /// Numbers of streams at the same time.
    pub(super) connections: Vec<usize>,
    /// Of each stream.
    pub(super) stream: Duration,
    /// Transfers of each size at most, and how long they may take.
    pub(super) transfers: usize,
    pub(super) transfers_time: Duration,
    /// Small requests, and how long they may take.
    pub(super) requests: usize,
    pub(super) requests_time: Duration,
    /// Of an application's load: this often in a round, each a sample.
    pub(super) loads: u32,
    pub(super) load: Duration,
}

impl Extent {
    /// A first look: within ten minutes.
    pub(super) fn quick() -> Self {
        Self {
            rounds: 1,
            epochs_ms: vec![25, 50],
            modes: vec![Mode::Native, Mode::Commit, Mode::Speculative, Mode::Aware],
            apps: App::ALL.to_vec(),
            sizes: vec![64 << 10, 1 << 20],
            connections: vec![1],
            stream: Duration::from_secs(4),
            transfers: 7,
            transfers_time: Duration::from_secs(4),
            requests: 150,
            requests_time: Duration::from_secs(3),
            loads: 1,
            load: Duration::from_secs(3),
        }
    }

    /// All of it: within three quarters of an hour. A round is one observation of a comparison, which wants five:
    /// rounds are short rather than few.
    pub(super) fn whole() -> Self {
        Self {
            rounds: 5,
            epochs_ms: vec![10, 25, 50, 100],
            sizes: vec![64 << 10, 1 << 20, 16 << 20],
            connections: vec![1, 256],
            transfers: 5,
            transfers_time: Duration::from_secs(3),
            requests: 300,
            requests_time: Duration::from_secs(4),
            ..Self::quick()
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Streams without end, so many at the same time.
    Stream(usize),
    /// Transfers of a size, each on a connection of its own if its set-up counts.
    Transfers { bytes: u64, setup: bool },
    /// Small requests, one after the other.
    Latency,
    /// An application under load.
    Application(App),
}

/// One thing to measure, in one setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) setting: Setting,
    pub(super) what: What,
}

/// The steps of one round; those of one setting follow each other.
pub(super) fn steps(extent: &Extent) -> Vec<Step> {
    let fixed = extent.epochs_ms.iter().map(|epoch_ms| (*epoch_ms, false));
    let mut steps = Vec::new();
    for (epoch_ms, adaptive) in fixed.chain([(ADAPTIVE_MS, true)]) {
        let whats = group(extent, epoch_ms, adaptive);
        for mode in &extent.modes {
            let setting = Setting { mode: *mode, epoch_ms, adaptive };
            steps.extend(whats.iter().map(|what| Step { setting, what: *what }));
        }
    }
    steps
}

fn group(extent: &Extent, epoch_ms: u64, adaptive: bool) -> Vec<What> {
    let mut whats = vec![What::Latency];
    if adaptive || TRANSFERS_AT_MS.contains(&epoch_ms) {
        for bytes in &extent.sizes {
            let setups = [false, true].into_iter().filter(|setup| !setup || *bytes <= SETUP_UP_TO_BYTES);
            whats.extend(setups.map(|setup| What::Transfers { bytes: *bytes, setup }));
        }
    }
    let many = !adaptive && epoch_ms == MANY_AT_MS;
    whats.extend(
        extent.connections.iter().filter(|count| **count == 1 || many).map(|count| What::Stream(*count)),
    );
    if adaptive || epoch_ms == APPLICATIONS_AT_MS {
        whats.extend(extent.apps.iter().map(|app| What::Application(*app)));
    }
    whats
}

/// About how long each step takes, with the change of the setting before it.
pub(super) fn expected(steps: &[Step], extent: &Extent) -> Vec<Duration> {
    let before = [None].into_iter().chain(steps.iter().map(|step| Some(step.setting)));
    let each = steps.iter().zip(before).map(|(step, before)| {
        let own = match step.what {
            What::Stream(_) => extent.stream + Duration::from_secs(2),
            // Connections that are open rest before each.
            What::Transfers { setup: false, .. } => extent.transfers_time * 4 / 5,
            What::Transfers { setup: true, .. } => extent.transfers_time * 2 / 5,
            What::Latency => extent.requests_time * 2 / 3,
            What::Application(_) => (extent.load + Duration::from_millis(500)) * extent.loads,
        };
        if before == Some(step.setting) { own } else { own + CHANGE }
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quick_run_is_planned_within_ten_minutes_and_the_whole_within_forty_five() {
        for (extent, minutes) in [(Extent::quick(), 10), (Extent::whole(), 45)] {
            let round: Duration = expected(&steps(&extent), &extent).iter().sum();
            let time = round * extent.rounds;
            // A slower machine takes longer for what waits for commits.
            assert!(time < Duration::from_secs(minutes * 60) * 23 / 25, "{time:?} of {minutes} minutes");
        }
    }

    #[test]
    fn every_mode_is_measured_beside_native_in_the_same_way() {
        let extent = Extent::quick();
        let steps = steps(&extent);
        let of = |mode| -> Vec<_> {
            let own = steps.iter().filter(|step| step.setting.mode == mode);
            own.map(|step| (step.setting.epoch_ms, step.setting.adaptive, step.what)).collect()
        };
        for mode in &extent.modes {
            assert_eq!(of(*mode), of(Mode::Native));
        }
        let whats = of(Mode::Aware);
        for app in App::ALL {
            assert_eq!(whats.iter().filter(|(.., what)| *what == What::Application(app)).count(), 2, "{app}");
        }
        let idle = What::Transfers { bytes: 1 << 20, setup: false };
        assert!(whats.contains(&(50, false, idle)) && whats.contains(&(ADAPTIVE_MS, true, idle)));
        // The settings change no more often than they must.
        let changes = steps.windows(2).filter(|pair| pair[0].setting != pair[1].setting).count();
        assert_eq!(changes + 1, extent.modes.len() * (extent.epochs_ms.len() + 1));
    }
}
