//! Sets the wall clock once, on request.

use crate::Failure;
use crate::channel::Channel;
use crate::clock::ptp::Ptp;
use crate::clock::servo::Exchange;
use crate::clock::{STEP_AFTER, Source, kernel, offset_of};
use crate::interfaces::{self, Interfaces};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::path::Path;

/// So long an answer is waited for.
const PATIENCE_MS: u16 = 500;

/// Sets the clock to the host's.
pub(crate) fn step(source: Source) -> Result<(), Failure> {
    let ptp = if matches!(source, Source::Auto | Source::Ptp) { Ptp::open() } else { None };
    let exchanges = match (&ptp, source) {
        (_, Source::Off) => return Err(Failure::Failed("--clock off names no clock to step by".into())),
        (Some(ptp), _) => (0..STEP_AFTER).map(|_| ptp.exchange()).collect(),
        (None, Source::Ptp) => return Err(Failure::Lacks("there is no ptp_kvm clock".into())),
        (None, _) => ask()?,
    };
    let offset_ns = offset_of(&exchanges).ok_or_else(|| {
        Failure::Failed("nobody answers: no Holdfast is on the other end; the clock stays as it is".into())
    })?;
    kernel::step(offset_ns).map_err(Failure::failed)?;
    println!("set the clock by {:.3} ms", offset_ns as f64 / 1e6);
    Ok(())
}

fn ask() -> Result<Vec<Exchange>, Failure> {
    let all = Interfaces::new(Path::new("/")).all();
    let mut channel = Channel::open().map_err(Failure::failed)?;
    let mut exchanges = Vec::new();
    for card in interfaces::cards(&all) {
        for _ in 0..STEP_AFTER {
            if channel.ask(card.index).is_err() {
                break;
            }
            let mut watched = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
            if poll(&mut watched, PollTimeout::from(PATIENCE_MS)).is_ok_and(|count| count == 0) {
                break;
            }
            while let Some((_, _, exchange)) = channel.answer().map_err(Failure::failed)? {
                exchanges.push(exchange);
            }
        }
    }
    Ok(exchanges)
}
