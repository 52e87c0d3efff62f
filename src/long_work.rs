//! Work that takes the processor for long (costly filters, large documents, enrichment), beside the threads that everybody else's work
//! runs on.
//!
//! A few pieces run at a time, and one of each tenant: whoever asks for much waits for itself, and the next tenant finds a free place
//! after at most one piece of every other one. A piece that nobody waits for any more keeps its place until it ends.

use crate::domain::ids::TenantId;
use dashmap::DashMap;
use std::num::NonZero;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a piece of work may take where others wait for the thread; what is left of it then is long work.
pub const TURN: Duration = Duration::from_millis(2);
/// Data of more bytes is long work from the start.
pub const LARGE_BYTES: usize = 32 * 1024;

static PLACES: LazyLock<Places> = LazyLock::new(|| {
    // As many as there are processors, and never so few that one tenant has them all.
    let pieces = std::thread::available_parallelism().map_or(1, NonZero::get).max(2);
    Places { all: Arc::new(Semaphore::new(pieces)), of: Arc::default() }
});

struct Places {
    all: Arc<Semaphore>,
    of: Arc<DashMap<TenantId, Arc<Semaphore>>>,
}

/// The places of one piece, from when it waits for them until it ends.
struct Held {
    tenant: TenantId,
    queue: Option<Arc<Semaphore>>,
    own: Option<OwnedSemaphorePermit>,
    one_of_all: Option<OwnedSemaphorePermit>,
}

impl Drop for Held {
    fn drop(&mut self) {
        (self.queue, self.own, self.one_of_all) = (None, None, None);
        PLACES.of.remove_if(&self.tenant, |_, own| Arc::strong_count(own) == 1);
    }
}

/// Runs a piece of a tenant's work once it has its places. None where it panics, or the process ends.
pub async fn run<T: Send + 'static>(tenant: TenantId, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let queue = PLACES.of.entry(tenant).or_insert_with(|| Arc::new(Semaphore::new(1))).clone();
    let mut held = Held { tenant, queue: Some(queue.clone()), own: None, one_of_all: None };
    held.own = Some(queue.acquire_owned().await.ok()?);
    held.one_of_all = Some(PLACES.all.clone().acquire_owned().await.ok()?);
    let piece = move || {
        let done = work();
        drop(held);
        done
    };
    tokio::task::spawn_blocking(piece).await.ok()
}

/// As [`run`] for work on data of so many bytes; what is small is done at once.
pub async fn on<T: Send + 'static>(
    tenant: TenantId,
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    if bytes > LARGE_BYTES { run(tenant, work).await } else { Some(work()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use uuid::Uuid;

    #[tokio::test]
    async fn a_tenant_that_asks_for_much_leaves_a_place_to_others() {
        let (busy, other) = (TenantId(Uuid::from_u128(1)), TenantId(Uuid::from_u128(2)));
        let (go, wait) = mpsc::channel::<()>();
        let first = tokio::spawn(run(busy, move || wait.recv().is_ok()));
        let second = tokio::spawn(run(busy, || true));
        // Whatever the busy one has begun, another tenant's work is done.
        assert_eq!(run(other, || 7).await, Some(7));
        assert!(!second.is_finished(), "it waits for the first one of its tenant");
        go.send(()).expect("the first one waits");
        assert_eq!((first.await.expect("no panic"), second.await.expect("no panic")), (Some(true), Some(true)));
        assert_eq!(on(busy, 1, || 1).await, Some(1));
    }

    #[tokio::test]
    async fn work_that_panics_gives_its_places_back() {
        let tenant = TenantId(Uuid::from_u128(3));
        assert_eq!(run(tenant, || panic!("on purpose")).await, None::<()>);
        assert_eq!(run(tenant, || 1).await, Some(1));
    }
}
