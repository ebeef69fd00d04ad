//! The `authorization` header of a signed request.

use http::{HeaderMap, header::AUTHORIZATION};

use super::{SCHEME, single_value};

/// Maximum number of signed headers.
const MAX_SIGNED_HEADERS: usize = 64;

/// The parsed header `ACS3-HMAC-SHA256 Credential=ID,SignedHeaders=a;b,Signature=HEX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationHeader<'h> {
    /// Id of the access key.
    pub credential: &'h str,
    /// Names of the signed headers, in lower case and sorted.
    pub signed_headers: Vec<&'h str>,
    /// The signature, in hexadecimal.
    pub signature: &'h str,
}

impl<'h> AuthorizationHeader<'h> {
    /// Parses the header. Returns `None` if the header is missing, repeated or malformed.
    pub fn parse(headers: &'h HeaderMap) -> Option<Self> {
        let (scheme, rest) = single_value(headers, AUTHORIZATION.as_str())?.split_once(' ')?;
        if scheme != SCHEME {
            return None;
        }
        let (mut credential, mut signed, mut signature) = (None, None, None);
        for part in rest.split(',') {
            let (name, value) = part.trim().split_once('=')?;
            let field = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed,
                "Signature" => &mut signature,
                _ => return None,
            };
            if value.is_empty() || field.replace(value).is_some() {
                return None;
            }
        }
        let signed_headers: Vec<&str> = signed?.split(';').collect();
        let in_order = signed_headers.is_sorted_by(|a, b| a < b);
        let lower = |name: &&str| !name.is_empty() && !name.bytes().any(|b| b.is_ascii_uppercase());
        if signed_headers.len() > MAX_SIGNED_HEADERS || !in_order || !signed_headers.iter().all(lower) {
            return None;
        }
        Some(Self { credential: credential?, signed_headers, signature: signature? })
    }
}
