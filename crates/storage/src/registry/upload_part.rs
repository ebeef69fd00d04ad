//! Requests that carry bytes of a blob (OCI distribution specification 1.1, "Pushing blobs").

use domain::Descriptor;
use http::{
    HeaderMap, HeaderValue, Method,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE},
};
use url::Url;

use super::{client::header, upload_session::Upload};
use crate::Result;

/// The bytes of a blob that one request carries.
pub(super) struct Part {
    pub(super) method: Method,
    pub(super) url: Url,
    /// Offset of the bytes in the blob, and their number.
    pub(super) offset: u64,
    pub(super) bytes: u64,
    /// Whether the request states the range in `Content-Range`.
    pub(super) ranged: bool,
    /// Whether the blob ends with these bytes.
    pub(super) last: bool,
}

impl Part {
    /// Returns the next chunk of a chunked upload.
    pub(super) fn of_chunk(upload: &Upload, bytes: u64) -> Self {
        Self::appended(upload, upload.taken, bytes, true)
    }

    /// Returns one part with all bytes of a blob.
    pub(super) fn of_stream(upload: &Upload, bytes: u64) -> Self {
        Self::appended(upload, 0, bytes, false)
    }

    fn appended(upload: &Upload, offset: u64, bytes: u64, ranged: bool) -> Self {
        let url = upload.redirect_of(offset, false).map_or(&upload.url, |redirect| &redirect.url);
        Self { method: Method::PATCH, url: url.clone(), offset, bytes, ranged, last: false }
    }

    /// Returns the part with the remaining bytes of a blob. After this part, the registry verifies the whole blob.
    pub(super) fn of_rest(upload: &Upload, blob: &Descriptor, offset: u64) -> Self {
        let bytes = blob.size - offset;
        let url = match upload.redirect_of(offset, true) {
            Some(redirect) => redirect.url.clone(),
            None => commit_url(upload, blob),
        };
        Self { method: Method::PUT, url, offset, bytes, ranged: offset > 0 && bytes > 0, last: true }
    }

    pub(super) fn headers(&self) -> Result<HeaderMap> {
        let mut headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
            (CONTENT_LENGTH, HeaderValue::from(self.bytes)),
        ]);
        if self.ranged {
            headers.extend([header(CONTENT_RANGE, format!("{}-{}", self.offset, self.offset + self.bytes - 1))?]);
        }
        Ok(headers)
    }
}

pub(super) fn commit_url(upload: &Upload, blob: &Descriptor) -> Url {
    let mut url = upload.url.clone();
    url.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
    url
}
