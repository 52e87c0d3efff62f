//! C1: anything but one valid credential. What a valid one may do is in `access`.

use bytes::Bytes;
use carillon::proto::internal::{ListApiKeysRequest, RevokeApiKeyRequest, Role};
use tonic::Code;

use super::Expected::{Fine, Refused};
use super::{Row, raw};
use crate::harness::eventually;
use crate::harness::tenant::{admin, create_key};

#[tokio::test]
async fn c1_anything_but_one_valid_key_is_unauthenticated_with_one_text() {
    let mut row = Row::open().await;
    let refused = Refused(Code::Unauthenticated, "CREDENTIAL_INVALID", "");
    let key = row.tenant.key.clone();
    let good = format!("Bearer {key}");
    // The secret may hold the separator itself.
    let secret = key.splitn(3, '_').nth(2).expect("a key has parts");
    let id = key[..key.len() - secret.len()].trim_end_matches('_');
    let reversed: String = secret.chars().rev().collect();
    let mut headers: Vec<(&str, Vec<String>)> = vec![
        ("none", vec![]),
        ("an empty one", vec![String::new()]),
        ("a blank one", vec![" ".to_owned()]),
        ("a scheme alone", vec!["Bearer".to_owned()]),
        ("a scheme and a space", vec!["Bearer ".to_owned()]),
        ("a prefix alone", vec!["Bearer car_".to_owned()]),
        ("a key without its scheme", vec![key.clone()]),
        ("another scheme", vec![format!("Basic {key}")]),
        ("a scheme that runs on", vec![format!("Bearer{key}")]),
        ("another secret", vec![format!("Bearer {id}_{reversed}")]),
        ("a secret that is cut", vec![good[..good.len() - 1].to_owned()]),
        ("a secret that goes on", vec![format!("{good}x")]),
        ("another id", vec![format!("Bearer car_00000000000000000000000000_{secret}")]),
        ("upper case", vec![format!("Bearer {}", key.to_uppercase())]),
        ("the same key twice", vec![good.clone(), good.clone()]),
        ("a good key and a bad one", vec![good.clone(), "Bearer x".to_owned()]),
        ("two in one", vec![format!("{good}, {good}")]),
        ("64 KiB", vec![format!("Bearer {}", "x".repeat(64 << 10))]),
    ];
    let revoked = create_key(row.world, &row.tenant.slug, "", Role::Viewer).await;
    let request = ListApiKeysRequest { tenant: row.tenant.slug.clone(), ..Default::default() };
    let keys = admin(row.world).list_api_keys(request).await.expect("a page").into_inner().api_keys;
    let viewer = keys.iter().find(|key| key.role() == Role::Viewer).expect("it is listed");
    let request =
        RevokeApiKeyRequest { tenant: row.tenant.slug.clone(), api_key_id: viewer.id.clone(), ..Default::default() };
    admin(row.world).revoke_api_key(request).await.expect("it exists");
    headers.push(("a revoked key", vec![format!("Bearer {revoked}")]));
    let path = "/carillon.v1.EventTypeService/ListEventTypes";
    let list = async |replica: usize, headers: &[String]| {
        raw::call(row.world.public(replica), path, headers, Bytes::new()).await
    };
    for replica in [0, 1] {
        eventually("the revoked key is refused", || async {
            list(replica, &headers.last().expect("it was added").1).await.err().ok_or("it is accepted")
        })
        .await;
    }
    let mut answers = Vec::new();
    for (index, (member, headers)) in headers.iter().enumerate() {
        answers.push((*member, list(index % 2, headers).await));
    }
    let accepted = list(0, std::slice::from_ref(&good)).await;
    let mut texts = Vec::new();
    for (member, result) in answers {
        texts.extend(result.as_ref().err().map(|status| (status.message().to_owned(), status.details().to_vec())));
        row.check(member, result, refused);
    }
    row.check("the good key", accepted, Fine);
    texts.dedup();
    row.ensure("all of them", texts.len() == 1, "the answers differ");
    row.close().await;
}
