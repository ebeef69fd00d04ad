//! Answers that are ready at the same time leave together. Calls that were committed together are answered one after the other, each
//! by a task of its own; without this, each answer would be a write to the socket by itself.
//!
//! A client that takes nothing for a while is given up: what waits for it takes memory.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// How long a client may take nothing of what is there for it.
const STALLED: Duration = Duration::from_secs(20);

pin_project! {
    /// A connection whose writes wait until the tasks that are ready to run have run once.
    #[derive(Debug)]
    pub struct Gather<S> {
        #[pin]
        inner: S,
        // Whether what is being written has waited.
        waited: bool,
        // When a client is given up that takes nothing.
        stalled: Option<Pin<Box<Sleep>>>,
    }
}

impl<S> Gather<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, waited: false, stalled: None }
    }
}

/// What came of a write, unless it has not moved for too long.
fn in_time<T>(
    written: Poll<io::Result<T>>,
    stalled: &mut Option<Pin<Box<Sleep>>>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<T>> {
    if written.is_ready() {
        // As a rule nothing has stalled, and nothing is to be done.
        if stalled.is_some() {
            *stalled = None;
        }
        return written;
    }
    let stalled = stalled.get_or_insert_with(|| Box::pin(sleep(STALLED)));
    stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
}

/// Has the task that writes queue behind the others that are ready, once for everything up to the next flush.
fn wait(waited: &mut bool, cx: &Context<'_>) -> Poll<()> {
    if std::mem::replace(waited, true) {
        return Poll::Ready(());
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

impl<S: AsyncRead> AsyncRead for Gather<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite> AsyncWrite for Gather<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.project();
        ready!(wait(this.waited, cx));
        in_time(this.inner.poll_write(cx, bytes), this.stalled, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        ready!(wait(this.waited, cx));
        in_time(this.inner.poll_write_vectored(cx, slices), this.stalled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        ready!(in_time(this.inner.poll_flush(cx), this.stalled, cx))?;
        *this.waited = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, IoSlice},
        pin::Pin,
        sync::{Arc, Mutex},
        task::{Context, Poll},
        time::Duration,
    };

    use tokio::{
        io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
        sync::mpsc,
    };

    use super::Gather;

    /// Takes whatever is written, and keeps each write.
    #[derive(Debug, Clone, Default)]
    struct Taken(Arc<Mutex<Vec<Vec<u8>>>>);

    impl AsyncWrite for Taken {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.0.lock().expect("nobody panicked").push(bytes.to_vec());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let whole: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            self.poll_write(cx, &whole)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncRead for Taken {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// As a connection does it: an answer wakes the task that writes, which takes what is there and writes until nothing is left.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn answers_that_are_ready_together_are_one_write() {
        let taken = Taken::default();
        let (answers, mut ready) = mpsc::unbounded_channel::<u8>();
        let mut out = Gather::new(taken.clone());
        let writer = tokio::spawn(async move {
            let mut waiting = Vec::new();
            while let Some(answer) = ready.recv().await {
                waiting.push(answer);
                std::future::poll_fn(|cx| {
                    // What has come while the write had to wait goes along.
                    while let Ok(more) = ready.try_recv() {
                        waiting.push(more);
                    }
                    Pin::new(&mut out).poll_write(cx, &waiting)
                })
                .await
                .expect("it is taken");
                waiting.clear();
                out.flush().await.expect("nothing is left");
            }
        });
        // Each of these wakes the writer, which would run before the next one.
        tokio::spawn(async move {
            for answer in 0..100 {
                let answers = answers.clone();
                tokio::spawn(async move { answers.send(answer) });
            }
        });
        writer.await.expect("it ends");
        let writes = taken.0.lock().expect("nobody panicked").clone();
        assert_eq!(writes.concat().len(), 100);
        assert!(writes.len() <= 3, "{} writes", writes.len());
    }

    #[tokio::test]
    async fn nothing_waits_for_long() {
        let taken = Taken::default();
        let mut out = Gather::new(taken.clone());
        // One part after the other, as where the other side takes little at a time.
        out.write_all(b"one").await.expect("it is taken");
        out.write_all(b"two").await.expect("it is taken");
        out.flush().await.expect("nothing is left");
        out.write_all(b"three").await.expect("it is taken");
        assert_eq!(*taken.0.lock().expect("nobody panicked"), [&b"one"[..], b"two", b"three"]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_given_up() {
        let (ours, mut theirs) = tokio::io::duplex(8);
        let mut out = Gather::new(ours);
        let begun = tokio::time::Instant::now();
        let slowly = tokio::spawn(async move {
            // One that takes a little now and then is not.
            let mut taken = [0; 8];
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_secs(15)).await;
                tokio::io::AsyncReadExt::read_exact(&mut theirs, &mut taken).await.expect("it comes");
            }
            theirs
        });
        let error = out.write_all(&[1; 64]).await.expect_err("it is given up at last");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= Duration::from_secs(80), "{:?}", begun.elapsed());
        drop(slowly.await.expect("it ends"));
    }
}
