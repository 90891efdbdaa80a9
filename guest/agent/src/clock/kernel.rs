//! The kernel's clocks, and the two screws by which the wall clock is made to go faster: adjtimex(2).
//!
//! The first one is an offset that the kernel works off by itself, a quarter of what is left with each second
//! (`ADJ_OFFSET` of the phase-locked loop, time constant zero, frequency held): half a second at most, so an
//! eighth of each second. It has to be renewed, and lapses by itself within seconds when the agent does not. What
//! is needed beyond that is added to the length of a tick (`ADJ_TICK`), by a tenth at most; that stays until it is
//! undone.
#![expect(unsafe_code, reason = "adjtimex and clocks of devices have no safe form")]

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::io;
use std::mem::zeroed;

/// Length of a tick, in microseconds, of a clock that nobody hastens.
const TICK_US: i64 = 10_000;
const MOST_TICK_US: i64 = 1000;
/// One microsecond more of a tick.
const TICK_PPM: f64 = 100.0;
/// The most that the offset does.
const MOST_OFFSET_PPM: f64 = 125_000.0;
/// Nanoseconds of offset that are a ppm in each second.
const OFFSET_NS_A_PPM: f64 = 4000.0;
/// What says that it is us: others do not hold the frequency of a loop that they use.
const OURS: i32 = libc::STA_PLL | libc::STA_FREQHOLD;

/// Nanoseconds of `CLOCK_MONOTONIC_RAW`, which is never slewed and stands still while the guest does.
pub(crate) fn raw_ns() -> i64 {
    read(ClockId::CLOCK_MONOTONIC_RAW)
}

/// Nanoseconds of the wall clock.
pub(crate) fn real_ns() -> i64 {
    read(ClockId::CLOCK_REALTIME)
}

/// Of any clock; zero when it cannot be read.
pub(crate) fn read(clock: ClockId) -> i64 {
    clock_gettime(clock).map_or(0, |now| now.tv_sec() * 1_000_000_000 + now.tv_nsec())
}

/// How the clock was set when the agent began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Own {
    tick_us: i64,
    status: i32,
    constant: i64,
}

impl Own {
    /// As it is now.
    pub(crate) fn read() -> io::Result<Self> {
        let now = adjust(blank())?;
        Ok(Self { tick_us: now.tick, status: now.status, constant: now.constant })
    }

    /// Whether somebody keeps the clock: a time daemon, or what one left.
    pub(crate) fn is_kept(&self) -> bool {
        self.status & libc::STA_UNSYNC == 0 || self.tick_us != TICK_US
    }

    /// Whether somebody else has taken the clock that we slew.
    pub(crate) fn is_taken_over(&self) -> io::Result<bool> {
        let now = Self::read()?;
        Ok(now.status & OURS != OURS || (now.status ^ self.status) & libc::STA_UNSYNC != 0)
    }

    /// Lets the wall clock go faster by so many ppm, to be repeated each second; gives the length of a tick.
    pub(crate) fn slew(&self, ppm: f64) -> io::Result<i64> {
        let (offset_ns, more_us) = screws(ppm);
        let mut wanted = blank();
        wanted.modes =
            libc::ADJ_STATUS | libc::ADJ_NANO | libc::ADJ_TIMECONST | libc::ADJ_OFFSET | libc::ADJ_TICK;
        wanted.status = self.status | OURS;
        wanted.offset = offset_ns;
        wanted.tick = TICK_US + more_us;
        adjust(wanted).map(|now| now.tick)
    }

    /// Leaves the clock as it was found; what another has set meanwhile, it leaves, but for the tick of our making.
    /// Whether there was something to do.
    pub(crate) fn give_back(&self, tick_us: Option<i64>) -> io::Result<bool> {
        let now = Self::read()?;
        let mut wanted = blank();
        if now.status & OURS != OURS {
            if Some(now.tick_us) != tick_us {
                return Ok(false);
            }
            wanted.modes = libc::ADJ_TICK;
            wanted.tick = self.tick_us;
            return adjust(wanted).map(|_| true);
        }
        wanted.modes = libc::ADJ_NANO | libc::ADJ_TIMECONST | libc::ADJ_OFFSET | libc::ADJ_TICK;
        wanted.tick = self.tick_us;
        wanted.constant = self.constant;
        adjust(wanted)?;
        let mut wanted = blank();
        let unit = if self.status & libc::STA_NANO == 0 { libc::ADJ_MICRO } else { libc::ADJ_NANO };
        wanted.modes = libc::ADJ_STATUS | unit;
        wanted.status = self.status;
        adjust(wanted).map(|_| true)
    }
}

/// Sets the wall clock forward, or back, at once.
pub(crate) fn step(ns: i64) -> io::Result<()> {
    let mut wanted = blank();
    wanted.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    wanted.time.tv_sec = ns.div_euclid(1_000_000_000);
    wanted.time.tv_usec = ns.rem_euclid(1_000_000_000);
    let was = Own::read()?;
    adjust(wanted)?;
    if was.status & libc::STA_NANO == 0 {
        let mut wanted = blank();
        wanted.modes = libc::ADJ_MICRO;
        adjust(wanted)?;
    }
    Ok(())
}

/// An offset in nanoseconds and microseconds of each tick that together are so many ppm.
fn screws(ppm: f64) -> (i64, i64) {
    let beyond = ppm - ppm.clamp(-MOST_OFFSET_PPM, MOST_OFFSET_PPM);
    let more_us = (beyond.abs() / TICK_PPM).ceil() as i64;
    let more_us = if beyond < 0.0 { -more_us } else { more_us }.clamp(-MOST_TICK_US, MOST_TICK_US);
    let rest = (ppm - more_us as f64 * TICK_PPM).clamp(-MOST_OFFSET_PPM, MOST_OFFSET_PPM);
    ((rest * OFFSET_NS_A_PPM) as i64, more_us)
}

fn blank() -> libc::timex {
    // SAFETY: all bits zero is a valid timex that asks for nothing.
    unsafe { zeroed() }
}

fn adjust(mut timex: libc::timex) -> io::Result<libc::timex> {
    // SAFETY: the structure lives until the call returns.
    if unsafe { libc::adjtimex(&raw mut timex) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(timex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_screws_together_are_what_is_asked_for_and_within_what_the_kernel_takes() {
        for ppm in [-100_000.0, -7.0, 0.0, 1.0, 60_000.0, 125_000.0, 125_001.0, 136_364.0, 220_000.0] {
            let (offset_ns, more_us) = screws(ppm);
            assert!(offset_ns.abs() <= 500_000_000 && more_us.abs() <= 1000, "{ppm}: {offset_ns}, {more_us}");
            let sum = offset_ns as f64 / OFFSET_NS_A_PPM + more_us as f64 * TICK_PPM;
            assert!((sum - ppm).abs() < 0.01, "{ppm}: {sum}");
        }
        assert_eq!(screws(100_000.0).1, 0, "what lapses by itself comes first");
    }

    #[test]
    fn a_daemons_clock_is_told_from_one_that_nobody_keeps() {
        let own = Own { tick_us: 10_000, status: libc::STA_UNSYNC, constant: 2 };
        assert!(!own.is_kept());
        assert!(Own { status: 0, ..own }.is_kept());
        assert!(Own { tick_us: 10_001, ..own }.is_kept());
    }
}
