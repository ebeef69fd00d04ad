//! Something that is held for as long as a call lasts: until the last byte of its answer is written or given up, or nobody wants it any
//! more.

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

/// Bytes of an answer that may wait to be written while nothing is held for them. More than these hold what the call holds: a client
/// that takes nothing must not get rid of its call by leaving the answer with us.
const UNHELD: usize = 512;
/// The most bytes of an answer that are handed over at once. Of one that is longer, the rest waits with the call, which has a deadline,
/// until the client's window takes more.
const PIECE: usize = 16 << 10;

pin_project! {
    /// A call's answer that is to come.
    #[derive(Debug)]
    pub struct HeldFuture<F, G> {
        #[pin]
        inner: F,
        guard: Option<G>,
    }
}

impl<F, G> HeldFuture<F, G> {
    /// Holds something for a call.
    pub fn new(inner: F, guard: G) -> Self {
        Self { inner, guard: Some(guard) }
    }

    /// Holds nothing.
    pub fn unheld(inner: F) -> Self {
        Self { inner, guard: None }
    }
}

impl<F, G> Future for HeldFuture<F, G>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    type Output = Result<Response<HeldBody<G>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.inner.poll(cx));
        // An answer that is there already is over.
        let guard = this.guard.take().filter(|_| !response.body().is_end_stream()).map(Guard::Alone);
        Poll::Ready(Ok(response.map(|inner| HeldBody { inner, guard, rest: Bytes::new() })))
    }
}

/// What is held, by the answer alone or by bytes of it too.
#[derive(Debug)]
enum Guard<G> {
    Alone(G),
    Shared(Arc<G>),
}

/// Bytes of an answer, and what the call holds.
struct HeldBytes<G> {
    bytes: Bytes,
    _guard: Arc<G>,
}

impl<G> AsRef<[u8]> for HeldBytes<G> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

pin_project! {
    /// The body of its answer.
    #[derive(Debug)]
    pub struct HeldBody<G> {
        #[pin]
        inner: Body,
        guard: Option<Guard<G>>,
        // What has not been handed over of the last data.
        rest: Bytes,
    }
}

/// Has these bytes hold what the call holds.
fn hold<G: Send + Sync + 'static>(bytes: Bytes, guard: &mut Option<Guard<G>>) -> Bytes {
    let shared = match guard.take() {
        Some(Guard::Alone(guard)) => Arc::new(guard),
        Some(Guard::Shared(guard)) => guard,
        None => return bytes,
    };
    *guard = Some(Guard::Shared(Arc::clone(&shared)));
    Bytes::from_owner(HeldBytes { bytes, _guard: shared })
}

impl<G: Send + Sync + 'static> HttpBody for HeldBody<G> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        if this.rest.is_empty() {
            let frame = ready!(this.inner.poll_frame(cx));
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) if data.len() > UNHELD => *this.rest = data,
                Some(Ok(Ok(data))) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Some(Ok(Err(frame))) => return Poll::Ready(Some(Ok(frame))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(hold(piece, this.guard)))))
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

    use super::{HeldFuture, PIECE, UNHELD};

    /// How often something is held once an answer of so many bytes was handed over and nobody has written them.
    async fn held_by(bytes: usize) -> usize {
        let guard = Arc::new(());
        let answer = Response::new(Body::new(Full::new(Bytes::from(vec![0; bytes]))));
        let call = HeldFuture::new(std::future::ready(Ok(answer)), Arc::clone(&guard));
        let Ok(response) = call.await;
        let mut body = response.into_body();
        let data = body.frame().await.expect("a frame").expect("data").into_data().expect("data");
        assert_eq!(data.len(), bytes.min(PIECE));
        drop(body);
        let held = Arc::strong_count(&guard) - 1;
        drop(data);
        assert_eq!(Arc::strong_count(&guard), 1, "nothing is held for what has gone");
        held
    }

    #[tokio::test]
    async fn what_waits_to_be_written_is_part_of_its_call() {
        assert_eq!(held_by(UNHELD).await, 0);
        assert_eq!(held_by(UNHELD + 1).await, 1);
    }

    #[tokio::test]
    async fn a_long_answer_comes_in_pieces_and_whole() {
        let content: Vec<u8> = (0..3 * PIECE + 7).map(|n| u8::try_from(n % 251).expect("a byte")).collect();
        assert_eq!(held_by(content.len()).await, 1);
        let answer = Response::new(Body::new(Full::new(Bytes::from(content.clone()))));
        let Ok(response) = HeldFuture::new(std::future::ready(Ok(answer)), ()).await;
        let body = response.into_body();
        assert_eq!(http_body::Body::size_hint(&body).exact(), Some(content.len() as u64));
        assert_eq!(body.collect().await.expect("it comes").to_bytes(), content);
    }
}
