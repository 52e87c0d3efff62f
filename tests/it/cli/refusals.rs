//! Connections that are refused: what the command line says of the cause and of the way out.

use carillon::dev::{Ca, CertRequest};

use super::Cli;
use crate::harness::World;

#[tokio::test]
async fn a_client_certificate_that_the_server_refuses_is_told_with_the_cause_and_the_file() {
    let cli = Cli::new().await;
    let world = World::shared().await;
    let now = carillon::clock::now();
    let client = || CertRequest::client("client", "spiffe://test/client", now);
    let day = chrono::TimeDelta::days(1);
    let foreign = Ca::generate("foreign", now - day, now + day).expect("an authority");
    let expired = CertRequest { not_before: now - day * 2, not_after: now - day, ..client() };
    let cases = [
        (&world.ca, expired, ["it has expired", "client authentication", "shown.pem"]),
        (&world.ca, CertRequest::server(now), ["it is not for client authentication", "client authority", "shown.pem"]),
        (&foreign, client(), ["another authority has signed it", "client authority", "shown.pem"]),
        (&world.ca, client(), ["CREDENTIAL_INVALID", "help: the certificate's name", "publishers create"]),
    ];
    let path = |name: &str| cli.dir.path().join(name).display().to_string();
    let (cert, key) = (path("shown.pem"), path("shown.key"));
    for (ca, request, words) in cases {
        let issued = carillon::dev::ca::issue(ca, &request).expect("a certificate");
        std::fs::write(&cert, &issued.cert_pem).expect("a file in the temporary folder");
        std::fs::write(&key, &issued.key_pem).expect("a file in the temporary folder");
        let shown = ["--cert", cert.as_str(), "--key-file", key.as_str()];
        for command in [&["publish", "A", "--data", "{}"][..], &["admin", "tenants", "list"]] {
            cli.run(&[command, &shown[..]].concat()).await.fails(1, &words);
        }
    }
    // Without TLS, and without a certificate.
    let port = world.replicas[0].addresses.internal.rsplit_once(':').expect("it has a port").1;
    for scheme in ["http", "https"] {
        let url = format!("{scheme}://localhost:{port}");
        cli.run(&["events", "list", "--url", &url]).await.fails(1, &["connection ended", "TLS", "https://", "--cert"]);
    }
    // TLS, where none is spoken.
    let url = format!("https://{}", world.replicas[0].addresses.public);
    let wrong = cli.run(&["admin", "tenants", "list", "--internal-url", &url]).await;
    wrong.fails(1, &["cannot connect", "the port does not speak TLS"]);
}
