//! The canonical form of a request, which its signature covers.

use std::fmt::Write as _;

use http::HeaderMap;

use super::{CONTENT_SHA256, DATE, NONCE, SignatureError, single_value};

/// Prefix of the headers that are always signed.
const SIGNED_PREFIX: &str = "x-acs-";
/// Headers that every request must have and sign.
const REQUIRED: [&str; 4] = ["host", CONTENT_SHA256, DATE, NONCE];

/// The parts of a request that a signature covers.
#[derive(Debug, Clone, Copy)]
pub struct SignedRequest<'r> {
    /// Method, in upper case.
    pub method: &'r str,
    /// Path, encoded as in the request.
    pub path: &'r str,
    /// Query without the question mark, encoded as in the request.
    pub query: &'r str,
    /// All headers of the request.
    pub headers: &'r HeaderMap,
    /// The host, if it is not among the headers: the `:authority` of an HTTP/2 request.
    pub authority: Option<&'r str>,
}

impl SignedRequest<'_> {
    /// Returns the sorted names of the headers to sign.
    pub(super) fn signed_header_names(&self) -> Vec<String> {
        let names = self.headers.keys().map(http::HeaderName::as_str);
        let names = names.filter(|name| name.starts_with(SIGNED_PREFIX) || *name == "content-type").map(str::to_owned);
        let mut names: Vec<String> = names.chain(["host".to_owned()]).collect();
        names.sort_unstable();
        names
    }

    /// Whether the content type determines how the content is parsed. This is the case for all requests with content
    /// except gRPC calls, whose path names a service and a method.
    pub(super) fn is_form(&self, content: &[u8]) -> bool {
        let mut parts = self.path.trim_start_matches('/').split('/');
        let is_call = parts.next().is_some_and(|service| service.contains('.')) && parts.count() == 1;
        !is_call && !content.is_empty()
    }

    /// Returns the canonical form with the given headers, which must be sorted. Fails if a header that must be signed
    /// is not given, or a given one does not occur exactly once.
    pub(super) fn canonical(&self, signed_headers: &[&str]) -> Result<String, SignatureError> {
        let invalid = SignatureError::Mismatch;
        let names = self.headers.keys().map(http::HeaderName::as_str).filter(|name| name.starts_with(SIGNED_PREFIX));
        if let Some(name) = names.chain(REQUIRED).find(|name| !signed_headers.contains(name)) {
            return Err(invalid(format!("{name} must be signed")));
        }
        let mut text = format!("{}\n{}\n{}\n", self.method, path(self.path), query(self.query));
        for name in signed_headers {
            let value = match (*name, self.authority) {
                ("host", Some(authority)) => Some(authority),
                _ => single_value(self.headers, name),
            };
            let value = value.ok_or_else(|| invalid(format!("{name} is signed, but does not occur exactly once")))?;
            let _ = writeln!(text, "{name}:{value}");
        }
        let content = single_value(self.headers, CONTENT_SHA256).unwrap_or_default();
        let _ = write!(text, "\n{}\n{content}", signed_headers.join(";"));
        Ok(text)
    }
}

/// Returns the canonical form of a path: each segment is decoded, and encoded again (RFC 3986).
fn path(path: &str) -> String {
    if path.is_empty() {
        return "/".to_owned();
    }
    path.split('/').map(|part| encode(&decode(part))).collect::<Vec<_>>().join("/")
}

/// Returns the canonical form of a query: its parameters, sorted by name and value.
fn query(query: &str) -> String {
    let parameter = |text: &str| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let plain = |text: &str| encode(&decode(&text.replace('+', "%20")));
        (plain(name), plain(value))
    };
    let mut parameters: Vec<_> = query.split('&').filter(|text| !text.is_empty()).map(parameter).collect();
    parameters.sort_unstable();
    parameters.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// Percent-encodes all but the unreserved characters (RFC 3986, section 2.3).
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// Percent-decodes a text; a percent sign without two hexadecimal digits is kept.
fn decode(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, tail @ ..] = rest {
        let byte = match tail {
            [high, low, ..] if *first == b'%' => hex_pair(*high, *low),
            _ => None,
        };
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    bytes
}

fn hex_pair(high: u8, low: u8) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}
