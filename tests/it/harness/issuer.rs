//! An issuer of OIDC tokens: an https server on loopback with a discovery document and a JWK set, and keys that sign, made when they
//! are needed.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use carillon::dev::{Ca, CertRequest};
use chrono::TimeDelta;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::ServerConfig;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What precedes the key proper in the PKCS#8 form of an RSA key of 2048 bits; the token library takes it without.
const RSA_HEADER_BYTES: usize = 26;

/// A key that signs tokens, under an id.
#[derive(Clone)]
pub struct Signer {
    pub id: String,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Signer {
    /// A new key for an algorithm.
    pub fn new(id: &str, algorithm: Algorithm) -> Self {
        let random = SystemRandom::new();
        let key = match algorithm {
            Algorithm::ES256 => EncodingKey::from_ec_der(
                EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key").as_ref(),
            ),
            Algorithm::ES384 => EncodingKey::from_ec_der(
                EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &random).expect("a key").as_ref(),
            ),
            Algorithm::EdDSA => {
                EncodingKey::from_ed_der(Ed25519KeyPair::generate_pkcs8v1(&random).expect("a key").as_ref())
            }
            _ => {
                let key = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
                EncodingKey::from_rsa_der(&key.as_der().expect("its form").as_ref()[RSA_HEADER_BYTES..])
            }
        };
        Self { id: id.to_owned(), algorithm, key }
    }

    /// The same key for another algorithm of its kind.
    pub fn with(&self, algorithm: Algorithm) -> Self {
        Self { algorithm, ..self.clone() }
    }

    /// Its public half, as an entry of a JWK set.
    pub fn jwk(&self) -> Value {
        let jwk = Jwk::from_encoding_key(&self.key, self.algorithm).expect("a public key");
        let mut jwk = serde_json::to_value(jwk).expect("JSON");
        // As issuers do, and without saying for which algorithm.
        jwk["use"] = json!("sig");
        jwk["kid"] = json!(self.id);
        jwk.as_object_mut().expect("an object").remove("alg");
        jwk
    }

    /// A token of these claims.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_with(&Header { kid: Some(self.id.clone()), ..Header::new(self.algorithm) }, claims)
    }

    /// A token of these claims with a header of one's own.
    pub fn sign_with(&self, header: &Header, claims: &Value) -> String {
        jsonwebtoken::encode(header, claims, &self.key).expect("a token")
    }
}

/// A part of a token.
pub fn encoded(part: &Value) -> String {
    URL_SAFE_NO_PAD.encode(part.to_string())
}

#[derive(Default)]
struct State {
    keys: Vec<Value>,
    fails: bool,
    fetched: usize,
    connections: usize,
}

/// The issuer; ends when it is dropped.
pub struct Issuer {
    /// What its tokens say in `iss`.
    pub url: String,
    dir: TempDir,
    state: Arc<Mutex<State>>,
    _stop: DropGuard,
}

impl Issuer {
    /// Starts an issuer that publishes some keys.
    pub async fn start(keys: &[&Signer]) -> Self {
        let now = carillon::clock::now();
        let ca = Ca::generate("issuer CA", now - TimeDelta::hours(1), now + TimeDelta::days(1)).expect("a CA");
        let server = carillon::dev::ca::issue(&ca, &CertRequest::server(now)).expect("a certificate");
        let dir = tempfile::Builder::new().prefix("carillon-issuer-").tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join("ca.pem"), ca.cert_pem()).expect("a file in the temporary folder");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the default versions exist")
            .with_no_client_auth()
            .with_single_cert(vec![server.cert_der.clone()], server.key_der().expect("a key"))
            .expect("key and certificate match");
        // Bound where it is served: it must outlive the runtime of the test that has started it.
        let bound = super::shared_runtime().spawn(TcpListener::bind("127.0.0.1:0"));
        let listener = bound.await.expect("no panic").expect("a free port");
        let url = format!("https://localhost:{}/realms/one", listener.local_addr().expect("it is bound").port());
        let state = Arc::new(Mutex::new(State::default()));
        let stop = CancellationToken::new();
        let accept = accept(listener, TlsAcceptor::from(Arc::new(config)), url.clone(), state.clone(), stop.clone());
        super::shared_runtime().spawn(stop.clone().run_until_cancelled_owned(accept));
        let issuer = Self { url, dir, state, _stop: stop.drop_guard() };
        issuer.publishes(keys);
        issuer
    }

    /// Publishes these keys from now on.
    pub fn publishes(&self, keys: &[&Signer]) {
        self.lock().keys = keys.iter().map(|key| key.jwk()).collect();
    }

    /// Whether it answers everything with 500 from now on.
    pub fn fails(&self, fails: bool) {
        self.lock().fails = fails;
    }

    /// How often its JWK set was asked for.
    pub fn fetched(&self) -> usize {
        self.lock().fetched
    }

    /// How many connections it has seen.
    pub fn connections(&self) -> usize {
        self.lock().connections
    }

    /// Its JWK set.
    pub fn jwks(&self) -> String {
        json!({"keys": self.lock().keys}).to_string()
    }

    /// The section that lets its address be called.
    pub fn reachable(&self) -> String {
        let ca = self.dir.path().join("ca.pem");
        format!("[executor.issuers]\nallow_private_ranges = [\"127.0.0.0/8\"]\nextra_ca_file = \"{}\"\n", ca.display())
    }

    /// Its entry among the settings, for the audience `carillon` and without leeway, with more of TOML.
    pub fn entry(&self, more: &str) -> String {
        let url = &self.url;
        format!("[[auth.issuers]]\nissuer = \"{url}\"\naudience = \"carillon\"\nleeway_ms = 0\n{more}\n")
    }

    /// Claims of a token that may do anything in a tenant for an hour.
    pub fn claims(&self, tenant: &str) -> Value {
        let now = carillon::clock::now().timestamp();
        json!({
            "iss": self.url, "aud": ["account", "carillon"], "sub": "alice", "iat": now, "exp": now + 3_600,
            "carillon_tenant": tenant, "carillon_role": "admin",
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the lock")
    }
}

async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    url: String,
    state: Arc<Mutex<State>>,
    stop: CancellationToken,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        state.lock().expect("no panic").connections += 1;
        tokio::spawn(stop.clone().run_until_cancelled_owned(serve(stream, tls.clone(), url.clone(), state.clone())));
    }
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, url: String, state: Arc<Mutex<State>>) {
    let Ok(stream) = tls.accept(stream).await else { return };
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.uri().path(), &url, &mut state.lock().expect("no panic"));
        async move { Ok::<_, Infallible>(answer) }
    });
    // A client that goes away in the middle is its own matter.
    let _ended = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn answer(path: &str, url: &str, state: &mut State) -> Response<Full<Bytes>> {
    let document = match path {
        "/realms/one/.well-known/openid-configuration" => json!({"issuer": url, "jwks_uri": format!("{url}/keys")}),
        "/realms/one/keys" => {
            state.fetched += 1;
            json!({"keys": state.keys})
        }
        _ => Value::Null,
    };
    let mut response = Response::new(Full::new(Bytes::from(document.to_string())));
    if state.fails || document.is_null() {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    response
}
