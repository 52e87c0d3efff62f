//! A whole server on a private Postgres: every port answers, doors stay shut without the right credential, and it stops.

use super::*;
use crate::api::InternalTls;
use crate::config::{Operators, SecretKey, Secrets};
use crate::dev::{Ca, CertRequest, PrivatePostgres, Search, ca};
use crate::proto::internal::admin_service_client::AdminServiceClient;
use crate::proto::internal::{
    CreateApiKeyRequest, CreateAppRequest, CreatePublisherIdentityRequest, CreateTenantRequest, GetTenantRequest,
    ListAuditRecordsRequest, ListTenantsRequest, RevokeApiKeyRequest, Role,
};
use crate::proto::public::GetEventTypeRequest;
use crate::proto::public::event_type_service_client::EventTypeServiceClient;
use crate::store::connect::Config as DatabaseConfig;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::TimeDelta;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use sqlx::Executor as _;
use std::fs;
use std::path::Path;
use std::time::Instant;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;
use tower::service_fn;

const OPERATOR: &str = "spiffe://carillon.test/operator";

struct World {
    postgres: PrivatePostgres,
    folder: tempfile::TempDir,
    ca: Ca,
}

impl World {
    async fn new() -> Self {
        let path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
        let postgres = PrivatePostgres::throwaway(&Search::system(path, None)).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let now = crate::clock::now();
        let ca = Ca::generate("test CA", now - TimeDelta::hours(1), now + TimeDelta::days(1)).unwrap();
        let server = ca::issue(&ca, &CertRequest::server(now)).unwrap();
        for (name, text) in [("ca.pem", ca.cert_pem()), ("s.pem", &server.cert_pem), ("s.key", &server.key_pem)] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Self { postgres, folder, ca }
    }

    fn config(&self) -> Config {
        let path = |name: &str| Some(Path::new(self.folder.path()).join(name));
        let local = "127.0.0.1:0".parse().unwrap();
        Config {
            server: crate::api::Config {
                public_listen: local,
                internal_listen: local,
                ops_listen: local,
                internal_tls: InternalTls {
                    certificate_file: path("s.pem"),
                    key_file: path("s.key"),
                    client_ca_file: path("ca.pem"),
                    client_crl_file: None,
                },
                first_byte_timeout_ms: 300,
                handshake_timeout_ms: 300,
                drain_timeout_ms: 2_000,
                cors_origins: vec!["https://app.example".to_owned()],
                ..crate::api::Config::default()
            },
            database: DatabaseConfig {
                url: Some(self.postgres.server_url().into()),
                migrate_url: Some(self.postgres.url().into()),
                ..DatabaseConfig::default()
            },
            secrets: Secrets {
                keys: vec![SecretKey {
                    id: "test".to_owned(),
                    key_file: None,
                    key: Some(STANDARD.encode([7; 32]).into()),
                }],
            },
            operators: Operators { subjects: vec![format!("uri:{OPERATOR}")] },
            ..Config::default()
        }
    }

    /// A channel with a certificate of that name, or with none.
    async fn internal(&self, app: &App, uri: Option<&str>) -> Result<Channel, tonic::transport::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.cert_der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match uri {
            None => builder.with_no_client_auth(),
            Some(uri) => {
                let issued = ca::issue(&self.ca, &CertRequest::client("client", uri, crate::clock::now())).unwrap();
                builder.with_client_auth_cert(vec![issued.cert_der.clone()], issued.key_der().unwrap()).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (connector, address) = (TlsConnector::from(Arc::new(config)), app.addresses().internal);
        let connect = service_fn(move |_| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = ServerName::try_from("localhost").unwrap();
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        Endpoint::from_static("http://localhost").connect_with_connector(connect).await
    }

    async fn admin(&self, app: &App) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.internal(app, Some(OPERATOR)).await.unwrap())
    }
}

fn public(app: &App) -> Channel {
    Endpoint::from_shared(format!("http://{}", app.addresses().public)).unwrap().connect_lazy()
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// One HTTP/1.1 request, answered whole.
async fn http(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn get(address: SocketAddr, path: &str) -> String {
    http(address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await
}

/// A call by gRPC-Web with an empty message and these further headers.
async fn web_call(address: SocketAddr, headers: &str) -> String {
    let request = format!(
        "POST /carillon.v1.EventService/GetEvent HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc-web+proto\r\n\
         {headers}content-length: 5\r\nconnection: close\r\n\r\n\0\0\0\0\0"
    );
    http(address, &request).await
}

/// Calls an RPC of the public port with these `authorization` headers; the services that answer it are not part of this test.
async fn ask(channel: &Channel, tokens: &[&str]) -> Status {
    let mut request = Request::new(GetEventTypeRequest { name: "X".to_owned(), ..Default::default() });
    for token in tokens {
        request.metadata_mut().append("authorization", token.parse().unwrap());
    }
    request.metadata_mut().insert("x-tenant", "other".parse().unwrap());
    EventTypeServiceClient::new(channel.clone()).get_event_type(request).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_starts_answers_guards_its_doors_and_stops() {
    let world = World::new().await;
    let older = App::start(world.config()).await.unwrap_err().to_string();
    assert!(older.contains("carillon migrate"), "{older}");
    // Two migrators at once: one does the work, the other waits and finds it done.
    let config = world.config();
    let (one, two) = tokio::join!(connect::migrate(&config.database, &[]), connect::migrate(&config.database, &[]));
    let mut applied = [one.unwrap().applied, two.unwrap().applied];
    applied.sort_unstable();
    assert!(applied[0] == 0 && applied[1] > 0, "{applied:?}");
    let app = App::start(world.config()).await.unwrap();
    let replica = App::start(world.config()).await.unwrap();

    // The ops port.
    assert!(get(app.addresses().ops, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(get(app.addresses().ops, "/readyz").await.starts_with("HTTP/1.1 200"));

    // The internal port: no certificate, a stranger's, the operator's.
    let nobody = world.internal(&app, None).await;
    if let Ok(channel) = nobody {
        // With TLS 1.3 the refusal may arrive after the client believes it is connected.
        assert!(AdminServiceClient::new(channel).list_tenants(ListTenantsRequest::default()).await.is_err());
    }
    let stranger = world.internal(&app, Some("spiffe://carillon.test/stranger")).await.unwrap();
    let refused = AdminServiceClient::new(stranger).list_tenants(ListTenantsRequest::default()).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unauthenticated, "CREDENTIAL_INVALID"));

    let mut admin = world.admin(&app).await;
    let acme = || CreateTenantRequest { slug: "acme".to_owned(), ..Default::default() };
    let tenant = admin.create_tenant(acme()).await.unwrap().into_inner().tenant.unwrap();
    assert!(tenant.id.starts_with("ten_") && tenant.display_name == "acme");
    let again = admin.create_tenant(acme()).await.unwrap_err();
    assert_eq!((again.code(), reason(&again).as_str()), (Code::AlreadyExists, "TENANT_EXISTS"));
    for slug in ["", "A", "a\0", "../x"] {
        let bad = CreateTenantRequest { slug: slug.to_owned(), ..Default::default() };
        let refused = admin.create_tenant(bad).await.unwrap_err();
        assert_eq!(reason(&refused), "FIELD_INVALID", "{slug:?}");
    }
    admin.create_tenant(CreateTenantRequest { slug: "zeta".to_owned(), ..Default::default() }).await.unwrap();
    let absent = admin.get_tenant(GetTenantRequest { tenant: "absent".to_owned() }).await.unwrap_err();
    assert_eq!(reason(&absent), "TENANT_NOT_FOUND");
    let first =
        admin.list_tenants(ListTenantsRequest { page_size: 1, ..Default::default() }).await.unwrap().into_inner();
    assert_eq!(first.tenants[0].slug, "acme");
    let next = ListTenantsRequest { page_size: 1, page_token: first.next_page_token.clone() };
    let second = admin.list_tenants(next).await.unwrap().into_inner();
    assert_eq!((second.tenants[0].slug.as_str(), second.next_page_token.as_str()), ("zeta", ""));
    let forged = ListTenantsRequest { page_size: 1, page_token: format!("{}x", first.next_page_token) };
    assert_eq!(reason(&admin.list_tenants(forged).await.unwrap_err()), "PAGE_TOKEN_INVALID");

    let app_request = CreateAppRequest { tenant: "acme".to_owned(), slug: "shop".to_owned(), ..Default::default() };
    admin.create_app(app_request).await.unwrap();
    let identity = |tenant: &str| CreatePublisherIdentityRequest {
        tenant: tenant.to_owned(),
        subject: "uri:spiffe://carillon.test/orders".to_owned(),
        event_types: vec!["CUSTOM_*".to_owned()],
        ..Default::default()
    };
    admin.create_publisher_identity(identity("acme")).await.unwrap();
    let taken = admin.create_publisher_identity(identity("zeta")).await.unwrap_err();
    assert_eq!(reason(&taken), "PUBLISHER_IDENTITY_EXISTS");

    // The public port: API keys on both replicas.
    let request = CreateApiKeyRequest {
        tenant: "acme".to_owned(),
        app: "shop".to_owned(),
        role: Role::Viewer.into(),
        ..Default::default()
    };
    let made = admin.create_api_key(request).await.unwrap().into_inner();
    let token = format!("Bearer {}", made.secret);
    let (start, last) = token.split_at(token.len() - 1);
    let other_secret = format!("{start}{}", if last == "A" { "E" } else { "A" });
    let channel = public(&app);
    for tokens in [&[][..], &["Bearer "], &["Basic eDp5"], &[&token, &token], &[&other_secret]] {
        let refused = ask(&channel, tokens).await;
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unauthenticated, "CREDENTIAL_INVALID"));
    }
    let long = format!("Bearer car_{}", "a".repeat(64 * 1024));
    assert_eq!(ask(&channel, &[&long]).await.code(), Code::Unauthenticated);
    assert_ne!(ask(&channel, &[&token]).await.code(), Code::Unauthenticated);
    assert_ne!(ask(&public(&replica), &[&token]).await.code(), Code::Unauthenticated);
    let id = made.api_key.unwrap().id;
    let revoked = admin
        .revoke_api_key(RevokeApiKeyRequest { tenant: "acme".to_owned(), api_key_id: id.clone(), ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    assert!(revoked.api_key.unwrap().revoke_time.is_some());
    assert_eq!(ask(&channel, &[&token]).await.code(), Code::Unauthenticated);
    let elsewhere = RevokeApiKeyRequest { tenant: "zeta".to_owned(), api_key_id: id, ..Default::default() };
    assert_eq!(reason(&admin.revoke_api_key(elsewhere).await.unwrap_err()), "API_KEY_NOT_FOUND");

    let records = ListAuditRecordsRequest { tenant: "acme".to_owned(), ..Default::default() };
    let records = admin.list_audit_records(records).await.unwrap().into_inner().audit_records;
    let actions: Vec<_> = records.iter().map(|record| record.action.as_str()).collect();
    assert_eq!(actions, ["RevokeApiKey", "CreateApiKey", "CreatePublisherIdentity", "CreateApp", "CreateTenant"]);
    assert!(records.iter().all(|record| record.actor == format!("uri:{OPERATOR}")));

    // Unknown methods, broken timeouts, browsers.
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    for path in ["/carillon.internal.v1.PublishService/Publish", "/no.such.Service/Method"] {
        grpc.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<GetEventTypeRequest, GetEventTypeRequest>::default();
        let path = http::uri::PathAndQuery::from_static(path);
        let status = grpc.unary(Request::new(GetEventTypeRequest::default()), path, codec).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unimplemented, "NOT_IMPLEMENTED"));
    }
    // Sent by hand, because the client library would act on the header itself. One that cannot be read counts as none: what is
    // missed next is the credential.
    for (timeout, expected) in [("5x", "16"), ("1n", "4"), ("99999999H", "16")] {
        let web = web_call(app.addresses().public, &format!("grpc-timeout: {timeout}\r\n")).await;
        assert!(web.contains(&format!("grpc-status: {expected}\r\n")), "{timeout}: {web}");
    }
    let large = CreateTenantRequest { slug: "a".repeat(5 * 1024 * 1024), ..Default::default() };
    let refused = admin.create_tenant(large).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "FIELD_INVALID"));
    let preflight = http(
        app.addresses().public,
        "OPTIONS /carillon.v1.EventService/Watch HTTP/1.1\r\nhost: x\r\norigin: https://app.example\r\n\
         access-control-request-method: POST\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(preflight.contains("access-control-allow-origin: https://app.example"), "{preflight}");
    let web = web_call(app.addresses().public, "origin: https://app.example\r\n").await;
    assert!(web.starts_with("HTTP/1.1 200") && web.contains("grpc-status: 16"), "{web}");
    assert!(web.contains("access-control-expose-headers: grpc-status,grpc-message,grpc-status-details-bin"), "{web}");

    // Health and reflection ask for no credential.
    let health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let answer = health.clone().check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap();
    assert_eq!(answer.into_inner().status, 1);
    let mut watched = health.clone().watch(tonic_health::pb::HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status, 1);

    // Silent peers are closed: plain text on the public port, no handshake on the internal one.
    for address in [app.addresses().public, app.addresses().internal] {
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut byte = [0; 1];
        let closed = tokio::time::timeout(Duration::from_secs(5), silent.read(&mut byte)).await;
        assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    }
    let metrics = get(app.addresses().ops, "/metrics").await;
    assert!(metrics.contains("carillon_calls_total{method=\"other\",code=\"Unimplemented\"} 1"), "{metrics}");

    // It stops although a stream and a connection are open, and says goodbye to the stream.
    let started = Instant::now();
    app.stop().await;
    assert!(started.elapsed() < Duration::from_secs(5));
    let last = loop {
        match watched.message().await {
            Ok(Some(update)) => assert_eq!(update.status, 2),
            Ok(None) => panic!("the stream ended without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!((last.code(), reason(&last).as_str()), (Code::Unavailable, "SERVER_DRAINING"));
    replica.stop().await;

    // A database that forgets what it acknowledged, and one from a newer release.
    let pool = sqlx::PgPool::connect(&world.postgres.owner_url("carillon")).await.unwrap();
    pool.execute("ALTER DATABASE carillon SET synchronous_commit = off").await.unwrap();
    let lossy = App::start(world.config()).await.unwrap_err().to_string();
    assert!(lossy.contains("synchronous_commit"), "{lossy}");
    let mut allowed = world.config();
    allowed.database.unsafe_allow_lossy_postgres = true;
    App::start(allowed).await.unwrap().stop().await;
    pool.execute("ALTER DATABASE carillon RESET synchronous_commit").await.unwrap();
    pool.execute("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (99990101, 'later', true, '\\x00', 0)")
        .await
        .unwrap();
    let newer = App::start(world.config()).await.unwrap_err().to_string();
    assert!(newer.contains("newer"), "{newer}");
    pool.close().await;
    world.postgres.stop().await.unwrap();
}
