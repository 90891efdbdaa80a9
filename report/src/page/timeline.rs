//! A few epochs after each other: when the guest ran, stood still, and what its output waited for.

use super::plot::{Axis, Colour, Plot};
use super::series::colours;
use super::words;
use super::{figure, nothing};
use crate::run::{Epoch, Recording, Run};
use maud::{Markup, html};

/// How many epochs are drawn of a recording.
const SHOWN: usize = 6;
/// The length of which a recording is drawn, if there is one of about it.
const ABOUT_MS: u64 = 50;
const SIZE: (u32, u32) = (1060, 260);

const RUNNING: (&str, Colour) = ("the guest runs", Colour(0x8C, 0xC6, 0xA8));
const PAUSE: (&str, Colour) = ("it stands still, and is captured", Colour(0xC9, 0x3C, 0x37));
const SENDING: (&str, Colour) = ("the epoch travels", Colour(0x2E, 0x86, 0xC8));
const WAITING: (&str, Colour) = ("its commit is waited for", Colour(0xB5, 0x9A, 0xD6));

pub(super) fn section(run: &Run) -> Markup {
    let drawn = chosen(&run.epochs);
    if run.epochs.iter().all(|recording| recording.epochs.is_empty()) {
        return nothing("recordings of epochs");
    }
    let left = run.epochs.len() - drawn.len();
    html! {
        p { "Consecutive epochs from the middle of a recording, the first on top. While one travels to the backup and its "
            "output waits, the guest runs in the next." }
        @if left > 0 {
            p.note { "Of each mode the recording nearest to epochs of " (ABOUT_MS) " ms is drawn; " (left) " other(s) are in the "
                "document." }
        }
        (colours(&[RUNNING, PAUSE, SENDING, WAITING]))
        @for recording in drawn {
            @let heading = format!(
                "{}, epochs of {} ms", words::mode(recording.mode, recording.adaptive), recording.epoch_ms
            );
            @match consecutive(&recording.epochs) {
                Some(epochs) => (figure(&heading, &plot(epochs))),
                None => p.warning {
                    (heading) ": no epoch of it has its moments in order (each of began, pause, captured, sent and committed is a "
                    "moment, not a length), so that none is drawn."
                },
            }
        }
    }
}

/// Of each mode and policy the recording nearest to the length that is wanted.
fn chosen(recordings: &[Recording]) -> Vec<&Recording> {
    let mut chosen: Vec<&Recording> = Vec::new();
    for recording in recordings.iter().filter(|recording| !recording.epochs.is_empty()) {
        let far = |of: &Recording| of.epoch_ms.abs_diff(ABOUT_MS);
        let same = |of: &&Recording| (of.mode, of.adaptive) == (recording.mode, recording.adaptive);
        match chosen.iter().position(same) {
            None => chosen.push(recording),
            Some(at) if far(recording) < far(chosen[at]) => chosen[at] = recording,
            Some(_) => {}
        }
    }
    chosen.sort_by_key(|recording| (recording.mode, recording.adaptive));
    chosen
}

/// Epochs from the middle on, all with their moments in order; from the beginning when there are none.
fn consecutive(epochs: &[Epoch]) -> Option<&[Epoch]> {
    let count = SHOWN.min(epochs.len());
    let middle = (epochs.len() - count) / 2;
    let from = |start: usize| {
        let epochs = &epochs[start..start + count];
        let follow = epochs.windows(2).all(|pair| pair[0].began_us <= pair[1].began_us);
        (follow && epochs.iter().all(Epoch::is_in_order)).then_some(epochs)
    };
    (middle..=epochs.len() - count).chain(0..middle).find_map(from)
}

fn plot(epochs: &[Epoch]) -> Plot {
    let origin = epochs.first().map_or(0.0, |epoch| epoch.began_us);
    let ms = |moment: f64| (moment - origin) / 1000.0;
    let names: Vec<String> = epochs.iter().map(|epoch| epoch.number.to_string()).collect();
    let ends = epochs.iter().map(|epoch| ms(epoch.committed_us));
    let mut plot = Plot::new(
        Axis::from_zero("ms since the first of these began", ends),
        Axis::names("epoch", &names).downwards(),
        SIZE,
    );
    for (row, epoch) in epochs.iter().enumerate() {
        let parts = [
            (epoch.began_us, epoch.pause_us, RUNNING),
            (epoch.pause_us, epoch.captured_us, PAUSE),
            (epoch.captured_us, epoch.sent_us, SENDING),
            (epoch.sent_us, epoch.committed_us, WAITING),
        ];
        for (from, to, (_, colour)) in parts {
            plot.bar((ms(from), row as f64 - 0.32), (ms(to), row as f64 + 0.32), colour, 1.0);
        }
    }
    plot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_that_are_not_in_order_are_not_drawn() {
        let epoch = |number: u64| {
            let began_us = number as f64 * 100.0;
            Epoch {
                number,
                began_us,
                pause_us: began_us + 90.0,
                captured_us: began_us + 100.0,
                sent_us: began_us + 120.0,
                committed_us: began_us + 130.0,
                dirty_pages: 1,
                wire_bytes: 1,
                stream_bytes: 0,
            }
        };
        let mut epochs: Vec<Epoch> = (0..20).map(epoch).collect();
        assert_eq!(consecutive(&epochs).map(|found| found[0].number), Some(7));
        // A length where a moment belongs.
        epochs[8].pause_us = 10.0;
        assert_eq!(consecutive(&epochs).map(|found| found[0].number), Some(9));
        epochs.iter_mut().for_each(|epoch| epoch.pause_us = epoch.began_us - 1.0);
        assert!(consecutive(&epochs).is_none());
        assert_eq!(consecutive(&[]).map(<[Epoch]>::len), Some(0));
    }
}
