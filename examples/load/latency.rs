//! A TCP proxy that adds latency, to emulate a remote database.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::{Instant, sleep_until},
};
use url::Url;

use super::Result;

const CHUNK: usize = 64 << 10;
/// Chunks that may be in transit at once.
const IN_TRANSIT: usize = 1_024;

/// Returns a URL for `database` through a proxy that adds half of `round_trip` in each direction.
pub async fn delayed(database: &str, round_trip: Duration) -> Result<String> {
    let mut url: Url = database.parse()?;
    let upstream = format!("{}:{}", url.host_str().ok_or("it has no host")?, url.port().ok_or("it has no port")?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address: SocketAddr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(remote) = TcpStream::connect(&upstream).await else { continue };
            // Best effort: without `TCP_NODELAY`, the connection is only slower.
            let _ = (client.set_nodelay(true), remote.set_nodelay(true));
            let ((client_reads, client_writes), (remote_reads, remote_writes)) =
                (client.into_split(), remote.into_split());
            tokio::spawn(forward(client_reads, remote_writes, round_trip / 2));
            tokio::spawn(forward(remote_reads, client_writes, round_trip / 2));
        }
    });
    url.set_ip_host(address.ip()).map_err(|()| "it takes no host")?;
    url.set_port(Some(address.port())).map_err(|()| "it takes no port")?;
    Ok(url.into())
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut chunks) = mpsc::channel::<(Instant, Vec<u8>)>(IN_TRANSIT);
    let read = async move {
        let mut chunk = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut chunk).await {
            if sender.send((Instant::now() + delay, chunk[..length].to_vec())).await.is_err() {
                break;
            }
        }
    };
    let write = async move {
        while let Some((at, chunk)) = chunks.recv().await {
            sleep_until(at).await;
            if to.write_all(&chunk).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(read, write);
}
