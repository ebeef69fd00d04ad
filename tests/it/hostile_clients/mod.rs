//! Hostile clients: each listener limits the bytes, the concurrency and the time of a client. With the default
//! configuration, an attack is rejected, and an authorized caller is served within seconds.

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

/// Asserts that the service answers the administrator in time, over a new connection.
async fn administrator_is_served(running: &Running) {
    let began = Instant::now();
    let served = async {
        let mut images = images_client(running.address, Some(ADMIN)).await;
        images.list_regions(ListRegionsRequest {}).await
    };
    let served = tokio::time::timeout(Duration::from_secs(10), served).await;
    served.expect("it is answered").expect("the administrator may ask");
    // The bound is generous, because the machine runs other tests at the same time.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}
