//! `carillon bench-echo`: a bare gRPC server, the limit that calls and watches are measured beside.
//!
//! The same HTTP/2 server, codec layer and TLS as the service, and nothing of the service itself. It runs as a process of
//! its own, so that it has its own memory and shares the machine with the client exactly as the service does.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tonic::body::Body;
use tonic::server::Grpc;

use super::raw::RawCodec;
use crate::cli::error::CliError;
use crate::shutdown::Signals;

/// Answers a message with itself.
pub const ECHO: &str = "/bench.Echo/Echo";
/// A stream that stays silent.
pub const IDLE: &str = "/bench.Echo/Idle";
/// A stream that repeats the request's message as fast as it is read.
pub const FLOOD: &str = "/bench.Echo/Flood";

/// A bare gRPC server to measure beside (used by `carillon bench`)
#[derive(Debug, clap::Args)]
pub struct EchoArgs {
    /// PEM file of the server's certificate
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// PEM file of its key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// PEM file of the authority of its clients
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// Write the ports as one JSON line to this file once both accept
    #[arg(long, value_name = "FILE")]
    ready_file: PathBuf,
}

/// Serves until SIGINT or SIGTERM.
pub async fn run(args: EchoArgs) -> Result<(), CliError> {
    let mut signals = Signals::listen().map_err(CliError::Signals)?;
    let tls = TlsAcceptor::from(Arc::new(tls(&args)?));
    let (mutual, mutual_port) = listen().await?;
    let (plain, plain_port) = listen().await?;
    let ready = serde_json::json!({ "mutual": mutual_port, "plain": plain_port }).to_string();
    let partial = args.ready_file.with_extension("partial");
    std::fs::write(&partial, ready)
        .and_then(|()| std::fs::rename(&partial, &args.ready_file))
        .map_err(CliError::file("write", &args.ready_file))?;
    tokio::select! {
        () = accept(mutual, Some(tls)) => {}
        () = accept(plain, None) => {}
        () = signals.next() => {}
    }
    Ok(())
}

async fn listen() -> Result<(TcpListener, u16), CliError> {
    let failed = |source| CliError::Listen { address: "loopback".to_owned(), source };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    Ok((listener, port))
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>) {
    while let Ok((stream, _)) = listener.accept().await {
        let tls = tls.clone();
        // The process lives as long as one bench, and its connections with it.
        tokio::spawn(async move {
            let _without = stream.set_nodelay(true);
            match tls {
                None => serve(stream).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream).await;
                    }
                }
            }
        });
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) {
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .max_concurrent_streams(1_000)
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(2 * 1024 * 1024);
    let service = service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) });
    let _ended = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    let mut grpc = Grpc::new(RawCodec);
    match request.uri().path() {
        ECHO => {
            let echo = tower::service_fn(|request: tonic::Request<Bytes>| async move {
                Ok::<_, Status>(tonic::Response::new(request.into_inner()))
            });
            grpc.unary(echo, request).await
        }
        FLOOD => {
            let flood = tower::service_fn(|request: tonic::Request<Bytes>| async move {
                let message = request.into_inner();
                Ok::<_, Status>(tonic::Response::new(stream::repeat_with(move || Ok(message.clone()))))
            });
            grpc.server_streaming(flood, request).await
        }
        _ => {
            let idle = tower::service_fn(|_: tonic::Request<Bytes>| async move {
                Ok::<_, Status>(tonic::Response::new(stream::pending::<Result<Bytes, Status>>()))
            });
            grpc.server_streaming(idle, request).await
        }
    }
}

fn tls(args: &EchoArgs) -> Result<ServerConfig, CliError> {
    let unusable = |path: &Path, reason: String| CliError::FileContent { path: path.to_owned(), reason };
    let read = |path: &Path| -> Result<Vec<CertificateDer<'static>>, CliError> {
        let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        certificates.map_err(|error: rustls_pki_types::pem::Error| unusable(path, error.to_string()))
    };
    let key = PrivateKeyDer::from_pem_file(&args.key).map_err(|error| unusable(&args.key, error.to_string()))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(read(&args.ca)?);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
    let verifier = verifier.map_err(|error| unusable(&args.ca, error.to_string()))?;
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let builder = builder.map_err(|error| unusable(&args.cert, error.to_string()))?;
    let config = builder.with_client_cert_verifier(verifier).with_single_cert(read(&args.cert)?, key);
    let mut config = config.map_err(|error| unusable(&args.cert, error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
