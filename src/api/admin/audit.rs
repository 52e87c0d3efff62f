//! ListAuditRecords.

use super::{AdminDeps, authorised};
use crate::api::status::ApiError;
use crate::proto::internal as proto;
use crate::store::audit::AuditRecord;
use crate::wire::page::{PageScope, PageTokenError, cut, page_size};
use crate::wire::time::timestamp_to_proto;
use tonic::Request;
use uuid::Uuid;

pub(super) async fn list(
    deps: &AdminDeps,
    request: Request<proto::ListAuditRecordsRequest>,
) -> Result<proto::ListAuditRecordsResponse, ApiError> {
    let (_, request) = authorised(request)?;
    let size = page_size("page_size", request.page_size, 50, 1_000)?;
    let tenant = deps.tenant(request.tenant).await?;
    let scope = PageScope::new("ListAuditRecords", tenant.id);
    let place = deps.page_tokens.open(&scope, &request.page_token)?;
    let before = place.map(|bytes| Uuid::from_slice(&bytes).map_err(|_| PageTokenError)).transpose()?;
    let mut page = deps.store.audit_records(tenant.id, before, size + 1).await?;
    let more = cut(&mut page, size);
    let last = page.last().filter(|_| more);
    Ok(proto::ListAuditRecordsResponse {
        next_page_token: last.map(|last| deps.page_tokens.seal(&scope, last.id.as_bytes())).unwrap_or_default(),
        audit_records: page.into_iter().map(to_proto).collect(),
    })
}

fn to_proto(record: AuditRecord) -> proto::AuditRecord {
    proto::AuditRecord {
        time: Some(timestamp_to_proto(record.at)),
        actor: record.actor,
        action: record.action,
        resource: record.resource,
    }
}
