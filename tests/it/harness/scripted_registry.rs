//! An emulated registry whose content a test adds, removes and inspects directly: unusual media types, lists with
//! dangling entries, images attached by tags. The repository's name is ignored. Supports the referrers API, or not.

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
    images::{INDEX, MANIFEST, digest},
};

/// The configurable behavior.
#[derive(Debug, Clone, Copy, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a habit of its own")]
pub struct Behavior {
    /// Supports the referrers API.
    pub lists_referrers: bool,
    /// Rejects a manifest whose subject does not exist.
    pub wants_subjects: bool,
    /// Rejects an index with an entry that does not exist.
    pub wants_entries: bool,
    /// Tags are immutable.
    pub keeps_tags: bool,
}

#[derive(Default)]
struct Content {
    habits: Behavior,
    uploads: BTreeMap<u64, Vec<u8>>,
    begun: u64,
    blobs: BTreeMap<String, Bytes>,
    manifests: BTreeMap<String, (String, Bytes)>,
}

/// An emulated registry. Stops when dropped.
pub struct ScriptedRegistry {
    pub address: SocketAddr,
    content: Arc<Mutex<Content>>,
    _server: HttpServer,
}

/// Returns a descriptor of a content.
pub fn describe(kind: &str, content: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(content), "size": content.len() })
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
        self.content().blobs.insert(digest(content), content.to_vec().into());
        describe(kind, content)
    }

    /// Adds a manifest by its digest and by a tag, and returns its descriptor.
    pub fn manifest(&self, kind: &str, content: &Value, tag: Option<&str>) -> Value {
        let content = content.to_string();
        let (digest, descriptor) = (digest(content.as_bytes()), describe(kind, content.as_bytes()));
        for reference in tag.into_iter().chain([digest.as_str()]) {
            self.content().manifests.insert(reference.to_owned(), (kind.to_owned(), content.clone().into()));
        }
        descriptor
    }

    /// Adds an image with one layer, and returns its descriptor.
    pub fn image(&self, layer: &[u8], tag: Option<&str>) -> Value {
        let config = self.blob("application/vnd.oci.image.config.v1+json", br#"{"os":"linux"}"#);
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar", layer);
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
        self.manifest(MANIFEST, &manifest, tag)
    }

    /// Adds a manifest whose subject is another one, and returns its descriptor.
    pub fn refer(&self, subject: &Value, text: &str) -> Value {
        let config = self.blob("application/vnd.oci.empty.v1+json", b"{}");
        let layer = self.blob("text/plain", text.as_bytes());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.example.note",
            "config": config, "layers": [layer], "subject": subject,
        });
        self.manifest(MANIFEST, &manifest, None)
    }

    /// Adds a referrers list under the tag that substitutes for the API.
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

    /// Returns the manifest that a tag or a digest refers to.
    pub fn get(&self, reference: &str) -> Option<Value> {
        let content = self.content();
        let (kind, content) = content.manifests.get(reference)?;
        Some(describe(kind, content))
    }

    /// Returns the content of a manifest.
    pub fn read(&self, reference: &str) -> Option<String> {
        let content = self.content();
        Some(String::from_utf8(content.manifests.get(reference)?.1.to_vec()).expect("text"))
    }

    /// Returns whether a blob exists.
    pub fn has_blob(&self, descriptor: &Value) -> bool {
        self.content().blobs.contains_key(descriptor["digest"].as_str().expect("a digest"))
    }
}

/// Returns the tag of an attachment of a manifest.
pub fn tag(subject: &Value, kind: &str) -> String {
    format!("{}{kind}", subject["digest"].as_str().expect("a digest").replace(':', "-"))
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
        Some("manifests") if head.method == Method::PUT => {
            let kind = head.headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
            put(&mut content, last, kind, body)
        }
        Some("manifests") => match content.manifests.get(last) {
            Some((kind, body)) => found(&head.method, kind, body),
            None => refused(404, "MANIFEST_UNKNOWN"),
        },
        Some("blobs") => match content.blobs.get(last) {
            Some(body) => found(&head.method, "application/octet-stream", body),
            None => refused(404, "BLOB_UNKNOWN"),
        },
        _ => empty(status(200)),
    }
}

fn found(method: &Method, kind: &str, body: &Bytes) -> Response<Full<Bytes>> {
    let builder = status(200).header("content-type", kind).header("docker-content-digest", digest(body));
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
        Method::PUT if digest(&bytes) == expected => {
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

fn put(content: &mut Content, reference: &str, kind: &str, body: Bytes) -> Response<Full<Bytes>> {
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
    let digest = digest(&body);
    content.manifests.insert(digest.clone(), (kind.to_owned(), body.clone()));
    content.manifests.insert(reference.to_owned(), (kind.to_owned(), body));
    empty(status(201).header("docker-content-digest", digest))
}

fn referrers(content: &Content, subject: &str) -> Response<Full<Bytes>> {
    if !content.habits.lists_referrers {
        return refused(404, "NOT_FOUND");
    }
    let entry = |(reference, (kind, body)): (&String, &(String, Bytes))| {
        let manifest: Value = serde_json::from_slice(body).ok()?;
        let refers = reference.starts_with("sha256:") && manifest["subject"]["digest"] == subject;
        refers.then(|| describe(kind, body))
    };
    let entries: Vec<Value> = content.manifests.iter().filter_map(entry).collect();
    let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }).to_string();
    status(StatusCode::OK.as_u16()).header("content-type", INDEX).body(list.into()).expect("a response")
}
