//! Fuzz target for requests of the HTTP API: every input is answered with JSON and a status below 500.

use std::path::Path;

use appferry::app::Service;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::start::{Running, TOKEN};

/// A running service with an HTTP API.
pub struct Target(Running);

impl Target {
    /// Starts a service whose files are in `directory`.
    pub fn start(directory: &Path) -> Self {
        Self(Running::start(directory, "[openapi]\nlisten = \"127.0.0.1:0\"\n", Service::openapi_address))
    }

    /// Sends the input in a request. Its first byte selects whether the rest is the query or the content, and whether a
    /// token is sent.
    pub fn run(&mut self, data: &[u8]) {
        let Some((first, rest)) = data.split_first() else { return };
        let visible = |byte: &u8| byte.is_ascii_graphic() && *byte != b'#';
        let (query, content) = if first & 1 == 0 {
            (rest.iter().copied().filter(visible).take(8_000).collect(), Vec::new())
        } else {
            (Vec::new(), rest.to_vec())
        };
        let token = if first & 2 == 0 { format!("authorization: Bearer {TOKEN}\r\n") } else { String::new() };
        let head = format!(
            "POST /?{} HTTP/1.1\r\nhost: localhost\r\nx-acs-version: 2023-07-01\r\n{token}content-length: {}\r\n\
             content-type: application/x-www-form-urlencoded\r\nconnection: close\r\n\r\n",
            String::from_utf8_lossy(&query),
            content.len()
        );
        let answer = self.0.runtime.block_on(async {
            let mut stream = TcpStream::connect(self.0.address).await.expect("it listens");
            stream.write_all(&[head.as_bytes(), &content].concat()).await.expect("it is sent");
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.expect("an answer");
            answer
        });
        let text = String::from_utf8_lossy(&answer);
        let status: u16 = text.get(9..12).and_then(|status| status.parse().ok()).expect("a status");
        // No input from a caller may cause a server error (5xx).
        assert!(status < 500, "{text}");
        let (_, body) = text.split_once("\r\n\r\n").expect("a head");
        // For some request targets, hyper itself responds with an empty body.
        let json = serde_json::from_str::<serde_json::Value>(body).is_ok();
        assert!(json || (status == 400 && body.is_empty()), "{text}");
    }
}
