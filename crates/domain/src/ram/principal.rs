//! Principals of RAM.

use std::{fmt, str::FromStr, sync::Arc};

use crate::ForeignText;

/// Maximum length of a principal's resource name, in bytes.
const MAX_LENGTH: usize = 256;

/// A RAM principal: `acs:ram::ACCOUNT:user/NAME` or `acs:ram::ACCOUNT:role/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Principal(Arc<str>);

/// Error for a text that is not a principal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form acs:ram::ACCOUNT:user/NAME or acs:ram::ACCOUNT:role/NAME")]
pub struct PrincipalError(ForeignText);

impl Principal {
    /// Whether the principal is a user, not a role.
    #[must_use]
    pub fn is_user(&self) -> bool {
        self.0.contains(":user/")
    }

    /// Returns the resource name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Principal {
    type Err = PrincipalError;

    fn from_str(text: &str) -> Result<Self, PrincipalError> {
        let parse = || {
            let (account, name) = text.strip_prefix("acs:ram::")?.split_once(':')?;
            let name = name.strip_prefix("user/").or_else(|| name.strip_prefix("role/"))?;
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._@-/".contains(c);
            let is_account = !account.is_empty() && account.bytes().all(|b| b.is_ascii_alphanumeric());
            (is_account && !name.is_empty() && name.chars().all(is_allowed)).then_some(())
        };
        match parse() {
            Some(()) if text.len() <= MAX_LENGTH => Ok(Self(text.into())),
            _ => Err(PrincipalError(ForeignText::value(text))),
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
