//! Hostile clients: each listener limits bytes, concurrency and time per client. With the default configuration, an attack is
//! rejected, and an authorized caller is served within seconds.

mod attack;
mod audit;
mod combined;
mod concurrency;
mod http2;
mod memory;
mod proxies;
mod revocation;
mod timers;

use std::time::{Duration, Instant};

use appferry::contract::v1::ListRegionsRequest;

use crate::harness::site::{ADMIN, Running, images_client};

/// Checks that the administrator is served in time, over a new connection.
async fn administrator_is_served(running: &Running) {
    let began = Instant::now();
    let served = async {
        let mut images = images_client(running.address, Some(ADMIN)).await;
        images.list_regions(ListRegionsRequest {}).await
    };
    let served = tokio::time::timeout(Duration::from_secs(10), served).await;
    served.expect("it is answered").expect("the administrator may ask");
    // The bound allows for a machine that runs other tests.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}
