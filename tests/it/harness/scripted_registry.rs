//! An emulated registry whose content a test adds, removes and inspects directly, such as unusual media types, lists
//! with dangling entries, and images attached by tags. It ignores the repository's name. Its [`Behavior`] determines
//! whether it supports the referrers API.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, response::Builder};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{
    http_server::HttpServer,
    images::{INDEX, MANIFEST, digest, digest_by, matches},
};

/// Features and restrictions of the registry; all are off by default.
#[derive(Debug, Clone, Copy, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a habit of its own")]
pub struct Behavior {
    /// Supports the referrers API.
    pub lists_referrers: bool,
    /// Supports listing its tags.
    pub lists_tags: bool,
    /// Rejects a manifest whose subject does not exist.
    pub wants_subjects: bool,
    /// Rejects an index with an entry that does not exist.
    pub wants_entries: bool,
    /// Rejects a manifest whose tag already exists.
    pub keeps_tags: bool,
    /// Accepts only SHA-256 digests.
    pub only_sha256: bool,
    /// Accepts tags in the query of a request that pushes a manifest by its digest (distribution specification,
    /// "Pushing Manifests").
    pub tags_digests: bool,
}

/// A manifest, with the digest that the registry reports for it.
#[derive(Clone)]
struct Manifest {
    kind: String,
    content: Bytes,
    digest: String,
}

#[derive(Default)]
struct Content {
    habits: Behavior,
    uploads: BTreeMap<u64, Vec<u8>>,
    begun: u64,
    blobs: BTreeMap<String, Bytes>,
    manifests: BTreeMap<String, Manifest>,
}

/// An emulated registry. Stops when dropped.
pub struct ScriptedRegistry {
    pub address: SocketAddr,
    content: Arc<Mutex<Content>>,
    _server: HttpServer,
}

/// Returns a descriptor of `content`, with its SHA-256 digest.
pub fn describe(kind: &str, content: &[u8]) -> Value {
    describe_by("sha256", kind, content)
}

pub fn describe_by(algorithm: &str, kind: &str, content: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest_by(algorithm, content), "size": content.len() })
}

impl Manifest {
    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.kind, "digest": self.digest, "size": self.content.len() })
    }
}

impl ScriptedRegistry {
    pub async fn start(habits: Behavior) -> Self {
        let content = Arc::new(Mutex::new(Content { habits, ..Content::default() }));
        let serving = Arc::clone(&content);
        let server = HttpServer::start(move |request| {
            let content = Arc::clone(&serving);
            async move { Ok::<_, Infallible>(answer(&content, request).await) }
        })
        .await;
        Self { address: server.address, content, _server: server }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().expect("no panic")
    }

    /// Returns the store URL of a region in this registry.
    pub fn store(&self) -> String {
        format!("registry+http://{}/apps", self.address)
    }

    /// Adds a blob, and returns its descriptor.
    pub fn blob(&self, kind: &str, content: &[u8]) -> Value {
        self.blob_by("sha256", kind, content)
    }

    pub fn blob_by(&self, algorithm: &str, kind: &str, content: &[u8]) -> Value {
        self.content().blobs.insert(digest_by(algorithm, content), content.to_vec().into());
        describe_by(algorithm, kind, content)
    }

    /// Adds a manifest, which its digest and the tag, if any, refer to. Returns its descriptor.
    pub fn manifest(&self, kind: &str, content: &Value, tag: Option<&str>) -> Value {
        self.manifest_by("sha256", kind, content, tag)
    }

    pub fn manifest_by(&self, algorithm: &str, kind: &str, content: &Value, tag: Option<&str>) -> Value {
        let content = Bytes::from(content.to_string());
        let manifest = Manifest { kind: kind.to_owned(), digest: digest_by(algorithm, &content), content };
        for reference in tag.into_iter().chain([manifest.digest.as_str()]) {
            self.content().manifests.insert(reference.to_owned(), manifest.clone());
        }
        manifest.descriptor()
    }

    /// Adds an image with one layer, and returns its descriptor.
    pub fn image(&self, layer: &[u8], tag: Option<&str>) -> Value {
        self.image_by("sha256", layer, tag)
    }

    /// Adds an image with one layer whose digests use `algorithm`, and returns its descriptor.
    pub fn image_by(&self, algorithm: &str, layer: &[u8], tag: Option<&str>) -> Value {
        let config = self.blob_by(algorithm, "application/vnd.oci.image.config.v1+json", br#"{"os":"linux"}"#);
        let layer = self.blob_by(algorithm, "application/vnd.oci.image.layer.v1.tar", layer);
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
        self.manifest_by(algorithm, MANIFEST, &manifest, tag)
    }

    /// Adds a manifest with the given subject, and returns its descriptor. Its digests use the algorithm of the
    /// subject's digest.
    pub fn refer(&self, subject: &Value, text: &str) -> Value {
        let algorithm = subject["digest"].as_str().and_then(|digest| digest.split(':').next()).expect("a digest");
        let config = self.blob_by(algorithm, "application/vnd.oci.empty.v1+json", b"{}");
        let layer = self.blob_by(algorithm, "text/plain", text.as_bytes());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.example.note",
            "config": config, "layers": [layer], "subject": subject,
        });
        self.manifest_by(algorithm, MANIFEST, &manifest, None)
    }

    /// Adds a referrers list under the tag that clients read if a registry does not support the referrers API.
    pub fn list(&self, subject: &Value, entries: &[Value]) {
        let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
        self.manifest(INDEX, &list, Some(&tag(subject, "")));
    }

    /// Removes a manifest or a blob.
    pub fn forget(&self, descriptor: &Value) {
        let mut content = self.content();
        let digest = descriptor["digest"].as_str().expect("a digest");
        let was = content.manifests.remove(digest).is_some() | content.blobs.remove(digest).is_some();
        assert!(was, "it was there");
    }

    /// Returns the descriptor of the manifest that a tag or a digest refers to.
    pub fn get(&self, reference: &str) -> Option<Value> {
        self.content().manifests.get(reference).map(Manifest::descriptor)
    }

    /// Returns the content of a manifest.
    pub fn read(&self, reference: &str) -> Option<String> {
        let content = self.content();
        Some(String::from_utf8(content.manifests.get(reference)?.content.to_vec()).expect("text"))
    }

    /// Returns whether a blob exists.
    pub fn has_blob(&self, descriptor: &Value) -> bool {
        self.content().blobs.contains_key(descriptor["digest"].as_str().expect("a digest"))
    }
}

/// Returns the tag of an attachment of `subject`: the algorithm and the first 64 digits of the subject's digest
/// (distribution specification, "Referrers Tag Schema"), followed by `kind`.
pub fn tag(subject: &Value, kind: &str) -> String {
    let (algorithm, digits) = subject["digest"].as_str().and_then(|digest| digest.split_once(':')).expect("a digest");
    format!("{algorithm}-{}{kind}", &digits[..64])
}

fn status(status: u16) -> Builder {
    Response::builder().status(status)
}

fn empty(builder: Builder) -> Response<Full<Bytes>> {
    builder.body(Full::default()).expect("a response")
}

fn refused(code: u16, reason: &str) -> Response<Full<Bytes>> {
    let body = json!({ "errors": [{ "code": reason, "message": reason.to_lowercase() }] }).to_string();
    status(code).header("content-type", "application/json").body(body.into()).expect("a response")
}

async fn answer(content: &Mutex<Content>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    // An interrupted body is discarded.
    let Ok(body) = body.collect().await else { return refused(400, "BODY_INVALID") };
    let body = body.to_bytes();
    let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
    let (parent, last) = path.rsplit_once('/').unwrap_or_default();
    let mut content = content.lock().expect("no panic");
    match parent.rsplit('/').next() {
        Some("uploads") => upload(&mut content, &head.method, last, query, &body),
        Some("referrers") => referrers(&content, last),
        Some("tags") if content.habits.lists_tags => {
            let tags: Vec<&String> = content.manifests.keys().filter(|name| !name.contains(':')).collect();
            let list = json!({ "name": "apps/a", "tags": tags }).to_string();
            status(200).header("content-type", "application/json").body(list.into()).expect("a response")
        }
        Some("manifests") if head.method == Method::PUT => {
            let kind = head.headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
            put(&mut content, last, query, kind, body)
        }
        Some("manifests") => match content.manifests.get(last) {
            Some(Manifest { kind, content, digest }) => found(&head.method, kind, content, digest),
            None => refused(404, "MANIFEST_UNKNOWN"),
        },
        Some("blobs") => match content.blobs.get(last) {
            Some(body) => found(&head.method, "application/octet-stream", body, last),
            None => refused(404, "BLOB_UNKNOWN"),
        },
        _ => empty(status(200)),
    }
}

fn found(method: &Method, kind: &str, body: &Bytes, digest: &str) -> Response<Full<Bytes>> {
    let builder = status(200).header("content-type", kind).header("docker-content-digest", digest);
    let builder = builder.header("content-length", body.len());
    builder.body(if method == Method::HEAD { Full::default() } else { body.clone().into() }).expect("a response")
}

fn upload(content: &mut Content, method: &Method, id: &str, query: &str, body: &[u8]) -> Response<Full<Bytes>> {
    if method == Method::POST {
        content.begun += 1;
        let id = content.begun;
        content.uploads.insert(id, Vec::new());
        return empty(status(202).header("location", format!("/v2/apps/blobs/uploads/{id}")));
    }
    let Some((id, mut bytes)) = id.parse().ok().and_then(|id: u64| content.uploads.remove_entry(&id)) else {
        return refused(404, "BLOB_UPLOAD_UNKNOWN");
    };
    bytes.extend_from_slice(body);
    let expected = query.split("digest=").nth(1).unwrap_or_default().replace("%3A", ":");
    match *method {
        Method::DELETE => empty(status(204)),
        Method::PUT if takes(content, &expected, &bytes) => {
            content.blobs.insert(expected.clone(), bytes.into());
            empty(status(201).header("docker-content-digest", expected))
        }
        Method::PUT => refused(400, "DIGEST_INVALID"),
        _ => {
            let range = format!("0-{}", bytes.len().saturating_sub(1));
            content.uploads.insert(id, bytes);
            let builder = status(202).header("location", format!("/v2/apps/blobs/uploads/{id}"));
            empty(builder.header("range", range))
        }
    }
}

/// Returns whether the registry accepts content under this digest.
fn takes(content: &Content, digest: &str, bytes: &[u8]) -> bool {
    matches(digest, bytes) && (digest.starts_with("sha256:") || !content.habits.only_sha256)
}

fn put(content: &mut Content, reference: &str, query: &str, kind: &str, body: Bytes) -> Response<Full<Bytes>> {
    let manifest: Value = serde_json::from_slice(&body).expect("a manifest");
    let exists = |descriptor: &Value| content.manifests.contains_key(descriptor["digest"].as_str().unwrap_or_default());
    let Behavior { wants_subjects, wants_entries, keeps_tags, .. } = content.habits;
    if wants_subjects && manifest["subject"].is_object() && !exists(&manifest["subject"]) {
        return refused(404, "MANIFEST_UNKNOWN");
    }
    if wants_entries && !manifest["manifests"].as_array().into_iter().flatten().all(exists) {
        return refused(400, "MANIFEST_BLOB_UNKNOWN");
    }
    if keeps_tags && !reference.contains(':') && content.manifests.contains_key(reference) {
        return refused(400, "TAG_INVALID");
    }
    let by_digest = reference.contains(':');
    if by_digest && !takes(content, reference, &body) {
        return refused(400, "DIGEST_INVALID");
    }
    let digest = if by_digest { reference.to_owned() } else { digest(&body) };
    let manifest = Manifest { kind: kind.to_owned(), content: body, digest: digest.clone() };
    content.manifests.insert(digest.clone(), manifest.clone());
    content.manifests.insert(reference.to_owned(), manifest.clone());
    let mut answer = status(201).header("docker-content-digest", digest);
    if content.habits.tags_digests {
        for (_, tag) in url::form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "tag") {
            content.manifests.insert(tag.clone().into_owned(), manifest.clone());
            answer = answer.header("oci-tag", &*tag);
        }
    }
    empty(answer)
}

fn referrers(content: &Content, subject: &str) -> Response<Full<Bytes>> {
    if !content.habits.lists_referrers {
        return refused(404, "NOT_FOUND");
    }
    let entry = |(reference, manifest): (&String, &Manifest)| {
        let content: Value = serde_json::from_slice(&manifest.content).ok()?;
        let refers = reference.contains(':') && content["subject"]["digest"] == subject;
        refers.then(|| manifest.descriptor())
    };
    let entries: Vec<Value> = content.manifests.iter().filter_map(entry).collect();
    let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }).to_string();
    status(StatusCode::OK.as_u16()).header("content-type", INDEX).body(list.into()).expect("a response")
}
