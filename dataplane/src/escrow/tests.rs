use super::*;
use holdfast_epoch::{Confirmation, Digest, Epoch};
use proptest::prelude::*;

struct Numbered(u32);

/// Bytes of each frame.
const LEN: usize = 8;

/// Leave to let an epoch go.
pub(crate) fn token(term: u64, epoch: u64) -> ReleaseToken {
    let (term, id, digest) = (Term::new(term), EpochId::new(epoch), Digest([1; 32]));
    let (sealed, _) = Epoch::open(term, id).seal(());
    let sent = sealed.replicated(digest, |()| ());
    let word = Confirmation { term, epoch: id, digest };
    let (done, ()) = sent.commit(&word).map_err(|(_, fault)| fault).expect("the right word");
    done.into_release_token()
}

fn protected(first: u64) -> Escrow<Numbered> {
    let mut escrow = Escrow::new(Limits { frames: 100, bytes: 1000, inbound: 1 });
    escrow.protect(EpochId::new(first)).expect("a first epoch");
    escrow
}

fn hold(escrow: &mut Escrow<Numbered>, numbers: std::ops::Range<u32>) {
    for number in numbers {
        assert!(escrow.hold(Numbered(number), LEN).is_none());
    }
}

fn numbers(out: &VecDeque<Numbered>) -> Vec<u32> {
    out.iter().map(|frame| frame.0).collect()
}

fn as_it_is(_: EpochId, _: &mut Numbered) {}

/// OC-1: only the token of a sealed epoch moves frames, and only those of it and of epochs before it.
#[test]
fn output_is_withheld_until_its_epoch_commits() {
    let mut escrow = protected(1);
    let mut out = VecDeque::new();
    hold(&mut escrow, 0..3);
    assert_eq!(escrow.cut(EpochId::new(1)), Ok(Amount { frames: 3, bytes: 24 }));
    hold(&mut escrow, 3..5);
    assert_eq!(escrow.cut(EpochId::new(2)), Ok(Amount { frames: 2, bytes: 16 }));
    hold(&mut escrow, 5..6);
    assert_eq!(
        escrow.release(&token(1, 3), &mut out, &mut as_it_is),
        Err(EscrowError::NotSealed { epoch: EpochId::new(3) }),
        "the open epoch cannot have been committed"
    );
    assert!(out.is_empty());
    assert_eq!(escrow.release(&token(1, 1), &mut out, &mut as_it_is), Ok(Amount { frames: 3, bytes: 24 }));
    assert_eq!(numbers(&out), [0, 1, 2]);
    assert_eq!(
        escrow.release(&token(1, 1), &mut out, &mut as_it_is),
        Err(EscrowError::NotSealed { epoch: EpochId::new(1) }),
        "an epoch is released once"
    );
    assert_eq!(escrow.release(&token(1, 2), &mut out, &mut as_it_is), Ok(Amount { frames: 2, bytes: 16 }));
    assert_eq!(numbers(&out), [0, 1, 2, 3, 4]);
    assert_eq!(escrow.held(), Amount { frames: 1, bytes: 8 });
}

/// OC-1: several frames in one entry of the queue go with their epoch, and none of the next epoch goes with them.
#[test]
fn frames_of_one_entry_are_of_one_epoch() {
    let mut escrow = protected(1);
    let mut out = VecDeque::new();
    let lengthen = |frame: &mut Numbered| {
        frame.0 += 100;
        true
    };
    assert!(!escrow.hold_with_last(LEN, lengthen), "nothing is there yet");
    hold(&mut escrow, 1..2);
    assert!(!escrow.hold_with_last(LEN, |_| false));
    assert!(escrow.hold_with_last(LEN, lengthen));
    assert_eq!(escrow.cut(EpochId::new(1)), Ok(Amount { frames: 2, bytes: 16 }));
    assert!(!escrow.hold_with_last(LEN, lengthen), "the last one is of an epoch that ended");
    hold(&mut escrow, 2..4);
    assert!(escrow.hold_with_last(LEN, lengthen));
    assert_eq!(escrow.cut(EpochId::new(2)), Ok(Amount { frames: 3, bytes: 24 }));
    assert_eq!(escrow.release(&token(1, 1), &mut out, &mut as_it_is), Ok(Amount { frames: 2, bytes: 16 }));
    assert_eq!(numbers(&out), [101]);
    assert_eq!(escrow.release(&token(1, 2), &mut out, &mut as_it_is), Ok(Amount { frames: 3, bytes: 24 }));
    assert_eq!(numbers(&out), [101, 2, 103]);
    assert_eq!(escrow.held(), Amount::default());
}

/// FO-1: a token of an older term opens nothing.
#[test]
fn a_token_of_an_older_term_is_refused() {
    let mut escrow = protected(7);
    let mut out = VecDeque::new();
    escrow.begin_term(Term::new(5)).expect("a newer term");
    hold(&mut escrow, 0..2);
    escrow.cut(EpochId::new(7)).expect("the open epoch");
    let stale = EscrowError::StaleTerm { epoch: EpochId::new(7), found: Term::new(4), known: Term::new(5) };
    assert_eq!(escrow.release(&token(4, 7), &mut out, &mut as_it_is), Err(stale));
    assert!(out.is_empty());
    assert!(escrow.release(&token(5, 7), &mut out, &mut as_it_is).is_ok());
    let old = EscrowError::OldTerm { found: Term::new(5), known: Term::new(5) };
    assert_eq!(escrow.begin_term(Term::new(5)), Err(old));
}

#[test]
fn the_commit_of_a_later_epoch_releases_what_aborted_ones_sent() {
    let mut escrow = protected(1);
    let mut out = VecDeque::new();
    for epoch in 1..=3 {
        hold(&mut escrow, epoch * 10..epoch * 10 + 1);
        escrow.cut(EpochId::new(u64::from(epoch))).expect("the open epoch");
    }
    hold(&mut escrow, 90..91);
    escrow.cut(EpochId::new(9)).expect("epochs 4 to 8 were aborted");
    assert_eq!(escrow.release(&token(1, 9), &mut out, &mut as_it_is), Ok(Amount { frames: 4, bytes: 32 }));
    assert_eq!(numbers(&out), [10, 20, 30, 90]);
    assert_eq!(escrow.open_epoch(), Some(EpochId::new(10)));
}

#[test]
fn epochs_are_cut_in_order() {
    let mut escrow = protected(5);
    let order = EscrowError::Order { epoch: EpochId::new(4), open: EpochId::new(5) };
    assert_eq!(escrow.cut(EpochId::new(4)), Err(order));
    escrow.cut(EpochId::new(5)).expect("the open epoch");
    let order = EscrowError::Order { epoch: EpochId::new(4), open: EpochId::new(6) };
    assert_eq!(escrow.protect(EpochId::new(4)), Err(order));
}

/// OC-1, OC-2: sessions that end one after the other before a commit leave sealed epochs behind. However many they
/// are, the guest's output waits for a later commit, and then goes out in order.
#[test]
fn epochs_of_any_number_of_lost_sessions_go_out_with_a_later_one() {
    let mut escrow = Escrow::new(Limits { frames: 1000, bytes: 10_000, inbound: 1 });
    escrow.protect(EpochId::new(1)).expect("a first epoch");
    let mut out = VecDeque::new();
    let last = 3 * MAX_SEALED as u64;
    for epoch in 1..=last {
        hold(&mut escrow, epoch as u32..epoch as u32 + 1);
        escrow.cut(EpochId::new(epoch)).expect("the open epoch");
    }
    // Those that were joined wait for a later commit than their own.
    let first_apart = last - MAX_SEALED as u64 + 1;
    let early = escrow.release(&token(1, first_apart - 1), &mut out, &mut as_it_is);
    assert_eq!(early, Err(EscrowError::NotSealed { epoch: EpochId::new(first_apart - 1) }));
    for (epoch, frames) in [(first_apart, first_apart), (last, last - first_apart)] {
        let released = escrow.release(&token(1, epoch), &mut out, &mut as_it_is);
        assert_eq!(released.map(|amount| amount.frames), Ok(frames));
    }
    assert_eq!(numbers(&out), (1..=last as u32).collect::<Vec<_>>());
}

#[test]
fn a_full_escrow_says_so_before_it_is_exceeded() {
    let mut escrow = protected(1);
    hold(&mut escrow, 0..99);
    assert!(escrow.has_room(Amount::default()));
    assert!(!escrow.has_room(Amount { frames: 1, bytes: 0 }), "what waits for the wire counts");
    assert!(!escrow.has_room(Amount { frames: 0, bytes: 300 }));
    hold(&mut escrow, 99..100);
    assert!(!escrow.has_room(Amount::default()));
}

#[test]
fn a_port_that_is_opened_gives_up_everything_in_order() {
    let mut escrow = protected(1);
    let mut out = VecDeque::new();
    hold(&mut escrow, 0..3);
    escrow.cut(EpochId::new(1)).expect("the open epoch");
    hold(&mut escrow, 3..5);
    assert_eq!(escrow.open(&mut out, &mut as_it_is), Amount { frames: 5, bytes: 40 });
    assert_eq!(numbers(&out), [0, 1, 2, 3, 4]);
    let back = escrow.hold(Numbered(9), LEN).expect("a port that is not protected holds nothing");
    assert_eq!(back.0, 9);
    assert!(
        escrow.release(&token(1, 1), &mut out, &mut as_it_is).is_ok(),
        "nothing is held, so nothing is early"
    );
}

#[derive(Clone, Debug)]
enum Step {
    Hold,
    Cut,
    Release(u64),
    Discard,
}

proptest! {
    /// OC-1, OC-2: against a model that tags each frame with its epoch, nothing leaves before its
    /// commit, nothing is lost, doubled or passed.
    #[test]
    fn the_escrow_agrees_with_its_model(steps in prop::collection::vec(
        prop_oneof![
            6 => Just(Step::Hold),
            3 => Just(Step::Cut),
            3 => (0u64..12).prop_map(Step::Release),
            1 => Just(Step::Discard),
        ],
        0..120,
    )) {
        let mut escrow = protected(1);
        let mut model: VecDeque<(u32, u64)> = VecDeque::new();
        let (mut open, mut sealed, mut next) = (1u64, Vec::<u64>::new(), 0u32);
        for step in steps {
            let mut out = VecDeque::new();
            match step {
                Step::Hold => {
                    hold(&mut escrow, next..next + 1);
                    model.push_back((next, open));
                    next += 1;
                }
                Step::Cut => {
                    prop_assert!(escrow.cut(EpochId::new(open)).is_ok());
                    sealed.push(open);
                    open += 1;
                }
                Step::Release(back) => {
                    let epoch = open.saturating_sub(back).max(1);
                    let released = escrow.release(&token(1, epoch), &mut out, &mut as_it_is);
                    prop_assert_eq!(released.is_ok(), sealed.contains(&epoch));
                    if released.is_ok() {
                        sealed.retain(|&id| id > epoch);
                        for frame in &out {
                            let (number, of) = model.pop_front().expect("a frame that was held");
                            prop_assert_eq!(frame.0, number);
                            prop_assert!(of <= epoch);
                        }
                        prop_assert!(model.front().is_none_or(|&(_, of)| of > epoch));
                    }
                }
                Step::Discard => {
                    escrow.discard();
                    model.clear();
                    sealed.clear();
                }
            }
            prop_assert_eq!(escrow.held().frames as usize, model.len());
        }
    }
}

/// OC-1: whoever adapts a frame as it leaves is told the epoch in which the guest sent it.
#[test]
fn a_frame_that_leaves_is_shown_with_its_own_epoch() {
    let mut escrow = protected(1);
    let mut out = VecDeque::new();
    for epoch in 1..=3 {
        hold(&mut escrow, epoch..epoch + 1);
        if epoch < 3 {
            escrow.cut(EpochId::new(epoch.into())).expect("cut");
        }
    }
    let mut seen = Vec::new();
    escrow.release(&token(1, 2), &mut out, &mut |epoch, _| seen.push(epoch.get())).expect("released");
    assert_eq!(seen, [1, 2]);
    escrow.open(&mut out, &mut |epoch, _| seen.push(epoch.get()));
    assert_eq!((seen, out.len()), (vec![1, 2, 3], 3));
}
