//! Addresses for servers that take none by themselves, or that come back to the one they had.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process,
    sync::atomic::{AtomicU16, Ordering},
};

/// Below what Linux gives to connections and to listeners that ask for any port (`ip_local_port_range`, from 32768): none of those is
/// in the way of a server that starts, or that starts again.
const FIRST: u16 = 12_000;
const COUNT: u16 = 20_000;

static GIVEN: AtomicU16 = AtomicU16::new(0);

/// An address of this machine that nobody listens on, and that no other test is given.
pub fn free_address() -> SocketAddr {
    // Two runs at once begin at different places.
    let begin = process::id() * 101;
    (0..COUNT)
        .find_map(|_| {
            let given = u32::from(GIVEN.fetch_add(1, Ordering::Relaxed));
            let port = FIRST + u16::try_from((begin + given) % u32::from(COUNT)).expect("it is less than the count");
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?.local_addr().ok()
        })
        .expect("a port is free")
}
