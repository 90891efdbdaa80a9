//! Keeps the guest's wall clock right, which QEMU stops in every pause: slewed, and stepped only on request.

pub(crate) mod kernel;
pub(crate) mod ptp;
pub(crate) mod servo;

use crate::Failure;
use clap::{Args, ValueEnum};
use kernel::Own;
use ptp::Ptp;
use serde::{Deserialize, Serialize};
use servo::{Exchange, MOST_PPM, Servo, Verdict};
use std::fmt;
use std::io;
use std::time::Duration;

/// How often the host's clock is asked for while it answers.
const EVERY: Duration = Duration::from_millis(250);
/// Exchanges before a step.
pub(crate) const STEP_AFTER: u32 = 8;
/// A smaller offset is not worth a step.
const LEAST_STEP_NS: i64 = 1_000_000;

/// By what the wall clock is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Source {
    /// By ptp where it is, or else the channel; not at all where a time daemon keeps the clock.
    #[default]
    Auto,
    /// Not at all.
    Off,
    /// By the time in Holdfast's answers, whoever else keeps it.
    Channel,
    /// By the host's clock as KVM shows it (ptp_kvm), whoever else keeps it.
    Ptp,
}

/// The options about the clock.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClockOptions {
    /// By what the guest's wall clock is kept right.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) clock: Source,
    /// Set the clock once, when the agent begins; otherwise it is only made to go faster or slower.
    #[arg(long)]
    pub(crate) step: bool,
}

impl ClockOptions {
    /// The options again, as a systemd unit has them.
    pub(crate) fn unit_words(&self) -> String {
        let source = match self.clock {
            Source::Auto => "",
            Source::Off => " --clock off",
            Source::Channel => " --clock channel",
            Source::Ptp => " --clock ptp",
        };
        format!("{source}{}", if self.step { " --step" } else { "" })
    }
}

/// What is said of the clock.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClockStatus {
    /// `ptp`, `channel` or `none`.
    pub(crate) source: String,
    /// What is done, and why.
    pub(crate) state: String,
    /// How far the host's clock is ahead of the guest's; none when it is not heard.
    pub(crate) offset_us: Option<i64>,
    /// By so much the guest's own clock is slow, which is paused.
    pub(crate) lag_ppm: i64,
    /// By so much the wall clock is made to go faster.
    pub(crate) slew_ppm: i64,
    /// How it was set before the agent.
    pub(crate) own: Option<Own>,
}

impl fmt::Display for ClockStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wall clock: {}", self.state)?;
        if let Some(offset_us) = self.offset_us {
            let offset_ms = offset_us as f64 / 1e3;
            write!(
                f,
                "; source {}, offset {offset_ms:.1} ms, slewed by {} ppm against a lag of {} ppm",
                self.source, self.slew_ppm, self.lag_ppm
            )?;
        }
        Ok(())
    }
}

/// The clock, and what it is kept by.
pub(crate) struct Clock {
    source: Source,
    ptp: Option<Ptp>,
    /// Another who keeps the clock is given way to.
    gives_way: bool,
    step: bool,
    exchanges: u32,
    servo: Servo,
    verdict: Verdict,
    own: Own,
    /// The length of a tick while it is being slewed.
    tick_us: Option<i64>,
    /// Somebody else keeps it.
    kept: bool,
}

impl Clock {
    /// The clock as it is; nothing is changed yet.
    pub(crate) fn open(options: ClockOptions) -> Result<Self, Failure> {
        let wants_ptp = matches!(options.clock, Source::Auto | Source::Ptp);
        let ptp = if wants_ptp { Ptp::open() } else { None };
        let source = match (options.clock, &ptp) {
            (Source::Off, _) => Source::Off,
            (Source::Ptp, None) => {
                return Err(Failure::Lacks(
                    "there is no ptp_kvm clock\n  mend: modprobe ptp_kvm, in a guest of KVM; or --clock channel".into(),
                ));
            }
            (_, Some(_)) => Source::Ptp,
            (_, None) => Source::Channel,
        };
        Ok(Self {
            source,
            ptp,
            gives_way: options.clock == Source::Auto,
            step: options.step && source != Source::Off,
            exchanges: 0,
            servo: Servo::default(),
            verdict: Verdict::default(),
            own: Own::read().map_err(Failure::failed)?,
            tick_us: None,
            kept: false,
        })
    }

    /// Whether answers by the channel are wanted.
    pub(crate) fn wants_answers(&self) -> bool {
        self.source == Source::Channel
    }

    /// Until when the next round is wanted; none while nothing is heard.
    pub(crate) fn period(&self) -> Option<Duration> {
        (self.source == Source::Ptp || self.verdict.offset_ns.is_some()).then_some(EVERY)
    }

    /// An answer came by the channel.
    pub(crate) fn handle_exchange(&mut self, exchange: Exchange) {
        if self.wants_answers() {
            self.exchanges = self.exchanges.saturating_add(1);
            self.servo.handle_exchange(exchange);
        }
    }

    /// Lets the clock go as it has to; to be called each [`Clock::period`].
    pub(crate) fn round(&mut self) -> io::Result<()> {
        if self.source == Source::Off {
            return Ok(());
        }
        if let Some(ptp) = &self.ptp {
            let exchange = ptp.exchange();
            self.exchanges = self.exchanges.saturating_add(1);
            self.servo.handle_exchange(exchange);
        }
        self.verdict = self.servo.poll(kernel::raw_ns(), kernel::real_ns());
        self.kept = self.gives_way && self.is_kept_by_another()?;
        if self.kept {
            return self.let_go();
        }
        if self.step && self.exchanges >= STEP_AFTER && self.step_now()? {
            return Ok(());
        }
        match self.verdict.slew_ppm {
            Some(ppm) => {
                if self.tick_us.is_none() {
                    self.own = Own::read()?;
                }
                self.tick_us = Some(self.own.slew(ppm)?);
                Ok(())
            }
            None => self.let_go(),
        }
    }

    fn is_kept_by_another(&self) -> io::Result<bool> {
        if self.tick_us.is_some() { self.own.is_taken_over() } else { Ok(Own::read()?.is_kept()) }
    }

    fn step_now(&mut self) -> io::Result<bool> {
        let Some(offset_ns) = self.verdict.offset_ns else { return Ok(false) };
        self.step = false;
        if offset_ns.abs() < LEAST_STEP_NS {
            return Ok(false);
        }
        kernel::step(offset_ns)?;
        println!("holdfast-guest: set the clock by {:.3} ms", offset_ns as f64 / 1e6);
        Ok(true)
    }

    /// Leaves the clock as it was found.
    pub(crate) fn let_go(&mut self) -> io::Result<()> {
        match self.tick_us.take() {
            Some(tick_us) => self.own.give_back(Some(tick_us)).map(drop),
            None => Ok(()),
        }
    }

    /// How it is.
    pub(crate) fn status(&self) -> ClockStatus {
        let source = match self.source {
            Source::Ptp => "ptp",
            Source::Channel => "channel",
            Source::Auto | Source::Off => "none",
        };
        let state = match (self.source, self.verdict.offset_ns) {
            (Source::Off, _) => "not looked after (--clock off)",
            _ if self.kept => "left to the time daemon that keeps it",
            (_, None) => "left to itself: the host's clock is not heard",
            _ if self.tick_us.is_some() && self.verdict.slew_ppm >= Some(MOST_PPM) => {
                "slewed as fast as it goes; if it stays so the guest is paused too much: longer epochs mend that"
            }
            _ if self.tick_us.is_some() => "slewed",
            _ if !self.verdict.measured => "being measured",
            _ => "right enough, left to itself",
        };
        ClockStatus {
            source: source.into(),
            state: state.into(),
            offset_us: self.verdict.offset_ns.map(|ns| ns / 1000),
            lag_ppm: self.verdict.lag_ppm as i64,
            slew_ppm: if self.tick_us.is_some() { self.verdict.slew_ppm.unwrap_or(0.0) as i64 } else { 0 },
            own: (self.source != Source::Off).then_some(self.own),
        }
    }
}

/// How far the host's clock is ahead, of a few exchanges that of the shortest round trip.
pub(crate) fn offset_of(exchanges: &[Exchange]) -> Option<i64> {
    let mut servo = Servo::default();
    exchanges.iter().for_each(|exchange| servo.handle_exchange(*exchange));
    servo.poll(kernel::raw_ns(), kernel::real_ns()).offset_ns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_written_into_the_unit() {
        assert_eq!(ClockOptions::default().unit_words(), "");
        let options = ClockOptions { clock: Source::Channel, step: true };
        assert_eq!(options.unit_words(), " --clock channel --step");
    }
}
