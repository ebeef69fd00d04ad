//! The names of things, parsed at the door.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use uuid::Uuid;

use super::ForeignText;

/// The most characters that an image's or a region's id may have.
pub const MAX_ID_LENGTH: usize = 128;
/// The most characters that a client token may have.
pub const MAX_TOKEN_LENGTH: usize = 64;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// It is empty.
    #[error("it is empty")]
    Empty,
    /// It is too long.
    #[error("it has {length} characters, the most is {most}")]
    TooLong {
        /// Its length in characters.
        length: usize,
        /// The most that is allowed.
        most: usize,
    },
    /// It has characters that don't belong in it.
    #[error("{0:?} does not match [A-Za-z0-9][A-Za-z0-9._-]*")]
    Characters(ForeignText),
    /// It is not a UUID.
    #[error("{0:?} is not a UUID")]
    NotUuid(ForeignText),
    /// A client token with something else than printable ASCII in it.
    #[error("{0:?} has characters that are not printable ASCII")]
    NotAscii(ForeignText),
}

fn parse_name(value: &str) -> Result<Arc<str>, IdError> {
    let length = value.chars().count();
    if length == 0 {
        return Err(IdError::Empty);
    }
    if length > MAX_ID_LENGTH {
        return Err(IdError::TooLong { length, most: MAX_ID_LENGTH });
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
            /// The id as text.
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
    /// An image's id, for example `ci-vm-rYfypJKwlN9Y`: 1 to 128 characters of `[A-Za-z0-9][A-Za-z0-9._-]*`. It can't be a
    /// path's `.` or `..`, and has no separator, so that it can name a directory.
    ImageId
}
name! {
    /// A region's id, for example `cn-shanghai`, of the same form as an image's.
    RegionId
}

/// The id of a call, and of the synchronization that it starts: a UUID of version 7 (RFC 9562), so that ids sort by time.
/// Written in upper case, as the original does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(Uuid);

impl RequestId {
    /// A new id of this instant.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id as a UUID.
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

/// What a caller names a call by, so that repeating it does nothing twice: 1 to 64 printable ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientToken(String);

impl ClientToken {
    /// The token as text.
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
            Err(IdError::TooLong { length, most: MAX_TOKEN_LENGTH })
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
    fn what_could_leave_a_directory_is_no_id() {
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
    fn a_request_id_is_upper_case_and_read_back_in_any_case() {
        let id = RequestId::generate();
        let text = id.to_string();
        assert_eq!(text, text.to_uppercase());
        assert_eq!(text.to_lowercase().parse(), Ok(id));
    }
}
