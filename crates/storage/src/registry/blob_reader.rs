//! Reads blobs and ranges of blobs from a registry (OCI distribution specification 1.1, "Pulling blobs").

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use domain::{Descriptor, ForeignText, ImageName};
use http::{HeaderMap, Method, StatusCode, header::RANGE};
use reqwest::Response;
use tokio::{sync::mpsc, time::timeout};

use super::{
    RegistryStore,
    client::{Ask, Scope, header, what},
    content_range::ContentRange,
    decoding::{Decoder, is_encoded},
};
use crate::{
    BlobChunks, Error, Result, Source as _,
    http_response::{refusal, transport},
};

/// Number of pieces of a blob that are read ahead.
const READ_AHEAD: usize = 8;
/// Maximum time to wait for the next bytes of a blob.
const STALL: Duration = Duration::from_secs(60);

impl RegistryStore {
    /// Reads a blob with the access of `scope`.
    pub(super) async fn read_as(
        &self,
        scope: Scope,
        name: &ImageName,
        blob: &Descriptor,
        from: u64,
        most: Option<u64>,
    ) -> Result<BlobChunks> {
        let at = self.at(name);
        let url = self.client.url(&format!("{}/blobs/{}", at.repository, blob.digest))?;
        let end = most.map_or(blob.size, |most| blob.size.min(from.saturating_add(most)));
        let ranged = (from > 0 || end < blob.size) && self.reads_ranges();
        let mut headers = HeaderMap::new();
        if ranged {
            headers.extend([header(RANGE, format!("bytes={from}-{}", end.saturating_sub(1)))?]);
        }
        let ask = Ask { method: Method::GET, url, scope, headers, body: Bytes::new() };
        let what = what(&ask.method, &ask.url);
        let response = self.client.ask(ask).await?;
        let skip = match response.status() {
            // A range of compressed content is not a range of the blob.
            StatusCode::PARTIAL_CONTENT if ranged && is_encoded(response.headers()) => {
                return Err(self.without_range(what));
            }
            StatusCode::PARTIAL_CONTENT if ranged => match ContentRange::of(response.headers()) {
                // A range that starts earlier also contains the requested byte. If a range ends earlier, the caller
                // reads the rest.
                Some(part)
                    if (part.first..=part.last).contains(&from) && part.size.is_none_or(|size| size == blob.size) =>
                {
                    from - part.first
                }
                None if response.content_length() == Some(end - from) => 0,
                _ => return Err(self.without_range(what)),
            },
            // The registry may still be able to send the whole blob.
            StatusCode::RANGE_NOT_SATISFIABLE if ranged => return Err(self.without_range(what)),
            StatusCode::OK => {
                if ranged {
                    self.without_ranges.store(true, Ordering::Relaxed);
                }
                from
            }
            StatusCode::NOT_FOUND => {
                return Err(Error::BlobMissing { digest: blob.digest, image: name.to_string() });
            }
            _ => return Err(refusal(&what, response).await),
        };
        let (chunks, received) = mpsc::channel(READ_AHEAD);
        // The task ends with the body, or when the receiver is dropped.
        let decoder = Decoder::of(response.headers(), response.content_length(), Some(blob.size));
        tokio::spawn(pass_on(what, response, decoder, (skip, end - from), chunks));
        Ok(received)
    }

    /// Disables range requests, and returns the error for a response whose range differs from the requested one.
    fn without_range(&self, what: String) -> Error {
        self.without_ranges.store(true, Ordering::Relaxed);
        Error::Transport { what: what.into(), problem: "the answer is another range than was asked for".into() }
    }
}

/// Passes on a part of a response's content: skips `part.0` bytes and sends the next `part.1` bytes. Sends an error if
/// the content is shorter.
async fn pass_on(
    what: String,
    mut response: Response,
    mut decoder: Decoder,
    part: (u64, u64),
    chunks: mpsc::Sender<Result<Bytes>>,
) {
    let (mut skip, mut left) = part;
    while left > 0 {
        let next = tokio::select! {
            next = next_piece(&what, &mut response, &mut decoder) => next,
            () = chunks.closed() => return,
        };
        let mut bytes = match next {
            Ok(bytes) => bytes,
            Err(error) => {
                // The send fails only if the receiver was dropped.
                let _ = chunks.send(Err(error)).await;
                return;
            }
        };
        let skipped = skip.min(bytes.len() as u64);
        skip -= skipped;
        let _ = bytes.split_to(usize::try_from(skipped).unwrap_or(bytes.len()));
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= bytes.len() as u64;
        if !bytes.is_empty() && chunks.send(Ok(bytes)).await.is_err() {
            return;
        }
    }
}

/// Returns the next bytes of a response's content.
async fn next_piece(what: &str, response: &mut Response, decoder: &mut Decoder) -> Result<Bytes> {
    let broken = |problem| Error::Transport { what: what.into(), problem };
    loop {
        if let Some(bytes) = decoder.next().map_err(|error| broken(ForeignText::new(error)))? {
            return Ok(bytes);
        }
        let chunk = timeout(STALL, response.chunk()).await.map_err(|_| Error::Stalled("reading a blob"))?;
        let chunk = chunk.map_err(|error| transport(what, &error))?;
        decoder.push(chunk.ok_or_else(|| broken("the answer ended too early".into()))?);
    }
}
