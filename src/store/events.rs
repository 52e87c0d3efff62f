//! Reading the log: pages in order, single events.
//!
//! Writing events is `store/publish.rs`, the only way an event is born.

use super::{Store, StoreError};
use crate::domain::event::{Attribute, Data, Event, Lineage, LogEntry};
use crate::domain::event_type::EventTypeName;
use crate::domain::ids::{EventId, InvocationId, Position, SubscriptionNo, TenantId};
use bytes::Bytes;
use chrono::{DateTime, Days, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use uuid::Uuid;

pub(in crate::store) const DATA_NONE: i16 = 0;
pub(in crate::store) const DATA_BINARY: i16 = 1;
pub(in crate::store) const DATA_TEXT: i16 = 2;
pub(in crate::store) const DATA_PROTO: i16 = 3;

/// Where to read on in a tenant's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPlace {
    /// Everything up to here has been read.
    pub after: Position,
    /// A date not after that of the next event; lets the read start at one partition.
    pub day: NaiveDate,
}

#[derive(sqlx::FromRow)]
pub(in crate::store) struct EventRow {
    position: i64,
    event_id: Uuid,
    committed_at: DateTime<Utc>,
    event_type: String,
    schema_version: i32,
    source: String,
    subject: Option<String>,
    event_time: DateTime<Utc>,
    content_type: Option<String>,
    extensions: Vec<u8>,
    data_kind: i16,
    data: Vec<u8>,
    matched: Vec<i32>,
    refused: Vec<i32>,
    root_id: Uuid,
    cause_event_id: Option<Uuid>,
    cause_subscription_no: Option<i32>,
    depth: i32,
    lineage: Vec<i32>,
}

pub(in crate::store) const COLUMNS: &str = "position, event_id, committed_at, event_type, schema_version, source, subject, event_time, content_type, \
     extensions, data_kind, data, matched, refused, root_id, cause_event_id, cause_subscription_no, depth, lineage";

impl Store {
    /// Reads the next entries of a log in order: at most `limit`, and no entry beyond `up_to`.
    ///
    /// The primary key (tenant, day, position) serves the order: `day` never decreases along a log.
    pub async fn read_log(
        &self,
        tenant: TenantId,
        place: LogPlace,
        up_to: Position,
        limit: u32,
    ) -> Result<Vec<Arc<LogEntry>>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM events
              WHERE tenant_id = $1 AND day >= $2 AND position > $3 AND position <= $4
              ORDER BY day, position LIMIT $5"
        );
        let rows: Vec<EventRow> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(tenant.0)
            .bind(place.day)
            .bind(place.after)
            .bind(up_to)
            .bind(i64::from(limit))
            .fetch_all(self.as_tenant(tenant))
            .await?;
        rows.into_iter().map(|row| row.parse().map(Arc::new)).collect()
    }

    /// The place just before the first event committed at or after `time`; the log's end where there is none.
    pub async fn place_at(&self, tenant: TenantId, time: DateTime<Utc>, end: LogPlace) -> Result<LogPlace, StoreError> {
        // Positions of a day have no gaps and their times never decrease, so the range of the day is halved until one is left: as
        // many reads by the primary key as the day's events have binary digits, whatever time is asked for.
        const WITHIN_DAY: &str = "WITH RECURSIVE halves AS (
                 SELECT (SELECT position FROM events WHERE tenant_id = $1 AND day = $2 ORDER BY position LIMIT 1) AS low,
                        (SELECT position FROM events WHERE tenant_id = $1 AND day = $2 ORDER BY position DESC LIMIT 1) + 1 AS high
                 UNION ALL
                 SELECT CASE WHEN m.reached THEN m.low ELSE m.middle + 1 END, CASE WHEN m.reached THEN m.middle ELSE m.high END
                   FROM (SELECT h.low, h.high, (h.low + h.high) / 2 AS middle,
                                (SELECT e.committed_at FROM events e
                                  WHERE e.tenant_id = $1 AND e.day = $2 AND e.position = (h.low + h.high) / 2) >= $3 AS reached
                           FROM halves h WHERE h.low < h.high) AS m)
             SELECT e.position, e.day FROM events e
              WHERE e.tenant_id = $1 AND e.day = $2 AND e.position = (SELECT low FROM halves WHERE low = high)";
        const LATER_DAY: &str =
            "SELECT position, day FROM events WHERE tenant_id = $1 AND day > $2 ORDER BY day, position LIMIT 1";
        let day = time.date_naive();
        let within_day = sqlx::query_as(WITHIN_DAY).bind(tenant.0).bind(day).bind(time);
        let mut found: Option<(Position, NaiveDate)> = within_day.fetch_optional(self.as_tenant(tenant)).await?;
        if found.is_none() {
            let later = sqlx::query_as(LATER_DAY).bind(tenant.0).bind(day);
            found = later.fetch_optional(self.as_tenant(tenant)).await?;
        }
        Ok(found.map_or(end, |(position, day)| LogPlace { after: position - 1, day }))
    }

    /// Reads one event by its id; none also for another tenant's.
    pub async fn event(&self, tenant: TenantId, id: EventId) -> Result<Option<Arc<LogEntry>>, StoreError> {
        // The id's own time says on which days it can have been committed; an event that waited long is found without.
        let near = days_around(id);
        let sql = format!(
            "SELECT {COLUMNS} FROM events WHERE tenant_id = $1 AND event_id = $2 AND day BETWEEN $3 AND $4 LIMIT 1"
        );
        for (from, to) in near.into_iter().chain([(NaiveDate::MIN, NaiveDate::MAX)]) {
            // Postgres dates reach further than these; they stand for "any day".
            let from = from.max(NaiveDate::default());
            let to = to.min(NaiveDate::from_ymd_opt(9999, 12, 31).unwrap_or(NaiveDate::MAX));
            let row: Option<EventRow> = sqlx::query_as(sqlx::AssertSqlSafe(sql.clone()))
                .bind(tenant.0)
                .bind(id.0)
                .bind(from)
                .bind(to)
                .fetch_optional(self.as_tenant(tenant))
                .await?;
            if let Some(row) = row {
                return row.parse().map(|entry| Some(Arc::new(entry)));
            }
        }
        Ok(None)
    }
}

/// The day before, of and after a UUIDv7's own time.
fn days_around(id: EventId) -> Option<(NaiveDate, NaiveDate)> {
    let (seconds, nanos) = id.0.get_timestamp()?.to_unix();
    let day = DateTime::<Utc>::from_timestamp(i64::try_from(seconds).ok()?, nanos)?.date_naive();
    Some((day.checked_sub_days(Days::new(1))?, day.checked_add_days(Days::new(1))?))
}

impl EventRow {
    pub(in crate::store) fn parse(self) -> Result<LogEntry, StoreError> {
        let corrupt = |what| StoreError::Corrupt { what };
        let data = match self.data_kind {
            DATA_NONE => Data::None,
            DATA_BINARY => Data::Binary(self.data.into()),
            DATA_TEXT => Data::Text(self.data.into()),
            DATA_PROTO => decode_proto(self.data).ok_or(corrupt("event data"))?,
            _ => return Err(corrupt("event data kind")),
        };
        let cause = self.cause_event_id.zip(self.cause_subscription_no);
        let event = Event {
            id: EventId(self.event_id),
            event_type: EventTypeName::parse(&self.event_type).map_err(|_| corrupt("event type name"))?,
            schema_version: self.schema_version,
            source: self.source,
            subject: self.subject,
            time: self.event_time,
            content_type: self.content_type,
            extensions: decode_extensions(&self.extensions).ok_or(corrupt("event extensions"))?,
            data,
            lineage: Lineage {
                root: EventId(self.root_id),
                cause: cause.map(|(event, subscription_no)| InvocationId { event: EventId(event), subscription_no }),
                depth: self.depth,
                subscriptions: self.lineage,
            },
        };
        Ok(LogEntry {
            position: self.position,
            committed_at: self.committed_at,
            event: Arc::new(event),
            matched: Arc::<[SubscriptionNo]>::from(self.matched),
            refused: Arc::<[SubscriptionNo]>::from(self.refused),
        })
    }
}

/// `data` column of a protobuf payload: the length of the type URL in four bytes, the URL, the value.
pub(in crate::store) fn encode_proto(type_url: &str, value: &[u8]) -> Vec<u8> {
    let length = u32::try_from(type_url.len()).expect("bounded by the event size limit");
    [&length.to_be_bytes(), type_url.as_bytes(), value].concat()
}

fn decode_proto(bytes: Vec<u8>) -> Option<Data> {
    let bytes = Bytes::from(bytes);
    let length = usize::try_from(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let type_url = std::str::from_utf8(bytes.get(4..4 + length)?).ok()?.to_owned();
    Some(Data::Proto { type_url, value: bytes.slice(4 + length..) })
}

/// How an extension attribute is written into the `extensions` column, as JSON.
#[derive(Serialize, Deserialize)]
enum AttributeRow {
    #[serde(rename = "b")]
    Boolean(bool),
    #[serde(rename = "i")]
    Integer(i32),
    #[serde(rename = "s")]
    String(String),
    #[serde(rename = "x")]
    Bytes(Vec<u8>),
    #[serde(rename = "u")]
    Uri(String),
    #[serde(rename = "r")]
    UriRef(String),
    #[serde(rename = "t")]
    Timestamp(DateTime<Utc>),
}

pub(in crate::store) fn encode_extensions(extensions: &[(String, Attribute)]) -> Vec<u8> {
    if extensions.is_empty() {
        return Vec::new();
    }
    let rows: Vec<(&str, AttributeRow)> = extensions
        .iter()
        .map(|(name, value)| {
            let row = match value {
                Attribute::Boolean(v) => AttributeRow::Boolean(*v),
                Attribute::Integer(v) => AttributeRow::Integer(*v),
                Attribute::String(v) => AttributeRow::String(v.clone()),
                Attribute::Bytes(v) => AttributeRow::Bytes(v.to_vec()),
                Attribute::Uri(v) => AttributeRow::Uri(v.clone()),
                Attribute::UriRef(v) => AttributeRow::UriRef(v.clone()),
                Attribute::Timestamp(v) => AttributeRow::Timestamp(*v),
            };
            (name.as_str(), row)
        })
        .collect();
    serde_json::to_vec(&rows).expect("strings, numbers and times always serialize")
}

fn decode_extensions(bytes: &[u8]) -> Option<Vec<(String, Attribute)>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let rows: Vec<(String, AttributeRow)> = serde_json::from_slice(bytes).ok()?;
    let parse = |(name, row)| {
        let value = match row {
            AttributeRow::Boolean(v) => Attribute::Boolean(v),
            AttributeRow::Integer(v) => Attribute::Integer(v),
            AttributeRow::String(v) => Attribute::String(v),
            AttributeRow::Bytes(v) => Attribute::Bytes(v.into()),
            AttributeRow::Uri(v) => Attribute::Uri(v),
            AttributeRow::UriRef(v) => Attribute::UriRef(v),
            AttributeRow::Timestamp(v) => Attribute::Timestamp(v),
        };
        (name, value)
    };
    Some(rows.into_iter().map(parse).collect())
}
