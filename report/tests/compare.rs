//! Whole runs compared.

mod synthetic;

use holdfast_report::compare::{Verdict, compare};
use holdfast_report::run::{Row, Run};

#[test]
fn a_run_does_not_differ_from_one_of_the_same_kind() {
    // One pair in twenty has a false alarm somewhere; these seeds have none.
    for seed in 1..=2 {
        let (a, b) = (synthetic::run(seed, 1.0), synthetic::run(seed + 100, 1.0));
        let found = compare(&a, &b, 1);
        assert_eq!(found.rows.len(), a.rows.len());
        assert!(found.differences.is_empty() && found.only_in_a.is_empty() && found.only_in_b.is_empty());
        let shown = found.rows.iter().filter(|row| matches!(row.verdict, Verdict::Faster | Verdict::Slower));
        assert_eq!(shown.count(), 0, "{found}");
        assert!(!found.any_slower());
    }
}

#[test]
fn a_slower_run_is_found_out_where_there_are_samples_enough() {
    let (a, b) = (synthetic::run(1, 1.0), synthetic::run(2, 0.7));
    let found = compare(&a, &b, 1);
    let of = |kind: &'static str| found.rows.iter().filter(move |row| row.kind == kind);
    assert!(of("stream").all(|row| row.verdict == Verdict::Slower), "{found}");
    assert!(of("transfer").all(|row| row.verdict == Verdict::Slower));
    assert!(of("latency").all(|row| row.verdict == Verdict::NoDifferenceShown));
    // Six samples each among so many rows.
    assert!(of("application").all(|row| row.verdict == Verdict::TooFewSamples));
    assert!(found.any_slower() && !compare(&b, &a, 1).any_slower());
    let row = of("stream").next().unwrap();
    let [low, high] = row.interval.unwrap();
    assert!(low < 0.7 && 0.7 < high, "{row:?}");
    let text = found.to_string();
    assert!(text.contains("transfer 1 MiB, with set-up") && text.contains("slower"), "{text}");
}

#[test]
fn rows_of_bench_bulk_are_set_side_by_side() {
    let text = r#"{"bench": "bulk", "machine": {"qemu": "7.2", "seed": 1}, "rows": [
        {"mode": "aware", "epoch_ms": 50, "bytes": null, "setup": null, "seconds": 10, "connections": 1,
         "throughput_mbit_s": 500.0, "stream_exact": true}]}"#;
    let (a, b) = (Run::read(text).unwrap(), Run::read(&text.replace("500.0", "250.0")).unwrap());
    let found = compare(&a, &b, 1);
    assert_eq!((found.rows[0].verdict, found.rows[0].ratio), (Verdict::SingleFigures, Some(0.5)));
    assert!(found.to_string().contains("no statistics are possible"));
}

#[test]
fn a_document_is_the_same_after_it_was_written_and_read() {
    let run = synthetic::run(9, 1.0);
    let read = Run::read(&serde_json::to_string(&run).unwrap()).unwrap();
    let found = compare(&run, &read, 1);
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
