//! Coalesces socket writes: responses that are ready together go out in one system call. Separate tasks answer calls
//! that were committed together, so that each response would otherwise be a write of its own.
//!
//! A connection whose client reads nothing for a while is closed, because its unsent responses use memory.

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

/// Longest time that a client may leave a write pending.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

pin_project! {
    /// A stream that, before it writes, yields once to the tasks that are ready to run, because they may add to the
    /// write.
    #[derive(Debug)]
    pub struct CoalescingStream<S> {
        #[pin]
        inner: S,
        // Whether the current batch has yielded.
        yielded: bool,
        // Runs while a write is pending.
        timeout: Option<Pin<Box<Sleep>>>,
    }
}

impl<S> CoalescingStream<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, yielded: false, timeout: None }
    }
}

/// Returns the outcome of a write, or an error once it has been pending for [`WRITE_TIMEOUT`].
fn with_timeout<T>(
    written: Poll<io::Result<T>>,
    timeout: &mut Option<Pin<Box<Sleep>>>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<T>> {
    if written.is_ready() {
        // Avoids a store in the common case.
        if timeout.is_some() {
            *timeout = None;
        }
        return written;
    }
    let timeout = timeout.get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
    timeout.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
}

/// Reschedules the writing task behind the other ready tasks, once per flush.
fn yield_once(yielded: &mut bool, cx: &Context<'_>) -> Poll<()> {
    if std::mem::replace(yielded, true) {
        return Poll::Ready(());
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

impl<S: AsyncRead> AsyncRead for CoalescingStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite> AsyncWrite for CoalescingStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.project();
        ready!(yield_once(this.yielded, cx));
        with_timeout(this.inner.poll_write(cx, bytes), this.timeout, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        ready!(yield_once(this.yielded, cx));
        with_timeout(this.inner.poll_write_vectored(cx, slices), this.timeout, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        ready!(with_timeout(this.inner.poll_flush(cx), this.timeout, cx))?;
        *this.yielded = false;
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

    use super::CoalescingStream;

    /// Records each write.
    #[derive(Debug, Clone, Default)]
    struct Recorder(Arc<Mutex<Vec<Vec<u8>>>>);

    impl AsyncWrite for Recorder {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.0.lock().expect("no panic").push(bytes.to_vec());
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

    impl AsyncRead for Recorder {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Mimics a connection: a response wakes the writing task, which writes all responses that are ready.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn responses_that_are_ready_together_are_one_write() {
        let recorder = Recorder::default();
        let (answers, mut ready) = mpsc::unbounded_channel::<u8>();
        let mut out = CoalescingStream::new(recorder.clone());
        let writer = tokio::spawn(async move {
            let mut waiting = Vec::new();
            while let Some(answer) = ready.recv().await {
                waiting.push(answer);
                std::future::poll_fn(|cx| {
                    // Responses that became ready during the yield join the write.
                    while let Ok(more) = ready.try_recv() {
                        waiting.push(more);
                    }
                    Pin::new(&mut out).poll_write(cx, &waiting)
                })
                .await
                .expect("the write succeeds");
                waiting.clear();
                out.flush().await.expect("the flush succeeds");
            }
        });
        // Each of these tasks wakes the writer, which would otherwise run before the next task.
        tokio::spawn(async move {
            for answer in 0..100 {
                let answers = answers.clone();
                tokio::spawn(async move { answers.send(answer) });
            }
        });
        writer.await.expect("the task ends");
        let writes = recorder.0.lock().expect("no panic").clone();
        assert_eq!(writes.concat().len(), 100);
        assert!(writes.len() <= 3, "{} writes", writes.len());
    }

    #[tokio::test]
    async fn every_flush_writes() {
        let recorder = Recorder::default();
        let mut out = CoalescingStream::new(recorder.clone());
        // Several writes before a flush, as for a client that reads little at a time.
        out.write_all(b"one").await.expect("the write succeeds");
        out.write_all(b"two").await.expect("the write succeeds");
        out.flush().await.expect("the flush succeeds");
        out.write_all(b"three").await.expect("the write succeeds");
        assert_eq!(*recorder.0.lock().expect("no panic"), [&b"one"[..], b"two", b"three"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_times_out() {
        let (ours, mut theirs) = tokio::io::duplex(8);
        let mut out = CoalescingStream::new(ours);
        let begun = tokio::time::Instant::now();
        let slowly = tokio::spawn(async move {
            // Progress, however slow, restarts the time-out.
            let mut taken = [0; 8];
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_secs(15)).await;
                tokio::io::AsyncReadExt::read_exact(&mut theirs, &mut taken).await.expect("data arrives");
            }
            theirs
        });
        let error = out.write_all(&[1; 64]).await.expect_err("the write times out");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= Duration::from_secs(80), "{:?}", begun.elapsed());
        drop(slowly.await.expect("the task ends"));
    }
}
