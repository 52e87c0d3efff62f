//! Meters the frames of an HTTP/2 connection below the HTTP library, and ends one that sends too many which carry no call.
//!
//! The library bounds what a frame may cost in memory, and ends floods of header continuations, of empty data and of resets in one
//! burst. It answers settings and pings without end, and takes resets without end where they come one at a time: that is metered
//! here. Each such frame costs one token, and so does each reset that the server is made to send; answers give some back, because
//! resets, window updates and pings in return for them are what good clients do. Connections that do not open with HTTP/2's preface
//! pass unmetered.
//!
//! It must never wait for a peer that is being turned away.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const ENHANCE_YOUR_CALM: u8 = 11;

/// How long bytes of a peer are thrown away after the last frame to it: closing at once would take the frame from its hands.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes that are thrown away at most: a peer that goes on sending is then left to wait, and costs nothing.
const WASTE_BYTES_MAX: usize = 256 * 1_024;
/// How long it takes until the whole burst has come back.
const REFILL_MILLIS: u128 = 10_000;

/// A connection whose frames are metered.
pub struct Metered<S> {
    stream: S,
    incoming: Incoming,
    outgoing: Scanner,
    budget: Budget,
    /// Frames of calls, in both directions; read by whoever looks for idle connections.
    progress: Arc<AtomicU64>,
    stream_id_max: u32,
    /// The peer has made the server send more resets than it may.
    overdrawn: bool,
    farewell: Farewell,
    /// Bytes that may still be thrown away.
    waste_bytes_left: usize,
}

/// How far the end of a connection is.
enum Farewell {
    None,
    /// Too many frames: the last word is written.
    Flooded(LastWord),
    /// Nothing more is written: the peer is told so, until the time is up.
    Shut(Pin<Box<Sleep>>),
    /// Bytes are thrown away until the peer closes or the time is up.
    Lingering(Pin<Box<Sleep>>),
    Done,
}

/// What is said to a peer that is turned away, and how long it may take to let it be said.
struct LastWord {
    frame: [u8; 17],
    written: usize,
    until: Pin<Box<Sleep>>,
}

/// What a connection opens with.
enum Incoming {
    /// Bytes of the preface seen so far.
    Opening(usize),
    Frames(Scanner),
    /// Not HTTP/2.
    Unmetered,
}

impl<S> Metered<S> {
    /// Takes the most frames without a call that may come at once.
    pub fn new(stream: S, burst: u32, progress: Arc<AtomicU64>) -> Self {
        Self {
            stream,
            incoming: Incoming::Opening(0),
            outgoing: Scanner::default(),
            budget: Budget::new(burst),
            progress,
            stream_id_max: 0,
            overdrawn: false,
            farewell: Farewell::None,
            waste_bytes_left: WASTE_BYTES_MAX,
        }
    }

    /// Whether the peer may go on after these bytes.
    fn receive(&mut self, mut bytes: &[u8]) -> bool {
        if let Incoming::Opening(seen) = &mut self.incoming {
            let take = bytes.len().min(PREFACE.len() - *seen);
            let (head, rest) = bytes.split_at(take);
            if head != &PREFACE[*seen..*seen + take] {
                self.incoming = Incoming::Unmetered;
                return true;
            }
            *seen += take;
            if *seen < PREFACE.len() {
                return true;
            }
            bytes = rest;
            self.incoming = Incoming::Frames(Scanner::default());
        }
        let Incoming::Frames(scanner) = &mut self.incoming else { return true };
        let (budget, progress, stream_id_max) = (&mut self.budget, &self.progress, &mut self.stream_id_max);
        let mut within = true;
        scanner.scan(bytes, |head| {
            if head.is_of_a_call() {
                *stream_id_max = head.stream.max(*stream_id_max);
                progress.fetch_add(1, Ordering::Relaxed);
            } else {
                within &= budget.spend();
            }
        });
        within
    }

    fn sent(&mut self, bytes: &[u8]) {
        if !matches!(self.incoming, Incoming::Frames(_)) {
            return;
        }
        let (budget, progress, overdrawn) = (&mut self.budget, &self.progress, &mut self.overdrawn);
        self.outgoing.scan(bytes, |head| {
            if head.is_of_a_call() {
                progress.fetch_add(1, Ordering::Relaxed);
                budget.give_back(2 + head.length / 1_024);
            } else if head.kind == RST_STREAM {
                *overdrawn |= !budget.spend();
            }
        });
    }

    /// `GOAWAY` with the reason; nothing is said where another frame is half written.
    fn flooded(&self) -> Farewell {
        if !self.outgoing.is_between_frames() {
            return Farewell::Shut(linger());
        }
        let mut frame = [0; 17];
        frame[2] = 8;
        frame[3] = GOAWAY;
        frame[HEAD_BYTES..HEAD_BYTES + 4].copy_from_slice(&self.stream_id_max.to_be_bytes());
        frame[16] = ENHANCE_YOUR_CALM;
        Farewell::Flooded(LastWord { frame, written: 0, until: linger() })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Metered<S> {
    /// Says the last word, closes for writing, and throws away what still comes for a moment.
    ///
    /// A write that is not ready says nothing about the peer: it may be this task's turn that is over. What takes longer than a
    /// moment is given up.
    fn poll_farewell(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.farewell {
                Farewell::None => self.farewell = Farewell::Shut(linger()),
                Farewell::Flooded(word) => {
                    if word.written == word.frame.len() || word.until.as_mut().poll(context).is_ready() {
                        self.farewell = Farewell::Shut(linger());
                        continue;
                    }
                    match Pin::new(&mut self.stream).poll_write(context, &word.frame[word.written..]) {
                        Poll::Ready(Ok(written)) if written > 0 => word.written += written,
                        // A peer that first sends everything and then reads gets on.
                        Poll::Pending if ready!(self.poll_waste(context)) => {}
                        _ => self.farewell = Farewell::Done,
                    }
                }
                // TLS writes what it still holds first.
                Farewell::Shut(until) => match Pin::new(&mut self.stream).poll_shutdown(context) {
                    Poll::Ready(Ok(())) => self.farewell = Farewell::Lingering(linger()),
                    Poll::Ready(Err(_)) => self.farewell = Farewell::Done,
                    Poll::Pending => {
                        ready!(until.as_mut().poll(context));
                        self.farewell = Farewell::Done;
                    }
                },
                Farewell::Lingering(until) => {
                    if until.as_mut().poll(context).is_ready() || !ready!(self.poll_waste(context)) {
                        self.farewell = Farewell::Done;
                    }
                }
                Farewell::Done => return Poll::Ready(()),
            }
        }
    }

    /// Reads some bytes and throws them away; false where no more come. Only the end of a time wakes it where it may not read on.
    fn poll_waste(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        if self.waste_bytes_left == 0 {
            return Poll::Pending;
        }
        let mut waste = [0; 4_096];
        let mut waste = ReadBuf::new(&mut waste);
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, &mut waste));
        self.waste_bytes_left = self.waste_bytes_left.saturating_sub(waste.filled().len());
        Poll::Ready(read.is_ok() && !waste.filled().is_empty())
    }
}

fn linger() -> Pin<Box<Sleep>> {
    Box::pin(sleep(LINGER))
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if matches!(this.farewell, Farewell::None) {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
            if this.receive(&buffer.filled()[before..]) && !this.overdrawn {
                return Poll::Ready(Ok(()));
            }
            buffer.set_filled(before);
            this.farewell = this.flooded();
        }
        ready!(this.poll_farewell(context));
        Poll::Ready(Err(io::Error::other("too many frames that carry no call")))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, bytes))?;
        this.sent(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(context, slices))?;
        let mut left = written;
        for slice in slices {
            let part = left.min(slice.len());
            this.sent(&slice[..part]);
            left -= part;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_farewell(context).map(Ok)
    }
}

/// Finds the heads of frames in a stream of bytes.
#[derive(Debug, Default)]
struct Scanner {
    head: [u8; HEAD_BYTES],
    filled: usize,
    /// Bytes of the present frame's payload that are still to come.
    rest: usize,
}

/// The head of a frame.
///
/// Source: RFC 9113 section 4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    length: u32,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Head {
    /// Opens a call, or moves one on.
    fn is_of_a_call(self) -> bool {
        self.kind == HEADERS || self.kind == DATA && (self.length > 0 || self.flags & END_STREAM != 0)
    }
}

impl Scanner {
    fn scan(&mut self, mut bytes: &[u8], mut each: impl FnMut(Head)) {
        while !bytes.is_empty() {
            let skip = self.rest.min(bytes.len());
            self.rest -= skip;
            bytes = &bytes[skip..];
            let take = bytes.len().min(HEAD_BYTES - self.filled);
            self.head[self.filled..self.filled + take].copy_from_slice(&bytes[..take]);
            self.filled += take;
            bytes = &bytes[take..];
            if self.filled == HEAD_BYTES {
                self.filled = 0;
                let [a, b, c, kind, flags, stream @ ..] = self.head;
                let length = u32::from_be_bytes([0, a, b, c]);
                self.rest = length as usize;
                each(Head { length, kind, flags, stream: u32::from_be_bytes(stream) & 0x7fff_ffff });
            }
        }
    }

    fn is_between_frames(&self) -> bool {
        self.filled == 0 && self.rest == 0
    }
}

/// Tokens for frames that carry no call.
#[derive(Debug)]
pub(super) struct Budget {
    burst: u32,
    left: u32,
    refilled: Instant,
}

impl Budget {
    pub(super) fn new(burst: u32) -> Self {
        Self { burst, left: burst, refilled: Instant::now() }
    }

    /// Takes a token; the clock is asked only when none is left.
    pub(super) fn spend(&mut self) -> bool {
        if self.left == 0 {
            let now = Instant::now();
            let due = (now - self.refilled).as_millis() * u128::from(self.burst) / REFILL_MILLIS;
            self.left = u32::try_from(due).unwrap_or(u32::MAX).min(self.burst);
            if self.left == 0 {
                return false;
            }
            self.refilled = now;
        }
        self.left -= 1;
        true
    }

    fn give_back(&mut self, tokens: u32) {
        self.left = self.left.saturating_add(tokens).min(self.burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

    #[test]
    fn heads_are_found_however_the_bytes_are_cut() {
        let mut bytes = PING.to_vec();
        bytes.extend([0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0x80, 0, 0, 5, 9, 9]);
        let kinds = |size: usize| {
            let (mut scanner, mut heads) = (Scanner::default(), Vec::new());
            for part in bytes.chunks(size) {
                scanner.scan(part, |head| heads.push(head));
            }
            assert!(scanner.is_between_frames());
            heads
        };
        let whole = kinds(bytes.len());
        assert_eq!(
            whole.iter().map(|head| (head.length, head.kind, head.stream)).collect::<Vec<_>>(),
            [(8, 6, 0), (0, 4, 0), (2, 0, 5)]
        );
        for size in 1..20 {
            assert_eq!(kinds(size), whole, "cut by {size}");
        }
    }

    #[tokio::test]
    async fn a_flood_gets_a_goaway_and_nothing_behind_it_is_read() {
        let (mut client, server) = duplex(1 << 20);
        let mut metered = Metered::new(server, 10, Arc::default());
        client.write_all(PREFACE).await.unwrap();
        let mut buffer = vec![0; 1 << 16];
        assert_eq!(metered.read(&mut buffer).await.unwrap(), PREFACE.len());
        client.write_all(&PING.repeat(10)).await.unwrap();
        assert_eq!(metered.read(&mut buffer).await.unwrap(), 10 * PING.len());
        client.write_all(&PING.repeat(10)).await.unwrap();
        let (flooded, answer) = tokio::join!(metered.read(&mut buffer), async {
            let mut answer = [0; 17];
            client.read_exact(&mut answer).await.unwrap();
            drop(client);
            answer
        });
        assert!(flooded.is_err());
        assert_eq!((answer[3], answer[16]), (GOAWAY, ENHANCE_YOUR_CALM));
    }

    #[tokio::test]
    async fn a_goaway_waits_for_a_reader_that_is_late() {
        const FRAMES: usize = 20;
        let (mut client, server) = duplex(FRAMES * PING.len());
        let mut metered = Metered::new(server, 10, Arc::default());
        client.write_all(PREFACE).await.unwrap();
        let mut buffer = vec![0; 1 << 16];
        assert_eq!(metered.read(&mut buffer).await.unwrap(), PREFACE.len());
        // Nothing more can be written before the client has read.
        metered.write_all(&PING.repeat(FRAMES)).await.unwrap();
        client.write_all(&PING.repeat(FRAMES)).await.unwrap();
        let (flooded, answer) = tokio::join!(metered.read(&mut buffer), async {
            let mut answer = [0; (FRAMES + 1) * PING.len()];
            client.read_exact(&mut answer).await.unwrap();
            drop(client);
            answer
        });
        assert!(flooded.is_err());
        let last = &answer[FRAMES * PING.len()..];
        assert_eq!((last[3], last[16]), (GOAWAY, ENHANCE_YOUR_CALM));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_never_reads_is_not_waited_for() {
        let (mut client, server) = duplex(20 * PING.len());
        let mut metered = Metered::new(server, 10, Arc::default());
        client.write_all(PREFACE).await.unwrap();
        let mut buffer = vec![0; 1 << 16];
        assert_eq!(metered.read(&mut buffer).await.unwrap(), PREFACE.len());
        metered.write_all(&PING.repeat(20)).await.unwrap();
        client.write_all(&PING.repeat(20)).await.unwrap();
        let began = Instant::now();
        assert!(metered.read(&mut buffer).await.is_err());
        assert!(began.elapsed() < 3 * LINGER, "it took {:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_goes_on_is_read_no_further_and_left_to_wait() {
        let (mut client, server) = duplex(1 << 12);
        let mut metered = Metered::new(server, 10, Arc::default());
        client.write_all(PREFACE).await.unwrap();
        let mut buffer = vec![0; 1 << 16];
        assert_eq!(metered.read(&mut buffer).await.unwrap(), PREFACE.len());
        let mut sent = 0;
        let flood = async {
            while client.write_all(&PING).await.is_ok() {
                sent += PING.len();
            }
        };
        let reading = async {
            assert!(metered.read(&mut buffer).await.is_err());
            drop(metered);
        };
        tokio::join!(flood, reading);
        assert!(sent < WASTE_BYTES_MAX + (1 << 16), "{sent} bytes were taken");
    }

    #[tokio::test]
    async fn answers_give_back_what_good_clients_need_for_them() {
        let (mut client, server) = duplex(1 << 20);
        let progress = Arc::new(AtomicU64::new(0));
        let mut metered = Metered::new(server, 10, Arc::clone(&progress));
        client.write_all(PREFACE).await.unwrap();
        let mut buffer = vec![0; 1 << 16];
        assert_eq!(metered.read(&mut buffer).await.unwrap(), PREFACE.len());
        for _ in 0..100 {
            metered.write_all(&[0, 0, 1, 0, 1, 0, 0, 0, 1, 7]).await.unwrap();
            client.write_all(&PING.repeat(2)).await.unwrap();
            assert_eq!(metered.read(&mut buffer).await.unwrap(), 2 * PING.len());
        }
        assert_eq!(progress.load(Ordering::Relaxed), 100);
    }

    #[tokio::test]
    async fn what_is_not_http_2_passes() {
        let (mut client, server) = duplex(1 << 20);
        let mut metered = Metered::new(server, 1, Arc::default());
        let mut buffer = vec![0; 1 << 16];
        for text in [&b"PRI * HTTP/1.1\r\n"[..], &PING.repeat(50)] {
            client.write_all(text).await.unwrap();
            assert_eq!(metered.read(&mut buffer).await.unwrap(), text.len());
        }
    }
}
