//! Whole runs compared.

mod synthetic;

use holdfast_report::compare::{Verdict, compare};
use holdfast_report::run::{Bulk, Mode, Round, Row, Run};
use holdfast_report::statistics::Random;

const SEEDS: u64 = 1000;

/// A run of forty streams, of five rounds each with 3 % of noise; that part of the rounds is disturbed, and
/// half as fast again as the others.
fn streams(seed: u64, disturbed: f64) -> Run {
    let mut random = Random(seed << 32);
    let mut share = || (random.draw() >> 11) as f64 / (1_u64 << 53) as f64;
    // A sum of twelve is near to normal.
    let mut round = || {
        let normal = (0..12).map(|_| share()).sum::<f64>() - 6.0;
        let times = if share() < disturbed { 1.5 } else { 1.0 };
        Round { mbit_s: Some(2500.0 * times * (0.03 * normal).exp()), ..Round::default() }
    };
    let mut stream = |epoch_ms| {
        let mut row = Bulk::new(Mode::Aware, epoch_ms, false);
        row.seconds = Some(5);
        row.rounds = (0..5).map(|_| round()).collect();
        Row::Stream(row)
    };
    Run { rows: (1..=40).map(&mut stream).collect(), ..Run::default() }
}

/// One pair of runs in twenty has a false alarm somewhere among its hundreds of figures, and not one figure in
/// twenty.
#[test]
fn runs_of_one_program_differ_as_seldom_as_is_stated() {
    let false_alarms = |disturbed| {
        let alarms = (1..=SEEDS).filter(|seed| {
            let found = compare(&streams(*seed, disturbed), &streams(seed + SEEDS, disturbed));
            found.rows.iter().any(|row| matches!(row.verdict, Verdict::Faster | Verdict::Slower))
        });
        alarms.count() as f64 / SEEDS as f64
    };
    let share = false_alarms(0.0);
    assert!((0.01..=0.07).contains(&share), "{share}");
    // Rounds that are not normal at all.
    for disturbed in [0.1, 0.3, 0.5] {
        let share = false_alarms(disturbed);
        assert!(share <= 0.07, "{share} with {disturbed} disturbed");
    }
}

#[test]
fn a_run_does_not_differ_from_one_of_the_same_kind() {
    let (a, b) = (synthetic::run(1, 1.0), synthetic::run(101, 1.0));
    let found = compare(&a, &b);
    assert!(found.rows.len() > a.rows.len(), "some rows have several figures");
    assert!(found.differences.is_empty() && found.only_in_a.is_empty() && found.only_in_b.is_empty());
    assert!(!found.any_slower(), "{found}");
}

#[test]
fn a_slower_run_is_found_out() {
    let (a, b) = (synthetic::run(1, 1.0), synthetic::run(2, 0.8));
    let found = compare(&a, &b);
    let of = |kind: &'static str| found.rows.iter().filter(move |row| row.kind == kind);
    for kind in ["stream", "transfer", "application"] {
        assert!(of(kind).all(|row| row.verdict == Verdict::Slower), "{found}");
    }
    assert!(of("latency").all(|row| row.verdict == Verdict::NoDifferenceShown));
    assert!(found.any_slower() && !compare(&b, &a).any_slower());
    let held = of("stream").filter(|row| {
        let [low, high] = row.interval.unwrap();
        low < 0.8 && 0.8 < high
    });
    assert!(held.count() * 10 >= of("stream").count() * 8, "{found}");
    let text = found.to_string();
    assert!(text.contains("transfer 1 MiB, with set-up") && text.contains("slower"), "{text}");
}

#[test]
fn rows_of_bench_bulk_are_set_side_by_side() {
    let text = r#"{"bench": "bulk", "machine": {"qemu": "7.2", "seed": 1}, "rows": [
        {"mode": "aware", "epoch_ms": 50, "bytes": null, "setup": null, "seconds": 10, "connections": 1,
         "throughput_mbit_s": 500.0, "stream_exact": true}]}"#;
    let (a, b) = (Run::read(text).unwrap(), Run::read(&text.replace("500.0", "250.0")).unwrap());
    let found = compare(&a, &b);
    assert_eq!((found.rows[0].verdict, found.rows[0].ratio), (Verdict::TooFewRounds, Some(0.5)));
    assert!(found.to_string().contains("too few rounds to tell"));
}

#[test]
fn a_document_is_the_same_after_it_was_written_and_read() {
    let run = synthetic::run(9, 1.0);
    let read = Run::read(&serde_json::to_string(&run).unwrap()).unwrap();
    let found = compare(&run, &read);
    assert!(found.differences.is_empty());
    // serde_json's quick reading of figures is right to the last digit but one.
    assert!(found.rows.iter().all(|row| row.ratio.is_some_and(|ratio| (ratio - 1.0).abs() < 1e-12)));
    assert!(run.rows.iter().zip(&read.rows).all(|(one, other)| matches!(
        (one, other),
        (Row::Stream(_), Row::Stream(_))
            | (Row::Transfer(_), Row::Transfer(_))
            | (Row::Application(_), Row::Application(_))
            | (Row::Latency(_), Row::Latency(_))
    )));
}
