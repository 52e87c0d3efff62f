//! The pool of connections, with an end to every wait: a Postgres that has vanished without a word answers nothing and closes
//! nothing, so whoever waits for it must give up by itself.
//!
//! A wait that reaches its end casts doubt on every connection that was in use or idle by then: each is closed instead of being
//! used again, since its other end may be gone as well. What happened to the statement is unknown, as with a broken connection.

use crate::domain::ids::TenantId;
use crate::turnstile::{Pass, Turnstile};
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _, future::BoxFuture};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Describe, Either, Execute, Executor, PgConnection, PgPool, Postgres, SqlStr,
};
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// When a wait last reached its end.
#[derive(Debug, Clone, Default)]
pub(in crate::store) struct Doubt(Arc<Mutex<Option<Instant>>>);

impl Doubt {
    fn cast(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// True where a wait has ended without an answer since this time.
    pub(in crate::store) fn since(&self, time: Instant) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|cast| cast >= time)
    }
}

/// Between two looks at whether a connection is still waited for, which has a bound of its own.
const WAITS_ON: Duration = Duration::from_millis(100);

tokio::task_local! {
    /// What the work of a [`Pool::within`] waits for connections.
    static WAITED: Arc<Waited>;
}

#[derive(Default)]
struct Waited {
    micros: AtomicU64,
    /// How many waits there are at this moment.
    now: AtomicUsize,
}

/// Waits, and leaves that out of what Postgres is given.
async fn waiting<T>(wait: impl Future<Output = T>) -> T {
    let _waiting = Waiting::begin();
    Box::pin(wait).await
}

/// A wait that ends when this is dropped.
struct Waiting {
    of: Arc<Waited>,
    begun: Instant,
}

impl Waiting {
    fn begin() -> Self {
        let of = WAITED.try_with(Arc::clone).unwrap_or_default();
        of.now.fetch_add(1, Ordering::Relaxed);
        Self { of, begun: Instant::now() }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let micros = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.of.micros.fetch_add(micros, Ordering::Relaxed);
        self.of.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Connections to Postgres. Cheap to clone. Statements run on it directly, or on a [`Lease`] or a [`Tx`] of it.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: PgPool,
    answer_max: Duration,
    doubt: Doubt,
    /// What tenants' calls may have of the connections. The rest is for what the service does: commits, deliveries, leases.
    turns: Turnstile,
}

impl Pool {
    /// Bounds the waits of a pool. `doubt` is what its `before_acquire` asks.
    pub(in crate::store) fn new(inner: PgPool, answer_max: Duration, doubt: Doubt) -> Self {
        let connections = connections_max(&inner);
        Self { inner, answer_max, doubt, turns: Turnstile::new(connections - (connections / 4).max(1)) }
    }

    /// Connections that there may be.
    pub(in crate::store) fn connections_max(&self) -> usize {
        connections_max(&self.inner)
    }

    /// Runs work on the database to its end, or to the end of patience.
    ///
    /// Errors: those of the work, and [`StoreError::Unavailable`](super::StoreError) where there was no answer in time.
    pub(in crate::store) async fn within<T, E, F>(&self, work: F) -> Result<T, E>
    where
        E: From<sqlx::Error>,
        F: Future<Output = Result<T, E>>,
    {
        let (waited, begun) = (Arc::<Waited>::default(), tokio::time::Instant::now());
        // Lives until the doubt is cast: what the work holds is given up only then, and so is closed.
        let mut work = Box::pin(WAITED.scope(waited.clone(), work));
        loop {
            // What was waited for a connection is nothing that Postgres owes an answer for.
            let end = || begun + self.answer_max + Duration::from_micros(waited.micros.load(Ordering::Relaxed));
            let at =
                if waited.now.load(Ordering::Relaxed) > 0 { tokio::time::Instant::now() + WAITS_ON } else { end() };
            tokio::select! {
                biased;
                result = &mut work => return result,
                () = tokio::time::sleep_until(at) => {
                    if waited.now.load(Ordering::Relaxed) > 0 || at < end() {
                        continue;
                    }
                    self.doubt.cast();
                    return Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")).into());
                }
            }
        }
    }

    /// A connection for several statements. Whoever takes one bounds what it does by [`Pool::within`].
    pub(in crate::store) async fn acquire(&self) -> Result<Lease, sqlx::Error> {
        // The pool bounds this wait by itself.
        let connection = Some(waiting(self.inner.acquire()).await?);
        Ok(Lease { connection, pool: self.clone(), taken_at: Instant::now(), in_transaction: false, pass: None })
    }

    /// As [`Pool::acquire`], when it is the tenant's turn, where it has to be anybody's.
    ///
    /// Errors: [`io::ErrorKind::QuotaExceeded`] where the tenant's other work has kept it waiting for too long.
    pub(in crate::store) async fn acquire_for(&self, turn: Option<TenantId>) -> Result<Lease, sqlx::Error> {
        let mut pass = None;
        if let Some(tenant) = turn {
            let patience = self.inner.options().get_acquire_timeout();
            let Ok(entered) = waiting(tokio::time::timeout(patience, self.turns.enter(tenant))).await else {
                let crowded = "the tenant's other work has all the connections that it may have";
                return Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::QuotaExceeded, crowded)));
            };
            pass = Some(entered);
        }
        let mut lease = self.acquire().await?;
        lease.pass = pass;
        Ok(lease)
    }

    /// Begins a transaction of the service itself with the statements of `opening`. Whoever begins one bounds what it does by [`Pool::within`].
    pub(in crate::store) async fn begin(&self, opening: String) -> Result<Tx, sqlx::Error> {
        self.acquire().await?.begin(opening).await
    }

    /// Begins a transaction of a tenant, when it is its turn. Whoever begins one bounds what it does by [`Pool::within`].
    pub(in crate::store) async fn begin_for(&self, turn: Option<TenantId>, opening: String) -> Result<Tx, sqlx::Error> {
        self.acquire_for(turn).await?.begin(opening).await
    }

    /// Opens every connection from now on with a setting more. The only one so far, on which its value was found, goes.
    pub(in crate::store) async fn keep(&self, mut first: Lease, setting: &str, value: &str) {
        self.inner.set_connect_options(PgConnectOptions::clone(&self.options()).options([(setting, value)]));
        if let Some(first) = first.connection.take() {
            // A server that does not take the farewell has lost nothing.
            drop(first.close().await);
        }
    }

    /// A connection beside the pool, with a setting of its own.
    pub(in crate::store) async fn connect(&self, setting: &str, value: &str) -> Result<PgConnection, sqlx::Error> {
        PgConnectOptions::clone(&self.options()).options([(setting, value)]).connect().await
    }

    pub(in crate::store) fn options(&self) -> Arc<PgConnectOptions> {
        self.inner.connect_options()
    }

    /// Connections: (open, idle).
    pub(in crate::store) fn connections(&self) -> (u32, usize) {
        (self.inner.size(), self.inner.num_idle())
    }

    /// Takes all that a tenant's calls may have of the connections now, until it is dropped.
    #[cfg(test)]
    pub(in crate::store) fn crowd(&self, tenant: TenantId) -> Vec<Pass> {
        use futures::FutureExt as _;
        std::iter::from_fn(|| self.turns.enter(tenant).now_or_never()).collect()
    }

    pub(in crate::store) async fn close(&self) {
        self.inner.close().await;
    }
}

fn connections_max(pool: &PgPool) -> usize {
    usize::try_from(pool.options().get_max_connections()).unwrap_or(usize::MAX)
}

/// A connection of the pool, given back when it is dropped.
pub(in crate::store) struct Lease {
    connection: Option<PoolConnection<Postgres>>,
    pool: Pool,
    taken_at: Instant,
    in_transaction: bool,
    /// The tenant's place; given on once the connection is back.
    pass: Option<Pass>,
}

impl Lease {
    async fn begin(mut self, opening: String) -> Result<Tx, sqlx::Error> {
        // Noted first: a begin that is dropped halfway is rolled back.
        self.in_transaction = true;
        self.execute(AssertSqlSafe(opening)).await?;
        Ok(Tx { lease: self })
    }
}

const TAKEN: &str = "a lease holds its connection until it is dropped";

impl Deref for Lease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.connection.as_ref().expect(TAKEN)
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect(TAKEN)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !self.pool.doubt.since(self.taken_at) => {
                let (pass, back) = (self.pass.take(), give_back(connection, self.in_transaction, self.pool.answer_max));
                runtime.spawn(async move {
                    back.await;
                    drop(pass);
                });
            }
            // Closed at once: Postgres ends what it still does with it when it next looks.
            _ => drop(connection.detach()),
        }
    }
}

/// Rolls back what is open, makes sure of the connection and puts it back; closes it where that takes too long.
async fn give_back(mut connection: PoolConnection<Postgres>, in_transaction: bool, answer_max: Duration) {
    if in_transaction {
        let rolled_back = tokio::time::timeout(answer_max, connection.execute("ROLLBACK")).await;
        if !rolled_back.is_ok_and(|result| result.is_ok()) {
            drop(connection.detach());
            return;
        }
    }
    // Dropped in the middle, it closes the connection and frees its place in the pool.
    let back = connection.return_to_pool();
    let _ = tokio::time::timeout(answer_max, back).await;
}

/// A transaction: rolled back unless it is committed.
pub(in crate::store) struct Tx {
    lease: Lease,
}

impl Tx {
    pub(in crate::store) async fn commit(mut self) -> Result<(), sqlx::Error> {
        // Noted first: what came before was read to its end, so this is on its way at once, and the transaction is over whether or not
        // somebody still waits for the answer. To roll it back then would be a warning in the logs of both sides.
        self.lease.in_transaction = false;
        self.lease.execute("COMMIT").await?;
        Ok(())
    }

    pub(in crate::store) async fn rollback(mut self) -> Result<(), sqlx::Error> {
        self.lease.execute("ROLLBACK").await?;
        self.lease.in_transaction = false;
        Ok(())
    }
}

impl Deref for Tx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.lease
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.lease
    }
}

/// Single statements, each bounded. Rows are gathered before the first is handed out: every list has a limit.
impl<'p> Executor<'p> for &'_ Pool {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let pool = self.clone();
        let gather = async move {
            let mut lease = pool.acquire().await?;
            pool.within(async { lease.fetch_many(query).try_collect::<Vec<_>>().await }).await
        };
        stream::once(gather).map_ok(|rows| stream::iter(rows).map(Ok)).try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let pool = self.clone();
        Box::pin(async move {
            let mut lease = pool.acquire().await?;
            pool.within(async { lease.fetch_optional(query).await }).await
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'p: 'e,
    {
        let pool = self.clone();
        Box::pin(async move {
            let mut lease = pool.acquire().await?;
            pool.within(async { lease.prepare_with(sql, parameters).await }).await
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'p: 'e,
    {
        let pool = self.clone();
        Box::pin(async move {
            let mut lease = pool.acquire().await?;
            pool.within(async { lease.describe(sql).await }).await
        })
    }
}

/// Single statements of a tenant, each in a transaction of its own that begins as it is told, and each bounded as those of a [`Pool`].
#[derive(Debug)]
pub(in crate::store) struct Within {
    pool: Pool,
    /// Whose turn it has to be.
    turn: Option<TenantId>,
    opening: String,
}

impl Within {
    pub(in crate::store) fn new(pool: Pool, turn: Option<TenantId>, opening: String) -> Self {
        Self { pool, turn, opening }
    }
}

impl<'p> Executor<'p> for Within {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let gather = async move {
            let lease = self.pool.acquire_for(self.turn).await?;
            let whole = async {
                let mut tx = lease.begin(self.opening).await?;
                let rows = tx.fetch_many(query).try_collect::<Vec<_>>().await?;
                tx.commit().await?;
                Ok::<_, sqlx::Error>(rows)
            };
            self.pool.within(whole).await
        };
        stream::once(gather).map_ok(|rows| stream::iter(rows).map(Ok)).try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let lease = self.pool.acquire_for(self.turn).await?;
            let whole = async {
                let mut tx = lease.begin(self.opening).await?;
                let row = tx.fetch_optional(query).await?;
                tx.commit().await?;
                Ok::<_, sqlx::Error>(row)
            };
            self.pool.within(whole).await
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'p: 'e,
    {
        // Reads no row, so it needs no tenant.
        self.pool.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'p: 'e,
    {
        self.pool.describe(sql)
    }
}
