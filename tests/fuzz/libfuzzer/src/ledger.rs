//! libFuzzer drives the target `ledger`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Err(what) = holdfast_fuzz::ledger::run(data) {
        panic!("{what}");
    }
});
