//! What a peer sends to the backup: the flow table's changes and the stream, changed at random.
//!
//! The first half of the input plays a session, so that there is something true to change; the second
//! half changes it.

use crate::Features;
use crate::engine::Play;
use crate::input::Input;
use holdfast_epoch::EpochId;
use holdfast_speculation::{Engine, Ledger, LedgerLimits, Sink, Speculation, Time};
use std::time::Duration;

/// Plays, changes, applies, and lets an engine go live with what was taken.
///
/// # Errors
/// The ledger took more than its limits, a refusal changed it, or the engine broke with it.
pub fn run(data: &[u8]) -> Result<Features, String> {
    let (first, second) = data.split_at(data.len() / 2);
    random_bytes(second)?;
    let mut input = Input::new(first);
    let mut play = Play::new(&mut input);
    for name in ["a", "b"] {
        play.handshake(name, &mut input)?;
        play.guest_data(name, &mut input)?;
    }
    while !input.is_empty() {
        play.step(&mut input)?;
    }
    while play.stage.is_sealed() {
        play.commit()?;
    }
    play.seal()?;
    let Some((state, stream)) = play.stage.newest_sealed() else { return Ok(play.features()) };
    let (mut state, mut stream) = (state.to_vec(), stream.to_vec());
    change(&mut state, &mut stream, &mut Input::new(second));
    let mut ledger = play.stage.ledger.clone();
    let before = (ledger.held_bytes(), ledger.flows());
    let limits = (play.config.held_bytes, play.config.max_flows);
    let mut features = play.features();
    if let Err(refusal) = ledger.apply(&state, &stream) {
        features.push(0x2000 | kind(&refusal.to_string()));
        if (ledger.held_bytes(), ledger.flows()) != before {
            return Err("a refusal has changed the ledger".to_owned());
        }
        // What was refused has left no trace: the true epoch is taken.
        return play.commit().map(|()| features);
    }
    if ledger.held_bytes() > limits.0 || ledger.flows() > limits.1 {
        return Err(format!("bounds: {} bytes of {} flows", ledger.held_bytes(), ledger.flows()));
    }
    let mut engine = Engine::new(play.config.clone());
    live(&mut engine, ledger).map(|()| features)
}

/// The words of a refusal, without its numbers.
pub(crate) fn kind(text: &str) -> u16 {
    text.bytes()
        .filter(u8::is_ascii_alphabetic)
        .fold(7, |sum: u16, byte| sum.wrapping_mul(31) ^ u16::from(byte))
        & 0xfff
}

/// Takes every frame.
#[derive(Default)]
struct Sinkhole(Vec<u8>);

impl Sink for Sinkhole {
    fn emit(&mut self, len: usize, _epoch: Option<EpochId>, write: &mut dyn FnMut(&mut [u8])) -> bool {
        self.0.resize(len, 0);
        write(&mut self.0);
        true
    }
}

/// Nothing true at all.
fn random_bytes(data: &[u8]) -> Result<(), String> {
    let (state, stream) = data.split_at(data.len() / 2);
    let mut ledger = Ledger::new(LedgerLimits { max_flows: 4, held_bytes: 1 << 16 });
    match ledger.apply(state, stream) {
        Ok(()) => Ok(()),
        Err(_) if ledger.flows() == 0 && ledger.held_bytes() == 0 => Ok(()),
        Err(_) => Err("a refusal has changed the ledger".to_owned()),
    }
}

fn change(state: &mut Vec<u8>, stream: &mut Vec<u8>, input: &mut Input<'_>) {
    while !input.is_empty() {
        let choice = input.byte();
        let bytes = if choice & 1 == 0 { &mut *state } else { &mut *stream };
        let at = usize::from(input.word()) % (bytes.len() + 1);
        match choice >> 1 & 3 {
            0 if at < bytes.len() => bytes[at] = input.byte(),
            1 => bytes.truncate(at),
            2 => {
                let piece = input.bytes(4).to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let end = (at + usize::from(input.byte())).min(bytes.len());
                bytes.drain(at.min(end)..end);
            }
        }
    }
}

/// A host goes live with it, for some time; frames and deadlines come, and nothing panics.
fn live(engine: &mut Engine, ledger: Ledger) -> Result<(), String> {
    let mut now = Time::from_ns(1_000_000);
    engine.restore(now, ledger);
    engine.set_mode(now, Speculation::Off);
    let mut sink = Sinkhole::default();
    for _ in 0..200 {
        engine.poll_guest(now, &mut sink);
        engine.poll_wire(now, 32, &mut sink);
        now = match engine.next_deadline() {
            Some(deadline) => deadline.max(now + Duration::from_millis(1)),
            None => return Ok(()),
        };
        engine.handle_timeouts(now);
    }
    Ok(())
}
