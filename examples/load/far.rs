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

const PIECE: usize = 64 << 10;
/// Chunks that may be in transit at once.
const ON_THE_WAY: usize = 1_024;

/// Returns a URL for `database` through a proxy that adds half of `round_trip` in each direction.
pub async fn away(database: &str, round_trip: Duration) -> Result<String> {
    let mut url: Url = database.parse()?;
    let there = format!("{}:{}", url.host_str().ok_or("it has no host")?, url.port().ok_or("it has no port")?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let here: SocketAddr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(&there).await else { continue };
            // Best effort: without `TCP_NODELAY`, the connection is only slower.
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let ((near_reads, near_writes), (far_reads, far_writes)) = (near.into_split(), far.into_split());
            tokio::spawn(carry(near_reads, far_writes, round_trip / 2));
            tokio::spawn(carry(far_reads, near_writes, round_trip / 2));
        }
    });
    url.set_ip_host(here.ip()).map_err(|()| "it takes no host")?;
    url.set_port(Some(here.port())).map_err(|()| "it takes no port")?;
    Ok(url.into())
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    let read = async move {
        let mut piece = vec![0; PIECE];
        while let Ok(length @ 1..) = from.read(&mut piece).await {
            if sender.send((Instant::now() + delay, piece[..length].to_vec())).await.is_err() {
                break;
            }
        }
    };
    let write = async move {
        while let Some((at, piece)) = pieces.recv().await {
            sleep_until(at).await;
            if to.write_all(&piece).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(read, write);
}
