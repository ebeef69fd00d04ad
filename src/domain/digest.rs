//! Content digests (OCI image specification 1.1, "Digests").

use std::{fmt, str::FromStr};

use super::ForeignText;

/// A SHA-256 digest, written as `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Reason why a text is not a supported digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// It does not have the canonical form.
    #[error("{0:?} is not a digest of the form sha256: and 64 lower-case hexadecimal digits")]
    Malformed(ForeignText),
    /// It is a SHA-512 digest.
    #[error("{0:?} is a SHA-512 digest, which is not supported; push the image with SHA-256 digests")]
    Sha512(ForeignText),
}

impl Digest {
    /// Creates the digest with these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the hexadecimal digits without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let is_lower_hex = |digits: &str| digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if text.strip_prefix("sha512:").is_some_and(|digits| digits.len() == 128 && is_lower_hex(digits)) {
            return Err(DigestError::Sha512(ForeignText::value(text)));
        }
        let malformed = || DigestError::Malformed(ForeignText::value(text));
        let digits = text.strip_prefix("sha256:").ok_or_else(malformed)?;
        if digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(malformed());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| malformed())?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::{Digest, DigestError};

    #[test]
    fn only_the_canonical_form_is_parsed() {
        let hex = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        let digest: Digest = format!("sha256:{hex}").parse().expect("a digest");
        assert_eq!(digest.hex(), hex);
        for bad in [
            hex.to_owned(),
            format!("sha512:{hex}"),
            format!("sha256:{}", hex.to_uppercase()),
            "sha256:../x".into(),
            format!("sha256:{hex}0"),
        ] {
            assert!(matches!(bad.parse::<Digest>(), Err(DigestError::Malformed(_))), "{bad}");
        }
        let other = format!("sha512:{hex}{hex}").parse::<Digest>().expect_err("another algorithm");
        assert!(other.to_string().contains("SHA-512"), "{other}");
    }
}
