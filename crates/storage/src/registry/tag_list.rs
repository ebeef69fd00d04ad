//! Lists of the tags of a repository (OCI distribution specification 1.1, "Listing Tags"). One list reveals the
//! attachments by tag of all images in the repository, and replaces one request per tag. Concurrent copies share it.

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
use crate::{
    Error, Result,
    http_response::{bounded, refusal},
};

/// Number of tags requested per page.
const PAGE: usize = 1_000;
/// Maximum number of pages read. For longer lists, one request per tag is cheaper.
const MAX_PAGES: usize = 3;
/// Maximum size of a list in bytes, over all its pages.
const MAX_BYTES: u64 = 512 << 10;
/// Timeout of a list. For slower lists, one request per tag is cheaper.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long no list is requested from a repository after a failed request.
const PAUSE: Duration = Duration::from_secs(600);
/// Maximum number of repositories whose lists are cached.
const MAX_REPOSITORIES: NonZeroUsize = NonZeroUsize::new(32).expect("it is not 0");

/// The latest list of a repository's tags.
type Latest = Arc<sync::Mutex<Option<TagList>>>;

/// The cached lists of a registry's repositories.
#[derive(Debug)]
pub(super) struct TagLists(Mutex<LruCache<String, Latest>>);

impl Default for TagLists {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(MAX_REPOSITORIES)))
    }
}

impl TagLists {
    fn of(&self, repository: &str) -> Latest {
        // A panic leaves no partial change behind.
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(lists.get_or_insert_ref(repository, Latest::default))
    }
}

#[derive(Debug)]
struct TagList {
    /// Start of the request for the list.
    began: Instant,
    /// All tags; `None` if they could not be listed.
    tags: Option<Arc<HashSet<String>>>,
}

impl TagList {
    /// Returns whether the list is no older than `since`, or records a failure that is recent enough to skip another
    /// request.
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
    /// Some registries send `null` for an empty list.
    tags: Option<Vec<String>>,
}

impl RegistryStore {
    /// Returns all tags of a repository, from a list no older than `since`. Returns `None` if the tags can't be listed
    /// or are too many.
    pub(super) async fn tags(&self, repository: &str, since: Instant) -> Option<Arc<HashSet<String>>> {
        let latest = self.tag_lists.of(repository);
        // Concurrent callers wait here and share the next list.
        let mut latest = latest.lock().await;
        let now = Instant::now();
        if let Some(list) = latest.as_ref().filter(|list| list.serves(since, now)) {
            return list.tags.clone();
        }
        let read = timeout(PATIENCE, self.read_tags(repository)).await;
        let tags = read.unwrap_or(Err(Error::Stalled("a list of tags"))).unwrap_or_else(|error| {
            tracing::debug!(%error, repository, "failed to list the tags; requesting each tag");
            None
        });
        let tags = tags.map(Arc::new);
        *latest = Some(TagList { began: now, tags: tags.clone() });
        tags
    }

    /// Reads the tags of a repository. Returns `None` if there are too many. Does not retry, because callers can
    /// request each tag.
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
                // A registry that does not link the next page may have truncated a full page.
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
