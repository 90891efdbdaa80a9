//! What a wire does to frames, and how that is written: `delay=10ms,loss=0.5%,down.rate=100mbit`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use thiserror::Error;

/// Longest delay, jitter or queue: longer is taken for a slip of the pen.
const LONGEST: Duration = Duration::from_secs(10);
/// A queue in front of a line whose length is not given.
const USUAL_QUEUE: Duration = Duration::from_millis(50);

/// How many frames may wait for the line; further ones are dropped at its tail.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Queue {
    /// As many as the line sends in that time.
    Time(Duration),
    /// As many bytes.
    Bytes(u64),
}

/// What happens to frames of one direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Profile {
    /// Rate of the line in 10^6 bits a second, counted as Ethernet does: with preamble, checksum and
    /// gap. None is a line without end.
    pub rate_mbit_s: Option<f64>,
    /// Time from the line's end to the other side.
    pub delay: Duration,
    /// The delay varies by as much up and down, evenly; frames are not reordered by it.
    pub jitter: Duration,
    /// Share of the frames that get lost behind the queue.
    pub loss: f64,
    /// Share that arrives twice.
    pub duplicate: f64,
    /// Share that is held back by [`Profile::reorder_by`], so that later ones overtake it.
    pub reorder: f64,
    /// How long those are held back.
    pub reorder_by: Duration,
    /// Share in which one bit behind the Ethernet header is turned.
    pub corrupt: f64,
    /// The queue in front of the line. Of no meaning without a rate.
    pub queue: Queue,
}

impl Default for Profile {
    /// A cable that does nothing.
    fn default() -> Self {
        Self {
            rate_mbit_s: None,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_by: Duration::from_millis(2),
            corrupt: 0.0,
            queue: Queue::Time(USUAL_QUEUE),
        }
    }
}

/// Both directions of a wire.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WireSpec {
    /// Towards the client: from left to right.
    pub down: Profile,
    /// From the client: from right to left.
    pub up: Profile,
    text: String,
}

/// What is wrong with the text of a wire. The operator is at fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("wire: {word}: {problem}; mend: {mend}")]
pub struct ProfileError {
    word: String,
    problem: &'static str,
    mend: &'static str,
}

/// A key and what its value looks like.
const KEYS: &str = "rate=1gbit, delay=10ms, jitter=1ms, loss=0.5%, duplicate=1%, reorder=1%, reorder-by=2ms, corrupt=0.1%, \
     queue=50ms or queue=256kib, each for one direction with down. (to the client) or up. before it";

impl WireSpec {
    /// Whether the wire does anything at all.
    pub fn is_plain(&self) -> bool {
        self.down == Profile::default() && self.up == Profile::default()
    }

    /// The text it was read from.
    pub fn words(&self) -> &str {
        &self.text
    }

    /// Changes both directions, as by one more word of the text.
    ///
    /// # Errors
    /// When the word is none.
    pub fn add(&mut self, word: &str) -> Result<(), ProfileError> {
        let fault = |problem, mend| ProfileError { word: word.to_owned(), problem, mend };
        let (key, value) = word.split_once('=').ok_or_else(|| fault("no key=value", KEYS))?;
        let (directions, key) = match key.trim().split_once('.') {
            Some(("down", key)) => (vec![&mut self.down], key),
            Some(("up", key)) => (vec![&mut self.up], key),
            Some(_) => return Err(fault("no such direction", KEYS)),
            None => (vec![&mut self.down, &mut self.up], key.trim()),
        };
        let value = value.trim();
        for profile in directions {
            profile.set(key, value).map_err(|(problem, mend)| fault(problem, mend))?;
        }
        if !self.text.is_empty() {
            self.text.push(',');
        }
        self.text.push_str(word);
        Ok(())
    }
}

impl FromStr for WireSpec {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<Self, ProfileError> {
        let mut spec = Self::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            spec.add(word)?;
        }
        Ok(spec)
    }
}

impl fmt::Display for WireSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.text.is_empty() { "a plain cable" } else { &self.text })
    }
}

type Wrong = (&'static str, &'static str);

impl Profile {
    fn set(&mut self, key: &str, value: &str) -> Result<(), Wrong> {
        match key {
            "rate" => self.rate_mbit_s = Some(rate(value)?),
            "delay" => self.delay = time(value)?,
            "jitter" => self.jitter = time(value)?,
            "loss" => self.loss = share(value)?,
            "duplicate" => self.duplicate = share(value)?,
            "reorder" => self.reorder = share(value)?,
            "reorder-by" => self.reorder_by = time(value)?,
            "corrupt" => self.corrupt = share(value)?,
            "queue" => self.queue = queue(value)?,
            _ => return Err(("no such key", KEYS)),
        }
        Ok(())
    }
}

/// A number and its unit.
fn split(value: &str) -> Option<(f64, String)> {
    let at = value.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(value.len());
    let (number, unit) = value.split_at(at);
    Some((number.parse().ok()?, unit.trim().to_ascii_lowercase()))
}

fn time(value: &str) -> Result<Duration, Wrong> {
    const WRONG: Wrong = ("no time of at most 10 s", "a time such as 10ms or 250us");
    let (number, unit) = split(value).ok_or(WRONG)?;
    let seconds = match unit.as_str() {
        "s" => number,
        "ms" => number / 1e3,
        "us" => number / 1e6,
        _ => return Err(WRONG),
    };
    let time = Duration::try_from_secs_f64(seconds).map_err(|_| WRONG)?;
    if time <= LONGEST { Ok(time) } else { Err(WRONG) }
}

fn share(value: &str) -> Result<f64, Wrong> {
    const WRONG: Wrong = ("no share from 0 to 1", "a share such as 0.5% or 0.005");
    let (number, unit) = split(value).ok_or(WRONG)?;
    let share = match unit.as_str() {
        "%" => number / 100.0,
        "" => number,
        _ => return Err(WRONG),
    };
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(WRONG) }
}

fn rate(value: &str) -> Result<f64, Wrong> {
    const WRONG: Wrong = ("no rate from 1 kbit/s to 1 Tbit/s", "a rate such as 100mbit or 1gbit");
    let (number, unit) = split(value).ok_or(WRONG)?;
    let rate = match unit.as_str() {
        "kbit" => number / 1e3,
        "mbit" => number,
        "gbit" => number * 1e3,
        _ => return Err(WRONG),
    };
    if (1e-3..=1e6).contains(&rate) { Ok(rate) } else { Err(WRONG) }
}

fn queue(value: &str) -> Result<Queue, Wrong> {
    const WRONG: Wrong = ("no queue of at most 10 s or 1 GiB", "a queue such as 50ms or 256kib");
    const MOST_BYTES: f64 = (1u64 << 30) as f64;
    let (number, unit) = split(value).ok_or(WRONG)?;
    let bytes = match unit.as_str() {
        "b" => number,
        "kib" => number * 1024.0,
        "mib" => number * 1024.0 * 1024.0,
        _ => return time(value).map(Queue::Time).map_err(|_| WRONG),
    };
    if bytes <= MOST_BYTES { Ok(Queue::Bytes(bytes as u64)) } else { Err(WRONG) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wire_is_read_as_it_is_written_and_for_each_direction() {
        let text = "delay=10ms, loss=0.5%,rate=1gbit,down.jitter=250us,up.queue=256kib,up.loss=0.02";
        let spec: WireSpec = text.parse().expect("a wire");
        assert_eq!((spec.down.delay, spec.up.delay), (Duration::from_millis(10), Duration::from_millis(10)));
        assert_eq!((spec.down.loss, spec.up.loss), (0.005, 0.02));
        assert_eq!((spec.down.jitter, spec.up.jitter), (Duration::from_micros(250), Duration::ZERO));
        assert_eq!(spec.down.rate_mbit_s, Some(1000.0));
        assert_eq!(spec.up.queue, Queue::Bytes(256 << 10));
        assert_eq!(spec.to_string().parse::<WireSpec>().expect("a wire"), spec);
        assert!(WireSpec::default().is_plain() && !spec.is_plain());
        assert!("".parse::<WireSpec>().expect("a wire").is_plain());
    }

    #[test]
    fn a_word_that_is_wrong_is_named_with_what_would_be_right() {
        for word in [
            "delay",
            "delay=10",
            "delay=11s",
            "loss=2",
            "loss=101%",
            "colour=red",
            "left.delay=1ms",
            "rate=0mbit",
            "queue=9gib",
            "queue=2gib",
            "jitter=-1ms",
        ] {
            let error = word.parse::<WireSpec>().expect_err(word).to_string();
            assert!(error.contains(word) && error.contains("mend"), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text: String) {
            drop(text.parse::<WireSpec>());
        }
    }
}
