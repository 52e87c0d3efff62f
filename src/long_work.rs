//! Work that takes the processor for long (costly filters, large documents, enrichment), beside the threads that everybody else's work
//! runs on.
//!
//! A few pieces run at a time, and one of each tenant: whoever asks for much waits for itself, and the next tenant finds a free place
//! after at most one piece of every other one. A piece that nobody waits for any more keeps its place until it ends.

use crate::domain::ids::TenantId;
use dashmap::DashMap;
use std::num::NonZero;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a piece of work may take where others wait for the thread; what is left of it then is long work.
pub const TURN: Duration = Duration::from_millis(2);
/// How long a piece of work goes on that can be left and taken up again.
const PIECE: Duration = Duration::from_millis(20);
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

/// A tenant's own place, from when it waits for it until it is given back.
struct Own {
    tenant: TenantId,
    queue: Option<Arc<Semaphore>>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Own {
    /// None where the process ends.
    async fn of(tenant: TenantId) -> Option<Self> {
        let queue = PLACES.of.entry(tenant).or_insert_with(|| Arc::new(Semaphore::new(1))).clone();
        let mut own = Self { tenant, queue: Some(queue.clone()), permit: None };
        own.permit = Some(queue.acquire_owned().await.ok()?);
        Some(own)
    }

    /// Runs a piece once there is a place among all, which is given back before its tenant's own.
    async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> Option<(Self, T)> {
        let one_of_all = PLACES.all.clone().acquire_owned().await.ok()?;
        let piece = move || {
            let done = work();
            drop(one_of_all);
            (self, done)
        };
        tokio::task::spawn_blocking(piece).await.ok()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        (self.queue, self.permit) = (None, None);
        PLACES.of.remove_if(&self.tenant, |_, own| Arc::strong_count(own) == 1);
    }
}

/// Runs a piece of a tenant's work once it has its places. None where it panics, or the process ends.
pub async fn run<T: Send + 'static>(tenant: TenantId, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    Own::of(tenant).await?.run(work).await.map(|(_, done)| done)
}

/// As [`run`] for work on data of so many bytes; what is small is done at once.
pub async fn on<T: Send + 'static>(
    tenant: TenantId,
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    if bytes > LARGE_BYTES { run(tenant, work).await } else { Some(work()) }
}

/// Runs a tenant's work piece by piece: between two pieces whoever waits for a place has its turn, and after the one that runs there is no
/// other where nobody waits for the work any more. A piece does at least something, goes on until the time that it is told, and says whether
/// all is done. None as of [`run`].
pub async fn in_pieces<T: Send + 'static>(
    tenant: TenantId,
    mut work: T,
    mut piece: impl FnMut(&mut T, Instant) -> bool + Send + 'static,
) -> Option<T> {
    let mut done = false;
    while !done {
        let next = move || {
            let done = piece(&mut work, Instant::now() + PIECE);
            (work, piece, done)
        };
        (work, piece, done) = run(tenant, next).await?;
    }
    Some(work)
}

/// As [`in_pieces`], but others of the same tenant wait until all is done: of work that is begun one after the other, each ends as soon as
/// it can.
pub async fn in_order<T: Send + 'static>(
    tenant: TenantId,
    mut work: T,
    mut piece: impl FnMut(&mut T, Instant) -> bool + Send + 'static,
) -> Option<T> {
    let mut own = Own::of(tenant).await?;
    loop {
        let next = move || {
            let done = piece(&mut work, Instant::now() + PIECE);
            (work, piece, done)
        };
        let (kept, (rest, again, done)) = own.run(next).await?;
        if done {
            return Some(rest);
        }
        (own, work, piece) = (kept, rest, again);
    }
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
    async fn work_that_nobody_waits_for_any_more_ends_with_its_piece() {
        let tenant = TenantId(Uuid::from_u128(4));
        let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let (go, wait) = mpsc::channel::<()>();
        let pieces = in_pieces(tenant, 0, move |count, _| {
            *count += 1;
            begun.send(*count).is_err() || wait.recv().is_err()
        });
        let waiting = tokio::spawn(pieces);
        assert_eq!(begins.recv().await, Some(1));
        go.send(()).expect("it waits");
        assert_eq!(begins.recv().await, Some(2), "it was not done");
        waiting.abort();
        assert!(waiting.await.expect_err("it was given up").is_cancelled());
        go.send(()).expect("the piece that runs goes on");
        assert_eq!(run(tenant, || 1).await, Some(1));
        assert_eq!(begins.recv().await, None, "there was another piece");
    }

    #[tokio::test]
    async fn work_in_order_is_done_before_others_of_its_tenant_and_leaves_other_tenants_their_turn() {
        let (tenant, other) = (TenantId(Uuid::from_u128(6)), TenantId(Uuid::from_u128(7)));
        let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let (go, wait) = mpsc::channel::<()>();
        let ordered = tokio::spawn(in_order(tenant, 0, move |count, _| {
            *count += 1;
            begun.send(*count).is_err() || wait.recv().is_err() || *count == 2
        }));
        assert_eq!(begins.recv().await, Some(1));
        let behind = tokio::spawn(run(tenant, || true));
        go.send(()).expect("it waits");
        assert_eq!(begins.recv().await, Some(2));
        assert!(!behind.is_finished(), "it waits for all of the first");
        assert_eq!(run(other, || 7).await, Some(7));
        go.send(()).expect("it waits");
        assert_eq!((ordered.await.expect("no panic"), behind.await.expect("no panic")), (Some(2), Some(true)));
    }

    #[tokio::test]
    async fn work_in_pieces_leaves_others_of_its_tenant_their_turn() {
        let tenant = TenantId(Uuid::from_u128(5));
        let (done, mut last) = tokio::sync::oneshot::channel();
        let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let endless = tokio::spawn(in_pieces(tenant, (), move |(), _| {
            let _ = begun.send(());
            last.try_recv().is_ok()
        }));
        assert_eq!(begins.recv().await, Some(()));
        assert_eq!(run(tenant, || done.send(())).await, Some(Ok(())));
        assert_eq!(endless.await.expect("no panic"), Some(()));
    }

    #[tokio::test]
    async fn work_that_panics_gives_its_places_back() {
        let tenant = TenantId(Uuid::from_u128(3));
        assert_eq!(run(tenant, || panic!("on purpose")).await, None::<()>);
        assert_eq!(run(tenant, || 1).await, Some(1));
    }
}
