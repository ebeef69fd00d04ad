//! Whether a registry has the API that lists referrers. A registry is one thing to the specification, and often several services behind one
//! name: no single answer says that there is no such API, least of all where it has answered before.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// For how long a repository that seems to have no such API is not asked.
const PAUSE: Duration = Duration::from_secs(600);
/// Repositories of which that is remembered, at most.
const MAX_REPOSITORIES: usize = 4_096;

/// What the answers of a registry have shown.
#[derive(Debug, Default)]
pub(super) struct ReferrersApi(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// Whether it has ever listed what refers to a manifest.
    proven: bool,
    /// The repositories that seem to have no such API, and until when they are not asked.
    absent: HashMap<String, Instant>,
}

impl ReferrersApi {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a repository may be asked.
    pub(super) fn may_be_asked(&self, repository: &str, now: Instant) -> bool {
        self.seen().absent.get(repository).is_none_or(|until| *until <= now)
    }

    /// It has listed what refers to a manifest.
    pub(super) fn answered(&self) {
        let mut seen = self.seen();
        seen.proven = true;
        seen.absent.clear();
    }

    /// A repository answered as if there were no such API. Returns whether that is believed: not if the registry has one.
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
