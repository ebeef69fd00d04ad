//! A registry in this process that keeps its content in memory and emulates the quirks of one registry.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, response::Builder};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;

use super::{Heads, Offsets, Quirks, Takes};
use crate::harness::{http_server::HttpServer, images};

type Answer = Response<Full<Bytes>>;

#[derive(Default)]
struct Upload {
    bytes: Vec<u8>,
    first_chunk: Option<usize>,
}

#[derive(Default)]
struct Content {
    begun: u64,
    uploads: BTreeMap<u64, Upload>,
    /// By repository and digest: the content, and the number of further reads that fail with 404.
    blobs: BTreeMap<(String, String), (Bytes, u32)>,
    /// By repository and by tag or digest: the media type and the content.
    manifests: BTreeMap<(String, String), (String, Bytes)>,
    requests: Vec<ReceivedRequest>,
}

/// A received request and its response.
#[derive(Debug, Clone)]
pub struct ReceivedRequest {
    pub method: Method,
    pub path: String,
    /// Size of the request body in bytes.
    pub bytes: u64,
    pub status: StatusCode,
}

/// An emulated registry. Stops when dropped.
pub struct QuirkyRegistry {
    pub address: SocketAddr,
    content: Arc<Mutex<Content>>,
    _server: HttpServer,
}

impl QuirkyRegistry {
    pub async fn start(quirks: Quirks) -> Self {
        let content = Arc::<Mutex<Content>>::default();
        let serving = Arc::clone(&content);
        let server = HttpServer::start(move |request| {
            let content = Arc::clone(&serving);
            async move { Ok::<_, Infallible>(serve(quirks, &content, request).await) }
        })
        .await;
        Self { address: server.address, content, _server: server }
    }

    /// Returns the store URL of a namespace in this registry.
    pub fn store(&self, namespace: &str) -> String {
        format!("registry+http://{}/{namespace}", self.address)
    }

    /// Returns the requests received since the last call of this method.
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        std::mem::take(&mut lock(&self.content).requests)
    }

    /// Returns the number of uploads that were neither completed nor aborted.
    pub fn unfinished(&self) -> usize {
        lock(&self.content).uploads.len()
    }
}

fn lock(content: &Mutex<Content>) -> MutexGuard<'_, Content> {
    content.lock().expect("no panic")
}

fn empty(builder: Builder) -> Answer {
    builder.body(Full::default()).expect("a response")
}

fn status(status: StatusCode) -> Builder {
    Response::builder().status(status)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A request whose body has been received.
struct Call {
    method: Method,
    repository: String,
    /// The path segment after the repository: `manifests`, `blobs`, `uploads` or `referrers`.
    kind: &'static str,
    last: String,
    query: BTreeMap<String, String>,
    headers: HeaderMap,
    body: Bytes,
}

async fn serve(quirks: Quirks, content: &Mutex<Content>, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    // An interrupted body is discarded.
    let Ok(body) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
        return empty(status(StatusCode::BAD_REQUEST));
    };
    let path = parts.uri.path().to_owned();
    let kinds = [
        ("/blobs/uploads/", "uploads"),
        ("/blobs/", "blobs"),
        ("/manifests/", "manifests"),
        ("/referrers/", "referrers"),
    ];
    let route = kinds.into_iter().find_map(|(part, kind)| Some((path.split_once(part)?, kind)));
    let answer = match route {
        Some(((before, last), kind)) => {
            let query = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
            let repository = before.trim_start_matches("/v2/").trim_start_matches("elsewhere/").to_owned();
            let call = Call {
                method: parts.method.clone(),
                repository,
                kind,
                last: last.to_owned(),
                query: query.into_owned().collect(),
                headers: parts.headers.clone(),
                body: body.clone(),
            };
            let moved = path.contains("/elsewhere/");
            let writes = parts.method == Method::POST || parts.method == Method::PUT && kind == "manifests";
            let uploads = kind == "uploads" && (parts.method == Method::PATCH || parts.method == Method::PUT);
            let leads_on = quirks.redirects && (kind == "blobs" || writes) || quirks.redirects_uploads && uploads;
            if leads_on && !moved {
                let to = parts.uri.to_string().replacen("/v2/", "/v2/elsewhere/", 1);
                empty(status(StatusCode::TEMPORARY_REDIRECT).header("location", to))
            } else {
                call.answer(quirks, &mut lock(content))
            }
        }
        None => empty(status(StatusCode::OK)),
    };
    lock(content).requests.push(ReceivedRequest {
        method: parts.method,
        path: parts.uri.to_string(),
        bytes: body.len() as u64,
        status: answer.status(),
    });
    answer
}

impl Call {
    fn answer(&self, quirks: Quirks, content: &mut Content) -> Answer {
        let key = (self.repository.clone(), self.last.clone());
        match self.kind {
            "uploads" => self.upload(quirks, content),
            "referrers" => {
                let list = r#"{"schemaVersion":2,"manifests":[]}"#;
                status(StatusCode::OK).header("content-type", images::INDEX).body(list.into()).expect("a response")
            }
            "manifests" if self.method == Method::PUT => {
                let kind = text(&self.headers, "content-type").unwrap_or_default().to_owned();
                let manifest: serde_json::Value = serde_json::from_slice(&self.body).expect("a manifest");
                let layers = manifest["layers"].as_array().into_iter().flatten();
                let parts: Vec<_> =
                    layers.chain([&manifest["config"]]).filter_map(|part| part["digest"].as_str()).collect();
                let has = |digest: &&str| content.blobs.contains_key(&(self.repository.clone(), (*digest).to_owned()));
                if !parts.iter().all(has) {
                    let unknown = r#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown"}]}"#;
                    return status(StatusCode::BAD_REQUEST).body(unknown.into()).expect("a response");
                }
                let digest = images::digest(&self.body);
                for name in [&self.last, &digest] {
                    let key = (self.repository.clone(), name.clone());
                    content.manifests.insert(key, (kind.clone(), self.body.clone()));
                }
                empty(status(StatusCode::CREATED).header("docker-content-digest", digest))
            }
            "manifests" => match content.manifests.get(&key) {
                Some((kind, bytes)) => self.read(quirks, kind, bytes),
                None => empty(status(StatusCode::NOT_FOUND)),
            },
            _ => match content.blobs.get_mut(&key) {
                Some((_, unseen)) if *unseen > 0 && self.method == Method::GET => {
                    *unseen -= 1;
                    empty(status(StatusCode::NOT_FOUND))
                }
                Some((bytes, _)) => self.read(quirks, "application/octet-stream", bytes),
                None => empty(status(StatusCode::NOT_FOUND)),
            },
        }
    }

    fn read(&self, quirks: Quirks, kind: &str, bytes: &Bytes) -> Answer {
        let mut answer = status(StatusCode::OK).header("content-type", kind);
        if quirks.digest_header {
            answer = answer.header("docker-content-digest", images::digest(bytes));
        }
        if self.method == Method::HEAD {
            return empty(match quirks.heads {
                Heads::Right => answer.header("content-length", bytes.len()),
                Heads::Empty => answer.header("content-length", 0),
                Heads::Refused(refused) => status(refused),
            });
        }
        if quirks.compresses && text(&self.headers, "accept-encoding") != Some("identity") {
            // The content need not be valid gzip, because no client may accept it as the blob.
            return answer.header("content-encoding", "gzip").body("compressed".into()).expect("a response");
        }
        let range = text(&self.headers, "range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let Some((first, last)) = range else { return answer.body(bytes.clone().into()).expect("a response") };
        let (first, last) = (first.parse().expect("a number"), last.parse::<usize>().unwrap_or(usize::MAX));
        let last = last.min(bytes.len() - 1);
        let part = bytes.slice(first..=last);
        let answer = answer.header("content-range", format!("bytes {first}-{last}/{}", bytes.len()));
        answer.status(StatusCode::PARTIAL_CONTENT).body(part.into()).expect("a response")
    }

    fn upload(&self, quirks: Quirks, content: &mut Content) -> Answer {
        let at = |id: u64| format!("/v2/{}/blobs/uploads/{id}", self.repository);
        if self.method == Method::POST {
            if let (Some(blob), Some(from)) = (self.query.get("mount"), self.query.get("from")) {
                let lent = content.blobs.get(&(from.clone(), blob.clone())).cloned();
                match (quirks.mount, lent) {
                    (None, Some((bytes, _))) => {
                        content.blobs.insert((self.repository.clone(), blob.clone()), (bytes, 0));
                        return empty(status(StatusCode::CREATED));
                    }
                    // Starts an upload instead of mounting.
                    (None | Some(StatusCode::ACCEPTED), _) => {}
                    (Some(answer), _) => return empty(status(answer)),
                }
            }
            content.begun += 1;
            content.uploads.insert(content.begun, Upload::default());
            let mut answer = status(StatusCode::ACCEPTED).header("location", at(content.begun)).header("range", "0-0");
            let limits = [("oci-chunk-min-length", quirks.min_chunk), ("oci-chunk-max-length", quirks.max_chunk)];
            for (name, limit) in limits {
                if let Some(limit) = limit {
                    answer = answer.header(name, limit);
                }
            }
            return empty(answer);
        }
        let id = self.last.parse().unwrap_or(0);
        let Some(upload) = content.uploads.get_mut(&id) else { return empty(status(StatusCode::NOT_FOUND)) };
        if self.method == Method::DELETE {
            content.uploads.remove(&id);
            return empty(status(StatusCode::NO_CONTENT));
        }
        if self.method != Method::GET
            && let Some(refused) = self.append(quirks, upload)
        {
            return empty(status(refused));
        }
        if self.method == Method::PUT {
            let digest = self.query.get("digest").cloned().unwrap_or_default();
            let bytes = content.uploads.remove(&id).expect("it is there").bytes;
            if !images::matches(&digest, &bytes) {
                return empty(status(StatusCode::BAD_REQUEST));
            }
            content.blobs.insert((self.repository.clone(), digest), (bytes.into(), quirks.lags));
            return empty(status(quirks.committed));
        }
        let code = if self.method == Method::GET { StatusCode::NO_CONTENT } else { StatusCode::ACCEPTED };
        let answer = status(code).header("location", at(id));
        let end = match quirks.offsets {
            Offsets::Unsaid => return empty(answer),
            Offsets::Zero => 0,
            Offsets::Right => upload.bytes.len(),
            Offsets::OfFirstChunk => upload.first_chunk.unwrap_or(0),
            Offsets::OfLastChunk => self.body.len(),
        };
        empty(answer.header("range", format!("0-{}", end.saturating_sub(1))))
    }

    /// Appends the body of a request to an upload. If the registry rejects the request, returns its status.
    fn append(&self, quirks: Quirks, upload: &mut Upload) -> Option<StatusCode> {
        let range = text(&self.headers, "content-range");
        let begins = range.and_then(|range| range.split('-').next()?.parse::<usize>().ok());
        if begins.is_some_and(|begins| begins != upload.bytes.len()) {
            return Some(StatusCode::RANGE_NOT_SATISFIABLE);
        }
        let takes = match (&self.method, range) {
            (&Method::PATCH, Some(_)) => quirks.chunks,
            (&Method::PATCH, None) => quirks.stream,
            _ => quirks.put,
        };
        let bytes = self.body.len() as u64;
        match takes {
            _ if bytes == 0 => return None,
            Takes::None(refused) => return Some(refused),
            Takes::UpTo(most, refused) if bytes > most => return Some(refused),
            Takes::AtLeast(least, refused) if bytes < least => return Some(refused),
            Takes::Ignores => return None,
            _ => {}
        }
        upload.bytes.extend_from_slice(&self.body);
        upload.first_chunk.get_or_insert(upload.bytes.len());
        None
    }
}
