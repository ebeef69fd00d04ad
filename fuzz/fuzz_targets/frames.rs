//! Fuzzes HTTP/2 frames, through the listener. The checks are in `tests/it/fuzzed`, which also runs them on the corpus.
#![no_main]

use std::sync::{Mutex, OnceLock};

#[path = "../../tests/it/fuzzed/start.rs"]
mod start;
#[path = "../../tests/it/fuzzed/frames.rs"]
mod target;

static TARGET: OnceLock<Mutex<target::Target>> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let started = TARGET.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory").keep();
        Mutex::new(target::Target::start(&directory))
    });
    started.lock().expect("it goes on").run(data);
});
