//! What each door gives to whoever comes: bytes, places and seconds. An attacker is refused, and somebody who may call is served within a
//! second, at the limits that are configured by default.

mod audit;
mod http2;
mod memory;
mod places;
mod proxies;
mod revocation;
mod timers;
mod together;

use std::time::{Duration, Instant};

use appferry::contract::v1::ListRegionsRequest;

use crate::harness::site::{ADMIN, Running, images_client};

/// The administrator is answered on a connection of its own, in time.
async fn administrator_is_served(running: &Running) {
    let began = Instant::now();
    let served = async {
        let mut images = images_client(running.address, Some(ADMIN)).await;
        images.list_regions(ListRegionsRequest {}).await
    };
    let served = tokio::time::timeout(Duration::from_secs(10), served).await;
    served.expect("it is answered").expect("the administrator may ask");
    // A machine that is busy with other tests is slower than the service.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}
