//! Which tags a repository has (OCI distribution specification 1.1, "Listing Tags"). One list tells of whatever is attached by tags to all images of
//! the repository, where each tag would have to be asked for by itself. Images that are copied at the same time share it.

use std::{
    collections::HashSet,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use lru::LruCache;
use serde::Deserialize;
use tokio::{
    sync,
    time::{Instant, timeout},
};

use super::{
    RegistryStore,
    attachments::next_page,
    client::{Ask, Scope, what},
};
use crate::region::{
    Error, Result,
    answer::{bounded, refusal},
};

/// How many tags are asked for at once.
const PAGE: usize = 1_000;
/// Pages of a list that are read at most: with more of them, it is cheaper to ask for each tag.
const MAX_PAGES: usize = 3;
/// What a list may have in bytes, all its pages together.
const MAX_BYTES: u64 = 512 << 10;
/// How long a list may take: one that takes longer is not cheaper than asking for each tag.
const PATIENCE: Duration = Duration::from_secs(2);
/// For how long a repository whose tags could not be listed is not asked for them.
const PAUSE: Duration = Duration::from_secs(600);
/// Repositories whose list is kept at most.
const MAX_REPOSITORIES: NonZeroUsize = NonZeroUsize::new(32).expect("it is not 0");

/// The tags of a repository, when they were last listed.
type Latest = Arc<sync::Mutex<Option<TagList>>>;

/// The lists of a registry's repositories.
#[derive(Debug)]
pub(super) struct TagLists(Mutex<LruCache<String, Latest>>);

impl Default for TagLists {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(MAX_REPOSITORIES)))
    }
}

impl TagLists {
    fn of(&self, repository: &str) -> Latest {
        // Nothing is left half-done by a panic.
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(lists.get_or_insert_ref(repository, Latest::default))
    }
}

/// The tags of a repository.
#[derive(Debug)]
struct TagList {
    /// When it was asked for.
    began: Instant,
    /// All of them; nothing if they could not be listed.
    tags: Option<Arc<HashSet<String>>>,
}

impl TagList {
    /// Whether it tells of the tags as they were no earlier than `since`, or says that it is of no use to ask.
    fn serves(&self, since: Instant, now: Instant) -> bool {
        match self.tags {
            Some(_) => self.began >= since,
            None => now < self.began + PAUSE,
        }
    }
}

/// A page of a list.
#[derive(Deserialize)]
struct Page {
    /// Some write `null` for an empty list.
    tags: Option<Vec<String>>,
}

impl RegistryStore {
    /// All tags of a repository, as they were no earlier than `since`; nothing if they can't be listed, or are too many.
    pub(super) async fn tags(&self, repository: &str, since: Instant) -> Option<Arc<HashSet<String>>> {
        let latest = self.tag_lists.of(repository);
        // Those who come meanwhile wait, and share the next list.
        let mut latest = latest.lock().await;
        let now = Instant::now();
        if let Some(list) = latest.as_ref().filter(|list| list.serves(since, now)) {
            return list.tags.clone();
        }
        let read = timeout(PATIENCE, self.read_tags(repository)).await;
        let tags = read.unwrap_or(Err(Error::Stalled("a list of tags"))).unwrap_or_else(|error| {
            tracing::debug!(%error, repository, "the tags can't be listed; asking for each");
            None
        });
        let tags = tags.map(Arc::new);
        *latest = Some(TagList { began: now, tags: tags.clone() });
        tags
    }

    /// The tags of a repository; nothing if they are too many. A request is not sent again: there is another way.
    async fn read_tags(&self, repository: &str) -> Result<Option<HashSet<String>>> {
        let mut url = self.client().url(&format!("{repository}/tags/list?n={PAGE}"))?;
        let mut tags = HashSet::new();
        let mut room = MAX_BYTES;
        for _ in 0..MAX_PAGES {
            let what = what(&Method::GET, &url);
            let (scope, headers) = (Scope::pull(repository), HeaderMap::new());
            let ask = Ask { method: Method::GET, url, scope, headers, body: Bytes::new() };
            let response = self.client().ask_once(&ask).await?;
            if response.status() != StatusCode::OK {
                return Err(refusal(&what, response).await);
            }
            let next = next_page(response.headers());
            let content = bounded(&what, response, room).await?;
            room -= content.len() as u64;
            let page: Page =
                serde_json::from_slice(&content).map_err(|error| Error::malformed(what.as_str(), error))?;
            let page = page.tags.unwrap_or_default();
            let is_full = page.len() >= PAGE;
            tags.extend(page);
            match next {
                Some(next) => {
                    url = ask.url.join(&next).map_err(|error| Error::malformed(what.as_str(), error))?;
                    self.client().allow(&what, &url)?;
                }
                // One that leaves the next page unsaid may have cut the list off.
                None => return Ok((!is_full).then_some(tags)),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{PAUSE, TagList};

    #[test]
    fn a_list_serves_those_who_began_before_it_was_asked_for() {
        let (began, later) = (Instant::now(), Duration::from_millis(1));
        let list = TagList { began, tags: Some(std::sync::Arc::default()) };
        assert!(list.serves(began, began) && list.serves(began - later, began + PAUSE));
        assert!(!list.serves(began + later, began + later), "something may have been tagged since");
        let refused = TagList { began, tags: None };
        assert!(refused.serves(began + later, began + later) && !refused.serves(began, began + PAUSE));
    }
}
