//! Measures the memory of idle connections and watchers.

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
    service::{self, SQLITE, Service, TOKEN},
};

/// The start of an HTTP/2 connection (RFC 9113, section 3.4): the preface and empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The size of a frame header in bytes. Every response of a server has at least this size.
const FRAME_HEADER: usize = 9;
/// The number of watchers per connection.
const WATCHERS_PER_CONNECTION: usize = 100;

pub async fn measure(connections: usize, watchers: usize) -> Result<()> {
    let service = Service::start(false, SQLITE, &[])?;
    let endpoint = service.endpoint().await?;
    let app_id = service.image(&endpoint, 1 << 20)?;
    let client = Client::builder(&endpoint).token(TOKEN).connect().await?;
    let mut request =
        SynchronizeAppRequest { app_id, target_region_ids: service::slow().take(1).collect(), ..Default::default() };
    let request_id = client.synchronize_app(request.clone()).await?;

    let empty = service.resident()?;
    let address = endpoint.trim_start_matches("http://");
    let mut idle = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(PREFACE).await?;
        // The server keeps the connection once it has sent a response.
        let mut response = [0; FRAME_HEADER];
        stream.read_exact(&mut response).await?;
        idle.push(stream);
    }
    let connected = service.resident()?;
    println!("{connections} connections: {} KiB each", kib(connected, empty, connections));

    // The synchronization does not end while its watchers are measured.
    let mut streams = Vec::with_capacity(watchers);
    let mut clients: Vec<AppSync> = Vec::new();
    for watcher in 0..watchers {
        if watcher % WATCHERS_PER_CONNECTION == 0 {
            clients.push(Client::builder(&endpoint).token(TOKEN).connect().await?.app_sync());
        }
        let Some(client) = clients.last_mut() else { continue };
        let request = WatchSynchronizationRequest { request_id: request_id.clone() };
        let mut stream = client.watch_synchronization(request).await?.into_inner();
        stream.message().await?.ok_or("the stream has no snapshot")?;
        streams.push(stream);
    }
    let watched = service.resident()?;
    println!("{watchers} watchers: {} KiB each", kib(watched, connected, watchers));
    let start = tokio::time::Instant::now();
    request.target_region_ids = vec![service::FAST.to_owned()];
    client.synchronize_app(request).await?;
    println!("a call meanwhile: {:.1?}", start.elapsed());
    drop((idle, streams));
    tokio::time::timeout(Duration::from_secs(60), tokio::task::spawn_blocking(move || service.stop())).await??
}

fn kib(after: u64, before: u64, count: usize) -> String {
    #[allow(clippy::cast_precision_loss, reason = "the result is printed with one decimal")]
    let each = after.saturating_sub(before) as f64 / 1024.0 / count as f64;
    format!("{each:.1}")
}
