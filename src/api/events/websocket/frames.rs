//! Meters the frames of a client below the WebSocket library, and ends a connection that sends too many which end no message; and says
//! when a client that held up what is written to it has made room.
//!
//! The library answers pings without end, and takes fragments without end that add nothing to their message. Messages are not metered:
//! each is answered before the next is read.

use crate::api::frames::Budget;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// What a read fails with that goes beyond the budget.
pub(super) const FLOODED: io::ErrorKind = io::ErrorKind::QuotaExceeded;

/// A connection whose incoming frames are metered.
pub(super) struct Metered<S> {
    stream: S,
    /// None once it has failed: what still comes is thrown away by whoever reads on.
    meter: Option<Meter>,
    /// Whether the last bytes to leave had to wait.
    is_held_up: bool,
    room: Arc<Notify>,
}

/// Finds the heads of frames in a stream of bytes, and takes a token for each that ends no message.
///
/// Source: RFC 6455, section 5.2.
struct Meter {
    budget: Budget,
    /// The first two bytes of the present frame's head, as far as they are read.
    head: [u8; 2],
    head_bytes: usize,
    /// Bytes of a longer length that are still to come, and what it is so far.
    length_bytes_left: u8,
    length: u64,
    /// Bytes of the present frame that are still to come after its length.
    rest: u64,
}

impl<S> Metered<S> {
    /// Takes the most frames without a message that may come at once.
    pub fn new(stream: S, burst: u32) -> Self {
        let budget = Budget::new(burst);
        let meter = Meter { budget, head: [0; 2], head_bytes: 0, length_bytes_left: 0, length: 0, rest: 0 };
        Self { stream, meter: Some(meter), is_held_up: false, room: Arc::default() }
    }

    /// Told each time that bytes leave after they had to wait: the peer has taken some. That others leave at once says nothing.
    pub fn room(&self) -> Arc<Notify> {
        Arc::clone(&self.room)
    }

    fn wrote<T>(&mut self, polled: Poll<T>) -> Poll<T> {
        if self.is_held_up && polled.is_ready() {
            self.room.notify_one();
        }
        self.is_held_up = polled.is_pending();
        polled
    }
}

impl Meter {
    /// Whether the peer may go on after these bytes.
    fn receive(&mut self, mut bytes: &[u8]) -> bool {
        const MASK_BYTES: u64 = 4;
        while let [next, others @ ..] = bytes {
            if self.rest > 0 {
                let skip = usize::try_from(self.rest).unwrap_or(usize::MAX).min(bytes.len());
                self.rest -= skip as u64;
                bytes = &bytes[skip..];
                continue;
            }
            bytes = others;
            if self.head_bytes < 2 {
                self.head[self.head_bytes] = *next;
                self.head_bytes += 1;
                if self.head_bytes < 2 {
                    continue;
                }
                if self.ends_no_message() && !self.budget.spend() {
                    return false;
                }
                (self.length, self.length_bytes_left) = match next & 0x7f {
                    126 => (0, 2),
                    127 => (0, 8),
                    short => (short.into(), 0),
                };
            } else {
                self.length = self.length << 8 | u64::from(*next);
                self.length_bytes_left -= 1;
            }
            if self.length_bytes_left == 0 {
                // A frame without a mask is refused by the library, so what it counts for does not matter.
                self.rest = self.length.saturating_add(MASK_BYTES);
                self.head_bytes = 0;
            }
        }
        true
    }

    /// A ping, a pong, or a fragment that another one follows. A close is the last that comes.
    fn ends_no_message(&self) -> bool {
        const FIN: u8 = 0x80;
        const CONTROL: u8 = 8;
        self.head[0] & FIN == 0 || self.head[0] & CONTROL != 0
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = &buffer.filled()[before..];
        if self.meter.as_mut().is_none_or(|meter| meter.receive(read)) {
            return Poll::Ready(Ok(()));
        }
        self.meter = None;
        buffer.set_filled(before);
        Poll::Ready(Err(FLOODED.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS holds some of what was written.
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.wrote(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    /// A frame of a client, masked with zeros.
    fn frame(first: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![first];
        match length {
            0..=125 => bytes.push(0x80 | u8::try_from(length).unwrap()),
            126..=0xffff => {
                bytes.push(0xfe);
                bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            _ => {
                bytes.push(0xff);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.resize(bytes.len() + 4 + length, 0);
        bytes
    }

    /// How many bytes are passed on before the flood is noticed; none where it never is.
    async fn noticed_after(bytes: &[u8], cut: usize) -> Option<usize> {
        let mut metered = Metered::new(bytes, 4);
        let (mut passed, mut buffer) = (0, vec![0; cut]);
        loop {
            match metered.read(&mut buffer).await {
                Ok(0) => return None,
                Ok(read) => passed += read,
                Err(error) => {
                    assert_eq!(error.kind(), FLOODED);
                    let mut rest = Vec::new();
                    metered.read_to_end(&mut rest).await.unwrap();
                    return Some(passed);
                }
            }
        }
    }

    #[tokio::test]
    async fn frames_that_end_no_message_are_counted_however_the_bytes_are_cut() {
        const TEXT: u8 = 0x81;
        const BEGIN: u8 = 0x01;
        const MORE: u8 = 0x00;
        const LAST: u8 = 0x80;
        const PING: u8 = 0x89;
        const PONG: u8 = 0x8a;
        let messages = [0, 1, 125, 126, 200, 65_535, 65_536, 100_000].map(|length| frame(TEXT, length)).concat();
        let few = [frame(BEGIN, 300), frame(PING, 125), frame(MORE, 70_000), frame(PONG, 0), frame(LAST, 0)].concat();
        let within = [messages.clone(), few, messages].concat();
        let beyond = [within.clone(), frame(MORE, 0), frame(TEXT, 9)].concat();
        for cut in [1, 2, 3, 7, 16, 4_096, 1 << 20] {
            assert_eq!(noticed_after(&within, cut).await, None, "cut by {cut}");
            // Noticed by the second byte of the frame; what is read together with it is not passed on.
            let noticed = (within.len() + 1) / cut * cut;
            assert_eq!(noticed_after(&beyond, cut).await, Some(noticed), "cut by {cut}");
        }
    }
}
