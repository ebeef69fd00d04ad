//! Parses the names and filters of operations.

use super::convert;
use crate::{
    contract::{ApiError, Violation},
    db::SynchronizationFilter,
    domain::{ForeignText, IdError, RequestId, SynchronizationState},
};

/// Collection of all operations; the prefix of their names.
pub const COLLECTION: &str = "operations";

/// Parses the name of an operation.
pub fn id(name: &str) -> Result<RequestId, ApiError> {
    let invalid = |description: String| ApiError::invalid(Violation { field: "name", description });
    let id = name
        .strip_prefix(COLLECTION)
        .and_then(|rest| rest.strip_prefix('/'))
        .ok_or_else(|| invalid(format!("{:?} is not {COLLECTION}/REQUEST_ID", ForeignText::value(name))))?;
    id.parse().map_err(|error: IdError| invalid(error.to_string()))
}

/// Parses a filter: comparisons by `=`, joined by AND (a subset of AIP-160).
pub fn filter(text: &str) -> Result<SynchronizationFilter, ApiError> {
    let mut filter = SynchronizationFilter::default();
    if text.trim().is_empty() {
        return Ok(filter);
    }
    let invalid = |problem: String| ApiError::invalid(Violation { field: "filter", description: problem });
    for term in text.split(" AND ") {
        let (key, value) = term
            .split_once('=')
            .map(|(key, value)| (key.trim(), value.trim().trim_matches('"')))
            .ok_or_else(|| invalid(format!("{:?} is not KEY = VALUE", ForeignText::value(term))))?;
        let is_repeated = match (key, value) {
            ("done", "false") => filter.state.replace(SynchronizationState::Running).is_some(),
            ("metadata.state", name) => {
                let unknown = |_| {
                    let name = ForeignText::value(name);
                    invalid(format!("{name:?} is not a state; expected RUNNING, SUCCEEDED, FAILED or CANCELED"))
                };
                let state: SynchronizationState = name.parse().map_err(unknown)?;
                filter.state.replace(state).is_some()
            }
            ("metadata.app_id", id) => filter.image.replace(convert::id("filter", id)?).is_some(),
            _ => {
                let term = ForeignText::value(term.trim());
                let supported = "done = false, metadata.state = STATE or metadata.app_id = \"ID\"";
                return Err(invalid(format!("{term:?} is not supported; expected {supported}")));
            }
        };
        if is_repeated {
            let term = ForeignText::value(term.trim());
            return Err(invalid(format!("{term:?} repeats an earlier condition; give each at most once")));
        }
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::{filter, id};
    use crate::{db::SynchronizationFilter, domain::SynchronizationState};

    #[test]
    fn filters_are_parsed_or_rejected() {
        let both = filter("done = false AND metadata.app_id=\"ci-vm-1\"").expect("a filter");
        assert_eq!(
            (both.state, both.image.map(|id| id.to_string())),
            (Some(SynchronizationState::Running), Some("ci-vm-1".into()))
        );
        assert_eq!(filter("metadata.state = FAILED").expect("a filter").state, Some(SynchronizationState::Failed));
        let SynchronizationFilter { state, image } = filter(" ").expect("all");
        assert!(state.is_none() && image.is_none());
        for bad in [
            "done = true",
            "done",
            "metadata.state = LOST",
            "done = false AND metadata.state = FAILED",
            "app = 1",
            "metadata.app_id = \"../x\"",
            "done = false OR done = false",
        ] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_operations_are_parsed_or_rejected() {
        assert!(id("operations/896D338C-E4F4-41EC-A154-D605E5DE42F1").is_ok());
        for bad in [
            "",
            "operations",
            "operations/",
            "operations/x",
            "896D338C-E4F4-41EC-A154-D605E5DE42F1",
            "operation/896D338C-E4F4-41EC-A154-D605E5DE42F1",
        ] {
            assert!(id(bad).is_err(), "{bad}");
        }
    }
}
