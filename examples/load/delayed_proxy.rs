//! A TCP proxy that delays all bytes, to simulate a remote database.

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
/// The number of pieces in flight.
const IN_FLIGHT: usize = 1_024;

/// Starts a proxy to `database` that delays each direction by half of `round_trip`. Returns the URL of the database
/// through the proxy.
pub async fn start(database: &str, round_trip: Duration) -> Result<String> {
    let mut url: Url = database.parse()?;
    let host = url.host_str().ok_or("the database URL has no host")?;
    let target = format!("{host}:{}", url.port().ok_or("the database URL has no port")?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address: SocketAddr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(&target).await else { continue };
            // Without TCP_NODELAY the proxy is only slower.
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let ((near_reads, near_writes), (far_reads, far_writes)) = (near.into_split(), far.into_split());
            tokio::spawn(forward(near_reads, far_writes, round_trip / 2));
            tokio::spawn(forward(far_reads, near_writes, round_trip / 2));
        }
    });
    url.set_ip_host(address.ip()).map_err(|()| "the database URL can't have an IP address")?;
    url.set_port(Some(address.port())).map_err(|()| "the database URL can't have a port")?;
    Ok(url.into())
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
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
