//! A proxy between a replica and Postgres that takes the predicate `tenant_id = $n` out of every statement of a transaction
//! that names a tenant, and out of every SELECT wherever it is, as a fault in the program would: what is left between tenants is
//! the database's own wall.
//!
//! The replica's URL must say `statement-cache-capacity=0`, so that every statement is told anew where it is used.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use regex::bytes::Regex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// The running proxy.
pub struct Stripper {
    /// The port on loopback.
    pub port: u16,
    orders: Arc<Orders>,
}

struct Orders {
    strips: AtomicBool,
    stripped: Mutex<Vec<String>>,
    predicate: Regex,
}

impl Stripper {
    /// Listens, and forwards to the server's socket. Strips nothing yet.
    pub async fn start(server: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
        let port = listener.local_addr().expect("it is bound").port();
        let predicate = Regex::new(r"\b(?:\w+\.)?tenant_id = (\$[0-9]+)").expect("a pattern");
        let orders = Arc::new(Orders { strips: AtomicBool::new(false), stripped: Mutex::default(), predicate });
        let heard = Arc::clone(&orders);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, orders) = (server.clone(), Arc::clone(&heard));
                // Either side may go away at any time.
                tokio::spawn(async move { forward(client, server, &orders).await });
            }
        });
        Self { port, orders }
    }

    /// From now on predicates are taken away, or no more.
    pub fn strip(&self, strips: bool) {
        self.orders.strips.store(strips, Ordering::SeqCst);
    }

    /// The statements that have lost their predicate, as they were.
    pub fn stripped(&self) -> Vec<String> {
        self.orders.stripped.lock().expect("nobody panics with it").clone()
    }
}

async fn forward(mut client: TcpStream, server: PathBuf, orders: &Orders) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut server = UnixStream::connect(server).await?;
    let (from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let mut from_client = BufReader::new(from_client);
    let requests = async {
        // The first message has no type.
        let (start, _) = message(&mut from_client, 0).await?;
        to_server.write_all(&start).await?;
        let mut named = false;
        loop {
            let (mut message, body) = message(&mut from_client, 1).await?;
            let text = String::from_utf8_lossy(&message[body..]).into_owned();
            match message[0] {
                b'Q' if text.starts_with("BEGIN; SET LOCAL carillon.tenant") => named = true,
                b'Q' => named = false,
                b'P' if orders.strips.load(Ordering::SeqCst) => {
                    // Behind the name that it is prepared by.
                    let statement = text.split('\0').nth(1).unwrap_or_default();
                    if named || statement.trim_start().starts_with("SELECT") {
                        message = orders.without_predicate(&message, statement);
                    }
                }
                _ => {}
            }
            to_server.write_all(&message).await?;
        }
    };
    tokio::select! {
        ended = requests => ended,
        ended = tokio::io::copy(&mut from_server, &mut to_client) => ended.map(drop),
    }
}

impl Orders {
    fn without_predicate(&self, message: &[u8], statement: &str) -> Vec<u8> {
        let body = self.predicate.replace_all(&message[5..], b"(($1)::uuid IS NOT NULL)".as_slice());
        if matches!(body, std::borrow::Cow::Owned(_)) {
            self.stripped.lock().expect("nobody panics with it").push(statement.to_owned());
        }
        let length = u32::try_from(body.len() + 4).expect("a statement is short");
        [&message[..1], &length.to_be_bytes(), &body].concat()
    }
}

/// One message, and where its body begins: behind `typed` bytes and the length, which counts itself.
async fn message(from: &mut (impl AsyncRead + Unpin), typed: usize) -> std::io::Result<(Vec<u8>, usize)> {
    let mut message = vec![0; typed + 4];
    from.read_exact(&mut message).await?;
    let length = u32::from_be_bytes(message[typed..].try_into().expect("four bytes")) as usize;
    message.resize(typed + length, 0);
    from.read_exact(&mut message[typed + 4..]).await?;
    Ok((message, typed + 4))
}
