//! The flow table on its way to the backup: what each cut writes, and what a ledger reads.
//!
//! All numbers are little endian. A state is
//! ```text
//! version u16 | whole u8 | flows u32 | flows times: slot u32, tag u8 (0 gone, 1 here, 2 a handshake)
//!                                      here: generation u32, record, and if whole: the held bytes
//!                                      a handshake with a lent scale: generation u32, key, opening
//! ```
//! and a stream is a row of pieces, `slot u32 | generation u32 | seq u32 | len u32 | bytes`.
//!
//! RB-1: the decoder trusts no length, and never panics; a record it does not understand refuses all.

use crate::connection::{ClientEnd, GuestEnd, Negotiated, Phase};
use crate::emission::Pattern;
use crate::key::{FlowKey, Side};
use crate::ledger::LedgerError;
use crate::lent::Loan;
use crate::marks::Voice;
use crate::opening::{Hello, Opening};
use crate::seq::SeqNum;
use crate::store::blocks;
use crate::time::Time;
use crate::window::{Scale, Scaled};
use holdfast_packet::headers::{Mac, Tags};

/// Version of the encoding.
pub(crate) const VERSION: u16 = 2;

/// Bytes before each piece of a stream.
pub(crate) const PIECE_HEADER: usize = 16;

/// Along with the number of a phase: the guest's end was reset, or is to be.
const FORSAKEN: u8 = 0x80;

/// Along with the number of a phase: nothing is said on the flow any more.
const OVER: u8 = 0x40;

/// In place of a scale: none.
const NO_SCALE: u8 = 0xff;

/// Most that two numbers of a flow are apart, whatever a peer says: beyond the largest window (RFC 7323
/// §2.3), and less than half of the sequence numbers.
const MOST_HELD: u32 = 0x6000_0000;

/// What the backup knows of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: FlowKey,
    pub(crate) negotiated: Negotiated,
    pub(crate) phase: Phase,
    pub(crate) permitted: bool,
    pub(crate) barred: bool,
    pub(crate) guest: GuestEnd,
    pub(crate) client: ClientEnd,
    pub(crate) base: SeqNum,
    /// Held and streamed up to here.
    pub(crate) end: SeqNum,
    /// The guest's FIN follows.
    pub(crate) fin: bool,
    pub(crate) mss: u16,
    /// The guest's end was reset, or is to be.
    pub(crate) forsaken: bool,
    /// Nothing is said on it any more.
    pub(crate) over: bool,
}

impl Record {
    /// Bytes held.
    pub(crate) fn held(&self) -> u32 {
        self.end.bytes_since(self.base)
    }

    /// Blocks that a store holds them in.
    pub(crate) fn blocks(&self) -> usize {
        blocks(self.base, self.end) as usize
    }

    /// SP-2: whether all that the guest was shown an ACK of is held, or confirmed by the client.
    pub(crate) fn is_covered(&self) -> bool {
        !self.guest.acked.after(self.end.later(self.client.real))
    }
}

/// Writes numbers.
pub(crate) struct Writer<'a>(pub(crate) &'a mut Vec<u8>);

impl Writer<'_> {
    pub(crate) fn u8(&mut self, number: u8) {
        self.0.push(number);
    }

    pub(crate) fn u16(&mut self, number: u16) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, number: u32) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn seq(&mut self, seq: SeqNum) {
        self.u32(seq.get());
    }

    fn bits(&mut self, bits: &[bool]) {
        self.u8(bits.iter().rev().fold(0, |byte, &bit| byte << 1 | u8::from(bit)));
    }

    /// Writes the head of a state; the number of flows is set by [`Writer::set_count`].
    pub(crate) fn head(&mut self, whole: bool) -> usize {
        self.u16(VERSION);
        self.u8(u8::from(whole));
        let at = self.0.len();
        self.u32(0);
        at
    }

    pub(crate) fn set_count(&mut self, at: usize, count: u32) {
        self.0[at..at + 4].copy_from_slice(&count.to_le_bytes());
    }

    /// Writes the head of a piece of a stream.
    pub(crate) fn piece(&mut self, slot: u32, generation: u32, seq: SeqNum, len: u32) {
        self.u32(slot);
        self.u32(generation);
        self.seq(seq);
        self.u32(len);
    }

    pub(crate) fn record(&mut self, record: &Record) {
        let Record {
            key,
            negotiated,
            phase,
            permitted,
            barred,
            guest,
            client,
            base,
            end,
            fin,
            mss,
            forsaken,
            over,
        } = record;
        self.bits(&[
            key.v6,
            *permitted,
            *fin,
            negotiated.timestamps,
            negotiated.sack,
            negotiated.ecn,
            guest.voice.ece,
            *barred,
        ]);
        let phase = match phase {
            Phase::Plain => 0,
            Phase::Joining => 1,
            Phase::Active => 2,
            Phase::Resetting => 3,
            Phase::Finished => 4,
        };
        self.u8(phase | if *forsaken { FORSAKEN } else { 0 } | if *over { OVER } else { 0 });
        self.ends(key);
        self.seq(negotiated.guest_iss);
        self.u8(negotiated.guest_scale.shift());
        self.u8(negotiated.client_scale.shift());
        self.scale(negotiated.lent);
        self.u16(negotiated.client_mss);
        for seq in [guest.next, guest.acked, guest.edge, guest.right, guest.voice.ack] {
            self.seq(seq);
        }
        self.u32(guest.ts_recent);
        self.u16(guest.voice.window.0);
        self.u32(guest.voice.tsval);
        self.u32(guest.voice.tsecr);
        self.pattern(&guest.pattern);
        for seq in [client.next, client.whole, client.real, client.edge, *base, *end] {
            self.seq(seq);
        }
        self.u32(client.window);
        self.u32(client.tsval);
        self.pattern(&client.pattern);
        self.u16(*mss);
    }

    /// A key, but for the family.
    fn ends(&mut self, key: &FlowKey) {
        self.0.extend_from_slice(&key.guest);
        self.0.extend_from_slice(&key.client);
        self.u16(key.guest_port);
        self.u16(key.client_port);
        key.tags.iter().for_each(|&tag| self.u32(tag));
    }

    fn scale(&mut self, scale: Option<Scale>) {
        self.u8(scale.map_or(NO_SCALE, Scale::shift));
    }

    /// Writes a handshake with a lent scale. What waits to be shown to the guest the client says again.
    pub(crate) fn opening(&mut self, key: &FlowKey, opening: &Opening) {
        let Opening { initiator, syn, answer, shown, again, loan, strange, since: _ } = opening;
        self.bits(&[key.v6, *initiator == Side::Guest, answer.is_some(), *again, *strange]);
        self.ends(key);
        self.scale(loan.map(|loan| loan.scale));
        self.u32(*shown);
        self.hello(syn);
        if let Some(answer) = answer {
            self.hello(answer);
        }
    }

    fn hello(&mut self, hello: &Hello) {
        let Hello { iss, mss, scale, sack, tsval, ecn, window, pattern } = hello;
        self.bits(&[mss.is_some(), *sack, tsval.is_some(), *ecn]);
        self.seq(*iss);
        self.u16(mss.unwrap_or(0));
        self.scale(*scale);
        self.u32(tsval.unwrap_or(0));
        self.u16(window.0);
        self.pattern(pattern);
    }

    fn pattern(&mut self, pattern: &Pattern) {
        let Pattern { destination, source, tags, hops, service, label, whole } = pattern;
        self.0.extend_from_slice(&destination.0);
        self.0.extend_from_slice(&source.0);
        self.u8(tags.as_slice().len() as u8);
        tags.as_slice().iter().for_each(|tag| self.0.extend_from_slice(tag));
        self.u8(*hops);
        self.u8(*service);
        self.u32(*label);
        self.u8(u8::from(*whole));
    }
}

/// Reads numbers of a peer.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    /// Whether all was read.
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `len` bytes.
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], LedgerError> {
        if len > self.0.len() {
            return Err(LedgerError::Malformed("it ends too early"));
        }
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], LedgerError> {
        self.bytes(N)?.try_into().map_err(|_| LedgerError::Malformed("it ends too early"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, LedgerError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, LedgerError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, LedgerError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn seq(&mut self) -> Result<SeqNum, LedgerError> {
        Ok(SeqNum::new(self.u32()?))
    }

    fn bits<const N: usize>(&mut self) -> Result<[bool; N], LedgerError> {
        let byte = self.u8()?;
        if u32::from(byte) >> N != 0 {
            return Err(LedgerError::Malformed("bits that have no meaning are set"));
        }
        Ok(std::array::from_fn(|bit| byte >> bit & 1 == 1))
    }

    /// Reads the head of a state: whether it is whole, and its flows.
    pub(crate) fn head(&mut self) -> Result<(bool, u32), LedgerError> {
        let found = self.u16()?;
        if found != VERSION {
            return Err(LedgerError::Version { found, known: VERSION });
        }
        let [whole] = self.bits::<1>()?;
        Ok((whole, self.u32()?))
    }

    pub(crate) fn record(&mut self) -> Result<Record, LedgerError> {
        let [v6, permitted, fin, timestamps, sack, ecn, ece, barred] = self.bits()?;
        let phase = self.u8()?;
        let (forsaken, over) = (phase & FORSAKEN != 0, phase & OVER != 0);
        let phase = match phase & !(FORSAKEN | OVER) {
            0 => Phase::Plain,
            1 => Phase::Joining,
            2 => Phase::Active,
            3 => Phase::Resetting,
            4 => Phase::Finished,
            _ => return Err(LedgerError::Malformed("a phase is not known")),
        };
        let key = self.ends(v6)?;
        let negotiated = Negotiated {
            guest_iss: self.seq()?,
            guest_scale: Scale::new(self.u8()?),
            client_scale: Scale::new(self.u8()?),
            lent: self.scale()?,
            client_mss: self.u16()?,
            timestamps,
            sack,
            ecn,
        };
        let (next, acked, edge, right) = (self.seq()?, self.seq()?, self.seq()?, self.seq()?);
        let ack = self.seq()?;
        let ts_recent = self.u32()?;
        let window = Scaled(self.u16()?);
        let voice = Voice { ack, window, tsval: self.u32()?, tsecr: self.u32()?, ece };
        let guest = GuestEnd { next, acked, edge, right, ts_recent, voice, pattern: self.pattern()? };
        let (next, whole, real, edge) = (self.seq()?, self.seq()?, self.seq()?, self.seq()?);
        let (base, end) = (self.seq()?, self.seq()?);
        let (window, tsval) = (self.u32()?, self.u32()?);
        let pattern = self.pattern()?;
        let client = ClientEnd { whole, next, real, window, edge, tsval, pattern, said: None };
        let mss = self.u16()?;
        let record = Record {
            key,
            negotiated,
            phase,
            permitted,
            barred,
            guest,
            client,
            base,
            end,
            fin,
            mss,
            forsaken,
            over,
        };
        record.is_sane().then_some(record).ok_or(LedgerError::Malformed("a flow contradicts itself"))
    }

    fn ends(&mut self, v6: bool) -> Result<FlowKey, LedgerError> {
        Ok(FlowKey {
            v6,
            guest: self.array()?,
            client: self.array()?,
            guest_port: self.u16()?,
            client_port: self.u16()?,
            tags: [self.u32()?, self.u32()?],
        })
    }

    fn scale(&mut self) -> Result<Option<Scale>, LedgerError> {
        Ok(Some(self.u8()?).filter(|&shift| shift != NO_SCALE).map(Scale::new))
    }

    /// Reads a handshake with a lent scale.
    pub(crate) fn opening(&mut self) -> Result<(FlowKey, Opening), LedgerError> {
        let [v6, by_guest, answered, again, strange] = self.bits()?;
        let key = self.ends(v6)?;
        let loan = self.scale()?.map(|scale| Loan { scale, due: None });
        let shown = self.u32()?;
        let syn = self.hello()?;
        let answer = if answered { Some(self.hello()?) } else { None };
        let initiator = if by_guest { Side::Guest } else { Side::Client };
        if loan.is_none() || shown > u32::from(u16::MAX) {
            return Err(LedgerError::Malformed("a handshake contradicts itself"));
        }
        Ok((key, Opening { initiator, syn, answer, shown, again, loan, strange, since: Time::ZERO }))
    }

    fn hello(&mut self) -> Result<Hello, LedgerError> {
        let [has_mss, sack, stamped, ecn] = self.bits()?;
        let iss = self.seq()?;
        let mss = Some(self.u16()?).filter(|_| has_mss);
        let scale = self.scale()?;
        let tsval = Some(self.u32()?).filter(|_| stamped);
        let window = Scaled(self.u16()?);
        Ok(Hello { iss, mss, scale, sack, tsval, ecn, window, pattern: self.pattern()? })
    }

    fn pattern(&mut self) -> Result<Pattern, LedgerError> {
        let (destination, source) = (Mac(self.array()?), Mac(self.array()?));
        let mut tags = Tags::default();
        for _ in 0..self.u8()? {
            if !tags.push(self.array()?) {
                return Err(LedgerError::Malformed("a frame has too many tags"));
            }
        }
        let (hops, service, label) = (self.u8()?, self.u8()?, self.u32()?);
        let [whole] = self.bits()?;
        if label > 0xf_ffff {
            return Err(LedgerError::Malformed("a flow label is too long"));
        }
        Ok(Pattern { destination, source, tags, hops, service, label, whole })
    }
}

impl Record {
    /// Whether what asserts rely on holds for a peer's record too (RB-1).
    fn is_sane(&self) -> bool {
        let Self { guest, client, base, end, negotiated, mss, .. } = self;
        let near = |earlier: SeqNum, later: SeqNum| {
            later.minus(earlier) >= 0 && later.bytes_since(earlier) <= MOST_HELD
        };
        let plain = matches!(self.phase, Phase::Plain | Phase::Finished);
        near(*base, *end)
            && near(guest.acked, guest.next)
            && near(client.real, guest.next)
            && near(*end, guest.next)
            && near(guest.acked, guest.edge)
            // A probe of the client's window may have gone beyond the edge before the flow was taken.
            && (plain || near(*base, guest.edge) || near(guest.edge, *base))
            && (!plain || base == end)
            && (plain || self.phase == Phase::Joining || near(*base, client.real))
            && (plain || !client.real.after(*end + u32::from(self.fin)))
            && (!self.fin || plain || near(*end + 1, guest.next))
            && (negotiated.lent.is_none() || negotiated.client_scale == Scale::NONE)
            && (!self.over || self.phase == Phase::Finished)
            && (!self.forsaken || matches!(self.phase, Phase::Resetting | Phase::Finished))
            && negotiated.client_mss > 0
            && *mss > 0
    }
}
