//! Converts errors of the database layer into API errors.

use std::sync::Arc;

use crate::{
    contract::{
        ApiError, Violation,
        v1::{CommonErrorCode, ErrorCode},
    },
    db::Error,
    server::RETRY_AFTER,
};

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match &error {
            Error::ImageNotFound(id) => Self::new(ErrorCode::ImageNotFound, format!("No image {id} is registered.")),
            Error::ImageExists(id) => {
                Self::new(ErrorCode::ImageAlreadyExists, format!("An image {id} is registered already."))
            }
            Error::NameTaken { .. } => Self::new(
                ErrorCode::ImageAlreadyExists,
                format!("{}; choose another name, or set supersede to replace that image.", capitalized(&error)),
            ),
            Error::ImageSuperseded { by, .. } => Self::invalid(Violation {
                field: "app_id",
                description: format!("{error}; synchronize {by}, or register the image again with another name"),
            }),
            Error::ImageAlreadyAvailable { regions, .. } => {
                Self::new(ErrorCode::ImageAlreadyExists, format!("{}.", capitalized(&error))).in_regions(regions)
            }
            Error::ImageInUse { regions, .. } => Self::new(
                CommonErrorCode::ImageInUse,
                format!("{}; cancel the synchronization or wait for it.", capitalized(&error)),
            )
            .in_regions(regions),
            Error::SynchronizationNotFound(id) => Self::new(
                CommonErrorCode::SynchronizationNotFound,
                format!("There is no synchronization with the id {id}."),
            ),
            Error::TokenReused(_) => Self::invalid(Violation { field: "client_token", description: error.to_string() }),
            Error::Busy | Error::Closed | Error::ReadOnly | Error::Conflict(_) => {
                let advice = "Nothing was changed; repeat the call later";
                Self::unavailable(advice, RETRY_AFTER).with_source(Arc::new(error))
            }
            // The connection may have failed after the commit, so the call may have taken effect.
            Error::Unavailable(_) | Error::Slow(_) => {
                let advice =
                    "The database can't be reached; repeat the call later, with the same client_token if it has one";
                Self::unavailable(advice, RETRY_AFTER).with_source(Arc::new(error))
            }
            // The source may reveal internals of the database: it is logged, not sent.
            Error::Database(_)
            | Error::SchemaOld(_)
            | Error::SchemaNewer(_)
            | Error::SchemaLocked(_)
            | Error::InUse(_)
            | Error::Lock(..)
            | Error::UnknownDatabase(_) => Self::new(ErrorCode::DbError, "").with_source(Arc::new(error)),
        }
    }
}

/// Returns the error's text with a capital first letter.
fn capitalized(error: &Error) -> String {
    let text = error.to_string();
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}
