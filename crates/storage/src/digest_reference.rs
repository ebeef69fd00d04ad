//! Splits references of the form `NAME@DIGEST`, which docker, podman and skopeo also accept. The digest selects the
//! image.

use domain::{Digest, DigestError};

/// Splits the digest off a reference, if it has one. In a URL, a host may also follow an `@`; the URL is then returned
/// unchanged.
pub fn split_digest(reference: &str) -> Result<(&str, Option<Digest>), DigestError> {
    match reference.rsplit_once('@') {
        Some((name, digest)) if !digest.contains('/') => Ok((name, Some(digest.parse()?))),
        _ => Ok((reference, None)),
    }
}

#[cfg(test)]
mod tests {
    use domain::Digest;

    use super::split_digest;

    #[test]
    fn a_digest_is_told_from_a_host() {
        let digest = Digest::Sha256([7; 32]);
        for (name, pinned) in [("host/a:1", true), ("a", true), ("host/a:1", false), ("bob@host:5000/a:1", false)] {
            let text = if pinned { format!("{name}@{digest}") } else { name.to_owned() };
            assert_eq!(split_digest(&text), Ok((name, pinned.then_some(digest))), "{text}");
        }
        for bad in ["a:1@", "a:1@sha256:00", "a:1@latest"] {
            assert!(split_digest(bad).is_err(), "{bad}");
        }
    }
}
