//! libFuzzer drives the target `pages`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Err(what) = holdfast_fuzz::pages::run(data) {
        panic!("{what}");
    }
});
