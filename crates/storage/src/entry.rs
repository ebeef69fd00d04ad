//! An entry of an index, kept byte for byte except for fields that contradict its manifest.

use std::collections::BTreeMap;

use domain::{Descriptor, Digest, DigestError, ForeignText};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::{RawValue, to_raw_value};

/// Maximum size of the annotations that are copied from a manifest into its entry, in bytes of JSON. It is small,
/// because a list of referrers has a size limit and also contains the entries of other clients.
const MAX_ANNOTATIONS: usize = 4 << 10;

/// An entry of an index, with all its fields.
#[derive(Debug, Clone)]
pub struct Entry {
    raw: Box<RawValue>,
    /// The parsed fields, or the error of parsing them. One invalid entry does not invalidate the others.
    told: Result<Told, EntryError>,
}

/// Why an entry of an index can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the names say it")]
pub enum EntryError {
    /// The entry is not a descriptor (image specification 1.1, "Content Descriptors").
    #[error("the entry {entry:?} is no descriptor: {problem}")]
    NoDescriptor {
        /// The entry's JSON.
        entry: ForeignText,
        problem: ForeignText,
    },
    /// The digest is invalid or its algorithm is not supported.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// The parsed fields of an entry.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: Option<Annotations>,
}

#[derive(Debug, Clone, Deserialize)]
struct Annotations {
    #[serde(rename = "org.opencontainers.image.ref.name")]
    name: Option<String>,
}

type Fields = BTreeMap<String, Box<RawValue>>;

impl Entry {
    pub(super) fn read(raw: Box<RawValue>) -> Self {
        let told = serde_json::from_str(raw.get()).map_err(|error| EntryError::NoDescriptor {
            entry: ForeignText::value(raw.get()),
            problem: ForeignText::value(error),
        });
        Self { raw, told }
    }

    /// Returns the entry's JSON, unchanged.
    pub(super) fn raw(&self) -> &RawValue {
        &self.raw
    }

    /// Returns whether the index gives the entry a name (image specification 1.1, "Pre-Defined Annotation Keys").
    #[must_use]
    pub fn has_name(&self) -> bool {
        let annotations = self.told.as_ref().ok().and_then(|told| told.annotations.as_ref());
        annotations.is_some_and(|annotations| annotations.name.is_some())
    }

    /// Returns the digest, or `None` if it is invalid or its algorithm is not supported.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.told.as_ref().ok()?.digest.parse().ok()
    }

    /// Returns the descriptor of the entry. Fails if the entry is invalid.
    pub fn descriptor(&self) -> Result<Descriptor, EntryError> {
        let Told { media_type, digest, size, .. } = self.told.as_ref().map_err(Clone::clone)?;
        Ok(Descriptor { media_type: media_type.clone(), digest: digest.parse()?, size: *size })
    }

    /// Returns the entry with the artifact type and the annotations of its manifest (distribution specification 1.1,
    /// "Listing Referrers"). Its other fields are kept.
    #[must_use]
    pub fn described_by(self, manifest: &[u8]) -> Self {
        self.described(manifest).map_or(self, Self::read)
    }

    fn described(&self, manifest: &[u8]) -> serde_json::Result<Box<RawValue>> {
        let manifest: Manifest = serde_json::from_slice(manifest)?;
        let mut fields: Fields = serde_json::from_str(self.raw.get())?;
        let stated: Option<String> = fields.get("artifactType").and_then(|kind| serde_json::from_str(kind.get()).ok());
        let is_right = stated.as_deref() == manifest.artifact_type();
        if !is_right {
            match manifest.artifact_type() {
                Some(kind) => fields.insert("artifactType".to_owned(), to_raw_value(kind)?),
                None => fields.remove("artifactType"),
            };
        }
        match added_annotations(&fields, &manifest)? {
            Some(annotations) => fields.insert("annotations".to_owned(), annotations),
            None if is_right => return Ok(self.raw.clone()),
            None => None,
        };
        to_raw_value(&fields)
    }
}

/// Merges the manifest's annotations into the entry's. Returns `None` if the entry already has the manifest's
/// annotations, or if these exceed [`MAX_ANNOTATIONS`].
fn added_annotations(fields: &Fields, manifest: &Manifest) -> serde_json::Result<Option<Box<RawValue>>> {
    let theirs = manifest.annotations.as_deref().map_or("null", RawValue::get);
    let Some(theirs) = serde_json::from_str::<Option<Fields>>(theirs)?.filter(|_| theirs.len() <= MAX_ANNOTATIONS)
    else {
        return Ok(None);
    };
    let ours = fields.get("annotations").map_or("null", |annotations| annotations.get());
    let mut all = serde_json::from_str::<Option<Fields>>(ours)?.unwrap_or_default();
    if theirs.iter().all(|(key, value)| all.get(key).is_some_and(|own| own.get() == value.get())) {
        return Ok(None);
    }
    all.extend(theirs);
    to_raw_value(&all).map(Some)
}

/// The fields of a manifest that are repeated in its entry in a list.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    annotations: Option<Box<RawValue>>,
    #[serde(default)]
    config: Option<Config>,
    #[serde(default)]
    manifests: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    media_type: String,
}

impl Manifest {
    /// Returns the manifest's own artifact type, or else the media type of its configuration. An index has no
    /// configuration.
    fn artifact_type(&self) -> Option<&str> {
        let own = self.artifact_type.as_deref().filter(|kind| !kind.is_empty());
        let of_config =
            self.config.as_ref().filter(|_| self.manifests.is_none()).map(|config| config.media_type.as_str());
        own.or(of_config)
    }
}

#[cfg(test)]
mod tests {
    use domain::Digest;
    use serde_json::{Value, json, value::to_raw_value};

    use super::{Entry, MAX_ANNOTATIONS};

    fn entry(more: &Value) -> Entry {
        let mut entry = json!({ "mediaType": "x/y", "digest": Digest::Sha256([7; 32]).to_string(), "size": 2 });
        entry.as_object_mut().expect("an object").append(&mut more.as_object().expect("an object").clone());
        Entry::read(to_raw_value(&entry).expect("JSON"))
    }

    fn described(more: &Value, manifest: &Value) -> Value {
        let described = entry(more).described_by(manifest.to_string().as_bytes());
        serde_json::from_str(described.raw().get()).expect("JSON")
    }

    /// Distribution specification 1.1, "Listing Referrers".
    #[test]
    fn an_entry_says_what_its_manifest_says() {
        let config = json!({ "mediaType": "x/config" });
        for (stated, manifest, expected) in [
            (json!({}), json!({ "artifactType": "x/own", "config": config }), json!("x/own")),
            (json!({}), json!({ "config": config }), json!("x/config")),
            (json!({}), json!({ "artifactType": "", "config": config }), json!("x/config")),
            (json!({ "artifactType": "x/wrong" }), json!({ "config": config }), json!("x/config")),
            (json!({ "artifactType": 7 }), json!({ "artifactType": "x/own" }), json!("x/own")),
            (json!({ "artifactType": "x/wrong" }), json!({ "manifests": [] }), Value::Null),
            (json!({ "artifactType": "x/wrong" }), json!({ "artifactType": "x/own", "manifests": [] }), json!("x/own")),
        ] {
            assert_eq!(described(&stated, &manifest)["artifactType"], expected, "{stated} {manifest}");
        }
        let stated = json!({ "annotations": { "a": "of the list", "b": "old" }, "x-more": [1.50] });
        let manifest = json!({ "artifactType": "x/own", "annotations": { "b": "new", "c": "more" } });
        let all = described(&stated, &manifest);
        assert_eq!(all["annotations"], json!({ "a": "of the list", "b": "new", "c": "more" }));
        assert_eq!((&all["x-more"], &all["mediaType"], &all["size"]), (&json!([1.5]), &json!("x/y"), &json!(2)));
    }

    #[test]
    fn an_entry_that_is_right_stays_as_it_is_written() {
        let digest = Digest::Sha256([7; 32]);
        let text = format!(
            r#"{{"size": 2,"mediaType":"x/y","x":1.50,"digest":"{digest}","artifactType":"x/z","annotations":{{"b":"1","a":"2"}}}}"#
        );
        let read = || Entry::read(serde_json::from_str(&text).expect("JSON"));
        let large = "x".repeat(MAX_ANNOTATIONS);
        for manifest in [
            json!({ "artifactType": "x/z" }).to_string(),
            json!({ "artifactType": "x/z", "annotations": null }).to_string(),
            json!({ "config": { "mediaType": "x/z" }, "annotations": { "a": "2" } }).to_string(),
            json!({ "artifactType": "x/z", "annotations": { "c": large } }).to_string(),
            "no manifest".to_owned(),
        ] {
            assert_eq!(read().described_by(manifest.as_bytes()).raw().get(), text, "{manifest:.80}");
        }
    }
}
