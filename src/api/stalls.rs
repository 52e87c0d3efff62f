//! Streams whose peer takes nothing of what it has asked for: each is reset, which frees what it holds.
//!
//! A transport that is blocked asks its body for nothing, so a stream that wants to end cannot say so, and lives for as long as its peer
//! likes. What hyper runs for a call is therefore a task that the connection can end; HTTP/2 tells the peer by a reset.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Stands for "the transport waits for us".
const WAITING: u64 = u64::MAX;

/// The task of a call, once it is known.
type Call = Arc<OnceLock<AbortHandle>>;

tokio::task_local! {
    static CALL: Call;
}

/// Runs each call of a connection in a task that can be ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallExecutor;

impl<F> hyper::rt::Executor<F> for CallExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, work: F) {
        let call = Call::default();
        let task = tokio::spawn(CALL.scope(Arc::clone(&call), work));
        // Set once: the call has just been made.
        let _ = call.set(task.abort_handle());
    }
}

/// A streaming answer, as its connection sees it.
#[derive(Debug)]
pub(super) struct Stream {
    born: Instant,
    /// Milliseconds after `born` at which the transport was last handed something that it has not asked beyond; or WAITING.
    handed_ms: AtomicU64,
    /// None over HTTP/1.1, where the connection is the call.
    call: Option<Call>,
}

impl Stream {
    /// Of the call that runs here.
    pub fn new() -> Self {
        let call = CALL.try_with(Arc::clone).ok();
        Self { born: Instant::now(), handed_ms: AtomicU64::new(WAITING), call }
    }

    /// The transport has been handed something.
    pub fn note_handed(&self) {
        self.handed_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// The transport has asked, and there is nothing.
    pub fn note_waiting(&self) {
        self.handed_ms.store(WAITING, Ordering::Relaxed);
    }

    /// True where the transport has taken nothing for longer than the limit, although there is something.
    pub fn is_stalled(&self, limit: Duration) -> bool {
        match self.handed_ms.load(Ordering::Relaxed) {
            WAITING => false,
            handed => Duration::from_millis(self.now_ms().saturating_sub(handed)) > limit,
        }
    }

    /// Ends the call's task, where it has one of its own.
    pub fn reset(&self) {
        if let Some(task) = self.call.as_ref().and_then(|call| call.get()) {
            task.abort();
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(WAITING - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::rt::Executor as _;

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_stalled_only_where_something_was_handed_and_nothing_asked_since() {
        let stream = Stream::new();
        let limit = Duration::from_secs(10);
        tokio::time::advance(limit * 2).await;
        assert!(!stream.is_stalled(limit), "nothing was there to take");
        stream.note_handed();
        tokio::time::advance(limit).await;
        assert!(!stream.is_stalled(limit));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(stream.is_stalled(limit));
        stream.note_waiting();
        assert!(!stream.is_stalled(limit));
    }

    #[tokio::test]
    async fn a_reset_ends_the_task_of_the_call() {
        let (tell, told) = tokio::sync::oneshot::channel();
        let (hold, held) = tokio::sync::oneshot::channel::<()>();
        CallExecutor.execute(async move {
            let _ = tell.send(Stream::new());
            std::future::pending::<()>().await;
            drop(hold);
        });
        told.await.unwrap().reset();
        assert!(held.await.is_err(), "what the call held is gone");
    }
}
