//! Pagination of lists (AIP-158): page sizes, offsets and page tokens.

use std::str::FromStr;

use crate::{
    contract::{ApiError, Violation},
    domain::ForeignText,
};

const DEFAULT_SIZE: i32 = 50;
const MAX_SIZE: i32 = 1_000;
const MAX_SKIP: i32 = 1_000_000;

/// Parses a page size; 0 stands for the default.
pub fn size(value: i32) -> Result<u64, ApiError> {
    match value {
        0 => Ok(DEFAULT_SIZE.unsigned_abs().into()),
        1..=MAX_SIZE => Ok(value.unsigned_abs().into()),
        _ => Err(ApiError::invalid(Violation {
            field: "page_size",
            description: format!("{value} is not from 0 to {MAX_SIZE}"),
        })),
    }
}

/// Parses the number of entries to skip.
pub fn skip(value: i32) -> Result<u64, ApiError> {
    match value {
        0..=MAX_SKIP => Ok(value.unsigned_abs().into()),
        _ => Err(ApiError::invalid(Violation {
            field: "skip",
            description: format!("{value} is not from 0 to {MAX_SKIP}"),
        })),
    }
}

/// Returns the token of the page after the entry `last`. The token is empty if there are no more entries.
pub fn next_token<T: ToString>(last: Option<&T>, more: bool) -> String {
    // Encoded, so that clients do not build tokens of their own.
    last.filter(|_| more).map(|last| hex::encode(last.to_string())).unwrap_or_default()
}

/// Parses a page token: the last entry of the previous page.
pub fn last_entry<T: FromStr>(token: &str) -> Result<Option<T>, ApiError> {
    if token.is_empty() {
        return Ok(None);
    }
    let decoded = || String::from_utf8(hex::decode(token).ok()?).ok()?.parse().ok();
    let invalid = || {
        ApiError::invalid(Violation {
            field: "page_token",
            description: format!("{:?} was not returned by this service", ForeignText::value(token)),
        })
    };
    decoded().map(Some).ok_or_else(invalid)
}
