//! The test harness: sites with regions, services in this process and in processes of their own, images, emulated
//! servers, and a decoder of errors. Every test has its own directories, database and ports.

pub mod address;
pub mod bucket;
pub mod collector;
pub mod database;
pub mod disk;
pub mod ecs;
pub mod history;
pub mod http_server;
pub mod images;
pub mod key_material;
pub mod oci_registry;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod python;
pub mod quirks;
pub mod recording_proxy;
pub mod refusal;
pub mod registry;
pub mod resumable_registry;
pub mod scripted_registry;
pub mod site;
pub mod tcp_proxy;
pub mod trace_diagram;

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::Path,
    process::Child,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// How long a test waits for an expected event.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls `met` until it returns a value.
///
/// # Panics
///
/// Panics if `met` returns no value within [`PATIENCE`].
pub async fn until<T>(what: &str, mut met: impl AsyncFnMut() -> Option<T>) -> T {
    let look = async {
        loop {
            if let Some(found) = met().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("timed out waiting for {what}"))
}

/// Polls `met` until it returns a value, while a server starts. A panic shows the server's log, the file `log`.
///
/// # Panics
///
/// Panics if the server exits, or if `met` returns no value within [`PATIENCE`].
pub async fn until_up<T>(what: &str, child: &mut Child, log: &Path, mut met: impl AsyncFnMut() -> Option<T>) -> T {
    until(what, async || {
        if let Some(status) = child.try_wait().expect("a child") {
            panic!("{what} ended, {status}: {}", fs::read_to_string(log).unwrap_or_default());
        }
        met().await
    })
    .await
}

/// Reports that this machine lacks a component that tests need. Prints `message` once for all tests, and returns false.
///
/// # Panics
///
/// Panics if `CI` is set, because no test may be skipped there.
fn missing(message: &'static str) -> bool {
    static PRINTED: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
    assert!(std::env::var_os("CI").is_none(), "{message}");
    if PRINTED.lock().unwrap_or_else(PoisonError::into_inner).insert(message) {
        // Not `eprintln!`, whose output the test runner captures.
        let _ = writeln!(std::io::stderr(), "{message}");
    }
    false
}
