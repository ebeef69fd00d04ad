//! Authentication challenges of a registry: the header `WWW-Authenticate` (RFC 9110, section 11.6.1, and the
//! distribution project's "Token Authentication Specification").

use std::collections::BTreeMap;

use http::{HeaderMap, header::WWW_AUTHENTICATE};

/// Maximum lengths of a realm and of a service name, in bytes. Both are stored and sent.
const MAX_REALM: usize = 2_048;
const MAX_SERVICE: usize = 512;

/// An authentication scheme that a registry requires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// A user name and a password with every request.
    Basic,
    /// A token that a token server issues.
    Bearer {
        /// URL of the token server.
        realm: String,
        /// Name of the service that the token is for.
        service: Option<String>,
    },
}

impl Challenge {
    /// Returns the challenge of a response. Prefers `Bearer` if there are several.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let found: Vec<Self> = values.flat_map(parse).filter_map(Offer::challenge).collect();
        found.iter().find(|challenge| matches!(challenge, Self::Bearer { .. })).or(found.first()).cloned()
    }
}

/// One challenge of a header.
struct Offer {
    scheme: String,
    parameters: BTreeMap<String, String>,
}

impl Offer {
    fn challenge(mut self) -> Option<Challenge> {
        match self.scheme.as_str() {
            "basic" => Some(Challenge::Basic),
            "bearer" => {
                let (realm, service) = (self.parameters.remove("realm")?, self.parameters.remove("service"));
                let fits =
                    realm.len() <= MAX_REALM && service.as_ref().is_none_or(|service| service.len() <= MAX_SERVICE);
                fits.then_some(Challenge::Bearer { realm, service })
            }
            _ => None,
        }
    }
}

/// Parses the challenges of one header, in their order: `scheme key=value, key="value", scheme …`. A word without a
/// following `=` starts the next challenge. Parameters before the first scheme are skipped.
fn parse(header: &str) -> Vec<Offer> {
    const SPACE: [char; 3] = [' ', ',', '\t'];
    let mut offers: Vec<Offer> = Vec::new();
    let mut rest = header.trim_start_matches(SPACE);
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || SPACE.contains(&c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let word = word.to_ascii_lowercase();
        // RFC 9110, section 5.6.6, allows no space around `=`, but some registries send it.
        if let Some(value) = after.trim_start_matches([' ', '\t']).strip_prefix('=') {
            let (value, next) = parameter_value(value.trim_start_matches([' ', '\t']));
            if let Some(offer) = offers.last_mut() {
                offer.parameters.entry(word).or_insert(value);
            }
            rest = next;
        } else {
            offers.push(Offer { scheme: word, parameters: BTreeMap::new() });
            rest = after;
        }
        rest = rest.trim_start_matches(SPACE);
    }
    offers
}

/// Returns the value of a parameter, quoted or not, and the text after it.
fn parameter_value(text: &str) -> (String, &str) {
    if let Some(quoted) = text.strip_prefix('"') {
        return quoted_value(quoted);
    }
    let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
    (text[..end].to_owned(), &text[end..])
}

/// Returns a quoted value without its quotes, and the text after it.
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
        // Several challenges in one header, into which proxies may join them.
        assert_eq!(of(&[r#"Basic realm="x, y", Bearer realm="z",service="s""#]), bearer("z", Some("s")));
        assert_eq!(of(&[r#"Bearer realm="z",service="s",Basic realm="x""#]), bearer("z", Some("s")));
        assert_eq!(of(&[r#"Negotiate YII=, Basic realm="x""#]), Some(Challenge::Basic));
        assert_eq!(of(&[r#"Bearer realm = "z" , service = s"#]), bearer("z", Some("s")));
        assert_eq!(of(&[r#"Bearer  realm="z""#]), bearer("z", None));
        // Not allowed by the grammar of RFC 9110, but unambiguous.
        assert_eq!(of(&[r#"Bearer realm="z" service="s""#]), bearer("z", Some("s")));
        assert_eq!(of(&[r#"Bearer realm="z",scope=repository:a/b:pull"#]), bearer("z", None));
        assert_eq!(of(&[r#"Bearer error="invalid_token", Bearer realm="z""#]), bearer("z", None));
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
            let _ = super::parse(&format!("Bearer realm=\"{text}"));
        }
    }
}
