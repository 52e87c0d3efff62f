//! A proxy between the replicas and Postgres that understands the frames of the protocol: it can let a commit through and
//! keep its answer, which leaves the client not knowing.
//!
//! Carillon commits in two ways: a simple query `COMMIT`, and single statements that are their own transaction (publishing
//! and recording outcomes). The second kind is known by the text of the prepared statement that is executed.
//! It must never change or delay a byte unless it was told to withhold.
//!
//! *Source*: the PostgreSQL documentation, "Frontend/Backend Protocol", version 3.0.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Larger frames than Carillon or Postgres ever send to each other.
const FRAME_BYTES_MAX: usize = 256 << 20;

#[derive(Debug, Default)]
struct Orders {
    /// Answers that are still to be withheld.
    withhold: AtomicUsize,
    /// Answers to commits that went through and were withheld.
    withheld: AtomicU32,
}

/// The running proxy; ends when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    orders: Arc<Orders>,
    _stop: DropGuard,
}

impl Proxy {
    /// Listens on loopback and forwards to the server's socket.
    pub async fn start(server: PathBuf) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let orders = Arc::<Orders>::default();
        let stop = CancellationToken::new();
        let (heard, until) = (orders.clone(), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                let (server, orders) = (server.clone(), heard.clone());
                tokio::spawn(until.clone().run_until_cancelled_owned(async move {
                    // Either side may go away at any time: that is what a run is about.
                    let _ended = serve(client, &server, &orders).await;
                }));
            }
        }));
        Ok(Self { address, orders, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Withholds the answers of the next commits and resets their connections; 0 ends it.
    pub fn withhold(&self, answers: usize) {
        self.orders.withhold.store(answers, Ordering::SeqCst);
    }

    /// How many answers are still to be withheld.
    pub fn left(&self) -> usize {
        self.orders.withhold.load(Ordering::SeqCst)
    }

    /// How many answers of commits that Postgres carried out were withheld so far.
    pub fn withheld(&self) -> u32 {
        self.orders.withheld.load(Ordering::SeqCst)
    }
}

async fn serve(mut client: TcpStream, server: &Path, orders: &Orders) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut server = UnixStream::connect(server).await?;
    // The first message has no type: length, then the protocol's version and the parameters.
    let start = untyped(&mut client).await?;
    server.write_all(&start).await?;
    {
        let (from_client, mut to_client) = client.split();
        let (from_server, mut to_server) = server.split();
        let (mut from_client, mut from_server) = (BufReader::new(from_client), BufReader::new(from_server));
        let withholding = AtomicUsize::new(0);
        let requests = async {
            let mut watch = Commits::default();
            loop {
                let frame = frame(&mut from_client).await?;
                if watch.is_commit(&frame) && take_one(&orders.withhold) {
                    withholding.store(1, Ordering::SeqCst);
                }
                to_server.write_all(&frame).await?;
            }
        };
        let answers = async {
            let mut failed = false;
            loop {
                let frame = frame(&mut from_server).await?;
                if withholding.load(Ordering::SeqCst) == 0 {
                    to_client.write_all(&frame).await?;
                    continue;
                }
                failed |= frame[0] == b'E';
                // Ready for the next query: whatever was committed is on disk.
                if frame[0] == b'Z' {
                    if !failed {
                        orders.withheld.fetch_add(1, Ordering::SeqCst);
                    }
                    return Ok(());
                }
            }
        };
        let ended: io::Result<()> = tokio::select! {
            ended = requests => ended,
            ended = answers => ended,
        };
        ended?;
    }
    // The client sees a reset, not an orderly end.
    client.set_zero_linger()
}

fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

/// Knows which requests commit something.
#[derive(Default)]
struct Commits {
    /// Of each prepared statement, whether it commits by itself what matters.
    statements: HashMap<Vec<u8>, bool>,
    bound: bool,
}

impl Commits {
    fn is_commit(&mut self, frame: &[u8]) -> bool {
        let body = &frame[5..];
        match frame[0] {
            b'Q' => text(body).is_some_and(|query| query.trim_ascii().eq_ignore_ascii_case(b"COMMIT")),
            b'P' => {
                let Some(name) = text(body) else { return false };
                let query = text(&body[name.len() + 1..]).unwrap_or_default();
                self.statements.insert(name.to_vec(), writes_what_matters(query));
                false
            }
            b'B' => {
                let statement = text(body).and_then(|portal| text(&body[portal.len() + 1..])).unwrap_or_default();
                self.bound = self.statements.get(statement).copied().unwrap_or_default();
                false
            }
            // It is carried out by then, and committed by the Sync that follows.
            b'E' => std::mem::take(&mut self.bound),
            _ => false,
        }
    }
}

/// Statements that are a transaction of their own and write events or outcomes.
fn writes_what_matters(query: &[u8]) -> bool {
    let query = String::from_utf8_lossy(query);
    query.trim_start().starts_with("WITH")
        && (query.contains("INSERT INTO events") || query.contains("INSERT INTO outcomes"))
}

fn text(bytes: &[u8]) -> Option<&[u8]> {
    bytes.iter().position(|byte| *byte == 0).map(|end| &bytes[..end])
}

async fn untyped(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut head = [0; 4];
    from.read_exact(&mut head).await?;
    rest(from, head.to_vec(), head).await
}

async fn frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut head = [0; 5];
    from.read_exact(&mut head).await?;
    rest(from, head.to_vec(), [head[1], head[2], head[3], head[4]]).await
}

/// Reads the body: the length counts itself, and not the type before it.
async fn rest(from: &mut (impl AsyncRead + Unpin), mut frame: Vec<u8>, length: [u8; 4]) -> io::Result<Vec<u8>> {
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
    if !(4..=FRAME_BYTES_MAX).contains(&length) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let begin = frame.len();
    frame.resize(begin + length - 4, 0);
    from.read_exact(&mut frame[begin..]).await?;
    Ok(frame)
}
