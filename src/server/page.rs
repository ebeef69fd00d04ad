//! Pages of lists (AIP-158): how many entries, and after which.

use std::str::FromStr;

use crate::{
    contract::{Failure, Violation},
    domain::ForeignText,
};

const DEFAULT: i32 = 50;
const MOST: i32 = 1_000;
const MOST_SKIPPED: i32 = 1_000_000;

/// Reads a page size.
pub fn size(asked: i32) -> Result<u64, Failure> {
    match asked {
        0 => Ok(DEFAULT.unsigned_abs().into()),
        1..=MOST => Ok(asked.unsigned_abs().into()),
        _ => Err(Failure::invalid(Violation {
            field: "page_size",
            description: format!("{asked} is not from 0 to {MOST}"),
        })),
    }
}

/// Reads how many entries are left out.
pub fn skip(asked: i32) -> Result<u64, Failure> {
    match asked {
        0..=MOST_SKIPPED => Ok(asked.unsigned_abs().into()),
        _ => Err(Failure::invalid(Violation {
            field: "skip",
            description: format!("{asked} is not from 0 to {MOST_SKIPPED}"),
        })),
    }
}

/// Makes the token of the page after `last`. Opaque to callers: they are not to make one themselves.
fn token(last: &impl ToString) -> String {
    hex::encode(last.to_string())
}

/// What the next page is asked for by: nothing, unless there are more after `last`.
pub fn next<T: ToString>(last: Option<&T>, more: bool) -> String {
    last.filter(|_| more).map(token).unwrap_or_default()
}

/// Reads what the page before ended with.
pub fn after<T: FromStr>(token: &str) -> Result<Option<T>, Failure> {
    if token.is_empty() {
        return Ok(None);
    }
    let read = || String::from_utf8(hex::decode(token).ok()?).ok()?.parse().ok();
    let refused = || {
        Failure::invalid(Violation {
            field: "page_token",
            description: format!("{:?} is not one of ours", ForeignText::value(token)),
        })
    };
    read().map(Some).ok_or_else(refused)
}
