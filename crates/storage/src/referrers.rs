//! Lists of the manifests that refer to a manifest (OCI distribution specification 1.1, "Listing Referrers"), and the
//! tags of attachments that replace such lists. Entries of other clients in a list are kept byte for byte.

use std::collections::BTreeMap;

use bytes::Bytes;
use domain::{Algorithm, Descriptor, Digest};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Error, Result, entry::Entry, manifest_graph::INDEX_TYPES};

/// Maximum size of a list of referrers, all pages together, in bytes.
pub(super) const MAX_REFERRERS_BYTES: u64 = 1 << 20;

/// The suffixes of the tags of attachments. A tag consists of the subject's [`referrers_tag`] and a suffix. Cosign uses
/// the suffixes for signatures, attestations and bills of materials.
const ATTACHED: [&str; 3] = [".sig", ".att", ".sbom"];
/// Maximum number of a digest's hexadecimal digits in a tag ("Referrers Tag Schema"): all digits of SHA-256, half of
/// those of SHA-512.
const TAG_DIGITS: usize = 64;

/// Returns the fallback tag of a manifest's referrers ("Referrers Tag Schema").
pub(super) fn referrers_tag(subject: Digest) -> String {
    let mut digits = subject.hex();
    digits.truncate(TAG_DIGITS);
    format!("{}-{digits}", subject.algorithm())
}

/// Returns the tags of possible attachments to a manifest.
pub(super) fn attachment_tags(subject: Digest) -> [String; 3] {
    ATTACHED.map(|kind| format!("{}{kind}", referrers_tag(subject)))
}

/// Returns whether a tag belongs to an attachment or to a list of referrers, and not to an image.
pub(super) fn is_attached_by(tag: &str) -> bool {
    let name = ATTACHED.iter().find_map(|kind| tag.strip_suffix(kind)).unwrap_or(tag);
    let is_known = |algorithm: &str| Algorithm::ALL.into_iter().any(|known| known.as_str() == algorithm);
    name.split_once('-').is_some_and(|(algorithm, digits)| {
        is_known(algorithm) && digits.len() == TAG_DIGITS && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    })
}

/// Fails if the declared size of a list of referrers exceeds the limit.
pub(super) fn fits_list(list: &Descriptor) -> Result<()> {
    if list.size <= MAX_REFERRERS_BYTES {
        return Ok(());
    }
    let reason = format!("it has {} bytes, the most is {MAX_REFERRERS_BYTES}", list.size);
    Err(Error::malformed(format!("the list of referrers {}", list.digest), reason))
}

/// A store's list of a manifest's referrers.
#[derive(Debug, Default)]
pub struct Listing {
    /// The listed referrers, all of them unless the list is `broken`.
    pub entries: Vec<Entry>,
    /// The error that ended the list early, if there was one.
    pub broken: Option<Error>,
}

impl From<Vec<Entry>> for Listing {
    fn from(entries: Vec<Entry>) -> Self {
        Self { entries, broken: None }
    }
}

/// An index whose entries and other fields are kept unchanged.
struct List {
    fields: BTreeMap<String, Box<RawValue>>,
    manifests: Vec<Box<RawValue>>,
}

impl List {
    fn read(content: &[u8]) -> serde_json::Result<Self> {
        let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(content)?;
        let manifests = fields.remove("manifests");
        // Some clients write `null` for an empty list.
        let manifests: Option<Option<Vec<_>>> = manifests.map(|text| serde_json::from_str(text.get())).transpose()?;
        Ok(Self { fields, manifests: manifests.flatten().unwrap_or_default() })
    }

    fn write(&self) -> serde_json::Result<Bytes> {
        let manifests = serde_json::value::to_raw_value(&self.manifests)?;
        let mut fields: BTreeMap<&str, &RawValue> =
            self.fields.iter().map(|(name, value)| (name.as_str(), &**value)).collect();
        fields.insert("manifests", &manifests);
        Ok(serde_json::to_vec(&fields)?.into())
    }
}

/// Returns whether the content is an index, of any media type.
pub(super) fn is_list(content: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Index {
        #[serde(rename = "schemaVersion")]
        _schema_version: u32,
        #[serde(rename = "manifests")]
        _manifests: Option<Vec<serde::de::IgnoredAny>>,
    }
    serde_json::from_slice::<Index>(content).is_ok()
}

/// Parses the entries of an index.
pub(super) fn entries(index: &[u8]) -> serde_json::Result<Vec<Entry>> {
    Ok(List::read(index)?.manifests.into_iter().map(Entry::read).collect())
}

/// The referrers of one manifest.
#[derive(Debug, Clone)]
pub struct ReferrersIndex {
    /// The digest of the manifest.
    pub subject: Digest,
    /// The entries of the manifests that refer to it.
    pub entries: Vec<Entry>,
}

impl ReferrersIndex {
    /// Returns the index that lists the referrers (OCI distribution specification 1.1, "Referrers Tag Schema").
    pub(super) fn index(&self) -> Result<(Descriptor, Bytes)> {
        let empty = format!(r#"{{"mediaType":"{}","schemaVersion":2}}"#, INDEX_TYPES[0]);
        self.added_to(empty.as_bytes()).map(|(descriptor, content, _)| (descriptor, content))
    }

    /// Adds the missing referrers to an existing index and keeps its other entries. Returns the new index, and whether
    /// any referrer was missing.
    pub(super) fn added_to(&self, there: &[u8]) -> Result<(Descriptor, Bytes, bool)> {
        let malformed = |error| Error::malformed(format!("the referrers of {}", self.subject), error);
        let mut list = List::read(there).map_err(malformed)?;
        let listed: Vec<Option<Digest>> = entries(there).map_err(malformed)?.iter().map(Entry::digest).collect();
        let lacking = self.entries.iter().filter(|entry| !listed.contains(&entry.digest()));
        let lacking: Vec<_> = lacking.map(|entry| entry.raw().to_owned()).collect();
        let lacks = !lacking.is_empty();
        list.manifests.extend(lacking);
        let content = list.write().map_err(malformed)?;
        Ok((Descriptor::of_content(INDEX_TYPES[0], &content), content, lacks))
    }
}

#[cfg(test)]
mod tests {
    use domain::Digest;

    use super::{ReferrersIndex, attachment_tags, entries, is_attached_by, referrers_tag};

    const SUBJECT: Digest = Digest::Sha256([7; 32]);
    const LONG: Digest = Digest::Sha512([7; 64]);

    fn entry(number: u8, more: &str) -> String {
        format!(r#"{{"mediaType": "x/y","digest":"{}","size":  2{more}}}"#, Digest::Sha256([number; 32]))
    }

    #[test]
    fn what_others_have_written_into_a_list_stays_as_it_is() {
        let theirs = entry(1, r#","platform":{"os":"linux","os.features":["z","a"]},"x-ours":[1.50,{"b":1,"a":2}]"#);
        let ours = entry(2, r#","artifactType":"application/x","data":"e30=""#);
        let there = format!(r#"{{"schemaVersion":2,"annotations":{{"z":"1","a":"2"}},"manifests":[{theirs}]}}"#);
        let added = |text: &str| {
            let entries = entries(text.as_bytes()).expect("a list");
            ReferrersIndex { subject: SUBJECT, entries }.added_to(there.as_bytes()).expect("a list")
        };
        let (_, content, lacks) = added(&format!(r#"{{"manifests":[{ours},{}]}}"#, entry(1, "")));
        let content = String::from_utf8(content.to_vec()).expect("text");
        assert!(lacks && content.contains(&format!("[{theirs},{ours}]")), "{content}");
        assert!(content.contains(r#""annotations":{"z":"1","a":"2"}"#), "{content}");
        assert!(!added(&there).2, "everything is listed");
        for bad in ["", "[]", r#"{"manifests":{}}"#] {
            assert!(entries(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_entry_that_is_nonsense_takes_no_other_away() {
        let good = entry(1, "");
        for bad in [
            "1",
            "null",
            r#"{"size":2}"#,
            &good.replace("  2", "-1"),
            &good.replace("  2", "1e40"),
            &good.replace("sha256:", "x"),
        ] {
            let list = format!(r#"{{"manifests":[{bad},{good}]}}"#);
            let found = entries(list.as_bytes()).expect("a list");
            let [nonsense, good] = found.as_slice() else { panic!("{found:?}") };
            assert!(nonsense.descriptor().is_err() && nonsense.digest().is_none(), "{bad}");
            assert_eq!(good.digest(), Some(Digest::Sha256([1; 32])), "{bad}");
            // An invalid entry of another client is kept in a list.
            let ours = entries(format!(r#"{{"manifests":[{}]}}"#, entry(2, "")).as_bytes()).expect("a list");
            let ours = ReferrersIndex { subject: SUBJECT, entries: ours };
            let (_, content, lacks) = ours.added_to(list.as_bytes()).expect("a list");
            let content = String::from_utf8(content.to_vec()).expect("text");
            assert!(lacks && content.contains(&format!("[{bad},")), "{content}");
        }
    }

    #[test]
    fn tags_of_attachments_are_told_from_those_of_images() {
        for subject in [SUBJECT, LONG] {
            assert!(is_attached_by(&referrers_tag(subject)));
            assert!(attachment_tags(subject).iter().all(|tag| is_attached_by(tag)), "{:?}", attachment_tags(subject));
            assert!(!is_attached_by(&format!("{}.sig.sig", referrers_tag(subject))));
        }
        let whole = format!("sha512-{}", LONG.hex());
        for own in ["latest", "sha256-", "sha256-07.sig", &whole, &format!("sha384-{}", SUBJECT.hex())] {
            assert!(!is_attached_by(own), "{own}");
        }
    }

    /// The specification's own example ("Referrers Tag Schema").
    #[test]
    fn a_tag_has_no_more_than_64_digits_of_a_digest() {
        let short = Digest::from_hex(&"a".repeat(64)).expect("a digest");
        let long = Digest::from_hex(&"a".repeat(128)).expect("a digest");
        assert_eq!(referrers_tag(short), format!("sha256-{}", "a".repeat(64)));
        assert_eq!(referrers_tag(long), format!("sha512-{}", "a".repeat(64)));
        assert_eq!(attachment_tags(long)[0], format!("sha512-{}.sig", "a".repeat(64)));
    }
}
