//! Trusted proxies: only a trusted proxy may state the client's address. A client that guesses tokens through a proxy
//! does not lock out other clients of the proxy.

use std::time::Duration;

use appferry::app::Role;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::http2::Connection;
use crate::harness::{
    site::{ADMIN, Running, Site},
    until,
};

const LIST_REGIONS: &str = "/appferry.v1.ImageService/ListRegions";

/// Waits until the audit log has `decisions` decisions, and returns the source address of the last of them.
async fn source_of_last(running: &Running, decisions: usize) -> String {
    until("the decision", async || {
        let text = std::fs::read_to_string(running.site.audit()).unwrap_or_default();
        let lines: Vec<_> =
            text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).collect();
        (lines.len() >= decisions).then(|| lines[decisions - 1]["source_ip"].as_str().unwrap_or_default().to_owned())
    })
    .await
}

async fn call(running: &Running, headers: &[(&str, &str)]) {
    let mut connection = Connection::open(running.address, 65_535).await;
    let token = format!("Bearer {ADMIN}");
    let headers: Vec<_> = [("authorization", token.as_str())].iter().chain(headers).copied().collect();
    let stream = connection.call(LIST_REGIONS, &headers).await;
    connection.data(stream, &[0, 0, 0, 0, 0], true).await;
    assert!(connection.listen(Duration::from_secs(5), |c| c.ended.contains_key(&stream)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_is_believed_of_a_trusted_proxy_alone() {
    let running = Site::new().start_as(Role::Server).await;
    call(&running, &[("forwarded", "for=192.0.2.7")]).await;
    assert_eq!(source_of_last(&running, 1).await, "127.0.0.1");
    running.stop().await;

    let mut site = Site::new();
    site.server = "trusted_proxies = [\"127.0.0.0/8\"]".to_owned();
    let running = site.start_as(Role::Server).await;
    call(&running, &[("forwarded", "for=198.51.100.1, for=192.0.2.7")]).await;
    assert_eq!(source_of_last(&running, 1).await, "192.0.2.7");
    call(&running, &[("x-forwarded-for", "192.0.2.8")]).await;
    assert_eq!(source_of_last(&running, 2).await, "127.0.0.1", "it is not the header that is configured");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_protocol_says_for_whom_a_connection_is() {
    let mut site = Site::new();
    site.server = "trusted_proxies = [\"127.0.0.1/32\"]\nproxy_protocol = true".to_owned();
    site.more = "[openapi]\nlisten = \"127.0.0.1:0\"\n".to_owned();
    let running = site.start_as(Role::Server).await;
    let header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x09\x7f\0\0\x01\x01\x02\x03\x04";
    let request = b"GET /?Action=ListRegions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer nope\r\nconnection: close\r\n\r\n";
    let mut stream = tokio::net::TcpStream::connect(running.openapi()).await.expect("it listens");
    stream.write_all(&[&header[..], request].concat()).await.expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert_eq!(source_of_last(&running, 1).await, "192.0.2.9");
    // The service closes a connection without a PROXY header.
    let mut stream = tokio::net::TcpStream::connect(running.openapi()).await.expect("it listens");
    stream.write_all(request).await.expect("it is sent");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty(), "{answer:?}");
    running.stop().await;
}
