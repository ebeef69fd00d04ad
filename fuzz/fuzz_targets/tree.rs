//! Trees of manifests whose sizes lie. What is tried with each input stands with the tests, which run it on the corpus.
#![no_main]

#[path = "../../tests/it/fuzzed/tree.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
