//! What a registry answers to who has not shown who they are: the header `WWW-Authenticate` (RFC 9110, section 11.6.1, and the
//! distribution project's "Token Authentication Specification").

use std::collections::BTreeMap;

use http::{HeaderMap, header::WWW_AUTHENTICATE};

/// The longest realm and the longest name of a service that are taken, in bytes. They are kept, and sent.
const MAX_REALM: usize = 2_048;
const MAX_SERVICE: usize = 512;

/// How a registry wants to be shown who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// A name and a password with every request.
    Basic,
    /// A token that is to be got elsewhere.
    Bearer {
        /// Where.
        realm: String,
        /// For which service.
        service: Option<String>,
    },
}

impl Challenge {
    /// The challenge in an answer: a token, if that is one of the ways.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let found: Vec<Self> = values.filter_map(parse).collect();
        found.iter().find(|challenge| matches!(challenge, Self::Bearer { .. })).or(found.first()).cloned()
    }
}

fn parse(value: &str) -> Option<Challenge> {
    let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut parameters = parameters(rest);
    let (realm, service) = (parameters.remove("realm")?, parameters.remove("service"));
    let fits = realm.len() <= MAX_REALM && service.as_ref().is_none_or(|service| service.len() <= MAX_SERVICE);
    fits.then_some(Challenge::Bearer { realm, service })
}

/// The parameters of a challenge: `key="value"` or `key=value`, separated by commas.
fn parameters(mut rest: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',', '\t']).to_ascii_lowercase();
        let after = after.trim_start();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted_value(quoted),
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        found.insert(key, value);
        rest = next;
    }
    found
}

/// A quoted value without its quotes, and what follows it.
fn quoted_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut escaped = false;
    for (place, character) in text.char_indices() {
        match character {
            '\\' if !escaped => escaped = true,
            '"' if !escaped => return (value, &text[place + 1..]),
            _ => {
                value.push(character);
                escaped = false;
            }
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header::WWW_AUTHENTICATE};
    use proptest::prelude::*;

    use super::Challenge;

    fn of(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).expect("a header"));
        }
        Challenge::of(&headers)
    }

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.map(Into::into) })
        };
        assert_eq!(
            of(&[r#"Bearer realm="https://auth.example/token",service="reg, \"x\"",scope="repository:a:pull,push""#]),
            bearer("https://auth.example/token", Some("reg, \"x\""))
        );
        assert_eq!(of(&["bearer realm=https://a.example/t"]), bearer("https://a.example/t", None));
        assert_eq!(of(&[r#"Basic realm="x""#]), Some(Challenge::Basic));
        assert_eq!(of(&[r#"Basic realm="x""#, r#"Bearer realm="y""#]), bearer("y", None));
        assert_eq!(of(&["Negotiate"]), None);
        assert_eq!(of(&["Bearer service=\"x\""]), None);
        assert_eq!(of(&[]), None);
        let long = format!("Bearer realm=\"{}\"", "x".repeat(2_049));
        assert_eq!(of(&[&long]), None);
        assert_eq!(of(&[&long, "Bearer realm=\"/t\""]), bearer("/t", None));
    }

    proptest! {
        #[test]
        fn nothing_that_a_registry_sends_panics(text in "\\PC*") {
            let _ = super::parse(&text);
            let _ = super::parse(&format!("Bearer {text}"));
        }
    }
}
