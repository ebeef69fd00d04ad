//! Content digests and their algorithms (OCI image specification 1.1, "Digests").

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256, Sha512};

use super::ForeignText;

/// A digest algorithm (OCI image specification 1.1, "Registered algorithms").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, which every registry supports.
    Sha256,
    /// SHA-512, which a registry may support.
    Sha512,
}

impl Algorithm {
    /// All algorithms.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// The default algorithm, which this service also uses for content that it generates.
    pub const CANONICAL: Self = Self::Sha256;

    /// Returns the name of the algorithm, which is the prefix of its digests and the directory of its blobs in a
    /// layout.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Returns a hasher for content that arrives in pieces.
    #[must_use]
    pub fn hasher(self) -> ContentHasher {
        ContentHasher(match self {
            Self::Sha256 => State::Sha256(Sha256::new()),
            Self::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// Returns the digest of `content`.
    #[must_use]
    pub fn digest(self, content: &[u8]) -> Digest {
        let mut hasher = self.hasher();
        hasher.update(content);
        hasher.finish()
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Computes the digest of content that arrives in pieces.
#[derive(Debug, Clone)]
pub struct ContentHasher(State);

#[derive(Debug, Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl ContentHasher {
    /// Adds the next bytes of the content.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// Returns the digest of all bytes that were added.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => Digest::Sha256(state.finalize().into()),
            State::Sha512(state) => Digest::Sha512(state.finalize().into()),
        }
    }
}

/// A digest, written as the name of its algorithm, a colon, and lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    /// `sha256:` and 64 digits.
    Sha256([u8; 32]),
    /// `sha512:` and 128 digits.
    Sha512([u8; 64]),
}

/// Error for a text that is not a supported digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest of the form sha256: and 64, or sha512: and 128, lower-case hexadecimal digits")]
pub struct DigestError(ForeignText);

impl Digest {
    /// Returns the algorithm of the digest.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Returns the hexadecimal digits without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        match self {
            Self::Sha256(bytes) => hex::encode(bytes),
            Self::Sha512(bytes) => hex::encode(bytes),
        }
    }

    /// Parses hexadecimal digits without the algorithm, which follows from their number.
    #[must_use]
    pub fn from_hex(digits: &str) -> Option<Self> {
        fn bytes<const N: usize>(digits: &str) -> Option<[u8; N]> {
            let mut bytes = [0; N];
            hex::decode_to_slice(digits, &mut bytes).ok()?;
            Some(bytes)
        }
        if digits.bytes().any(|digit| digit.is_ascii_uppercase()) {
            return None;
        }
        bytes(digits).map(Self::Sha256).or_else(|| bytes(digits).map(Self::Sha512))
    }

    /// Whether it is the digest of `content`.
    #[must_use]
    pub fn matches(&self, content: &[u8]) -> bool {
        self.algorithm().digest(content) == *self
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let read = || {
            let (algorithm, digits) = text.split_once(':')?;
            Self::from_hex(digits).filter(|digest| digest.algorithm().as_str() == algorithm)
        };
        read().ok_or_else(|| DigestError(ForeignText::value(text)))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::{Algorithm, Digest};

    /// The digests of `abc` (FIPS 180-4, NIST's examples).
    const ABC: [(Algorithm, &str); 2] = [
        (Algorithm::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            Algorithm::Sha512,
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
             2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ),
    ];

    #[test]
    fn digests_are_those_of_the_standard_in_pieces_and_whole() {
        for (algorithm, hex) in ABC {
            let digest = algorithm.digest(b"abc");
            assert_eq!((digest.hex().as_str(), digest.algorithm()), (hex, algorithm));
            let mut hasher = algorithm.hasher();
            hasher.update(b"a");
            let mut other = hasher.clone();
            hasher.update(b"bc");
            other.update(b"");
            assert_eq!(hasher.finish(), digest);
            assert_eq!(other.finish(), algorithm.digest(b"a"));
            assert!(digest.matches(b"abc") && !digest.matches(b"ab"));
        }
    }

    #[test]
    fn only_the_canonical_form_is_read() {
        for (algorithm, hex) in ABC {
            let text = format!("{algorithm}:{hex}");
            let digest: Digest = text.parse().expect("it is one");
            assert_eq!((digest, digest.to_string()), (algorithm.digest(b"abc"), text));
            assert_eq!(Digest::from_hex(hex), Some(digest));
            let other = Algorithm::ALL.into_iter().find(|other| *other != algorithm).expect("another one");
            for bad in [
                hex.to_owned(),
                format!("{other}:{hex}"),
                format!("{}:{hex}", algorithm.as_str().to_uppercase()),
                format!("{algorithm}:{}", hex.to_uppercase()),
                format!("{algorithm}:{hex}0"),
                format!("{algorithm}:{hex}00"),
                format!("{algorithm}:{}", &hex[2..]),
                format!("{algorithm}: {}", &hex[1..]),
                format!("{algorithm}:"),
            ] {
                let refused = bad.parse::<Digest>().expect_err(&bad).to_string();
                assert!(refused.contains("sha256: and 64, or sha512: and 128"), "{refused}");
            }
        }
        for bad in ["", ":", "sha256:../x", "sha384:00", "blake3:00", &format!("md5:{}", ABC[0].1)] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
