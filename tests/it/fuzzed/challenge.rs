//! Fuzz target for `WWW-Authenticate` headers of registries: a parsed challenge has bounded lengths, is contained in
//! the input, and survives a round trip.

use appferry::storage::Challenge;
use http::{HeaderMap, HeaderValue, header::WWW_AUTHENTICATE};

fn read<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Option<Challenge> {
    let mut headers = HeaderMap::new();
    for value in values.into_iter().filter_map(|value| HeaderValue::from_bytes(value).ok()) {
        headers.append(WWW_AUTHENTICATE, value);
    }
    Challenge::of(&headers)
}

/// Runs the target. The input has one header value per line.
pub fn run(data: &[u8]) {
    let Some(Challenge::Bearer { realm, service }) = read(data.split(|byte| *byte == b'\n')) else { return };
    assert!(realm.len() <= 2_048 && service.as_ref().is_none_or(|service| service.len() <= 512));
    assert!(realm.len() <= data.len());
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut written = format!("Bearer realm={}", quoted(&realm));
    if let Some(service) = &service {
        written = format!("{written}, service={}", quoted(service));
    }
    assert_eq!(read([written.as_bytes()]), Some(Challenge::Bearer { realm, service }), "{written}");
}
