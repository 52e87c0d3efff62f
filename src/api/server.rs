//! The accept loop of every port: TLS, limits of time and number, HTTP, and a drain that always ends.
//!
//! Written by ourselves because the ready-made ones wait for ever: for silent peers, for open streams, for a handshake.

use super::answers::{Answers, Stalled};
use super::config::Config;
use super::connections::{Connections, Slot};
use super::frames::Metered;
use super::in_flight::Sharer;
use super::stalls::CallExecutor;
use super::tls::{Tls, peer_identity};
use crate::clock;
use futures::FutureExt as _;
use futures::future::OptionFuture;
use http::{Request, Response, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls_pki_types::CertificateDer;
use socket2::SockRef;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

/// Which versions of HTTP a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/2 alone: gRPC.
    Two,
    /// HTTP/1.1 too: browsers, probes.
    Both,
}

/// What answers a port's requests.
pub type Routes = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// Pause after a failed accept: out of file descriptors, mostly, which passes when something closes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often a connection is looked at within the shorter of its limits.
const LOOKS_PER_LIMIT: u32 = 4;
/// A stream may stall for so many times as long as an answer.
const STREAM_ANSWERS: u32 = 2;
/// How long before the cut streams are told to end.
const STREAMS_END_BEFORE_CUT: Duration = Duration::from_secs(1);
/// Calls of a connection that break HTTP/2 so that the server has to reset them, over its whole life. Each has begun, and costs what a
/// call costs.
const BROKEN_CALLS_MAX: usize = 64;
/// Bytes that may wait in the kernel until a connection's peer has room for them. What a slow reader leaves there is memory that others
/// need, and answers to pings are read only after it; what is on its way comes on top, so this slows nobody down.
const UNSENT_BYTES_MAX: u32 = 128 * 1024;
/// How long a connection that ends may take to say goodbye, and how often one that leaves is asked whether its calls are over.
const GOODBYE: Duration = Duration::from_secs(1);

/// Why a port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("setting server.{key}: {address} cannot be listened on")]
pub struct ListenError {
    /// The setting.
    pub key: &'static str,
    /// The address.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Opens a port's socket.
pub async fn listen(key: &'static str, address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError { key, address, source })
}

/// A port to serve.
#[derive(Debug)]
pub struct Port {
    /// Name in logs.
    pub name: &'static str,
    /// The open socket.
    pub listener: TcpListener,
    /// TLS; none for plain text.
    pub tls: Option<Arc<Tls>>,
    /// Its versions of HTTP.
    pub speaks: Speaks,
    /// What answers.
    pub routes: Routes,
    /// Its connections.
    pub connections: Arc<Connections>,
}

/// The ports that serve, and how they stop.
#[derive(Debug, Clone)]
pub struct Server {
    limits: Arc<Limits>,
    tasks: TaskTracker,
    /// Stop accepting; finish what is open.
    drain: CancellationToken,
    /// Streams that are still open have to end.
    streams_end: CancellationToken,
    /// Close every connection.
    cut: CancellationToken,
}

#[derive(Debug)]
struct Limits {
    handshake: Duration,
    first_request: Duration,
    idle: Duration,
    answer: Duration,
    keepalive: Duration,
    streams_per_connection: u32,
    header_list_bytes_max: u32,
    header_count_max: usize,
    control_frames_burst: u32,
}

/// Takes over a connection that leaves HTTP for another protocol; in the extensions of requests that ask for it.
///
/// The work counts as a connection of the port, of one that is known, and as a task of the server, and gives way to the same cut.
#[derive(Debug, Clone)]
pub struct Upgrades {
    tasks: TaskTracker,
    cut: CancellationToken,
    slot: Arc<Slot>,
}

impl Upgrades {
    /// Runs what goes on over the connection of a peer that has shown a good credential of this holder.
    pub fn spawn(&self, holder: Sharer, work: impl Future<Output = ()> + Send + 'static) {
        let Self { tasks, cut, slot } = self.clone();
        slot.prove(holder);
        let call = slot.open_call();
        tasks.spawn(async move {
            // Dropped at any point, the work closes the socket, which is what is wanted.
            tokio::select! {
                () = cut.cancelled() => {}
                // One that was told to leave before this call had come by it, or while it was being answered, keeps what has crossed its
                // goodbye, as other calls do.
                () = slot.evicted() => {}
                () = work => {}
            }
            drop((call, slot));
        });
    }
}

/// The address of the peer, in every request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddress(pub SocketAddr);

/// Who is at the other end of a connection.
struct Peer {
    address: SocketAddr,
    /// The port's TLS and the certificates that the peer has shown.
    tls: Option<(Arc<Tls>, Vec<CertificateDer<'static>>)>,
}

impl Peer {
    /// Ready when the peer's certificate stops being accepted: its authority is gone, it was revoked, or one of the two has expired.
    async fn refused(&self) {
        if let Some((tls, chain)) = &self.tls
            && !chain.is_empty()
        {
            let mut changes = tls.changes();
            // What changed during the handshake was not seen by it.
            changes.mark_changed();
            loop {
                let now = clock::now();
                // Asked anew after each wait: clocks are set now and then.
                let expired = tls.next_end(chain, now).map(|end| sleep((end - now).to_std().unwrap_or_default()));
                tokio::select! {
                    Ok(()) = changes.changed() => {}
                    Some(()) = OptionFuture::from(expired) => {}
                    else => break,
                }
                if !tls.still_accepts(chain, clock::now()) {
                    return;
                }
            }
        }
        std::future::pending::<()>().await;
    }
}

impl Server {
    /// Takes the bounds.
    pub fn new(config: &Config) -> Self {
        let limits = Limits {
            handshake: Duration::from_millis(config.handshake_timeout_ms),
            first_request: Duration::from_millis(config.first_byte_timeout_ms),
            idle: Duration::from_millis(config.idle_timeout_ms),
            answer: Duration::from_millis(config.answer_timeout_ms),
            keepalive: Duration::from_millis(config.keepalive_ms),
            streams_per_connection: config.streams_per_connection,
            header_list_bytes_max: config.header_list_bytes_max,
            header_count_max: config.header_count_max,
            control_frames_burst: config.control_frames_burst,
        };
        Self {
            limits: Arc::new(limits),
            tasks: TaskTracker::new(),
            drain: CancellationToken::new(),
            streams_end: CancellationToken::new(),
            cut: CancellationToken::new(),
        }
    }

    /// Cancelled when the server begins to drain.
    pub fn draining(&self) -> CancellationToken {
        self.drain.clone()
    }

    /// Cancelled when streams that did not end by themselves have to.
    pub fn streams_end(&self) -> CancellationToken {
        self.streams_end.clone()
    }

    /// Starts to accept on a port.
    pub fn serve(&self, port: Port) {
        self.tasks.spawn(self.clone().accept(port));
    }

    /// Stops accepting, lets open calls end, and closes what is left after `patience`. Always returns.
    pub async fn stop(&self, patience: Duration) {
        self.drain.cancel();
        self.tasks.close();
        let streams = patience.saturating_sub(STREAMS_END_BEFORE_CUT);
        if timeout(streams, self.tasks.wait()).await.is_ok() {
            return;
        }
        self.streams_end.cancel();
        if timeout(patience.saturating_sub(streams), self.tasks.wait()).await.is_ok() {
            return;
        }
        tracing::warn!(tasks = self.tasks.len(), "closing connections whose calls did not end in time");
        self.cut.cancel();
        // Every task of a connection gives way to the cut, so this waits for no peer.
        self.tasks.wait().await;
    }

    async fn accept(self, port: Port) {
        let Port { name, listener, tls, speaks, routes, connections } = port;
        loop {
            let accepted = tokio::select! {
                () = self.drain.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(port = name, error = &error as &dyn std::error::Error, "accept failed");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(slot) = connections.admit(peer.ip()) else {
                tracing::debug!(port = name, "connection refused: the port is at its cap");
                continue;
            };
            let (server, slot) = (self.clone(), Arc::new(slot));
            let (tls, routes) = (tls.clone(), routes.clone());
            self.tasks.spawn(async move {
                // Each branch may be dropped at any point: that closes the socket, which is what is wanted.
                tokio::select! {
                    () = server.cut.cancelled() => {}
                    () = server.connection(stream, peer, tls, (speaks, routes), &slot) => {}
                }
            });
        }
    }

    async fn connection(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        tls: Option<Arc<Tls>>,
        answering: (Speaks, Routes),
        slot: &Arc<Slot>,
    ) {
        // Small answers must not wait for acknowledgements; a socket that refuses is about to fail anyway.
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
        let Some(tls) = tls else {
            return self.http(stream, Peer { address: peer, tls: None }, answering, slot).await;
        };
        let handshake = TlsAcceptor::from(tls.current()).accept(stream);
        let accepted = tokio::select! {
            () = self.drain.cancelled() => return,
            () = slot.evicted() => return,
            accepted = timeout(self.limits.handshake, handshake) => accepted,
        };
        if let Ok(Ok(stream)) = accepted {
            // Kept to be judged again when the authorities change and when it ends.
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
            self.http(stream, Peer { address: peer, tls: Some((tls, chain)) }, answering, slot).await;
        }
    }

    async fn http<S>(&self, stream: S, peer: Peer, (speaks, routes): (Speaks, Routes), slot: &Arc<Slot>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let identity = peer.tls.as_ref().and_then(|(_, chain)| peer_identity(chain));
        let address = PeerAddress(peer.address);
        let spoke = Arc::new(AtomicBool::new(false));
        let first = Arc::new(tokio::sync::Notify::new());
        let over = Arc::new(AtomicBool::new(false));
        let answers = Answers::default();
        let service = {
            let (spoke, first, answers) = (Arc::clone(&spoke), Arc::clone(&first), answers.clone());
            let over = Arc::clone(&over);
            let upgrades = Upgrades { tasks: self.tasks.clone(), cut: self.cut.clone(), slot: Arc::clone(slot) };
            service_fn(move |request: Request<Incoming>| {
                if !spoke.swap(true, Ordering::Relaxed) {
                    first.notify_one();
                }
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(address);
                request.extensions_mut().insert(Arc::clone(&upgrades.slot));
                if request.headers().contains_key(header::UPGRADE) {
                    request.extensions_mut().insert(upgrades.clone());
                }
                if let Some(identity) = &identity {
                    request.extensions_mut().insert(identity.clone());
                }
                let taken = !over.load(Ordering::Relaxed);
                let taken = taken.then(|| (routes.clone(), answers.clone(), upgrades.slot.open_call()));
                async move {
                    // It is told to be safe to send again.
                    let Some((routes, answers, call)) = taken else { return Err(h2::Reason::REFUSED_STREAM.into()) };
                    let Ok(response) = routes.oneshot(request).await;
                    Ok::<_, h2::Error>(answers.hold(response, call))
                }
            })
        };
        let progress = Arc::new(AtomicU64::new(0));
        let stream = Metered::new(stream, self.limits.control_frames_burst, Arc::clone(&progress));
        let builder = self.builder(speaks);
        let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
        let (mut limit, mut goodbye) = (pin!(sleep(self.limits.first_request)), pin!(sleep(GOODBYE)));
        let (mut waiting, mut draining, mut leaving, mut said) = (true, false, false, false);
        let mut refused = pin!(peer.refused());
        let (mut seen, mut still_since) = (0, Instant::now());
        let mut looks = interval(self.limits.idle.min(self.limits.answer) / LOOKS_PER_LIMIT);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if draining && !said {
                said = true;
                connection.as_mut().graceful_shutdown();
                goodbye.as_mut().reset(Instant::now() + self.limits.first_request);
            }
            tokio::select! {
                // A connection that ends badly is the peer's matter.
                _ = connection.as_mut() => return,
                () = self.drain.cancelled(), if !draining => draining = true,
                // It was idle when it was chosen, but a call may have come since, or be on its way.
                () = slot.leaves(), if !leaving => (leaving, draining) = (true, true),
                () = &mut goodbye, if draining && (leaving || !over.load(Ordering::Relaxed)) => {
                    // The library takes calls until the peer has said that it has heard. One that never says so calls no more.
                    over.store(true, Ordering::Relaxed);
                    if leaving && !slot.has_calls() {
                        return;
                    }
                    goodbye.as_mut().reset(Instant::now() + GOODBYE);
                }
                () = slot.evicted() => {
                    // Nothing is waited for: the goodbye is what the socket takes at once.
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.as_mut().now_or_never();
                    return;
                }
                // What is open may end; what comes next has to come by a new connection, and is refused there.
                () = &mut refused, if !draining => draining = true,
                () = first.notified(), if waiting => waiting = false,
                _ = looks.tick() => {
                    let now = Instant::now();
                    let stalled = answers.oldest().is_some_and(|since| now - since > self.limits.answer);
                    // Its streams have had the time to end by themselves, had it read again.
                    let streams = answers.reset_stalled(self.limits.answer * STREAM_ANSWERS);
                    if stalled || streams == Stalled::Everything {
                        // The peer takes nothing of what it asked for; waiting longer would hold it for ever.
                        connection.as_mut().graceful_shutdown();
                        let _ = timeout(GOODBYE, connection.as_mut()).await;
                        return;
                    }
                    let frames = progress.load(Ordering::Relaxed);
                    if frames != seen {
                        (seen, still_since) = (frames, now);
                    } else if !draining && now - still_since > self.limits.idle {
                        // Open streams go on; further calls have to come by a new connection.
                        draining = true;
                    }
                }
                () = &mut limit, if waiting => {
                    // A client that merely had nothing to say learns that it has to connect again.
                    connection.as_mut().graceful_shutdown();
                    let _ = timeout(GOODBYE, connection.as_mut()).await;
                    return;
                }
            }
        }
    }

    fn builder(&self, speaks: Speaks) -> auto::Builder<CallExecutor> {
        let mut builder = auto::Builder::new(CallExecutor);
        if speaks == Speaks::Two {
            builder = builder.http2_only();
        }
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.first_request)
            // What may wait to be parsed, heads included; the library takes no less than 8 KiB.
            .max_buf_size(usize::try_from(self.limits.header_list_bytes_max).unwrap_or(usize::MAX).max(8 * 1024))
            .max_headers(self.limits.header_count_max);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.limits.streams_per_connection)
            .max_header_list_size(self.limits.header_list_bytes_max)
            .max_local_error_reset_streams(BROKEN_CALLS_MAX)
            .keep_alive_interval(self.limits.keepalive)
            .keep_alive_timeout(self.limits.keepalive)
            .initial_stream_window_size(1024 * 1024)
            .initial_connection_window_size(2 * 1024 * 1024);
        builder
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::TenantId;
    use std::net::Ipv4Addr;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn what_has_taken_over_a_connection_that_leaves_goes_on_until_that_is_cut() {
        // Of which one tenant may have six.
        let connections = Connections::new(8, 99);
        let holder = Sharer::Tenant(TenantId(uuid::Uuid::from_u128(1)));
        let admit = || {
            let slot = connections.admit(Ipv4Addr::LOCALHOST.into()).expect("there is room");
            slot.prove(holder);
            slot
        };
        let first = admit();
        let others: Vec<_> = (0..6).map(|_| admit()).collect();
        first.leaves().await;
        let upgrades = Upgrades { tasks: TaskTracker::new(), cut: CancellationToken::new(), slot: Arc::new(first) };
        let (ask, asked) = oneshot::channel::<()>();
        let (answer, answered) = oneshot::channel();
        upgrades.spawn(holder, async move {
            asked.await.expect("it is asked");
            answer.send(()).expect("the answer is waited for");
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        ask.send(()).expect("it goes on");
        answered.await.expect("it goes on");
        // Another one leaves, which is one too many.
        let next = admit();
        upgrades.slot.evicted().await;
        upgrades.tasks.close();
        upgrades.tasks.wait().await;
        drop((others, next));
    }
}
