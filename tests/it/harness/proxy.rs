//! A reverse proxy in front of a store: counts traffic and injects faults of networks and servers.

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
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

type Broken = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, Broken>;

/// The treatment of a request.
#[derive(Debug, Clone)]
pub enum Act {
    /// Forward the request and the response.
    Pass,
    /// Respond with this status, headers and body.
    Answer(StatusCode, Vec<(&'static str, String)>, String),
    /// Cut both connections after this many bytes of the request body.
    CutRequest(u64),
    /// Cut the connection after this many bytes of the response body.
    CutAnswer(u64),
    /// Corrupt the byte at this offset of the response body.
    CorruptAnswer(u64),
    /// Corrupt the byte at this offset of the request body.
    CorruptRequest(u64),
    /// Forward after this delay.
    Delay(Duration),
    /// Never respond.
    Hang,
    /// Forward both bodies at this rate in bytes per second.
    Throttle(u64),
}

/// A received request, as rules see it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub authorization: Option<String>,
}

impl Seen {
    /// Returns whether it reads a blob.
    pub fn reads_blob(&self) -> bool {
        self.method == Method::GET && self.path.contains("/blobs/sha256:")
    }

    /// Returns whether it writes bytes of a blob.
    pub fn writes_blob(&self) -> bool {
        (self.method == Method::PATCH || self.method == Method::PUT) && self.path.contains("/blobs/uploads/")
    }
}

type Rule = Box<dyn FnMut(&Seen) -> Act + Send>;

struct Shared {
    upstream: SocketAddr,
    rule: Mutex<Rule>,
    requests: Mutex<Vec<Seen>>,
    up: AtomicU64,
    down: AtomicU64,
    client: reqwest::Client,
    /// Rate limit of all responses together in bytes per second; unlimited if `None`.
    link: Mutex<Option<(u64, tokio::time::Instant)>>,
    uplink: Mutex<Option<(u64, tokio::time::Instant)>>,
}

/// A reverse proxy. Stops when dropped.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// Starts a proxy that treats each request as a rule decides.
    pub async fn start(upstream: SocketAddr, rule: impl FnMut(&Seen) -> Act + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
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
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                let service = service_fn(move |request| handle(Arc::clone(&shared), request));
                tokio::spawn(async move {
                    // The rule may have broken the connection.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, shared, task }
    }

    /// Replaces the rule.
    pub fn rule(&self, rule: impl FnMut(&Seen) -> Act + Send + 'static) {
        *self.shared.rule.lock().expect("no panic") = Box::new(rule);
    }

    /// Returns the received requests.
    pub fn requests(&self) -> Vec<Seen> {
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

    /// Limits the rate of all responses together.
    #[allow(dead_code, reason = "the bench of carrying uses it")]
    pub fn hold_link(&self, bytes_per_second: u64) {
        *self.shared.link.lock().expect("no panic") = Some((bytes_per_second, tokio::time::Instant::now()));
    }

    /// Limits the rate of all requests together.
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
    let seen = Seen {
        method: request.method().clone(),
        path: path.clone(),
        authorization: request.headers().get("authorization").and_then(|v| v.to_str().ok()).map(str::to_owned),
    };
    shared.requests.lock().expect("no panic").push(seen.clone());
    let act = (shared.rule.lock().expect("no panic"))(&seen);
    match &act {
        Act::Answer(status, headers, body) => {
            let mut answer = Response::builder().status(*status);
            for (name, value) in headers {
                answer = answer.header(*name, value);
            }
            let body = Full::new(Bytes::from(body.clone())).map_err(|never: Infallible| match never {});
            return Ok(answer.body(body.boxed_unsync())?);
        }
        Act::Hang => std::future::pending().await,
        Act::Delay(time) => tokio::time::sleep(*time).await,
        _ => {}
    }
    let (parts, body) = request.into_parts();
    let url = format!("http://{}{path}", shared.upstream);
    let up = body.into_data_stream().map(|piece| piece.map_err(Broken::from));
    let up = act_on(up, &act, true, Arc::clone(&shared));
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
    let down = act_on(down, &act, false, shared).map(|piece| piece.map(Frame::data));
    Ok(response.body(StreamBody::new(down).boxed_unsync())?)
}

/// Applies the treatment to a body, and counts its bytes.
fn act_on(
    body: impl Stream<Item = Result<Bytes, Broken>> + Send + Unpin + 'static,
    act: &Act,
    up: bool,
    shared: Arc<Shared>,
) -> impl Stream<Item = Result<Bytes, Broken>> + Send + 'static {
    let cut = match (act, up) {
        (Act::CutRequest(bytes), true) | (Act::CutAnswer(bytes), false) => Some(*bytes),
        _ => None,
    };
    let corrupt = match (act, up) {
        (Act::CorruptRequest(place), true) | (Act::CorruptAnswer(place), false) => Some(*place),
        _ => None,
    };
    let rate = if let Act::Throttle(rate) = act { Some(*rate) } else { None };
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
