//! Each target for a bounded time: HOLDFAST_FUZZ_SECONDS, 20 unless it is set. A finding is written under
//! target/fuzz and replayed by `cargo run -p holdfast-fuzz -- TARGET FILE`.

use holdfast_fuzz::{Session, target};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn survives(name: &str) {
    let target = target(name).expect("a target");
    let seconds =
        std::env::var("HOLDFAST_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let seed = std::env::var("HOLDFAST_FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(clock);
    match Session::new(target, seed).run(Duration::from_secs(seconds)) {
        Ok(tally) => println!("{name}, seed {seed}: {} runs, {} features", tally.runs, tally.features),
        Err(finding) => {
            let path = finding.save(&target);
            panic!("{name}, seed {seed}: {}\ninput: {}", finding.what, path.display());
        }
    }
}

/// RB-1: no bytes make the parser panic or point beyond them.
#[test]
fn the_parser_survives_any_bytes() {
    survives("parser");
}

/// RB-1, SP-1, SP-3, SP-4, OC-1: whatever guest, client and operator do.
#[test]
fn the_engine_survives_any_behaviour() {
    survives("engine");
}

/// RB-1, SP-2: no flow table and no stream of a peer breaks the backup.
#[test]
fn the_ledger_survives_any_peer() {
    survives("ledger");
}

/// RB-1, CK-1: no records of pages break the backup, or make it another memory than they say.
#[test]
fn the_backup_survives_any_pages() {
    survives("pages");
}
