//! A registry that keeps what it has of an upload that is cut off, byte for byte, and says how much that is: what the distribution
//! specification describes ("Pushing a blob in chunks"), and what the distribution project's own registry does not do, which
//! refuses an upload once it has more than it said it has. It knows blobs and manifests, and verifies what it is sent.

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

/// What has come of an upload. Its bytes are hashed as they come, by the algorithm that was named when it began, and are not kept.
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
    /// Who was the last to ask about an upload: what comes for those before is thrown away.
    turns: BTreeMap<u64, u64>,
    begun: u64,
    /// The sizes of the blobs, by digest: their bytes have been verified and are not kept.
    blobs: BTreeMap<String, u64>,
    manifests: BTreeMap<String, (String, Bytes)>,
}

/// A registry that keeps what it has of an upload.
pub struct KeepingRegistry {
    pub address: SocketAddr,
    content: Arc<Mutex<Content>>,
    _server: HttpServer,
}

impl KeepingRegistry {
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

    /// How many uploads are neither finished nor given up.
    pub fn unfinished(&self) -> usize {
        lock(&self.content).uploads.len()
    }

    /// Whether it has a manifest by that tag.
    pub fn has(&self, tag: &str) -> bool {
        lock(&self.content).manifests.contains_key(tag)
    }
}

fn lock(content: &Mutex<Content>) -> MutexGuard<'_, Content> {
    content.lock().expect("no panic")
}

async fn answer(content: &Mutex<Content>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let last = path.rsplit('/').next().unwrap_or_default().to_owned();
    let base = path.split("/blobs/").next().unwrap_or_default().to_owned();
    let host = request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
    let method = request.method().clone();
    let status = |status: StatusCode| Response::builder().status(status);
    let empty = |builder: http::response::Builder| builder.body(Full::default()).expect("a response");
    let at = |id: u64| format!("http://{host}{base}/blobs/uploads/{id}");
    if path.contains("/blobs/uploads/") {
        if method == Method::POST {
            let mut content = lock(content);
            content.begun += 1;
            let id = content.begun;
            content.uploads.insert(id, Upload::begin(&query));
            return empty(status(StatusCode::ACCEPTED).header("location", at(id)));
        }
        let Ok(id) = last.parse::<u64>() else { return empty(status(StatusCode::NOT_FOUND)) };
        if method == Method::DELETE {
            let gone = lock(content).uploads.remove(&id).is_some();
            return empty(status(if gone { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND }));
        }
        let range = request.headers().get("content-range").and_then(|range| range.to_str().ok()).map(str::to_owned);
        let begin = range.and_then(|range| range.split('-').next()?.parse::<u64>().ok());
        let there = lock(content).uploads.get(&id).map(|upload| upload.length);
        if begin.is_some() && begin != there {
            return empty(status(StatusCode::RANGE_NOT_SATISFIABLE));
        }
        let turn = {
            let mut content = lock(content);
            let turn = content.turns.entry(id).or_default();
            *turn += 1;
            *turn
        };
        let mut body = request.into_body();
        while let Some(frame) = body.frame().await {
            // What came before the connection broke is kept.
            let Ok(frame) = frame else { return empty(status(StatusCode::BAD_REQUEST)) };
            let mut content = lock(content);
            if content.turns.get(&id) != Some(&turn) {
                return empty(status(StatusCode::CONFLICT));
            }
            let Some(upload) = content.uploads.get_mut(&id) else {
                return empty(status(StatusCode::NOT_FOUND));
            };
            if let Some(data) = frame.data_ref() {
                upload.take(data);
            }
        }
        let mut content = lock(content);
        let Some(upload) = content.uploads.get(&id).cloned() else {
            return empty(status(StatusCode::NOT_FOUND));
        };
        let length = upload.length;
        if method == Method::PUT {
            let wanted = query.split("digest=").nth(1).unwrap_or_default().replace("%3A", ":");
            if upload.digest() != wanted {
                return empty(status(StatusCode::BAD_REQUEST));
            }
            content.uploads.remove(&id);
            content.blobs.insert(wanted.clone(), length);
            return empty(status(StatusCode::CREATED).header("docker-content-digest", wanted));
        }
        let code = if method == Method::GET { StatusCode::NO_CONTENT } else { StatusCode::ACCEPTED };
        let range = format!("0-{}", length.saturating_sub(1));
        return empty(status(code).header("location", at(id)).header("range", range));
    }
    if path.contains("/referrers/") {
        return referrers(&lock(content), &last);
    }
    if path.contains("/manifests/") && method == Method::PUT {
        let kind =
            request.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
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

/// The manifests whose subject this one is.
fn referrers(content: &Content, subject: &str) -> Response<Full<Bytes>> {
    let refers = |body: &Bytes| {
        let manifest: Option<serde_json::Value> = serde_json::from_slice(body).ok();
        manifest.is_some_and(|manifest| manifest["subject"]["digest"] == subject)
    };
    let found = content.manifests.iter().filter(|(name, (_, body))| name.starts_with("sha256:") && refers(body));
    let entry = |(digest, (kind, body)): (&String, &(String, Bytes))| serde_json::json!({ "mediaType": kind, "digest": digest, "size": body.len() });
    let kind = super::images::INDEX;
    let index =
        serde_json::json!({ "schemaVersion": 2, "mediaType": kind, "manifests": found.map(entry).collect::<Vec<_>>() });
    Response::builder().header("content-type", kind).body(index.to_string().into()).expect("a response")
}
