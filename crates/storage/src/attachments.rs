//! Finds the attachments of an image: manifests that refer to its manifests (OCI distribution specification 1.1,
//! "Listing Referrers"), and images whose tags contain its digest, such as cosign's signatures. Attachments of
//! attachments are included.
//!
//! No error is returned: an attachment that can't be read is left out with a warning.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use domain::{Descriptor, Digest, ImageName};
use futures_util::{FutureExt as _, StreamExt as _, future::join_all, stream};
use serde::Deserialize;

use super::{
    Attachment, Entry, EntryError, Error, Listing, ManifestGraph, Neighbors, ReferrersIndex, Result, Source,
    budget::Budget,
    graph_walk::{Missing, Walk},
    references::Place,
    referrers::{attachment_tags, entries, fits_list, referrers_tag},
};

/// Maximum number of manifests whose attachments are listed concurrently.
const LISTS_AT_ONCE: usize = 8;
/// Maximum number of attachments that are read concurrently.
const READS_AT_ONCE: usize = 8;
/// Number of failed listings after which the remaining manifests are skipped, so that a registry that rejects listings
/// is not asked about each of a thousand manifests.
const MAX_REFUSALS: usize = 4;
/// Maximum number of unnamed manifests that are read.
const MAX_UNNAMED: usize = 1_000;
/// Delays before missing attachments of an image are read again. A registry may have several servers, and a push to one
/// of them may reach the others late (oras-project/oras#1892). One delay applies to all missing attachments of an
/// image.
const LOOKED_FOR_AGAIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(1)];

/// Adds the attachments to a graph, within the remaining budget.
pub(super) async fn gather(
    source: &dyn Source,
    name: &ImageName,
    graph: &mut ManifestGraph,
    budget: Budget,
    neighbors: Result<Neighbors>,
) {
    let neighbors = match neighbors {
        Ok(neighbors) => neighbors,
        Err(error) => {
            return graph.warnings.add(format_args!("what lies beside the image is not carried: {error}"));
        }
    };
    let known = graph.manifests.iter().map(|(manifest, _)| manifest.digest).collect();
    let places = graph.blobs.iter().enumerate().map(|(place, blob)| (blob.digest, place)).collect();
    let (unnamed, missed) = (HashMap::new(), Vec::new());
    let mut gathering = Gathering { source, name, graph, budget, known, places, unnamed, missed };
    gathering.read_unnamed(&neighbors.unnamed).await;
    gathering.run(&neighbors).await;
}

struct Gathering<'a> {
    source: &'a dyn Source,
    name: &'a ImageName,
    graph: &'a mut ManifestGraph,
    budget: Budget,
    /// The manifests whose attachments have been listed or will be listed.
    known: HashSet<Digest>,
    /// The index of each blob among all blobs of the graph.
    places: HashMap<Digest, usize>,
    /// Unnamed manifests by their subjects.
    unnamed: HashMap<Digest, Vec<Entry>>,
    /// Listed attachments that a remote store reported missing.
    missed: Vec<Missed>,
}

/// A listed attachment that a store reported missing.
struct Missed {
    subject: Digest,
    candidate: Candidate,
    error: Error,
}

/// The attachments found for one manifest.
struct Found {
    subject: Digest,
    listing: Result<Listing>,
    tagged: Vec<(String, Result<Option<Descriptor>>)>,
}

/// An attachment to read.
struct Candidate {
    descriptor: Descriptor,
    found_by: FoundBy,
}

/// How an attachment was found.
enum FoundBy {
    /// An entry of a list of referrers.
    Entry(Entry),
    /// A tag that contains the subject's digest.
    Tag(String),
}

impl Gathering<'_> {
    async fn run(&mut self, neighbors: &Neighbors) {
        let refusals = AtomicUsize::new(0);
        let subjects = self.graph.manifests.iter().map(|(manifest, _)| manifest.digest).collect();
        let mut passed_over = self.look_for_all(subjects, &refusals, neighbors).await;
        for wait in LOOKED_FOR_AGAIN {
            if self.missed.is_empty() {
                break;
            }
            tokio::time::sleep(wait).await;
            let subjects = self.read_missed().await;
            passed_over += self.look_for_all(subjects, &refusals, neighbors).await;
        }
        for Missed { subject, candidate, error } in std::mem::take(&mut self.missed) {
            self.leave_out(subject, &candidate, &error);
        }
        if passed_over > 0 {
            self.graph
                .warnings
                .add(format_args!("what is attached to {passed_over} other manifests was not looked for"));
        }
    }

    /// Finds and reads the attachments of manifests, recursively. Returns the number of manifests that were skipped.
    async fn look_for_all(
        &mut self,
        mut subjects: Vec<Digest>,
        refusals: &AtomicUsize,
        neighbors: &Neighbors,
    ) -> usize {
        let besides = Besides { source: self.source, name: self.name, neighbors };
        let mut passed_over = 0;
        while !subjects.is_empty() {
            let looks =
                std::mem::take(&mut subjects).into_iter().map(|subject| besides.look(subject, refusals).boxed());
            let mut looks = stream::iter(looks.collect::<Vec<_>>()).buffered(LISTS_AT_ONCE);
            while let Some(found) = looks.next().await {
                match found {
                    Some(found) => subjects.extend(self.take(found).await),
                    None => passed_over += 1,
                }
            }
        }
        passed_over
    }

    /// Reads missing attachments again. Returns the manifests whose own attachments must still be listed.
    async fn read_missed(&mut self) -> Vec<Digest> {
        let mut by_subject: BTreeMap<Digest, Vec<Candidate>> = BTreeMap::new();
        for Missed { subject, candidate, .. } in std::mem::take(&mut self.missed) {
            by_subject.entry(subject).or_default().push(candidate);
        }
        let mut subjects = Vec::new();
        for (subject, candidates) in by_subject {
            subjects.extend(self.read(candidates, subject).await);
        }
        subjects
    }

    fn leave_out(&mut self, subject: Digest, candidate: &Candidate, error: &Error) {
        let digest = candidate.descriptor.digest;
        self.graph.warnings.add(format_args!("{digest}, attached to {subject}, is not carried: {error}"));
    }

    /// Reads the unnamed manifests to learn their subjects.
    async fn read_unnamed(&mut self, entries: &[Entry]) {
        for error in entries.iter().filter_map(|entry| entry.descriptor().err()) {
            if matches!(error, EntryError::NoDescriptor { .. }) {
                self.graph.warnings.add(format_args!("what lies beside the image is not all carried: {error}"));
            }
        }
        let entries = entries.iter().filter(|entry| entry.digest().is_some_and(|digest| !self.known.contains(&digest)));
        for entry in entries.take(MAX_UNNAMED) {
            let Ok(descriptor) = entry.descriptor() else { continue };
            // An unreadable manifest is skipped, because it may not belong to this image.
            let Ok(content) = self.source.read_manifest(self.name, &descriptor).await else { continue };
            if let Some(subject) = subject(&content) {
                self.unnamed.entry(subject).or_default().push(entry.clone());
            }
        }
    }

    /// Adds the attachments of a manifest. Returns the manifests whose own attachments must still be listed.
    async fn take(&mut self, found: Found) -> Vec<Digest> {
        let Found { subject, listing, tagged } = found;
        let mut entries = Vec::new();
        match listing {
            Ok(Listing { entries: listed, broken }) => {
                entries = listed;
                if let Some(error) = broken {
                    self.graph
                        .warnings
                        .add(format_args!("of what refers to {subject}, a part is not carried: {error}"));
                }
            }
            Err(error) => {
                self.graph.warnings.add(format_args!("what refers to {subject} is not carried: {error}"));
            }
        }
        let listed: HashSet<Option<Digest>> = entries.iter().map(Entry::digest).collect();
        let unnamed = self.unnamed.remove(&subject).unwrap_or_default();
        entries.extend(unnamed.into_iter().filter(|entry| !listed.contains(&entry.digest())));
        let mut candidates = Vec::new();
        for entry in entries {
            match entry.descriptor() {
                Ok(descriptor) => candidates.push(Candidate { descriptor, found_by: FoundBy::Entry(entry) }),
                Err(error) => self.graph.warnings.add(format_args!("a referrer of {subject} is not carried: {error}")),
            }
        }
        for (tag, found) in tagged {
            match found {
                Ok(Some(descriptor)) => candidates.push(Candidate { descriptor, found_by: FoundBy::Tag(tag) }),
                Ok(None) => {}
                Err(error) => {
                    self.graph.warnings.add(format_args!("the tag {tag} is not carried, if there is one: {error}"));
                }
            }
        }
        self.read(candidates, subject).await
    }

    /// Reads the attachments of a manifest. Returns the manifests whose own attachments must still be listed.
    async fn read(&mut self, candidates: Vec<Candidate>, subject: Digest) -> Vec<Digest> {
        let (source, name) = (self.source, self.name);
        let (mut subjects, mut entries) = (Vec::new(), Vec::new());
        let mut waiting = candidates.into_iter().peekable();
        while waiting.peek().is_some() {
            let before = self.budget.of_one();
            let walks = waiting.by_ref().take(READS_AT_ONCE).map(|candidate| async move {
                let mut walk = Walk::new(source, name, before, Missing::Known(&[]));
                let walked = walk.down(candidate.descriptor.clone(), Place::Attached).await;
                (candidate, walked.map(|()| walk))
            });
            for (candidate, walked) in join_all(walks.collect::<Vec<_>>()).await {
                match walked.and_then(|walk| self.keep(walk, before, &candidate.found_by)) {
                    Ok((manifests, entry)) => {
                        entries.extend(entry);
                        subjects.extend(manifests.into_iter().filter(|manifest| self.known.insert(*manifest)));
                    }
                    Err(error) if error.is_missing() && source.is_remote() => {
                        self.missed.push(Missed { subject, candidate, error });
                    }
                    Err(error) => self.leave_out(subject, &candidate, &error),
                }
            }
        }
        self.list(subject, entries);
        subjects
    }

    /// Adds entries to the list of a manifest's referrers.
    fn list(&mut self, subject: Digest, entries: Vec<Entry>) {
        match self.graph.referrers.iter_mut().find(|index| index.subject == subject) {
            Some(index) => index.entries.extend(entries),
            None if entries.is_empty() => {}
            None => self.graph.referrers.push(ReferrersIndex { subject, entries }),
        }
    }

    /// Adds an attachment to the graph if the budget allows. Returns its manifests, and the entry that lists it.
    fn keep(&mut self, mut walk: Walk<'_>, before: Budget, found_by: &FoundBy) -> Result<(Vec<Digest>, Option<Entry>)> {
        let too_much = || Error::malformed(self.name.to_string(), "there is more attached to it than is carried");
        self.budget = self.budget.less(before, walk.budget).ok_or_else(too_much)?;
        let manifests = walk.in_order();
        let first = self.graph.blobs.len();
        let mut blobs = Vec::new();
        for blob in walk.blobs {
            let place = *self.places.entry(blob.digest).or_insert(first + self.graph.attached_blobs.len());
            if place == first + self.graph.attached_blobs.len() {
                self.graph.attached_blobs.push(blob);
            }
            blobs.push(place);
        }
        self.graph.warnings.extend(&walk.warnings);
        let digests = manifests.iter().map(|(manifest, _)| manifest.digest).collect();
        let (tag, entry) = match found_by {
            FoundBy::Tag(tag) => (Some(tag.clone()), None),
            FoundBy::Entry(entry) => {
                let content = manifests.last().map_or(&[][..], |(_, content)| &content[..]);
                (None, Some(entry.clone().described_by(content)))
            }
        };
        self.graph.attachments.push(Attachment { tag, manifests, blobs });
        Ok((digests, entry))
    }
}

/// Looks for attachments of one image in a source.
struct Besides<'a> {
    source: &'a dyn Source,
    name: &'a ImageName,
    neighbors: &'a Neighbors,
}

impl Besides<'_> {
    /// Lists the attachments of a manifest. Returns `None` without a request if too many listings have failed.
    async fn look(&self, subject: Digest, refusals: &AtomicUsize) -> Option<Found> {
        if refusals.load(Ordering::Relaxed) >= MAX_REFUSALS {
            return None;
        }
        let tags = attachment_tags(subject).into_iter().map(|tag| async move {
            let found = self.tagged(&tag).await;
            (tag, found)
        });
        let (listing, tagged) = futures_util::join!(self.referrers(subject), join_all(tags));
        if listing.is_err() || tagged.iter().any(|(_, found)| found.is_err()) {
            refusals.fetch_add(1, Ordering::Relaxed);
        }
        Some(Found { subject, listing, tagged })
    }

    async fn tagged(&self, tag: &str) -> Result<Option<Descriptor>> {
        self.neighbors.tagged(self.source, self.name, tag).await
    }

    /// Returns the referrers of a manifest: from the store's list, or from the fallback tag if the store has no list or
    /// fails.
    async fn referrers(&self, subject: Digest) -> Result<Listing> {
        let broken = match self.source.referrers(self.name, subject).await {
            Ok(Some(listing)) => return Ok(listing),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        match (self.referrers_by_tag(subject).await, broken) {
            // A registry without lists of referrers may report an error other than 404.
            (Ok(None) | Err(_), Some(error)) | (Err(error), None) => Err(error),
            (Ok(None), None) => Ok(Listing::default()),
            (Ok(Some(entries)), broken) => Ok(Listing { entries, broken }),
        }
    }

    async fn referrers_by_tag(&self, subject: Digest) -> Result<Option<Vec<Entry>>> {
        let Some(list) = self.tagged(&referrers_tag(subject)).await? else { return Ok(None) };
        fits_list(&list)?;
        let content = self.source.read_manifest(self.name, &list).await?;
        let entries = entries(&content);
        entries.map(Some).map_err(|error| Error::malformed(format!("the referrers of {subject}"), error))
    }
}

/// Returns the digest of a manifest's subject.
fn subject(content: &[u8]) -> Option<Digest> {
    #[derive(Deserialize)]
    struct Referrer {
        subject: Subject,
    }
    #[derive(Deserialize)]
    struct Subject {
        digest: String,
    }
    serde_json::from_slice::<Referrer>(content).ok()?.subject.digest.parse().ok()
}
