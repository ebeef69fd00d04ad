//! Decoding of compressed responses: the header `Content-Encoding` (RFC 9110, section 8.4). Some registries compress
//! although the client requests the identity encoding. Digests apply to the decoded bytes.

use std::io::{self, Write as _};

use bytes::Bytes;
use flate2::write::GzDecoder;
use http::{HeaderMap, header::CONTENT_ENCODING};

/// Number of compressed bytes decoded per step. Each byte may expand to about a thousand bytes.
const STEP: usize = 4 << 10;

/// Restores the content of a response body.
pub struct Decoder {
    /// `None` if the body is not compressed.
    gzip: Option<GzDecoder<Vec<u8>>>,
    /// Received bytes that are not decoded yet.
    pending: Bytes,
}

impl Decoder {
    /// Returns the decoder for a response. `size` is the size of the content, if known. A body of exactly that length
    /// is not decoded, whatever its headers state, because some registries label blobs that are stored compressed as
    /// encoded.
    pub fn of(headers: &HeaderMap, length: Option<u64>, size: Option<u64>) -> Self {
        let is_as_stored = size.is_some() && length == size;
        let gzip = (is_encoded(headers) && !is_as_stored).then(|| GzDecoder::new(Vec::new()));
        Self { gzip, pending: Bytes::new() }
    }

    /// Adds the next bytes of the body.
    pub fn push(&mut self, bytes: Bytes) {
        self.pending = bytes;
    }

    /// Returns the next piece of decoded content, or `None` if more bytes are needed.
    pub fn next(&mut self) -> io::Result<Option<Bytes>> {
        let Some(gzip) = &mut self.gzip else {
            let bytes = std::mem::take(&mut self.pending);
            return Ok((!bytes.is_empty()).then_some(bytes));
        };
        while !self.pending.is_empty() {
            let step = self.pending.split_to(STEP.min(self.pending.len()));
            gzip.write_all(&step)?;
            gzip.flush()?;
            let decoded = std::mem::take(gzip.get_mut());
            if !decoded.is_empty() {
                return Ok(Some(decoded.into()));
            }
        }
        Ok(None)
    }
}

/// Returns whether the content is compressed, so that `Content-Length` is not the length of the content.
pub fn is_encoded(headers: &HeaderMap) -> bool {
    let coding = headers.get(CONTENT_ENCODING).and_then(|value| value.to_str().ok()).map(str::trim);
    coding.is_some_and(|coding| coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use bytes::Bytes;
    use flate2::{Compression, write::GzEncoder};
    use http::{HeaderMap, HeaderValue, header::CONTENT_ENCODING};

    use super::Decoder;

    fn decoded(decoder: &mut Decoder, content: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut all = Vec::new();
        for piece in content.chunks(10_000) {
            decoder.push(Bytes::copy_from_slice(piece));
            while let Some(bytes) = decoder.next()? {
                all.extend_from_slice(&bytes);
            }
        }
        Ok(all)
    }

    #[test]
    fn what_was_compressed_on_the_way_is_what_it_was() {
        let plain: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&plain).expect("memory");
        let packed = encoder.finish().expect("memory");
        let headers = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static("gzip"))]);
        let (length, size) = (Some(packed.len() as u64), Some(plain.len() as u64));
        for length in [length, None] {
            let mut decoder = Decoder::of(&headers, length, size);
            assert_eq!(decoded(&mut decoder, &packed).expect("it is whole"), plain);
        }
        // Blobs that are stored compressed are passed on unchanged.
        let mut decoder = Decoder::of(&headers, length, length);
        assert_eq!(decoded(&mut decoder, &packed).expect("it is whole"), packed);
        let mut decoder = Decoder::of(&headers, None, None);
        assert!(decoded(&mut decoder, b"no gzip at all").is_err());
        let mut decoder = Decoder::of(&HeaderMap::new(), length, size);
        assert_eq!(decoded(&mut decoder, &packed).expect("it is whole"), packed);
    }
}
