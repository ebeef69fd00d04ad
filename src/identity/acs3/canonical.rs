//! The canonical form of a request: what both sides sign.

use std::fmt::Write as _;

use http::HeaderMap;

use super::{CONTENT, DATE, NONCE, one};
use crate::identity::Unproven;

/// The prefix of headers that are signed wherever they stand.
const OWN: &str = "x-acs-";
/// Headers that are always signed.
const ALWAYS: [&str; 4] = ["host", CONTENT, DATE, NONCE];

/// A request, as far as a signature covers it.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'r> {
    /// The method, in capitals.
    pub method: &'r str,
    /// The path, as it stands in the request.
    pub path: &'r str,
    /// The query, as it stands in the request, without the question mark.
    pub query: &'r str,
    /// The headers. Of an HTTP/2 request, `host` is its `:authority`.
    pub headers: &'r HeaderMap,
    /// The host that the request is for, if it does not stand in the headers.
    pub authority: Option<&'r str>,
}

impl Signed<'_> {
    /// The names of the headers that must be signed, in order.
    pub(super) fn names(&self) -> Vec<String> {
        let own = self.headers.keys().map(http::HeaderName::as_str);
        let own = own.filter(|name| name.starts_with(OWN) || *name == "content-type").map(str::to_owned);
        let mut names: Vec<String> = own.chain(["host".to_owned()]).collect();
        names.sort_unstable();
        names
    }

    /// Whether the content's type decides how it is read: of anything with a content but a call of gRPC, whose path names a service and a
    /// method.
    pub(super) fn is_form(&self, content: &[u8]) -> bool {
        let mut parts = self.path.trim_start_matches('/').split('/');
        let is_call = parts.next().is_some_and(|service| service.contains('.')) && parts.count() == 1;
        !is_call && !content.is_empty()
    }

    /// The canonical form with these headers, which are in order. It fails if one that has to be signed is not among them, or one of
    /// them is not there exactly once.
    pub(super) fn canonical(&self, signed_headers: &[&str]) -> Result<String, Unproven> {
        let wrong = |why: String| Unproven::Signature(why);
        let own = self.headers.keys().map(http::HeaderName::as_str).filter(|name| name.starts_with(OWN));
        if let Some(name) = own.chain(ALWAYS).find(|name| !signed_headers.contains(name)) {
            return Err(wrong(format!("{name} must be among the signed headers")));
        }
        let mut text = format!("{}\n{}\n{}\n", self.method, path(self.path), query(self.query));
        for name in signed_headers {
            let value = match (*name, self.authority) {
                ("host", Some(authority)) => Some(authority),
                _ => one(self.headers, name),
            };
            let value = value.ok_or_else(|| wrong(format!("{name} is signed and does not stand there once")))?;
            let _ = writeln!(text, "{name}:{value}");
        }
        let content = one(self.headers, CONTENT).unwrap_or_default();
        let _ = write!(text, "\n{}\n{content}", signed_headers.join(";"));
        Ok(text)
    }
}

/// A path, encoded as RFC 3986 has it, part by part. What has been encoded already is read first, so that there is one form of it.
fn path(path: &str) -> String {
    if path.is_empty() {
        return "/".to_owned();
    }
    path.split('/').map(|part| encode(&decode(part))).collect::<Vec<_>>().join("/")
}

/// The parameters of a query, in order of their names and values.
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

/// Encodes all but the unreserved characters (RFC 3986, section 2.3).
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

/// Decodes what is encoded; a percent sign that encodes nothing stands for itself.
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
