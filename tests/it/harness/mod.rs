//! What tests stand on: a site with regions of its own, a service in this process or in one of its own, images, and a reader of
//! refusals. Every test has its own directories, database and ports.

pub mod address;
pub mod bucket;
pub mod collector;
pub mod database;
pub mod disk;
pub mod ecs;
pub mod foreign;
pub mod forward;
pub mod history;
pub mod http_server;
pub mod images;
pub mod keeping;
pub mod oci_registry;
pub mod picture;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod python;
pub mod quirks;
pub mod refusal;
pub mod registry;
pub mod shelf;
pub mod site;
pub mod switch;

use std::{fs, path::Path, process::Child, time::Duration};

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `met` returns something, looking often.
///
/// # Panics
///
/// If it does not for [`PATIENCE`].
pub async fn until<T>(what: &str, mut met: impl AsyncFnMut() -> Option<T>) -> T {
    let look = async {
        loop {
            if let Some(found) = met().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

/// Waits until a server answers that has just been started and writes to `log`.
///
/// # Panics
///
/// If it ends, or does not answer for [`PATIENCE`].
pub async fn until_up<T>(what: &str, child: &mut Child, log: &Path, mut met: impl AsyncFnMut() -> Option<T>) -> T {
    until(what, async || {
        if let Some(status) = child.try_wait().expect("a child") {
            panic!("{what} ended, {status}: {}", fs::read_to_string(log).unwrap_or_default());
        }
        met().await
    })
    .await
}
