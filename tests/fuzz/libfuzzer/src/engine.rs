//! libFuzzer drives the target `engine`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Err(what) = holdfast_fuzz::engine::run(data) {
        panic!("{what}");
    }
});
