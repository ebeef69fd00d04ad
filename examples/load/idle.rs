//! Idle connections and watchers.

use std::time::Duration;

use appferry::{
    client::{AppSync, Client},
    contract::v1::{SynchronizeAppRequest, WatchSynchronizationRequest},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    Result,
    local_service::{self, SQLITE, Service, TOKEN},
};

/// The first bytes of an HTTP/2 client (RFC 9113, section 3.4): the preface and an empty SETTINGS frame.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Length of a frame header (RFC 9113, section 4.1): a server responds with at least one frame.
const HEAD: usize = 9;
/// Watchers per connection.
const SHARED: usize = 100;

pub async fn measure(connections: usize, watchers: usize) -> Result<()> {
    let service = Service::start(false, SQLITE, &[])?;
    let endpoint = service.endpoint().await?;
    let app_id = service.image(&endpoint, 1 << 20)?;
    let client = Client::builder(&endpoint).token(TOKEN).connect().await?;
    let mut request = SynchronizeAppRequest {
        app_id,
        target_region_ids: local_service::slow().take(1).collect(),
        ..Default::default()
    };
    let request_id = client.synchronize_app(request.clone()).await?;

    let empty = service.resident()?;
    let address = endpoint.trim_start_matches("http://");
    let mut idle = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(HELLO).await?;
        // A connection counts as open once the server has responded.
        let mut answer = [0; HEAD];
        stream.read_exact(&mut answer).await?;
        idle.push(stream);
    }
    let connected = service.resident()?;
    println!("{connections} connections: {} KiB each", kib(connected, empty, connections));

    // The synchronization must not end while it is watched.
    let mut streams = Vec::with_capacity(watchers);
    let mut clients: Vec<AppSync> = Vec::new();
    for watcher in 0..watchers {
        if watcher % SHARED == 0 {
            clients.push(Client::builder(&endpoint).token(TOKEN).connect().await?.app_sync());
        }
        let Some(client) = clients.last_mut() else { continue };
        let request = WatchSynchronizationRequest { request_id: request_id.clone() };
        let mut stream = client.watch_synchronization(request).await?.into_inner();
        stream.message().await?.ok_or("it has a snapshot")?;
        streams.push(stream);
    }
    let watched = service.resident()?;
    println!("{watchers} watchers: {} KiB each", kib(watched, connected, watchers));
    let began = tokio::time::Instant::now();
    request.target_region_ids = vec![local_service::FAST.to_owned()];
    client.synchronize_app(request).await?;
    println!("a call beside them: {:.1?}", began.elapsed());
    drop((idle, streams));
    tokio::time::timeout(Duration::from_secs(60), tokio::task::spawn_blocking(move || service.stop())).await??
}

fn kib(after: u64, before: u64, many: usize) -> String {
    #[allow(clippy::cast_precision_loss, reason = "it is printed")]
    let each = after.saturating_sub(before) as f64 / 1024.0 / many as f64;
    format!("{each:.1}")
}
