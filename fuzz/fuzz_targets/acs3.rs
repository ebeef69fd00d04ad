//! Fuzzes signed requests. The checks are in `tests/it/fuzzed`, which also runs them on the corpus.
#![no_main]

#[path = "../../tests/it/fuzzed/acs3.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
