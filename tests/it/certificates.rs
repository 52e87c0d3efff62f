//! Certificates at the doors: what each kind of wrong one is answered on the internal port, to the alert and the reason, and how
//! new files come into use while calls run.

use std::fs;
use std::process::Stdio;
use std::sync::Arc;

use carillon::dev::{CertRequest, Issued};
use carillon::proto::internal::admin_service_client::AdminServiceClient;
use carillon::proto::internal::publish_service_client::PublishServiceClient;
use carillon::proto::internal::{
    CreatePublisherIdentityRequest, DeletePublisherIdentityRequest, ListTenantsRequest, PublishResponse,
};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyPair,
    KeyUsagePurpose, NameConstraints, PKCS_RSA_SHA256, RsaKeySize, SanType, SerialNumber,
};
use rustls::{AlertDescription, ClientConfig, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{Code, Status};

use crate::harness::authority::{
    Authority, Shown, Speaks, ca_params, client, client_params, dns, ends_in, named, new_key, uri, valid,
};
use crate::harness::connect::tls;
use crate::harness::tenant::{admin, assert_refused, publish_request, reason};
use crate::harness::{Tenant, World, eventually, within};
use crate::operations::get;

pub const EVENT_TYPE: &str = "CUSTOM_CERTIFIED";
const TRUSTING: &str = r#"
    [server]
    certificates_interval_ms = 100
    [server.internal_tls]
    client_ca_file = "{dir}/cas"
    client_crl_file = "{dir}/crls"
"#;

/// What a client must see.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The handshake ends with this alert.
    Alert(AlertDescription),
    /// The connection stands, and publishing is refused with this code and reason.
    Refused(Code, &'static str),
    /// The event is published.
    Published,
}

use AlertDescription as A;
use Outcome::{Alert, Published, Refused};

/// A replica that trusts a folder of authorities, and the root of most certificates here.
pub struct Stage {
    pub world: World,
    tenant: Tenant,
    pub root: Authority,
}

impl Stage {
    pub async fn new() -> Self {
        let mut world = World::start_with(0, TRUSTING).await;
        let root = Authority::root("root", new_key());
        for folder in ["cas", "crls"] {
            fs::create_dir(world.path(folder)).expect("a folder");
        }
        put(&world, "cas/world.pem", world.ca.cert_pem());
        put(&world, "cas/root.pem", &root.cert.pem());
        world.add_replica().await;
        let tenant = world.tenant().await;
        tenant.declare(EVENT_TYPE).await;
        Self { world, tenant, root }
    }

    pub fn uri(&self) -> String {
        format!("spiffe://carillon.test/publisher/{}", self.tenant.slug)
    }

    async fn register(&self, subject: String, event_types: &[&str]) -> String {
        let event_types = event_types.iter().map(|name| (*name).to_owned()).collect();
        let request = CreatePublisherIdentityRequest {
            tenant: self.tenant.slug.clone(),
            subject,
            event_types,
            ..Default::default()
        };
        let answer = admin(&self.world).create_publisher_identity(request).await.expect("it can be registered");
        answer.into_inner().publisher_identity.expect("it is set").id
    }

    pub fn config(&self, shown: Option<&Shown>, speaks: &Speaks) -> Arc<ClientConfig> {
        client(self.world.ca.cert_der(), shown, speaks)
    }

    pub fn publisher(&self, config: Arc<ClientConfig>) -> PublishServiceClient<tonic::transport::Channel> {
        PublishServiceClient::new(tls(&self.world.replicas[0].addresses.internal, config))
    }

    pub async fn publish(&self, shown: &Shown) -> Result<PublishResponse, Status> {
        let mut publisher = self.publisher(self.config(Some(shown), &Speaks::default()));
        publisher.publish(publish_request(EVENT_TYPE, &json!({}))).await.map(tonic::Response::into_inner)
    }

    /// The alert that ends the connection before anything is said inside it.
    pub async fn alert(&self, config: Arc<ClientConfig>) -> Option<AlertDescription> {
        let tcp = TcpStream::connect(&self.world.replicas[0].addresses.internal).await.expect("the port accepts");
        let name = ServerName::try_from("localhost").expect("a name");
        let said = async {
            // TLS 1.3 clients learn only afterwards what the server thinks of their certificate.
            let mut stream = TlsConnector::from(config).connect(name, tcp).await?;
            stream.read_u8().await
        };
        // A peer that is let in is greeted.
        let error = within("the server answers", said).await.err()?;
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(alert)) => Some(*alert),
            _ => None,
        }
    }

    async fn outcome(&self, shown: Option<&Shown>, speaks: &Speaks, expected: &Outcome) -> Result<Outcome, String> {
        let config = self.config(shown, speaks);
        if matches!(expected, Alert(_)) {
            return self.alert(config).await.map(Alert).ok_or_else(|| "closed without an alert".to_owned());
        }
        let answer = self.publisher(config).publish(publish_request(EVENT_TYPE, &json!({}))).await;
        match answer {
            Ok(_) => Ok(Published),
            Err(status) => {
                let code = status.code();
                if !matches!(code, Code::Unauthenticated | Code::PermissionDenied) {
                    return Err(format!("{status:?}"));
                }
                let known = ["CREDENTIAL_INVALID", "EVENT_TYPE_FORBIDDEN"];
                let reason = reason(&status);
                let reason = known.into_iter().find(|known| *known == reason).ok_or(reason)?;
                Ok(Refused(code, reason))
            }
        }
    }
}

pub fn put(world: &World, name: &str, text: &str) {
    fs::write(world.path(name), text).expect("a file in the world's folder");
}

pub fn edited(mut params: CertificateParams, edit: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    edit(&mut params);
    params
}

/// Puts another signature algorithm's name, of the same length, over the one that a certificate says it was signed with.
fn resigned(mut shown: Shown, from: &[u8], to: &[u8]) -> Shown {
    let mut der = shown.chain[0].to_vec();
    let places: Vec<usize> = (0..der.len() - from.len()).filter(|at| der[*at..].starts_with(from)).collect();
    assert!(places.len() >= 2, "once inside and once outside of what is signed: {places:?}");
    for at in places {
        der[at..at + to.len()].copy_from_slice(to);
    }
    shown.chain[0] = CertificateDer::from(der);
    shown
}

const OLD: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
const INVALID: Outcome = Refused(Code::Unauthenticated, "CREDENTIAL_INVALID");

#[tokio::test]
async fn every_kind_of_certificate_has_its_exact_outcome() {
    let stage = Stage::new().await;
    let (root, me) = (&stage.root, stage.uri());
    let slug = &stage.tenant.slug;
    let host = format!("orders.{slug}.test");
    stage.register(format!("dns:{host}"), &[]).await;
    stage.register(format!("uri:{me}/limited"), &["CUSTOM_OTHER"]).await;
    let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key");
    let rsa = Authority::root("rsa root", rsa);
    put(&stage.world, "cas/rsa.pem", &rsa.cert.pem());

    let good = client_params(vec![uri(&me)]);
    let with = |edit: &dyn Fn(&mut CertificateParams)| edited(good.clone(), edit);
    let issue = |params: &CertificateParams| Some(root.issue(params, &[]));
    let names = |names: Vec<SanType>| Some(root.issue(&client_params(names), &[]));
    let middle = root.below(ca_params("intermediate", BasicConstraints::Unconstrained));
    let serial =
        |serial: u64| move |params: &mut CertificateParams| params.serial_number = Some(SerialNumber::from(serial));
    let revoked_middle = root.below(edited(ca_params("revoked", BasicConstraints::Unconstrained), serial(8)));
    put(&stage.world, "crls/root.pem", &root.revoke(&[7, 8]));
    let last = root.below(ca_params("last", BasicConstraints::Constrained(0)));
    let too_deep = last.below(ca_params("too deep", BasicConstraints::Unconstrained));
    let not_a_ca = root.below(good.clone());
    let narrow = root.below(edited(ca_params("narrow", BasicConstraints::Unconstrained), |params| {
        let permitted_subtrees = vec![GeneralSubtree::DnsName("elsewhere.test".to_owned())];
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    }));
    let stranger = Authority::root("stranger", new_key());
    let twin = Authority::root("root", new_key());
    let critical = with(&|params| {
        let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 55_555, 1], vec![5, 0]);
        extension.set_criticality(true);
        params.custom_extensions.push(extension);
    });
    let server_only = with(&|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let ca_as_leaf = with(&|params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages.push(KeyUsagePurpose::KeyCertSign);
    });
    let (sha256, sha1) = (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b", b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05");
    let stolen = Shown { key: new_key(), ..root.issue(&good, &[]) };
    let garbled = Shown { chain: vec![CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])], key: new_key() };
    let upper = me.replace("publisher", "Publisher");
    let cases: Vec<(&str, Option<Shown>, Outcome)> = vec![
        ("none", None, Alert(A::CertificateRequired)),
        ("self-signed", Some(Shown::self_signed(&good)), Alert(A::UnknownCA)),
        ("another authority's", Some(stranger.issue(&good, &[])), Alert(A::UnknownCA)),
        ("an authority of the same name with another key", Some(twin.issue(&good, &[])), Alert(A::DecryptError)),
        ("its unknown root sent along", Some(stranger.issue(&good, &[&stranger])), Alert(A::UnknownCA)),
        ("expired", issue(&valid(good.clone(), -3, -2)), Alert(A::CertificateExpired)),
        ("not yet valid", issue(&valid(good.clone(), 2, 3)), Alert(A::CertificateExpired)),
        ("for servers only", issue(&server_only), Alert(A::UnsupportedCertificate)),
        ("an authority's used as a client's", issue(&ca_as_leaf), Alert(A::CertificateUnknown)),
        ("an unknown critical extension", issue(&critical), Alert(A::CertificateUnknown)),
        ("not a certificate", Some(garbled), Alert(A::BadCertificate)),
        ("another's, without its key", Some(stolen), Alert(A::DecryptError)),
        ("signed with SHA-1", Some(resigned(rsa.issue(&good, &[]), sha256, sha1)), Alert(A::DecryptError)),
        ("revoked", issue(&edited(good.clone(), serial(7))), Alert(A::CertificateRevoked)),
        ("below a revoked one", Some(revoked_middle.issue(&good, &[&revoked_middle])), Alert(A::CertificateRevoked)),
        ("intermediate missing", Some(middle.issue(&good, &[])), Alert(A::UnknownCA)),
        ("signed by one that is no authority", Some(not_a_ca.issue(&good, &[&not_a_ca])), Alert(A::CertificateUnknown)),
        ("a path that is too long", Some(too_deep.issue(&good, &[&too_deep, &last])), Alert(A::CertificateUnknown)),
        (
            "outside the names its authority may give",
            Some(narrow.issue(&client_params(vec![dns(&host)]), &[&narrow])),
            Alert(A::CertificateUnknown),
        ),
        ("no names", names(Vec::new()), INVALID),
        (
            "only a common name",
            issue(&edited(client_params(Vec::new()), |p| p.distinguished_name = named(&me))),
            INVALID,
        ),
        ("two URIs", names(vec![uri(&me), uri("spiffe://carillon.test/other")]), INVALID),
        ("two URIs, the right one last", names(vec![uri("spiffe://carillon.test/other"), uri(&me)]), INVALID),
        ("two registered names", names(vec![uri(&me), dns(&host)]), INVALID),
        ("another trust domain", names(vec![uri(&me.replace("carillon.test", "carillon.evil"))]), INVALID),
        ("a longer trust domain", names(vec![uri(&me.replace("carillon.test", "carillon.test.evil"))]), INVALID),
        ("a longer name", names(vec![uri(&format!("{me}x"))]), INVALID),
        ("a shorter name", names(vec![uri(&me[..me.len() - 1])]), INVALID),
        ("a name below", names(vec![uri(&format!("{me}/x"))]), INVALID),
        ("another case", names(vec![uri(&upper)]), INVALID),
        ("a trailing slash", names(vec![uri(&format!("{me}/"))]), INVALID),
        ("percent-encoded", names(vec![uri(&me.replace("publisher", "%70ublisher"))]), INVALID),
        ("a query", names(vec![uri(&format!("{me}?a=b"))]), INVALID),
        ("a path that climbs", names(vec![uri(&me.replace("/publisher", "/x/../publisher"))]), INVALID),
        ("a NUL behind the right name", names(vec![uri(&format!("{me}\0evil"))]), INVALID),
        ("a line feed behind the right name", names(vec![uri(&format!("{me}\n"))]), INVALID),
        ("a NUL in a host name", names(vec![dns(&format!("{host}\0.evil"))]), INVALID),
        ("a NUL in a host name beside the right name", names(vec![uri(&me), dns("a\0b")]), INVALID),
        ("only an address", names(vec![SanType::IpAddress([127, 0, 0, 1].into())]), INVALID),
        (
            "only a mail address",
            names(vec![SanType::Rfc822Name("a@carillon.test".try_into().expect("ASCII"))]),
            INVALID,
        ),
        ("a wildcard", names(vec![dns(&format!("*.{slug}.test"))]), INVALID),
        ("a host name in another case", names(vec![dns(&host.to_uppercase())]), INVALID),
        ("a name for a type it may not publish", names(vec![uri(&format!("{me}/limited"))]), {
            Refused(Code::PermissionDenied, "EVENT_TYPE_FORBIDDEN")
        }),
        ("an intermediate", Some(middle.issue(&good, &[&middle])), Published),
        ("an RSA authority", Some(rsa.issue(&good, &[])), Published),
        ("no extended key usage", issue(&with(&|params| params.extended_key_usages.clear())), Published),
        ("a URI beside a host name", names(vec![uri(&me), dns("unregistered.test")]), Published),
        ("a host name", names(vec![dns(&host)]), Published),
        ("the right one", issue(&good), Published),
    ];
    // The files were put while the replica ran: they are in use once the revoked one is refused and the RSA root trusted.
    eventually("the files are in use", || async {
        let revoked = edited(good.clone(), serial(7));
        let alert = stage.alert(stage.config(Some(&root.issue(&revoked, &[])), &Speaks::default())).await;
        let trusted = stage.publish(&rsa.issue(&good, &[])).await;
        if alert == Some(A::CertificateRevoked) && trusted.is_ok() { Ok(()) } else { Err((alert, trusted)) }
    })
    .await;
    let mut wrong = Vec::new();
    for (what, shown, expected) in &cases {
        let outcome = stage.outcome(shown.as_ref(), &Speaks::default(), expected).await;
        if outcome.as_ref() != Ok(expected) {
            wrong.push(format!("{what}: {outcome:?}, not {expected:?}"));
        }
    }
    let old = Speaks { versions: OLD, ..Speaks::default() };
    let web = Speaks { protocols: &[b"http/1.1"], ..Speaks::default() };
    for (what, speaks, expected) in
        [("TLS 1.2", old, Alert(A::ProtocolVersion)), ("HTTP/1.1 only", web, Alert(A::NoApplicationProtocol))]
    {
        let outcome = stage.outcome(Some(&root.issue(&good, &[])), &speaks, &expected).await;
        if outcome.as_ref() != Ok(&expected) {
            wrong.push(format!("{what}: {outcome:?}, not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), stage.world.replicas[0].process.log_tail());
}

#[tokio::test]
async fn a_certificate_with_a_key_that_is_too_short_is_refused() {
    let stage = Stage::new().await;
    let key = new_key();
    put(&stage.world, "signer.key", &key.serialize_pem());
    let signer = Authority::root("signer", key);
    put(&stage.world, "cas/signer.pem", &signer.cert.pem());
    put(&stage.world, "names.ext", &format!("subjectAltName=URI:{}\nextendedKeyUsage=clientAuth\n", stage.uri()));
    let openssl = async |arguments: &str| {
        let mut command = tokio::process::Command::new("openssl");
        command.args(arguments.split(' ')).current_dir(stage.world.dir.path());
        within("openssl ends", command.stdin(Stdio::null()).kill_on_drop(true).output()).await.expect("openssl runs")
    };
    // Nothing else here makes such a key, or would use it.
    let make = async |bits: u32| {
        for step in [
            format!("req -new -newkey rsa:{bits} -nodes -keyout {bits}.key -subj /CN=client -out {bits}.csr"),
            format!(
                "x509 -req -in {bits}.csr -CA cas/signer.pem -CAkey signer.key -set_serial {bits} -days 1 -sha256 \
                 -extfile names.ext -out {bits}.pem"
            ),
        ] {
            let made = openssl(&step).await;
            assert!(made.status.success(), "{step}: {}", String::from_utf8_lossy(&made.stderr));
        }
    };
    make(2_048).await;
    make(1_024).await;
    let long = Shown {
        chain: vec![CertificateDer::from_pem_file(stage.world.path("2048.pem")).expect("a certificate")],
        key: KeyPair::from_pem(&fs::read_to_string(stage.world.path("2048.key")).expect("a file")).expect("a key"),
    };
    eventually("a key that is long enough is accepted", || stage.publish(&long)).await;
    let address = &stage.world.replicas[0].addresses.internal;
    let said = openssl(&format!(
        "s_client -connect {address} -servername localhost -CAfile ca.pem -cert 1024.pem -key 1024.key -alpn h2 -tls1_3 \
         -cipher DEFAULT@SECLEVEL=0 -ign_eof"
    ))
    .await;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("alert number 51"), "a decrypt_error: {said}");
}

#[tokio::test]
async fn a_publisher_is_no_operator_and_an_operator_is_no_publisher() {
    let stage = Stage::new().await;
    let address = &stage.world.replicas[0].addresses.internal;
    let shown = stage.root.issue(&client_params(vec![uri(&stage.uri())]), &[]);
    let mut client = AdminServiceClient::new(tls(address, stage.config(Some(&shown), &Speaks::default())));
    let listed = client.list_tenants(ListTenantsRequest::default()).await;
    assert_refused(listed, Code::Unauthenticated, "CREDENTIAL_INVALID");
    let mut operator = PublishServiceClient::new(stage.world.internal(0, &stage.world.operator));
    let published = operator.publish(publish_request(EVENT_TYPE, &json!({}))).await;
    assert_refused(published, Code::Unauthenticated, "CREDENTIAL_INVALID");
}

#[tokio::test]
async fn a_publisher_that_is_removed_is_refused_on_its_open_connection() {
    let stage = Stage::new().await;
    let name = format!("{}/brief", stage.uri());
    let id = stage.register(format!("uri:{name}"), &[]).await;
    let shown = stage.root.issue(&client_params(vec![uri(&name)]), &[]);
    let mut publisher = stage.publisher(stage.config(Some(&shown), &Speaks::default()));
    publisher.publish(publish_request(EVENT_TYPE, &json!({}))).await.expect("it is registered");
    let request = DeletePublisherIdentityRequest {
        tenant: stage.tenant.slug.clone(),
        publisher_identity_id: id,
        ..Default::default()
    };
    admin(&stage.world).delete_publisher_identity(request).await.expect("it can be removed");
    let refused = publisher.publish(publish_request(EVENT_TYPE, &json!({}))).await;
    assert_refused(refused, Code::Unauthenticated, "CREDENTIAL_INVALID");
}

impl Stage {
    /// Puts a server certificate where the replica looks, the key of another beside it where that is given.
    fn serve_with(&self, issued: &Issued, key: &Issued) {
        put(&self.world, "server.key", &key.key_pem);
        put(&self.world, "server.pem", &issued.cert_pem);
    }

    fn server(&self) -> Issued {
        let request = CertRequest::server(carillon::clock::now());
        carillon::dev::ca::issue(&self.world.ca, &request).expect("a certificate")
    }

    /// The certificate that a new connection is shown.
    async fn shown(&self) -> CertificateDer<'static> {
        let tcp = TcpStream::connect(&self.world.replicas[0].addresses.internal).await.expect("the port accepts");
        let name = ServerName::try_from("localhost").expect("a name");
        let connector = TlsConnector::from(self.config(None, &Speaks::default()));
        let stream = within("the handshake", connector.connect(name, tcp)).await.expect("the server is trusted");
        stream.get_ref().1.peer_certificates().expect("it shows one")[0].clone()
    }

    async fn shows(&self, issued: &Issued) {
        eventually("new connections are shown the new certificate", || async {
            if self.shown().await == issued.cert_der { Ok(()) } else { Err(self.world.replicas[0].process.log_tail()) }
        })
        .await;
    }

    pub async fn ops(&self, page: &str) -> String {
        let (status, body) = get(&format!("http://{}/{page}", self.world.replicas[0].addresses.ops)).await;
        assert_eq!(status, 200, "{body}");
        body
    }

    pub async fn ops_eventually(&self, page: &str, what: &str, fits: impl Fn(&str) -> bool) {
        eventually(what, || async {
            let body = self.ops(page).await;
            if fits(&body) { Ok(()) } else { Err(body) }
        })
        .await;
    }
}

#[tokio::test]
async fn new_files_come_into_use_and_broken_ones_do_not() {
    let stage = Stage::new().await;
    let shown = stage.root.issue(&client_params(vec![uri(&stage.uri())]), &[]);
    let mut publisher = stage.publisher(stage.config(Some(&shown), &Speaks::default()));
    let mut publish = async || {
        publisher.publish(publish_request(EVENT_TYPE, &json!({}))).await.expect("an open connection is not disturbed");
    };
    publish().await;
    let second = stage.server();
    stage.serve_with(&second, &second);
    stage.shows(&second).await;
    publish().await;
    // A certificate whose key has not come yet: the former pair stays, and an operator can see it.
    let third = stage.server();
    stage.serve_with(&third, &second);
    stage.ops_eventually("readyz", "readiness says it", |body| body.contains("internal port not reloaded")).await;
    let failing = "carillon_certificate_reload_failing{port=\"internal\"} 1";
    stage.ops_eventually("metrics", "a metric says it", |body| body.contains(failing)).await;
    assert!(stage.shown().await == second.cert_der, "the former certificate stays");
    put(&stage.world, "server.pem", &third.cert_pem[..third.cert_pem.len() / 2]);
    put(&stage.world, "server.key", &third.key_pem);
    publish().await;
    assert!(stage.shown().await == second.cert_der, "half a certificate is none");
    stage.serve_with(&third, &third);
    stage.shows(&third).await;
    stage.ops_eventually("readyz", "readiness is silent again", |body| body == "ok\n").await;
    let metrics = stage.ops("metrics").await;
    for series in [
        "carillon_certificate_reload_failing{port=\"internal\"} 0",
        "carillon_certificate_reloads_total{port=\"internal\",outcome=\"ok\"} 2",
        "carillon_certificate_expiry_timestamp_seconds{port=\"internal\",file=\"certificate\"} 1",
        "carillon_certificate_expiry_timestamp_seconds{port=\"internal\",file=\"client_ca\"} 1",
    ] {
        assert!(metrics.contains(series), "{series}: {metrics}");
    }
    publish().await;
}

#[tokio::test]
async fn open_connections_of_revoked_orphaned_and_expired_certificates_end() {
    let stage = Stage::new().await;
    let params = client_params(vec![uri(&stage.uri())]);
    let other = Authority::root("other", new_key());
    put(&stage.world, "cas/other.pem", &other.cert.pem());
    let revoked = stage.root.issue(&edited(params.clone(), |p| p.serial_number = Some(SerialNumber::from(7))), &[]);
    let orphaned = other.issue(&params, &[]);
    let untouched = stage.root.issue(&params, &[]);
    eventually("the other authority is trusted", || async { stage.publish(&orphaned).await }).await;
    let open = |shown: &Shown| stage.publisher(stage.config(Some(shown), &Speaks::default()));
    let expiring = stage.root.issue(&ends_in(params.clone(), 5), &[]);
    let (mut untouched, mut ending) = (open(&untouched), [open(&revoked), open(&orphaned), open(&expiring)]);
    let event = || publish_request(EVENT_TYPE, &json!({}));
    for publisher in ending.iter_mut().chain([&mut untouched]) {
        publisher.publish(event()).await.expect("all are good still");
    }
    put(&stage.world, "crls/root.pem", &stage.root.revoke(&[7]));
    fs::remove_file(stage.world.path("cas/other.pem")).expect("it was put");
    for publisher in &ending {
        eventually("its connection ends and no other is let in", || {
            let mut publisher = publisher.clone();
            async move { publisher.publish(event()).await.err().ok_or("it still publishes") }
        })
        .await;
    }
    untouched.publish(event()).await.expect("the others go on");
}
