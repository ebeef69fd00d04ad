//! The memory that the service holds for unauthenticated clients and for clients that do not read responses. The tests
//! run the service in its own process and measure the resident memory of this process.

use std::time::Duration;

use appferry::{config::Config, db};

use super::http2::{Connection, message};
use crate::harness::{
    process::Served,
    site::{READER, Site, app_sync},
};

const REFLECT: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const CHECK: &str = "/grpc.health.v1.Health/Check";

/// Limit for the growth of the memory in MiB. The attackers send far more.
const ADDED: u64 = 48;

async fn serve(site: &Site) -> Served {
    let file = site.write_config();
    let config = Config::load(&file).expect("it is one");
    db::migrate(&config.database.settings()).await.expect("the schema");
    Served::configured(&file).await
}

/// Returns the current resident memory of the process in MiB.
fn resident(served: &Served) -> u64 {
    memory(served, "VmRSS:")
}

/// Returns the peak resident memory of the process in MiB.
pub fn peak(served: &Served) -> u64 {
    memory(served, "VmHWM:")
}

fn memory(served: &Served, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.id())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(name)).expect("a line");
    line.split_whitespace().nth(1).expect("a number").parse::<u64>().expect("a number") / 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_has_proved_anything_for_takes_little_memory() {
    let site = Site::new();
    let served = serve(&site).await;
    // Connects once, so that the memory that a first connection needs does not count as growth.
    drop(app_sync(served.address, Some(READER)).await);
    let before = resident(&served);
    let mut connections = Vec::new();
    // Sends many reflection requests of 64 KiB, which their responses repeat, and unfinished messages with long
    // headers.
    let mut question = vec![0x0a];
    question.extend([0xf0, 0xff, 0x03]);
    question.extend(vec![b'x'; 65_520]);
    let long = "y".repeat(14_000);
    for _ in 0..8 {
        let mut connection = Connection::open(served.address, 0).await;
        for _ in 0..64 {
            let stream = connection.call(REFLECT, &[("x-long", &long)]).await;
            for piece in message(&question).chunks(16_000) {
                connection.data(stream, piece, false).await;
            }
            let stream = connection.call(CHECK, &[("x-long", &long)]).await;
            connection.data(stream, &[0, 0, 64, 0, 0, 1, 2, 3], false).await;
            connection.listen(Duration::from_millis(5), |_| false).await;
        }
        connections.push(connection);
    }
    let added = resident(&served).saturating_sub(before);
    assert!(added < ADDED, "{added} MiB");
    drop((connections, served));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_of_reflection_that_is_too_long_is_refused() {
    let running = Site::new().start_as(appferry::app::Role::Server).await;
    let mut connection = Connection::open(running.address, 1 << 20).await;
    let stream = connection.call(REFLECT, &[]).await;
    // Announces a message that is longer than the limit.
    connection.data(stream, &[0, 0, 1, 0, 1, 1, 2, 3], false).await;
    assert!(connection.listen(Duration::from_secs(5), |c| c.ended.contains_key(&stream)).await);
    assert_eq!(connection.received.get(&stream), None, "nothing is answered");
    // An ordinary reflection request succeeds.
    let stream = connection.call(REFLECT, &[]).await;
    let symbol = b"appferry.v1.ImageService";
    let lookup = [&[0x22, u8::try_from(symbol.len()).expect("it is short")][..], symbol].concat();
    connection.data(stream, &message(&lookup), true).await;
    assert!(connection.listen(Duration::from_secs(5), |c| c.ended.contains_key(&stream)).await);
    assert!(connection.received.get(&stream).is_some_and(|bytes| *bytes > 1_000), "{:?}", connection.received);
    running.stop().await;
}
