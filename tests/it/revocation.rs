//! Revocation lists and authorities whose files are not what they should be: nobody who was revoked comes in again, nobody else is
//! kept out, and operators are told.

use std::fs;

use rcgen::{BasicConstraints, SerialNumber};
use rustls::AlertDescription as A;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;

use crate::certificates::{EVENT_TYPE, Stage, edited, put};
use crate::harness::authority::{Authority, Shown, Speaks, ca_params, client_params, ends_in, new_key, uri, valid};
use crate::harness::eventually;
use crate::harness::tenant::publish_request;

impl Stage {
    /// A client of an authority, by the serial of its certificate; `above` are those between it and the root.
    fn client(&self, authority: &Authority, serial: u64, above: &[&Authority]) -> Shown {
        let params = edited(client_params(vec![uri(&self.uri())]), |params| {
            params.serial_number = Some(SerialNumber::from(serial));
        });
        authority.issue(&params, above)
    }

    /// How a new connection is refused; none where it is not.
    async fn refusal(&self, shown: &Shown) -> Option<A> {
        self.alert(self.config(Some(shown), &Speaks::default())).await
    }

    async fn comes_to_refuse(&self, shown: &Shown, with: A) {
        eventually("it is refused", || async {
            let refusal = self.refusal(shown).await;
            if refusal == Some(with) { Ok(()) } else { Err((refusal, self.world.replicas[0].process.log_tail())) }
        })
        .await;
    }

    async fn comes_to_accept(&self, shown: &Shown) {
        eventually("it is let in", || async { self.publish(shown).await.map(drop) }).await;
    }

    /// Waits until readiness and metrics say that files are not used, or that all are.
    async fn tells(&self, failing: bool) {
        let says = |body: &str| body.contains("internal port not reloaded") == failing;
        self.ops_eventually("readyz", "readiness says what the files are", says).await;
        let series = format!("carillon_certificate_reload_failing{{port=\"internal\"}} {}", u8::from(failing));
        self.ops_eventually("metrics", "a metric says it", |body| body.contains(&series)).await;
    }
}

#[tokio::test]
async fn a_list_whose_file_is_empty_or_no_pem_or_gone_stays_in_use_and_operators_are_told() {
    let stage = Stage::new().await;
    let (revoked, good) = (stage.client(&stage.root, 7, &[]), stage.client(&stage.root, 8, &[]));
    stage.comes_to_accept(&revoked).await;
    let list = stage.root.revoke(&[7]);
    let file = "crls/root.pem";
    put(&stage.world, file, &list);
    stage.comes_to_refuse(&revoked, A::CertificateRevoked).await;
    let der = CertificateRevocationListDer::from_pem_slice(list.as_bytes()).expect("a list");
    let authority = stage.root.cert.pem();
    let wrong: [(&str, Option<&[u8]>); 5] = [
        ("empty", Some(b"")),
        ("DER", Some(&der)),
        ("of another kind", Some(authority.as_bytes())),
        ("cut off", Some(&list.as_bytes()[..list.len() / 2])),
        ("gone", None),
    ];
    for (what, content) in wrong {
        match content {
            Some(content) => fs::write(stage.world.path(file), content).expect("a file"),
            None => fs::remove_file(stage.world.path(file)).expect("it was put"),
        }
        stage.tells(true).await;
        assert_eq!(stage.refusal(&revoked).await, Some(A::CertificateRevoked), "{what}");
        stage.publish(&good).await.expect("the others come in");
        let series = "carillon_certificate_expiry_timestamp_seconds{port=\"internal\",file=\"client_crl\"} 1";
        assert!(stage.ops("metrics").await.contains(series), "{what}: it is in use");
        put(&stage.world, file, &list);
        stage.tells(false).await;
    }
    // One that is empty beside one that is not is no better.
    put(&stage.world, "crls/second.pem", "");
    stage.tells(true).await;
    fs::remove_file(stage.world.path("crls/second.pem")).expect("it was put");
    stage.tells(false).await;
    // That nobody is revoked any more the authority itself says.
    put(&stage.world, file, &stage.root.revoke(&[]));
    stage.comes_to_accept(&revoked).await;
}

#[tokio::test]
async fn of_several_lists_of_an_authority_the_newest_counts() {
    let stage = Stage::new().await;
    let revoked = stage.client(&stage.root, 7, &[]);
    put(&stage.world, "crls/1.pem", &stage.root.revoke_since(&[], -3));
    put(&stage.world, "crls/2.pem", &stage.root.revoke_since(&[7], -2));
    stage.comes_to_refuse(&revoked, A::CertificateRevoked).await;
    put(&stage.world, "crls/3.pem", &stage.root.revoke_since(&[], -1));
    stage.comes_to_accept(&revoked).await;
}

#[tokio::test]
async fn an_authority_whose_file_is_empty_stays_trusted_and_operators_are_told() {
    let stage = Stage::new().await;
    let good = stage.client(&stage.root, 7, &[]);
    stage.comes_to_accept(&good).await;
    for content in ["", "# to come"] {
        put(&stage.world, "cas/root.pem", content);
        stage.tells(true).await;
        stage.publish(&good).await.expect("it is trusted still");
        put(&stage.world, "cas/root.pem", &stage.root.cert.pem());
        stage.tells(false).await;
    }
}

#[tokio::test]
async fn a_list_goes_with_its_authority_and_one_of_an_authority_below_counts() {
    let stage = Stage::new().await;
    let other = Authority::root("other", new_key());
    let below = stage.root.below(ca_params("below", BasicConstraints::Unconstrained));
    put(&stage.world, "cas/other.pem", &other.cert.pem());
    put(&stage.world, "crls/other.pem", &other.revoke(&[7]));
    put(&stage.world, "crls/below.pem", &below.revoke(&[7]));
    let (revoked, below_revoked) = (stage.client(&other, 7, &[]), stage.client(&below, 7, &[&below]));
    stage.comes_to_refuse(&revoked, A::CertificateRevoked).await;
    stage.comes_to_refuse(&below_revoked, A::CertificateRevoked).await;
    stage.comes_to_accept(&stage.client(&below, 8, &[&below])).await;
    fs::remove_file(stage.world.path("cas/other.pem")).expect("it was put");
    stage.comes_to_refuse(&revoked, A::UnknownCA).await;
    fs::remove_file(stage.world.path("crls/other.pem")).expect("it was put");
    let third = Authority::root("third", new_key());
    put(&stage.world, "cas/third.pem", &third.cert.pem());
    stage.comes_to_accept(&stage.client(&third, 1, &[])).await;
    stage.tells(false).await;
    fs::remove_file(stage.world.path("crls/below.pem")).expect("it was put");
    stage.tells(true).await;
    assert_eq!(stage.refusal(&below_revoked).await, Some(A::CertificateRevoked));
}

#[tokio::test]
async fn a_list_of_another_authority_of_the_same_name_keeps_nobody_out_and_operators_are_told() {
    let stage = Stage::new().await;
    let twin = Authority::root("root", new_key());
    let (ours, theirs) = (stage.client(&stage.root, 1, &[]), stage.client(&twin, 1, &[]));
    stage.comes_to_accept(&ours).await;
    put(&stage.world, "crls/twin.pem", &twin.revoke(&[]));
    stage.tells(true).await;
    stage.publish(&ours).await.expect("it is let in as before");
    put(&stage.world, "cas/twin.pem", &twin.cert.pem());
    eventually("the log says what is wrong now", || async {
        let log = stage.world.replicas[0].process.log();
        if log.contains("of which name there are two authorities") { Ok(()) } else { Err(log) }
    })
    .await;
    stage.publish(&ours).await.expect("it is let in as before");
    // Without lists the two stand beside each other.
    fs::remove_file(stage.world.path("crls/twin.pem")).expect("it was put");
    stage.tells(false).await;
    stage.comes_to_accept(&theirs).await;
    stage.publish(&ours).await.expect("it is let in as before");
    put(&stage.world, "crls/root.pem", &stage.root.revoke(&[]));
    stage.tells(true).await;
    for shown in [&ours, &theirs] {
        stage.publish(shown).await.expect("it is let in as before");
    }
}

#[tokio::test]
async fn an_authority_that_is_over_or_yet_to_come_lets_nobody_in_and_operators_are_told() {
    let stage = Stage::new().await;
    let of = |name: &str, from, to| {
        Authority::of(valid(ca_params(name, BasicConstraints::Unconstrained), from, to), new_key())
    };
    let (over, to_come) = (of("over", -3, -2), of("to come", 2, 3));
    put(&stage.world, "cas/over.pem", &over.cert.pem());
    put(&stage.world, "cas/to come.pem", &to_come.cert.pem());
    let named = |text: &str| {
        text.contains("CN=over, which expired at") && text.contains("CN=to come, which is not valid before")
    };
    stage.ops_eventually("readyz", "readiness names them", named).await;
    eventually("the log names them", || async {
        let log = stage.world.replicas[0].process.log();
        if named(&log) { Ok(()) } else { Err(log) }
    })
    .await;
    for (authority, serial) in [(&over, 1), (&to_come, 2)] {
        assert_eq!(stage.refusal(&stage.client(authority, serial, &[])).await, Some(A::UnknownCA));
    }
    stage.publish(&stage.client(&stage.root, 3, &[])).await.expect("those of the others come in");
    // A new certificate for the same key, beside the old one.
    let renewed = over.renewed(&ca_params("over", BasicConstraints::Unconstrained));
    put(&stage.world, "cas/renewed.pem", &renewed);
    stage.comes_to_accept(&stage.client(&over, 1, &[])).await;
}

#[tokio::test]
async fn connections_end_with_the_authority_that_let_them_in() {
    let stage = Stage::new().await;
    let ending = Authority::of(ends_in(ca_params("ending", BasicConstraints::Unconstrained), 6), new_key());
    put(&stage.world, "cas/ending.pem", &ending.cert.pem());
    let (theirs, ours) = (stage.client(&ending, 1, &[]), stage.client(&stage.root, 1, &[]));
    stage.comes_to_accept(&theirs).await;
    let open = |shown: &Shown| stage.publisher(stage.config(Some(shown), &Speaks::default()));
    let (mut ends, mut stays) = (open(&theirs), open(&ours));
    let event = || publish_request(EVENT_TYPE, &json!({}));
    for publisher in [&mut ends, &mut stays] {
        publisher.publish(event()).await.expect("its authority is valid still");
    }
    eventually("its connection ends and no other is let in", || {
        let mut publisher = ends.clone();
        async move { publisher.publish(event()).await.err().ok_or("it still publishes") }
    })
    .await;
    assert_eq!(stage.refusal(&theirs).await, Some(A::UnknownCA));
    stays.publish(event()).await.expect("the others go on");
    stage.ops_eventually("readyz", "readiness names it", |body| body.contains("CN=ending, which expired at")).await;
}
