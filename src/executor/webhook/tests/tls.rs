//! The executor over TLS: additional roots, receivers that would rather speak HTTP/2, and certificates that are not to be trusted.

use super::*;

/// A certificate authority, and a server's settings with a certificate of it for `name`.
fn authority(name: &str) -> (String, Arc<rustls::ServerConfig>) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).expect("a root").pem();
    let issuer = rcgen::Issuer::new(params, key);
    let key = rcgen::KeyPair::generate().expect("a key");
    let leaf = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
    let leaf = leaf.signed_by(&key, &issuer).expect("a certificate");
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().expect("protocol versions").with_no_client_auth();
    let mut config = builder.with_single_cert(vec![leaf.der().clone()], key).expect("a key pair");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (root, Arc::new(config))
}

/// Speaks HTTP/1 or HTTP/2 over TLS, as the client asks for, and answers with the version it spoke.
async fn serve_tls(tls: Arc<rustls::ServerConfig>) -> Receiver {
    Receiver::start(move |stream| {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&tls));
        async move {
            // A client that does not trust the certificate ends the handshake.
            let Ok(stream) = acceptor.accept(stream).await else { return };
            serve_http(stream).await;
        }
    })
    .await
}

async fn serve_http(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
        let version = format!("{:?}", request.version());
        if request.uri().path() == "/hang" {
            return std::future::pending().await;
        }
        let body = request.into_body().collect().await?.to_bytes();
        assert!(body.starts_with(b"{\"specversion\""));
        Ok::<_, hyper::Error>(http::Response::new(Full::new(Bytes::from(version))))
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

#[tokio::test]
async fn an_additional_root_is_trusted_and_connections_are_kept() {
    let (root, tls) = authority("localhost");
    let receiver = serve_tls(tls).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("roots.pem");
    std::fs::write(&path, root).expect("written");
    let config = Config { extra_ca_file: Some(path), ..loopback() };
    let executor = executor(&config);
    let port = receiver.address.port();
    for _ in 0..10 {
        let outcome = attempt_by(&executor, &format!("https://localhost:{port}/hook"), LONG).await;
        assert_eq!(
            (outcome.class, outcome.excerpt.as_deref()),
            (OutcomeClass::Succeeded, Some("HTTP/1.1")),
            "{outcome:?}"
        );
    }
    assert_eq!(receiver.connections(), 1);
    // The certificate is for the name, not for the address behind it.
    let outcome = attempt_by(&executor, &format!("https://127.0.0.1:{port}/hook"), LONG).await;
    assert_eq!(outcome.class, OutcomeClass::Unreachable);
    assert!(outcome.error.is_some_and(|error| error.contains("TLS") && error.contains("another host name")));
}

#[tokio::test]
async fn g9_calls_that_hang_hold_up_no_other_call_to_the_same_receiver() {
    let (root, tls) = authority("localhost");
    let receiver = serve_tls(tls).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("roots.pem");
    std::fs::write(&path, root).expect("written");
    let executor = executor(&Config { extra_ca_file: Some(path), ..loopback() });
    let uri = |path: &str| format!("https://localhost:{}{path}", receiver.address.port());
    // More than HTTP/2 servers let a connection carry.
    let hanging: Vec<_> = (0..300)
        .map(|_| {
            let (executor, uri) = (executor.clone(), uri("/hang"));
            tokio::spawn(async move { attempt_by(&executor, &uri, LONG).await })
        })
        .collect();
    while receiver.connections() < hanging.len() {
        tokio::task::yield_now().await;
    }
    let outcome = attempt_by(&executor, &uri("/ok"), LONG).await;
    assert_eq!(outcome.class, OutcomeClass::Succeeded, "{outcome:?}");
    assert!(hanging.iter().all(|attempt| !attempt.is_finished()), "they hang on");
    hanging.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn tls_that_is_untrusted_or_broken_is_unreachable_and_says_so() {
    let receiver = serve_tls(authority("localhost").1).await;
    let outcome = attempt(&format!("https://localhost:{}/hook", receiver.address.port())).await;
    assert_eq!(outcome.class, OutcomeClass::Unreachable);
    let error = outcome.error.unwrap_or_default();
    assert!(error.contains("TLS handshake failed") && error.contains("trusted authority"), "{error}");

    let plain = Receiver::start(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        until_closed(&mut stream).await;
    })
    .await;
    let outcome = attempt(&format!("https://{}/hook", plain.address)).await;
    assert_eq!(outcome.class, OutcomeClass::Unreachable);
    let error = outcome.error.unwrap_or_default();
    assert!(error.contains("does not speak TLS"), "{error}");

    let silent = Receiver::start(|mut stream| async move { until_closed(&mut stream).await }).await;
    let impatient = executor(&Config { tls_timeout_ms: 50, ..loopback() });
    let outcome = attempt_by(&impatient, &format!("https://{}/hook", silent.address), LONG).await;
    assert_eq!(outcome.class, OutcomeClass::Timeout);
    assert!(outcome.error.is_some_and(|error| error.contains("TLS handshake took too long")));
}

#[test]
fn a_root_file_that_is_missing_or_empty_stops_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("roots.pem");
    let config = Config { extra_ca_file: Some(path.clone()), ..loopback() };
    let missing = Executor::new(&config).expect_err("no file").to_string();
    std::fs::write(&path, "no certificate").expect("written");
    let empty = Executor::new(&config).expect_err("no certificate").to_string();
    for text in [missing, empty] {
        assert!(text.contains("extra_ca_file") && !text.contains("roots.pem"), "{text}");
    }
}
