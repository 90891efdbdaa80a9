//! How much slower than the world's the guest's clock went.

use super::plot::{Axis, Plot};
use super::series::Series;
use super::words;
use super::{figure, nothing};
use crate::run::{Clock, Run};
use maud::{Markup, html};

const WIDTH: u32 = 1060;
const PPM_A_PERCENT: f64 = 10_000.0;

pub(super) fn section(run: &Run) -> Markup {
    let mut rows: Vec<(&Clock, f64)> =
        run.clock.iter().filter_map(|of| Some((of, of.guest_clock_lag_ppm?))).collect();
    rows.sort_by_key(|(of, _)| (of.mode, of.adaptive, of.epoch_ms));
    if rows.is_empty() {
        return nothing("figures of the guest's clock");
    }
    html! {
        p { "QEMU stops the guest's clock in each pause: a guest that stands still for 1 % of the time has a clock that lags "
            "by 10000 ppm, unless the agent corrects it." }
        (figure("lag of the guest's clock, parts in a million", &plot(&rows)))
    }
}

fn plot(rows: &[(&Clock, f64)]) -> Plot {
    let names: Vec<String> = rows
        .iter()
        .map(|(of, _)| format!("{}, {} ms", words::mode(of.mode, of.adaptive), of.epoch_ms))
        .collect();
    let height = 70 + 26 * rows.len() as u32;
    // Room for the words beside the longest bar.
    let lags = rows.iter().map(|(_, lag)| lag.max(0.0) * 1.15);
    let mut plot =
        Plot::new(Axis::from_zero("ppm", lags), Axis::names("", &names).downwards(), (WIDTH, height));
    for (row, (of, lag)) in rows.iter().enumerate() {
        let y = row as f64;
        plot.bar((0.0, y - 0.3), (lag.max(0.0), y + 0.3), Series::of(of.mode, of.adaptive).colour(), 0.8);
        let percent = words::number(lag / PPM_A_PERCENT);
        plot.text_beside((lag.max(0.0), y), format!("{lag:.0} ({percent} %)"));
    }
    plot
}
