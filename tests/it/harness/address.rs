//! Free addresses for servers that cannot choose a port, or that restart on the same one.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process,
    sync::atomic::{AtomicU16, Ordering},
};

/// The first port of the range. The range lies below the ephemeral ports of Linux (`ip_local_port_range`, from 32768),
/// so that the kernel assigns none of its ports to another socket before a server starts or restarts.
const FIRST: u16 = 12_000;
const COUNT: u16 = 20_000;

static GIVEN: AtomicU16 = AtomicU16::new(0);

/// Returns a free loopback address that no other test gets.
pub fn free_address() -> SocketAddr {
    // Concurrent runs start at different ports.
    let begin = process::id() * 101;
    (0..COUNT)
        .find_map(|_| {
            let given = u32::from(GIVEN.fetch_add(1, Ordering::Relaxed));
            let port = FIRST + u16::try_from((begin + given) % u32::from(COUNT)).expect("it is less than the count");
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?.local_addr().ok()
        })
        .expect("a port is free")
}
