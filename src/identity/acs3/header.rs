//! The `authorization` header of a signed request.

use http::{HeaderMap, header::AUTHORIZATION};

use super::{SCHEME, one};

/// The most headers that a signature may name.
const MAX_SIGNED: usize = 64;

/// `ACS3-HMAC-SHA256 Credential=ID,SignedHeaders=a;b,Signature=HEX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization<'h> {
    /// The id of the access key.
    pub credential: &'h str,
    /// The names of the headers that are signed, in lower case and in order.
    pub signed_headers: Vec<&'h str>,
    /// The signature, in hexadecimal.
    pub signature: &'h str,
}

impl<'h> Authorization<'h> {
    /// Reads it; nothing if there is none, or more than one, or it is of another form.
    pub fn of(headers: &'h HeaderMap) -> Option<Self> {
        let (scheme, rest) = one(headers, AUTHORIZATION.as_str())?.split_once(' ')?;
        if scheme != SCHEME {
            return None;
        }
        let (mut credential, mut signed, mut signature) = (None, None, None);
        for part in rest.split(',') {
            let (name, value) = part.trim().split_once('=')?;
            let place = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed,
                "Signature" => &mut signature,
                _ => return None,
            };
            if value.is_empty() || place.replace(value).is_some() {
                return None;
            }
        }
        let signed_headers: Vec<&str> = signed?.split(';').collect();
        let in_order = signed_headers.is_sorted_by(|a, b| a < b);
        let lower = |name: &&str| !name.is_empty() && !name.bytes().any(|b| b.is_ascii_uppercase());
        if signed_headers.len() > MAX_SIGNED || !in_order || !signed_headers.iter().all(lower) {
            return None;
        }
        Some(Self { credential: credential?, signed_headers, signature: signature? })
    }
}
