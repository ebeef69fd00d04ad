//! A reverse proxy in front of a store that counts traffic and injects network and server faults.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, future::BoxFuture};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};

use super::http_server::HttpServer;

type Broken = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, Broken>;

/// How the proxy treats a request.
#[derive(Debug, Clone)]
pub enum Action {
    /// Forward the request and the response.
    Pass,
    /// Respond with this status, headers and body.
    Answer(StatusCode, Vec<(&'static str, String)>, String),
    /// Forward this many bytes of the request body, then cut both connections.
    CutRequest(u64),
    /// Forward this many bytes of the response body, then cut the connection.
    CutAnswer(u64),
    /// Corrupt the byte at this offset of the response body.
    CorruptAnswer(u64),
    /// Corrupt the byte at this offset of the request body.
    CorruptRequest(u64),
    /// Forward the request after this delay.
    Delay(Duration),
    /// Never respond.
    Hang,
    /// Forward both bodies, each at this rate in bytes per second.
    Throttle(u64),
}

/// The parts of a received request that rules can inspect.
#[derive(Debug, Clone)]
pub struct ReceivedRequest {
    pub method: Method,
    pub path: String,
    pub authorization: Option<String>,
}

impl ReceivedRequest {
    /// Returns whether the request reads a blob.
    pub fn reads_blob(&self) -> bool {
        self.method == Method::GET && self.path.contains("/blobs/sha")
    }

    /// Returns whether the request writes bytes of a blob.
    pub fn writes_blob(&self) -> bool {
        (self.method == Method::PATCH || self.method == Method::PUT) && self.path.contains("/blobs/uploads/")
    }
}

type Rule = Box<dyn FnMut(&ReceivedRequest) -> Action + Send>;

struct Shared {
    upstream: SocketAddr,
    rule: Mutex<Rule>,
    requests: Mutex<Vec<ReceivedRequest>>,
    up: AtomicU64,
    down: AtomicU64,
    client: reqwest::Client,
    /// Rate limit of all responses together in bytes per second, and the time at which the next bytes may be sent;
    /// unlimited if `None`.
    link: Mutex<Option<(u64, tokio::time::Instant)>>,
    uplink: Mutex<Option<(u64, tokio::time::Instant)>>,
}

/// A reverse proxy. Stops when dropped.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _server: HttpServer,
}

impl Proxy {
    /// Starts a proxy that treats each request as `rule` returns.
    pub async fn start(upstream: SocketAddr, rule: impl FnMut(&ReceivedRequest) -> Action + Send + 'static) -> Self {
        let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let shared = Arc::new(Shared {
            upstream,
            rule: Mutex::new(Box::new(rule)),
            requests: Mutex::default(),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            client: client.build().expect("a client"),
            link: Mutex::new(None),
            uplink: Mutex::new(None),
        });
        let serving = Arc::clone(&shared);
        let server = HttpServer::start(move |request| handle(Arc::clone(&serving), request)).await;
        Self { address: server.address, shared, _server: server }
    }

    /// Replaces the rule.
    pub fn rule(&self, rule: impl FnMut(&ReceivedRequest) -> Action + Send + 'static) {
        *self.shared.rule.lock().expect("no panic") = Box::new(rule);
    }

    /// Returns the received requests.
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        self.shared.requests.lock().expect("no panic").clone()
    }

    /// Returns the number of request body bytes that were forwarded to the store.
    pub fn up(&self) -> u64 {
        self.shared.up.load(Ordering::Relaxed)
    }

    /// Returns the number of response body bytes that were forwarded from the store.
    pub fn down(&self) -> u64 {
        self.shared.down.load(Ordering::Relaxed)
    }

    /// Limits the rate of all responses together, in bytes per second.
    #[allow(dead_code, reason = "used by benchmarks only")]
    pub fn hold_link(&self, bytes_per_second: u64) {
        *self.shared.link.lock().expect("no panic") = Some((bytes_per_second, tokio::time::Instant::now()));
    }

    /// Limits the rate of all requests together, in bytes per second.
    pub fn hold_uplink(&self, bytes_per_second: u64) {
        *self.shared.uplink.lock().expect("no panic") = Some((bytes_per_second, tokio::time::Instant::now()));
    }

    /// Returns the store URL of a namespace behind this proxy.
    pub fn store(&self, namespace: &str) -> String {
        format!("registry+http://{}/{namespace}", self.address)
    }
}

#[allow(clippy::cast_precision_loss)]
fn seconds(bytes: u64, rate: u64) -> f64 {
    bytes as f64 / rate as f64
}

async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Broken> {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let received = ReceivedRequest {
        method: request.method().clone(),
        path: path.clone(),
        authorization: request.headers().get("authorization").and_then(|v| v.to_str().ok()).map(str::to_owned),
    };
    shared.requests.lock().expect("no panic").push(received.clone());
    let action = (shared.rule.lock().expect("no panic"))(&received);
    match &action {
        Action::Answer(status, headers, body) => {
            let mut answer = Response::builder().status(*status);
            for (name, value) in headers {
                answer = answer.header(*name, value);
            }
            let body = Full::new(Bytes::from(body.clone())).map_err(|never: Infallible| match never {});
            return Ok(answer.body(body.boxed_unsync())?);
        }
        Action::Hang => std::future::pending().await,
        Action::Delay(time) => tokio::time::sleep(*time).await,
        _ => {}
    }
    let (parts, body) = request.into_parts();
    let url = format!("http://{}{path}", shared.upstream);
    let up = body.into_data_stream().map(|piece| piece.map_err(Broken::from));
    let up = apply(up, &action, true, Arc::clone(&shared));
    let mut forwarded = shared.client.request(parts.method.clone(), url).headers(parts.headers.clone());
    if parts.headers.contains_key("content-length") || parts.headers.contains_key("transfer-encoding") {
        forwarded = forwarded.body(reqwest::Body::wrap_stream(up));
    }
    let answer = forwarded.send().await?;
    let mut response = Response::builder().status(answer.status());
    for (name, value) in answer.headers() {
        response = response.header(name, value);
    }
    let down = answer.bytes_stream().map(|piece| piece.map_err(Broken::from));
    let down = apply(down, &action, false, shared).map(|piece| piece.map(Frame::data));
    Ok(response.body(StreamBody::new(down).boxed_unsync())?)
}

/// Applies an action to a body, and counts the bytes.
fn apply(
    body: impl Stream<Item = Result<Bytes, Broken>> + Send + Unpin + 'static,
    action: &Action,
    up: bool,
    shared: Arc<Shared>,
) -> impl Stream<Item = Result<Bytes, Broken>> + Send + 'static {
    let cut = match (action, up) {
        (Action::CutRequest(bytes), true) | (Action::CutAnswer(bytes), false) => Some(*bytes),
        _ => None,
    };
    let corrupt = match (action, up) {
        (Action::CorruptRequest(place), true) | (Action::CorruptAnswer(place), false) => Some(*place),
        _ => None,
    };
    let rate = if let Action::Throttle(rate) = action { Some(*rate) } else { None };
    futures_util::stream::unfold((body, 0u64, shared), move |(mut body, passed, shared)| -> BoxFuture<'static, _> {
        Box::pin(async move {
            let mut piece = match body.next().await? {
                Ok(piece) => piece,
                Err(error) => return Some((Err(error), (body, passed, shared))),
            };
            if let Some(cut) = cut {
                if passed >= cut {
                    return Some((Err("cut".into()), (body, passed, shared)));
                }
                piece.truncate(usize::try_from(cut - passed).unwrap_or(usize::MAX));
            }
            if let Some(place) = corrupt.and_then(|place| usize::try_from(place.checked_sub(passed)?).ok())
                && place < piece.len()
            {
                let mut bytes = piece.to_vec();
                bytes[place] ^= 1;
                piece = bytes.into();
            }
            let length = piece.len() as u64;
            if let Some(rate) = rate {
                tokio::time::sleep(Duration::from_secs_f64(seconds(length, rate))).await;
            }
            let link = if up { &shared.uplink } else { &shared.link };
            let until = link.lock().expect("no panic").as_mut().map(|(rate, paid)| {
                let burst = tokio::time::Instant::now() - Duration::from_millis(20);
                *paid = (*paid).max(burst) + Duration::from_secs_f64(seconds(length, *rate));
                *paid
            });
            if let Some(until) = until {
                tokio::time::sleep_until(until).await;
            }
            let counter = if up { &shared.up } else { &shared.down };
            counter.fetch_add(length, Ordering::Relaxed);
            Some((Ok(piece), (body, passed + length, shared)))
        })
    })
}
