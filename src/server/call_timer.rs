//! Ends calls whose clients take nothing. Hyper asks for no more of an answer than the client's window allows, so that nothing in an
//! answer can end it; but dropping the task that sends it does, and resets the stream (RFC 9113, section 5.4.2).

use std::{
    cell::RefCell,
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

/// When a call has to end, whether its client has taken the answer or not.
#[derive(Default)]
struct Ends {
    at: Option<Instant>,
    when: Option<BoxFuture<'static, ()>>,
}

thread_local! {
    /// What the call that is being polled on this thread has said.
    static ENDS: RefCell<Ends> = const { RefCell::new(Ends { at: None, when: None }) };
}

/// Has the call that is being polled end at this time.
pub fn end_at(time: Instant) {
    ENDS.with_borrow_mut(|ends| ends.at = Some(time));
}

/// Has the call that is being polled end when this has happened.
pub fn end_when(happened: BoxFuture<'static, ()>) {
    ENDS.with_borrow_mut(|ends| ends.when = Some(happened));
}

/// Runs the calls of a connection, each a task that ends when [`end_at`] and [`end_when`] say so.
#[derive(Debug, Clone, Copy)]
pub struct CallExecutor;

impl<F> hyper::rt::Executor<F> for CallExecutor
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, call: F) {
        tokio::spawn(TimedCall { call, at: None, when: None });
    }
}

pin_project! {
    struct TimedCall<F> {
        #[pin]
        call: F,
        #[pin]
        at: Option<Sleep>,
        when: Option<BoxFuture<'static, ()>>,
    }
}

impl<F: Future> Future for TimedCall<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let ended = this.call.poll(cx).is_ready();
        // Whatever was said is taken along, so that the next call on this thread does not find it.
        let Ends { at, when } = ENDS.with_borrow_mut(mem::take);
        if ended {
            return Poll::Ready(());
        }
        if let Some(time) = at {
            this.at.set(Some(sleep_until(time)));
        }
        if when.is_some() {
            *this.when = when;
        }
        if this.when.as_mut().is_some_and(|when| when.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(());
        }
        this.at.as_pin_mut().map_or(Poll::Pending, |at| at.poll(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Poll, time::Duration};

    use hyper::rt::Executor as _;
    use tokio::{sync::oneshot, time::Instant};

    use super::{CallExecutor, end_at, end_when};

    /// How long a call lasts that waits for ever, and has said this.
    async fn lasts(say: impl Fn(Instant) + Send + Sync + 'static) -> Duration {
        let (held, dropped) = oneshot::channel::<()>();
        let begun = Instant::now();
        CallExecutor.execute(async move {
            poll_fn(|_| {
                say(begun);
                Poll::Ready(())
            })
            .await;
            std::future::pending::<()>().await;
            drop(held);
        });
        assert!(dropped.await.is_err(), "nothing was sent");
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_waits_for_ever_is_dropped_at_its_end() {
        let [s2, s5, s6] = [2, 5, 6].map(Duration::from_secs);
        let lasted = lasts(move |begun| end_at(begun + s5)).await;
        assert!((s5..s6).contains(&lasted), "{lasted:?}");
        let either = move |begun| {
            end_at(begun + s5);
            end_when(Box::pin(tokio::time::sleep(s2)));
        };
        let lasted = lasts(either).await;
        assert!((s2..s5).contains(&lasted), "{lasted:?}");
    }
}
