//! libFuzzer drives the target `parser`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Err(what) = holdfast_fuzz::parser::run(data) {
        panic!("{what}");
    }
});
