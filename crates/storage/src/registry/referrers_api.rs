//! Tracks whether a registry has the referrers API. One registry name may stand for several services with different
//! features, so a single response does not prove that the API is missing, especially after an earlier success.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How long the API of a repository is not called after a response that indicates a missing API.
const PAUSE: Duration = Duration::from_secs(600);
/// Maximum number of repositories that are remembered as being without the API.
const MAX_REPOSITORIES: usize = 4_096;

/// State of the API, derived from the responses of a registry.
#[derive(Debug, Default)]
pub(super) struct ReferrersApi(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// Whether the registry has ever listed referrers.
    proven: bool,
    /// Repositories whose API seems absent, with the time of the next attempt.
    absent: HashMap<String, Instant>,
}

impl ReferrersApi {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the API of a repository may be called.
    pub(super) fn may_be_asked(&self, repository: &str, now: Instant) -> bool {
        self.seen().absent.get(repository).is_none_or(|until| *until <= now)
    }

    /// Records that the registry has listed referrers.
    pub(super) fn answered(&self) {
        let mut seen = self.seen();
        seen.proven = true;
        seen.absent.clear();
    }

    /// Records a response of a repository that indicates a missing API. Returns whether the API counts as absent. Once
    /// the registry has listed referrers, the API never counts as absent.
    pub(super) fn seems_absent(&self, repository: &str, now: Instant) -> bool {
        let mut seen = self.seen();
        if seen.proven {
            return false;
        }
        if seen.absent.len() >= MAX_REPOSITORIES {
            seen.absent.clear();
        }
        seen.absent.insert(repository.to_owned(), now + PAUSE);
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::{PAUSE, ReferrersApi};

    #[test]
    fn no_single_answer_says_that_there_is_no_api() {
        let (api, now) = (ReferrersApi::default(), Instant::now());
        assert!(api.may_be_asked("a", now));
        assert!(api.seems_absent("a", now));
        assert!(!api.may_be_asked("a", now) && api.may_be_asked("b", now), "another repository is");
        assert!(api.may_be_asked("a", now + PAUSE), "it is asked again after a while");
        api.answered();
        assert!(api.may_be_asked("a", now));
        assert!(!api.seems_absent("a", now), "it has answered before");
        assert!(api.may_be_asked("a", now));
    }
}
