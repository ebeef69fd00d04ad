//! Drops calls whose client does not read the response.
//!
//! Hyper polls a response body only as far as the client's flow-control window allows, so a body can't end itself.
//! Dropping the task that sends the body ends the call, and resets the stream (RFC 9113, section 5.4.2).

use std::{
    cell::RefCell,
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

/// When a call is dropped, whether or not its response has been read.
#[derive(Default)]
struct DropConditions {
    at: Option<Instant>,
    when: Option<BoxFuture<'static, ()>>,
}

thread_local! {
    /// The conditions that the call on this thread has set during the current poll.
    static CONDITIONS: RefCell<DropConditions> = const { RefCell::new(DropConditions { at: None, when: None }) };
}

/// Sets the time at which the call that this thread is polling is dropped.
pub fn end_at(time: Instant) {
    CONDITIONS.with_borrow_mut(|conditions| conditions.at = Some(time));
}

/// Sets the event on which the call that this thread is polling is dropped.
pub fn end_when(event: BoxFuture<'static, ()>) {
    CONDITIONS.with_borrow_mut(|conditions| conditions.when = Some(event));
}

/// Spawns a task for each call of a connection; the task ends as set by [`end_at`] and [`end_when`].
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
        // Taken even if the call has ended: the next call on this thread must not inherit them.
        let DropConditions { at, when } = CONDITIONS.with_borrow_mut(mem::take);
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

    /// Returns the duration of a call that sets its conditions with `set` and never ends by itself.
    async fn duration(set: impl Fn(Instant) + Send + Sync + 'static) -> Duration {
        let (sender, dropped) = oneshot::channel::<()>();
        let begun = Instant::now();
        CallExecutor.execute(async move {
            poll_fn(|_| {
                set(begun);
                Poll::Ready(())
            })
            .await;
            std::future::pending::<()>().await;
            drop(sender);
        });
        assert!(dropped.await.is_err(), "nothing was sent");
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_dropped_at_the_earlier_of_its_conditions() {
        let [s2, s5, s6] = [2, 5, 6].map(Duration::from_secs);
        let lasted = duration(move |begun| end_at(begun + s5)).await;
        assert!((s5..s6).contains(&lasted), "{lasted:?}");
        let either = move |begun| {
            end_at(begun + s5);
            end_when(Box::pin(tokio::time::sleep(s2)));
        };
        let lasted = duration(either).await;
        assert!((s2..s5).contains(&lasted), "{lasted:?}");
    }
}
