//! Ids and tokens, parsed from untrusted text.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use uuid::Uuid;

use super::ForeignText;

/// Maximum length of an image or region id, in characters.
pub const MAX_ID_LENGTH: usize = 128;
/// Maximum length of a client token, in characters.
pub const MAX_TOKEN_LENGTH: usize = 64;

/// Reason why a text is not a valid id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the names say it")]
pub enum IdError {
    #[error("it is empty")]
    Empty,
    #[error("it has {length} characters, the maximum is {limit}")]
    TooLong {
        /// Length in characters.
        length: usize,
        /// Maximum length.
        limit: usize,
    },
    /// It contains invalid characters.
    #[error("{0:?} does not match [A-Za-z0-9][A-Za-z0-9._-]*")]
    Characters(ForeignText),
    #[error("{0:?} is not a UUID")]
    NotUuid(ForeignText),
    /// The client token contains characters other than printable ASCII.
    #[error("{0:?} has characters that are not printable ASCII")]
    NotAscii(ForeignText),
}

fn parse_name(value: &str) -> Result<Arc<str>, IdError> {
    let length = value.chars().count();
    if length == 0 {
        return Err(IdError::Empty);
    }
    if length > MAX_ID_LENGTH {
        return Err(IdError::TooLong { length, limit: MAX_ID_LENGTH });
    }
    let first = value.starts_with(|c: char| c.is_ascii_alphanumeric());
    let rest = value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if first && rest { Ok(value.into()) } else { Err(IdError::Characters(ForeignText::value(value))) }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Returns the id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(value: &str) -> Result<Self, IdError> {
                parse_name(value).map(Self)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// Id of an image, for example `ci-vm-rYfypJKwlN9Y`: 1 to 128 characters matching `[A-Za-z0-9][A-Za-z0-9._-]*`. An
    /// id is safe as a directory name: it contains no separator and cannot be `.` or `..`.
    ImageId
}
name! {
    /// Id of a region, for example `cn-shanghai`, in the same form as an image id.
    RegionId
}

/// Id of a call and of the synchronization that it starts: a UUID of version 7 (RFC 9562), which sorts by time.
/// Displayed in upper case, like the ids of the original.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(Uuid);

impl RequestId {
    /// Returns the id as a UUID.
    #[must_use]
    pub const fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl From<Uuid> for RequestId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl FromStr for RequestId {
    type Err = IdError;

    fn from_str(value: &str) -> Result<Self, IdError> {
        if value.is_empty() {
            return Err(IdError::Empty);
        }
        Uuid::try_parse(value).map(Self).map_err(|_| IdError::NotUuid(ForeignText::value(value)))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.hyphenated().encode_upper(&mut Uuid::encode_buffer()))
    }
}

/// Idempotency token of a call: 1 to 64 printable ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientToken(String);

impl ClientToken {
    /// Returns the token as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClientToken {
    type Err = IdError;

    fn from_str(value: &str) -> Result<Self, IdError> {
        let length = value.chars().count();
        if length == 0 {
            Err(IdError::Empty)
        } else if length > MAX_TOKEN_LENGTH {
            Err(IdError::TooLong { length, limit: MAX_TOKEN_LENGTH })
        } else if value.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(value.to_owned()))
        } else {
            Err(IdError::NotAscii(ForeignText::value(value)))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{ImageId, RequestId};

    #[test]
    fn a_text_that_could_leave_a_directory_is_not_an_id() {
        for bad in ["", ".", "..", "../x", "a/b", "a\\b", "-a", "_a", ".hidden", "a b", "a\0", "ä", &"x".repeat(129)] {
            assert!(bad.parse::<ImageId>().is_err(), "{bad:?}");
        }
        for good in ["a", "ci-vm-rYfypJKwlN9Y", "9.9_9", "a..b", &"x".repeat(128)] {
            assert!(good.parse::<ImageId>().is_ok(), "{good:?}");
        }
    }

    proptest! {
        #[test]
        fn an_id_is_one_ordinary_path_component(text in ".{0,140}") {
            if let Ok(id) = text.parse::<ImageId>() {
                let path = std::path::Path::new(id.as_str());
                let components: Vec<_> = path.components().collect();
                prop_assert!(matches!(components[..], [std::path::Component::Normal(_)]));
                prop_assert_eq!(id.as_str(), text);
            }
        }
    }

    #[test]
    fn a_request_id_is_displayed_in_upper_case_and_parsed_in_any_case() {
        let id: RequestId = "01a20fb1-6370-7000-8000-00000000000a".parse().expect("an id");
        let text = id.to_string();
        assert_eq!(text, text.to_uppercase());
        assert_eq!(text.to_lowercase().parse(), Ok(id));
    }
}
