//! A registry that keeps the received bytes of an interrupted upload and reports their number, as the distribution
//! specification describes ("Pushing a blob in chunks"). The distribution project's own registry does not: it rejects
//! an upload that has more bytes than the registry reported. This one verifies digests and stores manifests.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use sha2::{Digest as _, Sha256, Sha512};

use super::{http_server::HttpServer, images};

/// The received part of an upload. The bytes are hashed with the algorithm that the first request named, and are not
/// kept.
#[derive(Clone)]
struct Upload {
    hash: Hash,
    length: u64,
}

#[derive(Clone)]
enum Hash {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Upload {
    fn begin(query: &str) -> Self {
        let is_long = query.contains("digest-algorithm=sha512");
        let hash = if is_long { Hash::Sha512(Sha512::new()) } else { Hash::Sha256(Sha256::new()) };
        Self { hash, length: 0 }
    }

    fn take(&mut self, bytes: &[u8]) {
        match &mut self.hash {
            Hash::Sha256(hash) => hash.update(bytes),
            Hash::Sha512(hash) => hash.update(bytes),
        }
        self.length += bytes.len() as u64;
    }

    fn digest(self) -> String {
        match self.hash {
            Hash::Sha256(hash) => format!("sha256:{}", hex::encode(hash.finalize())),
            Hash::Sha512(hash) => format!("sha512:{}", hex::encode(hash.finalize())),
        }
    }
}

#[derive(Default)]
struct Content {
    uploads: BTreeMap<u64, Upload>,
    /// By upload: a counter that its status and write requests increment. A request whose count is outdated writes no
    /// more bytes.
    turns: BTreeMap<u64, u64>,
    begun: u64,
    /// Sizes of blobs by digest. The bytes of a blob are verified, but not kept.
    blobs: BTreeMap<String, u64>,
    manifests: BTreeMap<String, (String, Bytes)>,
}

/// A registry with resumable uploads.
pub struct ResumableRegistry {
    pub address: SocketAddr,
    content: Arc<Mutex<Content>>,
    _server: HttpServer,
}

impl ResumableRegistry {
    pub async fn start() -> Self {
        let content = Arc::<Mutex<Content>>::default();
        let serving = Arc::clone(&content);
        let server = HttpServer::start(move |request| {
            let content = Arc::clone(&serving);
            async move { Ok::<_, Infallible>(answer(&content, request).await) }
        })
        .await;
        Self { address: server.address, content, _server: server }
    }

    /// Returns the number of uploads that were neither completed nor aborted.
    pub fn unfinished(&self) -> usize {
        lock(&self.content).uploads.len()
    }

    /// Returns whether the registry has a manifest with this tag.
    pub fn has(&self, tag: &str) -> bool {
        lock(&self.content).manifests.contains_key(tag)
    }
}

fn lock(content: &Mutex<Content>) -> MutexGuard<'_, Content> {
    content.lock().expect("no panic")
}

fn status(status: StatusCode) -> http::response::Builder {
    Response::builder().status(status)
}

fn empty(builder: http::response::Builder) -> Response<Full<Bytes>> {
    builder.body(Full::default()).expect("a response")
}

fn header<'r>(request: &'r Request<Incoming>, name: &str) -> &'r str {
    request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

async fn answer(content: &Mutex<Content>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let last = path.rsplit('/').next().unwrap_or_default().to_owned();
    let method = request.method().clone();
    if path.contains("/blobs/uploads/") {
        let uploads = path.split("/blobs/").next().unwrap_or_default();
        let uploads = format!("http://{}{uploads}/blobs/uploads", header(&request, "host"));
        if method == Method::POST {
            let mut content = lock(content);
            content.begun += 1;
            let id = content.begun;
            content.uploads.insert(id, Upload::begin(request.uri().query().unwrap_or_default()));
            return empty(status(StatusCode::ACCEPTED).header("location", format!("{uploads}/{id}")));
        }
        let Ok(id) = last.parse::<u64>() else { return empty(status(StatusCode::NOT_FOUND)) };
        return upload(content, request, id, &format!("{uploads}/{id}")).await;
    }
    if path.contains("/referrers/") {
        return referrers(&lock(content), &last);
    }
    if path.contains("/manifests/") && method == Method::PUT {
        let kind = header(&request, "content-type").to_owned();
        let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let digest = images::digest(&body);
        let mut content = lock(content);
        content.manifests.insert(digest.clone(), (kind.clone(), body.clone()));
        content.manifests.insert(last, (kind, body));
        return empty(status(StatusCode::CREATED).header("docker-content-digest", digest));
    }
    let content = lock(content);
    if let Some((kind, body)) = content.manifests.get(&last).filter(|_| path.contains("/manifests/")) {
        let digest = images::digest(body);
        let builder = status(StatusCode::OK).header("content-type", kind).header("docker-content-digest", digest);
        let builder = builder.header("content-length", body.len());
        return builder
            .body(if method == Method::HEAD { Full::default() } else { body.clone().into() })
            .expect("a response");
    }
    match content.blobs.get(&last) {
        Some(size) if method == Method::HEAD => empty(status(StatusCode::OK).header("content-length", *size)),
        _ => empty(status(StatusCode::NOT_FOUND)),
    }
}

/// Handles the requests about one upload: its status, its chunks, its completion and its cancellation.
async fn upload(
    content: &Mutex<Content>,
    request: Request<Incoming>,
    id: u64,
    location: &str,
) -> Response<Full<Bytes>> {
    let method = request.method().clone();
    if method == Method::DELETE {
        let gone = lock(content).uploads.remove(&id).is_some();
        return empty(status(if gone { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND }));
    }
    let begin = header(&request, "content-range").split('-').next().and_then(|begin| begin.parse::<u64>().ok());
    let length = lock(content).uploads.get(&id).map(|upload| upload.length);
    if begin.is_some() && begin != length {
        return empty(status(StatusCode::RANGE_NOT_SATISFIABLE));
    }
    let query = request.uri().query().unwrap_or_default().to_owned();
    if let Err(refused) = append(content, request.into_body(), id).await {
        return empty(status(refused));
    }
    let mut content = lock(content);
    let Some(upload) = content.uploads.get(&id).cloned() else {
        return empty(status(StatusCode::NOT_FOUND));
    };
    let length = upload.length;
    if method == Method::PUT {
        let expected = query.split("digest=").nth(1).unwrap_or_default().replace("%3A", ":");
        if upload.digest() != expected {
            return empty(status(StatusCode::BAD_REQUEST));
        }
        content.uploads.remove(&id);
        content.blobs.insert(expected.clone(), length);
        return empty(status(StatusCode::CREATED).header("docker-content-digest", expected));
    }
    let code = if method == Method::GET { StatusCode::NO_CONTENT } else { StatusCode::ACCEPTED };
    let range = format!("0-{}", length.saturating_sub(1));
    empty(status(code).header("location", location).header("range", range))
}

/// Appends the bytes of a request to an upload. If the request is interrupted, the bytes received before stay part of
/// the upload.
async fn append(content: &Mutex<Content>, mut body: Incoming, id: u64) -> Result<(), StatusCode> {
    let turn = {
        let mut content = lock(content);
        let turn = content.turns.entry(id).or_default();
        *turn += 1;
        *turn
    };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| StatusCode::BAD_REQUEST)?;
        let mut content = lock(content);
        if content.turns.get(&id) != Some(&turn) {
            return Err(StatusCode::CONFLICT);
        }
        let upload = content.uploads.get_mut(&id).ok_or(StatusCode::NOT_FOUND)?;
        if let Some(data) = frame.data_ref() {
            upload.take(data);
        }
    }
    Ok(())
}

/// Responds with a list of the manifests that have this subject.
fn referrers(content: &Content, subject: &str) -> Response<Full<Bytes>> {
    let refers = |body: &Bytes| {
        let manifest: Option<serde_json::Value> = serde_json::from_slice(body).ok();
        manifest.is_some_and(|manifest| manifest["subject"]["digest"] == subject)
    };
    let referring = content.manifests.iter().filter(|(name, (_, body))| name.starts_with("sha256:") && refers(body));
    let entry = |(digest, (kind, body)): (&String, &(String, Bytes))| serde_json::json!({ "mediaType": kind, "digest": digest, "size": body.len() });
    let kind = super::images::INDEX;
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": kind, "manifests": referring.map(entry).collect::<Vec<_>>() });
    Response::builder().header("content-type", kind).body(index.to_string().into()).expect("a response")
}
