//! HTTP/2 by hand, for what no client library would send: frames are written as bytes and read as heads.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;

use super::wait::within;

/// What an HTTP/2 connection opens with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flags.
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("it fits");
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Header fields without compression.
pub fn fields<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let text = |bytes: &mut Vec<u8>, text: &str| {
        // RFC 7541 section 5.1, with a prefix of seven bits.
        let mut length = text.len();
        if length < 127 {
            bytes.push(u8::try_from(length).expect("it is small"));
        } else {
            bytes.push(127);
            length -= 127;
            while length >= 128 {
                bytes.push(u8::try_from(length % 128).expect("it is small") | 128);
                length /= 128;
            }
            bytes.push(u8::try_from(length).expect("it is small"));
        }
        bytes.extend(text.as_bytes());
    };
    for (name, value) in fields {
        bytes.push(0);
        text(&mut bytes, name);
        text(&mut bytes, value);
    }
    bytes
}

/// The header fields of a gRPC call.
pub fn call_fields(path: &str, key: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let bearer = format!("Bearer {key}");
    let usual = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("authorization", bearer.as_str()),
    ];
    fields(usual.into_iter().chain(more.iter().copied()))
}

/// A frame as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// One end of a connection.
pub struct Raw<S> {
    pub reader: ReadHalf<S>,
    pub writer: WriteHalf<S>,
}

impl Raw<TcpStream> {
    /// Connects without TLS and sends the preface and these settings.
    pub async fn open(address: &str, settings: &[(u16, u32)]) -> Self {
        let stream = TcpStream::connect(address).await.expect("the port accepts");
        stream.set_nodelay(true).expect("a socket");
        Self::over(stream, settings).await
    }
}

impl<S: AsyncRead + AsyncWrite> Raw<S> {
    /// Sends the preface and these settings.
    pub async fn over(stream: S, settings: &[(u16, u32)]) -> Self {
        let (reader, writer) = split(stream);
        let mut raw = Self { reader, writer };
        let payload: Vec<u8> =
            settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        raw.send(&[PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat()).await;
        raw
    }

    /// Sends bytes; a server that has closed already is what some of them are meant to cause.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _closed_already = self.writer.write_all(bytes).await;
    }

    /// The next frame; none at the end of the connection.
    pub async fn next(&mut self) -> Option<Frame> {
        within("a frame", read_frame(&mut self.reader)).await
    }

    /// The next frame of a kind, those before it dropped.
    pub async fn next_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// Waits until the server has read everything that was sent.
    pub async fn settle(&mut self) -> Option<Frame> {
        self.send(&frame(PING, 0, 0, &[7; 8])).await;
        loop {
            let frame = self.next_of(PING).await?;
            if frame.flags & ACK != 0 && frame.payload == [7; 8] {
                return Some(frame);
            }
        }
    }

    /// Reads to the end of the connection: the code of its GOAWAY, where there was one.
    pub async fn end(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.next().await {
            if frame.kind == GOAWAY {
                code = Some(goaway_code(&frame));
            }
        }
        code
    }
}

/// Why a connection ends.
pub fn goaway_code(frame: &Frame) -> u32 {
    u32::from_be_bytes(frame.payload[4..8].try_into().expect("four bytes"))
}

/// Reads one frame.
pub async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let mut head = [0; 9];
    reader.read_exact(&mut head).await.ok()?;
    let [a, b, c, kind, flags, stream @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    reader.read_exact(&mut payload).await.ok()?;
    Some(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
}
