//! The invariants, judged from outside: from frames, cuts and commits, never by asking the engine.
//!
//! Two views of each flow are kept. The *guest's* goes back with the guest: it is copied at each cut
//! and taken from the copy after a failover. The *world's* never goes back: what was on the wire was.

use crate::content::History;
use crate::party::{EPHEMERAL, SERVICE, stream};
use crate::scenario::Side;
use crate::segment::{Segment, adds_up, flag};
use crate::surgery::{allows_marks, complete, set_window};
use holdfast_speculation::SeqNum;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

/// What was violated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Id of the invariant, or a word for what has none.
    pub rule: &'static str,
    /// What happened.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.text)
    }
}

pub(crate) type Verdict = Result<(), Violation>;

/// A violation of `rule`.
pub(crate) fn broken<T>(rule: &'static str, text: impl Into<String>) -> Result<T, Violation> {
    Err(Violation { rule, text: text.into() })
}

/// Ports of a flow: the guest's, the client's.
pub(crate) type Key = (u16, u16);

/// Number of the connection of these ports.
pub(crate) fn connection(key: Key) -> usize {
    usize::from(if key.0 >= EPHEMERAL { key.1 - SERVICE } else { key.0 - SERVICE })
}

/// What the guest has done and seen of a flow.
#[derive(Clone, Debug, Default)]
struct Inside {
    first: Option<SeqNum>,
    /// Beyond the last byte, SYN or FIN that it sent.
    sent: SeqNum,
    /// All bytes before this were given to the engine intact.
    given: SeqNum,
    /// Bytes given beyond a gap.
    islands: Vec<(SeqNum, SeqNum)>,
    fin: Option<SeqNum>,
    reset: bool,
    /// What its SYN said; it counts when it was shown one as well.
    scale: Option<u8>,
    acknowledged: Option<SeqNum>,
    edge: Option<SeqNum>,
    /// How far it takes what is sent to it.
    reach: Reach,
    /// The smallest window that it offered with each ACK, in bytes.
    offers: BTreeMap<u32, u32>,
    stamp: Option<u32>,
    /// What it has been shown.
    shown: Shown,
}

/// How far the guest's window reaches by what it said itself: in fragments and in broken segments too, of
/// which the rest of the dataplane learns nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Reach {
    scale: Option<u8>,
    edge: Option<SeqNum>,
}

/// What the guest was shown of its peer.
#[derive(Clone, Copy, Debug, Default)]
struct Shown {
    ack: Option<SeqNum>,
    edge: Option<SeqNum>,
    next: Option<SeqNum>,
    scale: Option<u8>,
    /// It was shown something that the client did not send.
    forged: bool,
    /// It was shown a reset.
    reset: bool,
}

/// What the world has seen of a flow.
#[derive(Clone, Debug, Default)]
struct Outside {
    /// Highest ACK of the client that reached the dataplane.
    acknowledged: Option<SeqNum>,
    /// Highest ACK that the client sent at all.
    spoken: Option<SeqNum>,
    /// Furthest edge of the client's window, when it left and when it arrived.
    edge: Option<SeqNum>,
    told_edge: Option<SeqNum>,
    /// Beyond the last byte of the client that reached the dataplane.
    next: Option<SeqNum>,
    /// Its SYN has reached the dataplane, in one piece.
    greeted: bool,
    /// Beyond its FIN.
    fin: Option<SeqNum>,
    /// Timestamps of the client that reached the dataplane.
    stamps: HashSet<u32>,
    /// Beyond the last byte that went to the client.
    sent: Option<SeqNum>,
    /// What the client's SYN said when it left, and when it arrived.
    own_scale: Option<u8>,
    scale: Option<u8>,
    /// What the SYN that went to the client said.
    sent_scale: Option<u8>,
    reset: bool,
}

/// What was known at a cut.
#[derive(Clone, Debug, Default)]
struct Snapshot {
    inside: BTreeMap<Key, Inside>,
    /// Bytes acknowledged to the guest that the client had not confirmed, by flow (SP-2).
    owed: BTreeMap<Key, u32>,
}

/// Watches everything.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    live: BTreeMap<Key, Inside>,
    /// What was shown to the guest, at the moment that it was queued for it.
    queued: BTreeMap<Key, Shown>,
    outside: BTreeMap<Key, Outside>,
    cuts: BTreeMap<u64, Snapshot>,
    committed: BTreeMap<Key, Inside>,
    /// Timestamps that the guest ever sent.
    stamps: HashSet<(Key, u32)>,
    /// Nothing is held back.
    native: bool,
    /// The guest sends nothing that only looks like a segment.
    pub(crate) strict: bool,
    /// Passed frames may have been lost with a host.
    gaps: bool,
    /// Nor does the client.
    pub(crate) strict_client: bool,
    /// SYNs that the guest was shown with a window scale that their client did not have.
    pub(crate) lent: u32,
}

impl Judge {
    /// Everything that was sent so far may leave, as does everything from now on.
    pub(crate) fn go_native(&mut self) {
        self.native = true;
        self.cuts.clear();
    }

    /// What the guest sends from now on waits for its commit.
    pub(crate) fn go_protected(&mut self) {
        if std::mem::take(&mut self.native) {
            self.committed = self.live.clone();
        }
    }

    /// The guest handed a frame to the engine; whether it arrived as the guest sent it.
    pub(crate) fn captured(&mut self, frame: &[u8], intact: bool) {
        let Some(segment) = Segment::parse(frame) else { return };
        let key = segment.ports;
        let view = self.live.entry(key).or_default();
        if let Some((value, _)) = segment.timestamp {
            self.stamps.insert((key, value));
        }
        if !intact {
            return;
        }
        if segment.has(flag::SYN) && view.first.is_none_or(|first| first != segment.seq) {
            let shown = view.shown;
            let (first, sent) = (Some(segment.seq), segment.end());
            *view = Inside { first, sent, given: sent, shown, ..Inside::default() };
        }
        if segment.has(flag::RST) {
            view.reset = true;
            return;
        }
        if segment.has(flag::SYN) {
            view.scale = segment.scale;
        }
        view.shown.learn_scale(&segment, self.outside.get(&key));
        view.note(&segment);
    }

    /// The guest sent this; its fragments were put together. After [`Judge::captured`].
    pub(crate) fn said(&mut self, frame: &[u8]) {
        let Some(segment) = Segment::parse(frame).filter(|segment| !segment.has(flag::RST)) else { return };
        let view = self.live.entry(segment.ports).or_default();
        if segment.has(flag::SYN) {
            view.reach = Reach { scale: segment.scale, edge: None };
        }
        view.shown.learn_scale(&segment, self.outside.get(&segment.ports));
        let Some(ack) = segment.ack else { return };
        let edge = ack + scaled(&segment, view.reach.scale.filter(|_| view.shown.scale.is_some()));
        view.reach.edge = Some(view.reach.edge.map_or(edge, |known| known.later(edge)));
    }

    /// A frame of the client, sent but not delivered yet.
    pub(crate) fn client_sent(&mut self, frame: &[u8]) {
        let Some(segment) = Segment::parse(frame) else { return };
        let view = self.outside.entry((segment.ports.1, segment.ports.0)).or_default();
        if segment.has(flag::SYN) {
            view.own_scale = segment.scale;
        }
        if let Some(ack) = segment.ack.filter(|_| !segment.has(flag::RST)) {
            view.spoken = Some(view.spoken.map_or(ack, |spoken| spoken.later(ack)));
            let edge = ack + scaled(&segment, view.own_scale.filter(|_| view.sent_scale.is_some()));
            view.edge = Some(view.edge.map_or(edge, |known| known.later(edge)));
        }
    }

    /// A timestamp of the client has reached the dataplane.
    pub(crate) fn heard_time(&mut self, frame: &[u8]) {
        let Some(segment) = Segment::parse(frame) else { return };
        if let Some((value, _)) = segment.timestamp {
            self.outside.entry((segment.ports.1, segment.ports.0)).or_default().stamps.insert(value);
        }
    }

    /// A frame of the client reaches the dataplane.
    pub(crate) fn delivered(&mut self, frame: &[u8]) {
        let Some(segment) = Segment::parse(frame) else { return };
        if !adds_up(frame) {
            return;
        }
        let view = self.outside.entry((segment.ports.1, segment.ports.0)).or_default();
        view.reset |= segment.has(flag::RST);
        // A guest may echo the time of a reset that it did not follow.
        if let Some((value, _)) = segment.timestamp {
            view.stamps.insert(value);
        }
        if segment.has(flag::SYN) {
            view.greeted = true;
            view.scale = segment.scale;
        }
        if segment.has(flag::RST) {
            return;
        }
        if let Some(ack) = segment.ack {
            view.acknowledged = Some(view.acknowledged.map_or(ack, |known| known.later(ack)));
            let edge = ack + scaled(&segment, view.scale.filter(|_| view.sent_scale.is_some()));
            view.told_edge = Some(view.told_edge.map_or(edge, |known| known.later(edge)));
        }
        view.next = Some(view.next.map_or(segment.end(), |next| next.later(segment.end())));
        if segment.has(flag::FIN) {
            view.fin = Some(segment.end());
        }
    }

    /// Whether a frame is for the guest as it came, but for the scale of its window, where one was lent.
    pub(crate) fn is_left_alone(&self, frame: &[u8], original: &[u8]) -> bool {
        let lent = || {
            let (client, guest) = Segment::parse(original)?.ports;
            let key = (guest, client);
            let unscaled = self.outside.get(&key)?.scale.is_none();
            let live = self.live.get(&key)?;
            // A flow that was reset is not known any more, nor one whose sides have closed, though the guest
            // may not have heard so.
            let outside = self.outside.get(&key)?;
            let has_clients = outside.fin.zip(live.acknowledged).is_some_and(|(fin, has)| !has.before(fin));
            let has_guests = live.fin.zip(outside.acknowledged).is_some_and(|(fin, has)| has.after(fin));
            let over = live.reset || outside.reset || has_clients && has_guests;
            let scales = live.scale.is_some() && !over;
            Some((self.queued.get(&key)?.scale.filter(|_| unscaled)?, scales))
        };
        match lent().filter(|_| adds_up(original)) {
            None => frame == original,
            Some((scale, true)) => frame == rescaled(original, scale),
            // The guest makes no use of it, or has not said so yet, or does not any more.
            Some((scale, false)) => frame == original || frame == rescaled(original, scale),
        }
    }

    /// A frame is queued for the guest: `original` is what came from the wire, if it came from there.
    pub(crate) fn queued(&mut self, frame: &[u8], original: Option<&[u8]>) -> Verdict {
        let Some(segment) = Segment::parse(frame) else {
            // The window in a first fragment may be rescaled, in place.
            let in_place = original.is_some_and(|original| original.len() == frame.len());
            return if in_place { Ok(()) } else { broken("format", "no segment was made for the guest") };
        };
        let key = (segment.ports.1, segment.ports.0);
        let untouched = original.is_some_and(|original| self.is_left_alone(frame, original));
        if !adds_up(frame) {
            // What the wire has broken, the guest will not look at.
            return if untouched {
                Ok(())
            } else {
                broken("format", format!("wrong checksums towards the guest: {segment}"))
            };
        }
        let outside = self.outside.entry(key).or_default();
        let inside = self.live.entry(key).or_default();
        let shown = self.queued.entry(key).or_default();
        if segment.has(flag::RST) {
            shown.reset = true;
            return Ok(());
        }
        if original.is_none() && segment.has(flag::SYN) && segment.scale.is_some() {
            if outside.scale.is_some() {
                return broken("RFC 7323", format!("a scale is lent to a client that has one: {segment}"));
            }
            self.lent += 1;
        }
        if original.is_none() && segment.has(flag::ECE) && !segment.has(flag::SYN) {
            return broken("ECN", format!("a forged ACK tells of congestion: {segment}"));
        }
        shown.learn_scale(&segment, Some(outside));
        // What lies beyond the guest's window it drops before it looks at the ACK. A stranger may say there what
        // it likes; what the engine says is checked all the same.
        let beyond = inside.is_beyond(&segment);
        let says = original.and_then(Segment::parse).and_then(|original| original.ack);
        if !beyond || says != segment.ack {
            check_ack(&segment, inside, outside, untouched || !self.strict)?;
        }
        check_stamps(&segment, key, outside, &self.stamps, untouched, self.strict)?;
        let scales = inside.scale.is_some();
        // Nothing that comes after the guest's FIN, or after a reset, is stopped by a window.
        let ended = inside.fin.zip(outside.acknowledged).is_some_and(|(fin, real)| real.after(fin));
        let done = ended || outside.reset || inside.reset || shown.reset;
        // Nor does the guest look at what lies before what it has (RFC 9293 §3.10.7.4).
        let old = inside.has(&segment);
        shown.check(&segment, outside, untouched, scales, done || old)?;
        if original.is_none()
            && self.strict_client
            && outside.next.is_some_and(|next| segment.seq.after(next))
        {
            return broken("SP-4", format!("a forged ACK is ahead of what the client sent: {segment}"));
        }
        if !old && !beyond {
            shown.note(&segment, outside.acknowledged, untouched, scales);
        }
        Ok(())
    }

    /// The guest takes a frame from its queue.
    pub(crate) fn shown(&mut self, frame: &[u8]) {
        let Some(segment) = Segment::parse(frame).filter(|_| adds_up(frame)) else { return };
        let key = (segment.ports.1, segment.ports.0);
        let acknowledged = self.outside.get(&key).and_then(|view| view.acknowledged);
        let forged = self.queued.get(&key).is_some_and(|shown| shown.forged);
        let view = self.live.entry(key).or_default();
        view.shown.learn_scale(&segment, self.outside.get(&key));
        let scales = view.scale.is_some();
        // An ACK of what it has not sent is not acceptable either.
        // Of a guest whose SYN left in fragments that is not known; its client confirms no more than it got.
        let most = if view.first.is_some() { Some(view.sent) } else { acknowledged };
        let unsent = segment.ack.is_some_and(|ack| most.is_none_or(|most| ack.after(most)));
        if !view.has(&segment) && !unsent && !view.is_beyond(&segment) {
            view.shown.note(&segment, acknowledged, true, scales);
        }
        view.shown.forged |= forged;
    }

    /// A segment leaves the client leg: what was sent before must not be marked again (RFC 3168 §6.1.5).
    pub(crate) fn left_leg(&mut self, frame: &[u8]) -> Verdict {
        let Some(segment) = Segment::parse(frame) else { return Ok(()) };
        let sent = self.outside.get(&segment.ports).and_then(|view| view.sent);
        let again = sent.is_some_and(|sent| segment.len() == 0 || segment.seq.before(sent));
        if again && allows_marks(frame, &segment.place) {
            return broken("ECN", format!("something sent again may be marked: {segment}"));
        }
        Ok(())
    }

    /// A frame leaves for the client. `history` says what the guest wrote.
    pub(crate) fn sent(&mut self, frame: &[u8], history: &History) -> Verdict {
        let Some(segment) = Segment::parse(frame) else { return Ok(()) };
        let key = segment.ports;
        if !adds_up(frame) {
            return broken("format", format!("wrong checksums towards the client: {segment}"));
        }
        let views = if self.native { &self.live } else { &self.committed };
        let Some(view) = views.get(&key) else {
            return broken("OC-1", format!("the guest's first frame is not committed: {segment}"));
        };
        let outside = self.outside.entry(key).or_default();
        if segment.has(flag::SYN) {
            outside.sent_scale = segment.scale;
            let asked = outside.scale.is_some() || !outside.greeted;
            if segment.ack.is_some() && segment.scale.is_some() && !asked {
                return broken(
                    "RFC 7323",
                    format!("an answer with a scale that nobody asked for: {segment}"),
                );
            }
        }
        view.permits(&segment, outside.sent_scale.filter(|_| outside.scale.is_some()))?;
        view.offers(&segment, outside)?;
        if let (Some((_, echo)), true) = (segment.timestamp, segment.ack.is_some()) {
            if self.strict_client && !outside.stamps.contains(&echo) {
                return broken("SP-4", format!("an echo of a timestamp that never came: {segment}"));
            }
        }
        // Without its SYN, which may have been sent in fragments, nothing is known of a stream.
        let Some(first) = view.first.map(|first| first + 1) else { return Ok(()) };
        let probe = segment.len() == 1
            && frame[segment.payload.start] == 0
            && (!self.strict_client || outside.spoken.is_some_and(|spoken| !segment.end().after(spoken)));
        if !segment.payload.is_empty() && !probe {
            let offset = u64::from(segment.data().bytes_since(first));
            let stream = stream(connection(key), Side::Guest);
            if let Err(at) = history.check(stream, offset, &frame[segment.payload.clone()]) {
                return broken("SP-3", format!("byte {at} of the stream is not the guest's: {segment}"));
            }
        }
        if !segment.has(flag::RST) {
            let unsent = outside.sent.is_some_and(|sent| segment.seq.after(sent));
            // A FIN is sent again until the client takes it, as bytes are, and says the ACK with it anew.
            if self.strict
                && !self.gaps
                && segment.len() == 0
                && !segment.has(flag::FIN)
                && unsent
                && outside.edge.is_some_and(|edge| segment.seq.after(edge))
            {
                return broken("SP-3", format!("an ACK that the client cannot accept: {segment}"));
            }
            outside.sent = Some(outside.sent.map_or(segment.end(), |sent| sent.later(segment.end())));
        }
        Ok(())
    }

    /// The guest stands still and epoch `epoch` is cut.
    pub(crate) fn cut(&mut self, epoch: u64) {
        let mut owed = BTreeMap::new();
        for (key, shown) in &self.queued {
            let (Some(ack), Some(inside)) = (shown.ack, self.live.get(key)) else { continue };
            let outside = self.outside.get(key);
            let ack = ack.earlier(inside.fin.unwrap_or(ack));
            let confirmed = outside.and_then(|view| view.acknowledged).unwrap_or(ack);
            if !inside.reset && !shown.reset && !outside.is_some_and(|view| view.reset) {
                owed.insert(*key, ack.bytes_since(confirmed));
            }
        }
        self.cuts.insert(epoch, Snapshot { inside: self.live.clone(), owed });
    }

    /// The backup confirms `epoch`; `held` says how many bytes it holds of a flow (SP-2).
    pub(crate) fn kept(&mut self, epoch: u64, held: impl Fn(Key) -> u32) -> Verdict {
        let mut later = self.cuts.split_off(&epoch);
        let Some(snapshot) = later.remove(&epoch) else { return Ok(()) };
        self.cuts = later;
        self.committed = snapshot.inside;
        for (key, owed) in snapshot.owed {
            if held(key) < owed {
                let text = format!(
                    "epoch {epoch} is confirmed, but of flow {key:?} the backup holds {} of {owed} bytes that the guest \
                     was told are safe",
                    held(key)
                );
                return broken("SP-2", text);
            }
        }
        Ok(())
    }

    /// Flows whose guest may not send though its client has confirmed everything: nothing stands in the
    /// way of a window, if nothing is held of other flows either.
    pub(crate) fn shut(&self) -> impl Iterator<Item = Key> + '_ {
        self.live.iter().filter_map(|(key, inside)| {
            let (shown, outside) = (&inside.shown, self.outside.get(key)?);
            let over = inside.reset || inside.fin.is_some() || shown.reset || outside.reset;
            let closed = shown.forged && shown.edge.is_some_and(|edge| !edge.after(inside.sent));
            let confirmed = outside.acknowledged.is_some_and(|ack| !ack.before(inside.sent));
            let open = outside.told_edge.is_some_and(|edge| edge.after(inside.sent));
            (!over && closed && confirmed && open).then_some(*key)
        })
    }

    /// The guest goes back to the last commit, on another host.
    pub(crate) fn failed_over(&mut self) {
        // Passed frames that waited are lost: a gap is between what the client was sent and what comes.
        self.gaps = true;
        self.live = self.committed.clone();
        self.queued = self.live.iter().map(|(key, view)| (*key, view.shown)).collect();
        self.cuts.clear();
    }
}

/// The window of a segment in bytes; that of a SYN is never scaled (RFC 7323 §2.2).
fn scaled(segment: &Segment, scale: Option<u8>) -> u32 {
    let scale = if segment.has(flag::SYN) { 0 } else { scale.unwrap_or(0).min(14) };
    u32::from(segment.window) << scale
}

/// A frame of the client whose window is said in a scale.
fn rescaled(original: &[u8], scale: u8) -> Vec<u8> {
    let mut frame = original.to_vec();
    if let Some(segment) = Segment::parse(original).filter(|segment| !segment.has(flag::SYN)) {
        set_window(&mut frame, &segment.place, segment.window >> scale.min(14));
        complete(&mut frame);
    }
    frame
}

fn check_ack(segment: &Segment, inside: &Inside, outside: &Outside, untouched: bool) -> Verdict {
    let Some(ack) = segment.ack.filter(|_| !segment.has(flag::RST)) else { return Ok(()) };
    if untouched && !inside.sent.before(ack) {
        return Ok(());
    }
    let real = outside.acknowledged.is_some_and(|real| !ack.after(real));
    if inside.fin.is_some_and(|fin| ack.after(fin)) && !real {
        return broken("SP-1", format!("a FIN that the client has not confirmed is acknowledged: {segment}"));
    }
    if !real && ack.after(inside.given) {
        let text =
            format!("{ack} is acknowledged, but only bytes up to {} were given: {segment}", inside.given);
        return broken("SP-1", text);
    }
    if inside.first.is_some() && ack.after(inside.sent) && !untouched {
        return broken(
            "SP-4",
            format!("{ack} is acknowledged, but the guest sent up to {}: {segment}", inside.sent),
        );
    }
    Ok(())
}

fn check_stamps(
    segment: &Segment,
    key: Key,
    outside: &Outside,
    stamps: &HashSet<(Key, u32)>,
    untouched: bool,
    strict: bool,
) -> Verdict {
    let Some((value, echo)) = segment.timestamp.filter(|_| !untouched) else { return Ok(()) };
    if !outside.stamps.contains(&value) {
        return broken("SP-4", format!("a timestamp that the client did not send: {segment}"));
    }
    if strict && segment.ack.is_some() && !stamps.contains(&(key, echo)) {
        return broken("SP-4", format!("an echo of a timestamp that the guest did not send: {segment}"));
    }
    Ok(())
}

impl Shown {
    fn window(&self, segment: &Segment, scales: bool) -> u32 {
        scaled(segment, self.scale.filter(|_| scales))
    }

    /// SP-4: once something was forged, neither the ACK nor the window's edge moves left.
    fn check(
        &self,
        segment: &Segment,
        outside: &Outside,
        untouched: bool,
        scales: bool,
        done: bool,
    ) -> Verdict {
        let Some(ack) = segment.ack.filter(|_| !segment.has(flag::RST | flag::SYN)) else { return Ok(()) };
        // A client may say older things again by itself, while nothing is ahead of what it said.
        let ahead = |shown: Option<SeqNum>, told: Option<SeqNum>| {
            shown.is_some_and(|shown| told.is_none_or(|told| shown.after(told)))
        };
        let acks_ahead = ahead(self.ack, outside.acknowledged);
        let older = !acks_ahead && ack.before(self.ack.unwrap_or(ack));
        let own = !acks_ahead && !ahead(self.edge, outside.told_edge);
        if untouched && (!self.forged || older || own || done) {
            return Ok(());
        }
        if self.ack.is_some_and(|shown| ack.before(shown)) {
            let text = format!("ACK {ack} after ACK {}: {segment}", self.ack.unwrap_or_default());
            return broken("SP-4", text);
        }
        let edge = ack + self.window(segment, scales);
        if self.edge.is_some_and(|shown| edge.before(shown)) {
            let text = format!(
                "the window's edge moves from {} left to {edge}: {segment}",
                self.edge.unwrap_or_default()
            );
            return broken("SP-4", text);
        }
        Ok(())
    }

    /// Behind the client's SYN the guest knows the scale in it, though it may have seen that in fragments.
    fn learn_scale(&mut self, segment: &Segment, outside: Option<&Outside>) {
        if !segment.has(flag::SYN) {
            self.scale = self.scale.or(outside.and_then(|view| view.scale));
        }
    }

    fn note(&mut self, segment: &Segment, acknowledged: Option<SeqNum>, untouched: bool, scales: bool) {
        if segment.has(flag::RST) {
            self.reset = true;
            return;
        }
        if segment.has(flag::SYN) {
            if self.ack.is_some() {
                // Repeated: it opens no window any more (RFC 9293 §3.10.7.4).
                return;
            }
            self.scale = segment.scale;
        }
        self.next = Some(self.next.map_or(segment.end(), |next| next.later(segment.end())));
        let Some(ack) = segment.ack else { return };
        self.forged |= !untouched || acknowledged.is_none_or(|real| ack.after(real));
        if self.ack.is_some_and(|shown| ack.before(shown)) {
            // RFC 9293 §3.10.7.4: SND.WND is updated only if SND.UNA =< SEG.ACK.
            return;
        }
        self.ack = Some(ack);
        let edge = ack + self.window(segment, scales);
        self.edge = Some(self.edge.map_or(edge, |shown| shown.later(edge)));
    }
}

impl Inside {
    /// Whether the guest has everything of a segment already: it is not acceptable then.
    fn has(&self, segment: &Segment) -> bool {
        let Some(has) = self.acknowledged else { return false };
        if segment.end() == segment.seq { segment.seq.before(has) } else { !segment.end().after(has) }
    }

    /// Whether a segment lies beyond its window: it is not acceptable either (RFC 9293 §3.10.7.4). A client
    /// sends none.
    fn is_beyond(&self, segment: &Segment) -> bool {
        self.reach.edge.is_some_and(|edge| segment.seq.after(edge))
    }

    /// Takes note of what the guest sent.
    fn note(&mut self, segment: &Segment) {
        self.sent = self.sent.later(segment.end());
        let keepalive = segment.len() == 1 && segment.end() == self.sent && self.given == self.sent;
        if segment.has(flag::FIN) {
            self.fin = Some(segment.end() - 1);
        }
        if !keepalive && segment.len() > 0 {
            let new = (segment.data(), segment.data() + segment.len());
            let known = |island: &(SeqNum, SeqNum)| !new.0.before(island.0) && !new.1.after(island.1);
            if !self.islands.iter().any(known) {
                self.islands.push(new);
            }
            while let Some(at) = self.islands.iter().position(|&(start, _)| !start.after(self.given)) {
                self.given = self.given.later(self.islands.swap_remove(at).1);
            }
        }
        let Some(ack) = segment.ack else { return };
        self.acknowledged = Some(self.acknowledged.map_or(ack, |known| known.later(ack)));
        let window = scaled(segment, self.scale.filter(|_| self.shown.scale.is_some()));
        let offer = self.offers.entry(ack.get()).or_insert(window);
        *offer = window.min(*offer);
        let edge = ack + window;
        self.edge = Some(self.edge.map_or(edge, |known| known.later(edge)));
        if let Some((value, _)) = segment.timestamp {
            let newer = self.stamp.is_none_or(|known| value.wrapping_sub(known) as i32 > 0);
            self.stamp = if newer { Some(value) } else { self.stamp };
        }
    }

    /// Whether a client without scaling that was lent one is offered as much as the guest has offered.
    fn offers(&self, segment: &Segment, client: &Outside) -> Verdict {
        let lent = client.scale.is_none() && self.scale.is_some() && self.shown.scale.is_some();
        let Some(ack) = segment.ack.filter(|_| lent && !self.reset) else { return Ok(()) };
        let offer = self.offers.get(&ack.get()).map_or(0, |&offer| offer.min(u32::from(u16::MAX)));
        // Behind its FIN a client has nothing to send.
        let closed = client.fin.is_some_and(|fin| !ack.before(fin));
        if !closed && u32::from(segment.window) < offer {
            return broken("RFC 7323", format!("the guest offered {offer} bytes: {segment}"));
        }
        Ok(())
    }

    /// OC-1: whether a guest that has done this, and no more, can have sent that.
    fn permits(&self, segment: &Segment, scale: Option<u8>) -> Verdict {
        let early = |what: &str| broken("OC-1", format!("{what} is not committed: {segment}"));
        if segment.has(flag::RST) {
            return if self.reset { Ok(()) } else { early("a reset") };
        }
        if segment.has(flag::SYN) && self.first != Some(segment.seq) {
            return early("a SYN");
        }
        if segment.has(flag::FIN) && self.fin != Some(segment.end() - 1) {
            return early("a FIN");
        }
        if segment.end().after(self.sent) {
            return early("a byte");
        }
        let Some(ack) = segment.ack else { return Ok(()) };
        if self.acknowledged.is_none_or(|known| ack.after(known)) {
            return early("an acknowledgement");
        }
        let edge = ack + scaled(segment, scale);
        if self.edge.is_none_or(|known| edge.after(known)) {
            return early("a window");
        }
        if let (Some((value, _)), Some(known)) = (segment.timestamp, self.stamp) {
            if value.wrapping_sub(known) as i32 > 0 {
                return early("a timestamp");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_packet::sample::Tcp;

    const GUEST: u32 = 1000;
    const CLIENT: u32 = 77;

    fn frame(ports: (u16, u16), sequence: u32, acknowledgement: u32, window: u16, len: usize) -> Vec<u8> {
        let options = Vec::new();
        Tcp { ports, sequence, acknowledgement, window, options, ..Tcp::data(false, vec![1; len]) }.bytes()
    }

    fn of_guest(sequence: u32, window: u16, len: usize) -> Vec<u8> {
        frame((SERVICE, EPHEMERAL), sequence, CLIENT, window, len)
    }

    fn of_client(sequence: u32, acknowledgement: u32, window: u16) -> Vec<u8> {
        frame((EPHEMERAL, SERVICE), sequence, acknowledgement, window, 0)
    }

    /// It offers 500.
    fn guest_that_sent_300_bytes() -> Judge {
        let mut judge = Judge { strict: true, strict_client: true, ..Judge::default() };
        let mut syn =
            Tcp { ports: (SERVICE, EPHEMERAL), sequence: GUEST - 1, ..Tcp::data(false, Vec::new()) };
        (syn.acknowledgement, syn.flags, syn.options) = (CLIENT, flag::SYN | flag::ACK, Vec::new());
        for frame in [syn.bytes(), of_guest(GUEST, 500, 300)] {
            judge.captured(&frame, true);
            judge.said(&frame);
        }
        judge
    }

    /// A stranger's ACK of all 300 bytes, whose window was rewritten, comes before the client's of 100.
    fn a_strangers_ack_then_the_clients(said_in_fragments: Option<u16>, stranger: u32) -> Verdict {
        let mut judge = guest_that_sent_300_bytes();
        if let Some(window) = said_in_fragments {
            judge.said(&of_guest(GUEST + 300, window, 0));
        }
        judge.queued(&of_client(stranger, GUEST + 300, 900), Some(&of_client(stranger, GUEST + 300, 700)))?;
        let original = of_client(CLIENT, GUEST + 100, 700);
        judge.delivered(&original);
        judge.queued(&of_client(CLIENT, GUEST + 100, 1100), Some(&original))
    }

    /// SP-4. RFC 9293 §3.10.7.4: what lies beyond its window a guest drops before it looks at its ACK, so
    /// that it was not shown it.
    #[test]
    fn an_ack_beyond_the_guests_window_was_not_shown() {
        assert_eq!(a_strangers_ack_then_the_clients(None, CLIENT + 5000), Ok(()));
        assert_eq!(a_strangers_ack_then_the_clients(Some(4000), CLIENT + 5000), Ok(()));
    }

    /// SP-1, SP-4
    #[test]
    fn an_ack_of_a_fin_is_a_strangers_only_beyond_the_guests_window() {
        let mut judge = guest_that_sent_300_bytes();
        let mut fin = Tcp { ports: (SERVICE, EPHEMERAL), ..Tcp::data(false, Vec::new()) };
        (fin.sequence, fin.acknowledgement, fin.flags) = (GUEST + 300, CLIENT, flag::FIN | flag::ACK);
        judge.captured(&fin.bytes(), true);
        let mut comes = |sequence, says, shown| {
            let original = of_client(sequence, says, 700);
            let verdict = judge.queued(&of_client(sequence, shown, 900), Some(&original));
            verdict.map_err(|violation| violation.rule)
        };
        let (of_bytes, of_fin) = (GUEST + 300, GUEST + 301);
        assert_eq!(comes(CLIENT + 5000, of_fin, of_fin), Ok(()));
        assert_eq!(comes(CLIENT + 400, of_fin, of_fin), Err("SP-1"), "the guest looks at it");
        assert_eq!(comes(CLIENT + 5000, of_bytes, of_fin), Err("SP-1"), "the engine says it");
    }

    /// SP-4
    #[test]
    fn an_ack_within_the_guests_window_was_shown_wherever_that_was_said() {
        for (said_in_fragments, stranger) in [(None, CLIENT + 400), (Some(6000), CLIENT + 5000)] {
            let verdict = a_strangers_ack_then_the_clients(said_in_fragments, stranger);
            assert_eq!(verdict.map_err(|violation| violation.rule), Err("SP-4"));
        }
    }
}
