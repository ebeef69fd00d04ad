//! Holds a guard for as long as a call lasts: until the last byte of its response is written, or the call is dropped.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::{Status, body::Body};

/// Unsent data up to this size in bytes does not hold the guard. Larger data holds it, because a client that reads
/// nothing must not end its call by leaving the response in the server's buffers.
const UNGUARDED: usize = 512;
/// Largest frame of a response, in bytes. The rest of a longer response stays with the call, which has a deadline,
/// until the client's flow-control window has room.
const MAX_FRAME: usize = 16 << 10;

pin_project! {
    /// Resolves to the response, whose body holds the guard.
    #[derive(Debug)]
    pub struct GuardedFuture<F, G> {
        #[pin]
        inner: F,
        guard: Option<G>,
    }
}

impl<F, G> GuardedFuture<F, G> {
    /// Holds `guard` until the call ends.
    pub fn new(inner: F, guard: G) -> Self {
        Self { inner, guard: Some(guard) }
    }

    /// Holds no guard.
    pub fn unguarded(inner: F) -> Self {
        Self { inner, guard: None }
    }
}

impl<F, G> Future for GuardedFuture<F, G>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    type Output = Result<Response<GuardedBody<G>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.inner.poll(cx));
        // A response without a body ends the call.
        let guard = this.guard.take().filter(|_| !response.body().is_end_stream()).map(Guard::Alone);
        Poll::Ready(Ok(response.map(|inner| GuardedBody { inner, guard, rest: Bytes::new() })))
    }
}

/// The guard, held by the body alone or shared with unsent data.
#[derive(Debug)]
enum Guard<G> {
    Alone(G),
    Shared(Arc<G>),
}

/// Unsent data of a response, with the guard of its call.
struct GuardedBytes<G> {
    bytes: Bytes,
    _guard: Arc<G>,
}

impl<G> AsRef<[u8]> for GuardedBytes<G> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

pin_project! {
    /// The body of a response, with the guard of its call.
    #[derive(Debug)]
    pub struct GuardedBody<G> {
        #[pin]
        inner: Body,
        guard: Option<Guard<G>>,
        // The remainder of the last data frame.
        rest: Bytes,
    }
}

/// Shares the guard with these bytes.
fn guard_bytes<G: Send + Sync + 'static>(bytes: Bytes, guard: &mut Option<Guard<G>>) -> Bytes {
    let shared = match guard.take() {
        Some(Guard::Alone(guard)) => Arc::new(guard),
        Some(Guard::Shared(guard)) => guard,
        None => return bytes,
    };
    *guard = Some(Guard::Shared(Arc::clone(&shared)));
    Bytes::from_owner(GuardedBytes { bytes, _guard: shared })
}

impl<G: Send + Sync + 'static> HttpBody for GuardedBody<G> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        if this.rest.is_empty() {
            let frame = ready!(this.inner.poll_frame(cx));
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) if data.len() > UNGUARDED => *this.rest = data,
                Some(Ok(Ok(data))) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Some(Ok(Err(frame))) => return Poll::Ready(Some(Ok(frame))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(MAX_FRAME));
        Poll::Ready(Some(Ok(Frame::data(guard_bytes(piece, this.guard)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, rest) = (self.inner.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower().saturating_add(rest));
        if let Some(upper) = inner.upper().and_then(|upper| upper.checked_add(rest)) {
            hint.set_upper(upper);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use http::Response;
    use http_body_util::{BodyExt as _, Full};
    use tonic::body::Body;

    use super::{GuardedFuture, MAX_FRAME, UNGUARDED};

    /// Returns how many clones of the guard exist after a response of this size was polled, but not written.
    async fn guards_after(bytes: usize) -> usize {
        let guard = Arc::new(());
        let response = Response::new(Body::new(Full::new(Bytes::from(vec![0; bytes]))));
        let call = GuardedFuture::new(std::future::ready(Ok(response)), Arc::clone(&guard));
        let Ok(response) = call.await;
        let mut body = response.into_body();
        let data = body.frame().await.expect("a frame").expect("data").into_data().expect("data");
        assert_eq!(data.len(), bytes.min(MAX_FRAME));
        drop(body);
        let guards = Arc::strong_count(&guard) - 1;
        drop(data);
        assert_eq!(Arc::strong_count(&guard), 1, "written data holds no guard");
        guards
    }

    #[tokio::test]
    async fn large_unsent_data_holds_the_guard() {
        assert_eq!(guards_after(UNGUARDED).await, 0);
        assert_eq!(guards_after(UNGUARDED + 1).await, 1);
    }

    #[tokio::test]
    async fn a_long_response_is_split_and_complete() {
        let content: Vec<u8> = (0..3 * MAX_FRAME + 7).map(|n| u8::try_from(n % 251).expect("a byte")).collect();
        assert_eq!(guards_after(content.len()).await, 1);
        let response = Response::new(Body::new(Full::new(Bytes::from(content.clone()))));
        let Ok(response) = GuardedFuture::new(std::future::ready(Ok(response)), ()).await;
        let body = response.into_body();
        assert_eq!(http_body::Body::size_hint(&body).exact(), Some(content.len() as u64));
        assert_eq!(body.collect().await.expect("the body").to_bytes(), content);
    }
}
