//! A log in memory with a tail over it, for the tests of this module, and the bounds of opening.

use super::filter_set::{FilterChange, FilterSet};
use super::slot::Slot;
use super::tail::{Page, Reads, Tail};
use super::terms::Terms;
use super::*;
use crate::domain::access::{Caller, Role, Subject};
use crate::domain::event::{Data, Event, Lineage, LogEntry};
use crate::domain::event_type::EventTypeName;
use crate::domain::ids::{ApiKeyId, EventId};
use crate::proto::public::{EventView, WatchFilter};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgPoolOptions;
use std::sync::atomic::AtomicUsize;
use tokio::task::JoinHandle;
use uuid::Uuid;

const TENANT: TenantId = TenantId(Uuid::from_u128(7));

fn time(position: Position) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + position * 600, 0).expect("a time")
}

/// An entry of some type; days change now and then along the log.
pub(super) fn entry(position: Position, event_type: &str) -> Arc<LogEntry> {
    let id = EventId(Uuid::from_u128(u128::try_from(position).expect("positive")));
    let event = Event {
        id,
        event_type: EventTypeName::parse(event_type).expect("a name"),
        schema_version: 0,
        source: "/test".to_owned(),
        subject: None,
        time: time(position),
        content_type: None,
        extensions: Vec::new(),
        data: Data::Binary(format!("{{\"n\":{position}}}").into()),
        lineage: Lineage::root(id),
    };
    Arc::new(LogEntry {
        position,
        committed_at: time(position),
        event: Arc::new(event),
        matched: Arc::from([]),
        refused: Arc::from([]),
    })
}

/// Filters by event type, each with its name.
pub(super) fn filters(named: &[(&str, &str)]) -> FilterSet {
    let filter = |(name, pattern): &(&str, &str)| WatchFilter {
        name: (*name).to_owned(),
        event_types: vec![(*pattern).to_owned()],
        filter: String::new(),
    };
    FilterSet::parse("filters", named.iter().map(filter).collect()).expect("good filters")
}

pub(super) fn caller() -> Caller {
    Caller {
        subject: Subject::ApiKey(ApiKeyId(Uuid::from_u128(1))),
        tenant: TENANT,
        app: None,
        role: Role::Viewer,
        expires_at: None,
        grounds: None,
    }
}

#[derive(Default)]
struct Log {
    entries: Vec<Arc<LogEntry>>,
    base: Position,
    retained_from: Position,
}

/// What streams have recorded of changes of filters.
#[derive(Default)]
struct Recorded {
    changes: Vec<(i64, Position)>,
    /// Answers that whoever asked has taken the change back.
    withdrawn: bool,
}

/// A log in memory, its tail at work, and streams over both.
pub(super) struct Bench {
    log: Arc<Mutex<Log>>,
    reads: Arc<AtomicUsize>,
    failing: Arc<AtomicBool>,
    revoked: Arc<AtomicBool>,
    recorded: Arc<Mutex<Recorded>>,
    sealer: CursorSealer,
    shared: Arc<Shared>,
    pub(super) tail: Arc<Tail>,
}

impl Bench {
    pub(super) fn start(config: Config, base: Position) -> Self {
        let log = Arc::new(Mutex::new(Log { base, ..Log::default() }));
        let reads = Arc::new(AtomicUsize::new(0));
        let [failing, revoked] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let sealer = CursorSealer::new(&[3; 32]);
        let page_entries = config.message_events_max;
        let (source, counter, broken) = (Arc::clone(&log), Arc::clone(&reads), Arc::clone(&failing));
        let read: Arc<ReadPage> = Arc::new(move |place, up_to| {
            let (source, counter, broken) = (Arc::clone(&source), Arc::clone(&counter), Arc::clone(&broken));
            async move {
                // A read takes time, in which anything may happen.
                tokio::task::yield_now().await;
                counter.fetch_add(1, Ordering::Relaxed);
                if broken.load(Ordering::Relaxed) {
                    return Err(StoreError::unavailable_example());
                }
                let log = source.lock().expect("no panic");
                let wanted = |entry: &&Arc<LogEntry>| {
                    entry.position > place.after
                        && entry.position <= up_to
                        && entry.position >= log.retained_from
                        && entry.day() >= place.day
                };
                let entries: Vec<_> = log.entries.iter().filter(wanted).take(page_entries).cloned().collect();
                let readable_from = entries.first().map_or(log.retained_from, |first| first.position);
                Ok(Page { entries, readable_from })
            }
            .boxed()
        });
        let recorded = Arc::<Mutex<Recorded>>::default();
        let record: Arc<RecordChange> = {
            let recorded = Arc::clone(&recorded);
            Arc::new(move |_, _, version, place| {
                let recorded = Arc::clone(&recorded);
                async move {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    let mut recorded = recorded.lock().expect("no panic");
                    recorded.changes.push((version, place.after));
                    !recorded.withdrawn
                }
                .boxed()
            })
        };
        let answer = Arc::clone(&revoked);
        let pool =
            PgPoolOptions::new().connect_lazy("postgres://nobody@localhost/none").expect("a well-formed address");
        let shared = Arc::new(Shared {
            remembered: Remembered::new(&config),
            unremembered: Mutex::default(),
            config: Arc::new(config),
            replica: ReplicaId(Uuid::from_u128(1)),
            feed: Feed::default(),
            record,
            store: Store::new(pool),
            sealer: sealer.clone(),
            credential_check: Arc::new(move |_: &Caller| {
                let standing = if answer.load(Ordering::Relaxed) { Standing::Revoked } else { Standing::Valid };
                async move { standing }.boxed()
            }),
            ending_reason: crate::api::events::watch::ending_reason,
            tail_reads: Turnstile::new(1),
            catch_up_reads: Turnstile::new(1),
            rings: Rings::new(usize::MAX),
            state: Mutex::default(),
            draining: AtomicBool::new(false),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let end = LogPlace { after: base, day: time(base).date_naive() };
        let reads_of = Reads { fill: Arc::clone(&read), catch_up: read };
        let tail = Arc::new(Tail::new(
            TENANT,
            1,
            end,
            sealer.clone(),
            Arc::clone(&shared.config),
            shared.rings.clone(),
            reads_of,
        ));
        let (running, stop) = (Arc::clone(&tail), shared.stop.clone());
        tokio::spawn(async move { running.run(stop).await });
        Self { log, reads, failing, revoked, recorded, sealer, shared, tail }
    }

    /// Commits an event; nobody is told.
    pub(super) fn append(&self, event_type: &str) -> Arc<LogEntry> {
        let mut log = self.log.lock().expect("no panic");
        let position = log.base + Position::try_from(log.entries.len()).expect("small") + 1;
        let entry = entry(position, event_type);
        log.entries.push(Arc::clone(&entry));
        entry
    }

    /// Tells the tail how far the log is.
    pub(super) fn announce(&self) {
        let log = self.log.lock().expect("no panic");
        self.tail.note_head(log.base + Position::try_from(log.entries.len()).expect("small"));
    }

    /// How many events were committed.
    pub(super) fn len(&self) -> Position {
        Position::try_from(self.log.lock().expect("no panic").entries.len()).expect("small")
    }

    /// Drops what is before a position.
    pub(super) fn retain_from(&self, position: Position) {
        self.log.lock().expect("no panic").retained_from = position;
    }

    pub(super) fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    /// Whether the store is away.
    pub(super) fn fail_reads(&self, failing: bool) {
        self.failing.store(failing, Ordering::Relaxed);
    }

    pub(super) fn revoke(&self) {
        self.revoked.store(true, Ordering::Relaxed);
    }

    /// Lets the other tasks run.
    pub(super) async fn settle(&self) {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    /// Drains once the others wait.
    pub(super) fn drain_later(&self) -> JoinHandle<()> {
        let (shared, tail) = (Arc::clone(&self.shared), Arc::clone(&self.tail));
        tokio::spawn(async move {
            shared.draining.store(true, Ordering::Release);
            tail.wake();
        })
    }

    pub(super) fn sweep(&self) -> Vec<Arc<Slot>> {
        self.tail.sweep(self.shared.config.stall_timeout())
    }

    /// The position in a cursor.
    pub(super) fn open(&self, cursor: &str) -> Position {
        self.sealer.open(cursor, TENANT, 1).expect("a cursor of this log").position
    }

    /// Leaves a change of filters for a stream, as the holder of the stream does.
    pub(super) fn change(&self, stream: &WatchStream, version: i64, set: FilterSet) {
        self.tail.slot(stream.id()).expect("it is open").offer(FilterChange { version, set });
    }

    /// From now on changes turn out to be withdrawn.
    pub(super) fn withdraw_changes(&self) {
        self.recorded.lock().expect("no panic").withdrawn = true;
    }

    /// The changes that were recorded: version and position.
    pub(super) fn recorded(&self) -> Vec<(i64, Position)> {
        self.recorded.lock().expect("no panic").changes.clone()
    }

    pub(super) fn watch_from(&self, after: Position) -> WatchStream {
        self.watch(after, FilterSet::default(), OnExpired::Fail)
    }

    pub(super) fn watch(&self, after: Position, filters: FilterSet, on_expired: OnExpired) -> WatchStream {
        self.watch_with(after, filters, on_expired, Vec::new())
    }

    /// A stream that takes up earlier changes after their positions.
    pub(super) fn watch_with(
        &self,
        after: Position,
        filters: FilterSet,
        on_expired: OnExpired,
        changes: Vec<(Position, FilterSet)>,
    ) -> WatchStream {
        let who = caller();
        let slot = Arc::new(Slot::new(WatchId(crate::clock::new_uuid()), who.tenant, who.subject.clone()));
        let mut state = self.shared.state.lock().expect("no panic");
        state.streams += 1;
        *state.open.entry(who.tenant).or_default() += 1;
        *state.open_by_subject.entry(who.subject.clone()).or_default() += 1;
        drop(state);
        self.tail.join(Arc::clone(&slot));
        let day = |position: Position| time(position.max(1)).date_naive();
        let scheduled = changes.into_iter().zip(2..);
        let scheduled = scheduled
            .map(|((after, set), version)| (LogPlace { after, day: day(after) }, FilterChange { version, set }))
            .collect();
        let terms = Terms {
            caller: who,
            app: None,
            filters,
            filter_version: 1,
            scheduled,
            view: EventView::Full,
            on_expired,
            bookmark_interval: self.shared.config.bookmark_interval(),
            start: LogPlace { after, day: day(after) },
            gap: None,
            ends_at: Instant::now() + self.shared.config.stream_age(crate::clock::jitter()),
            expires_at: None,
        };
        WatchStream::new(Arc::clone(&self.shared), Arc::clone(&self.tail), slot, terms)
    }
}

#[test]
fn the_default_settings_pass_their_own_check() {
    assert_eq!(Config::default().check(), Ok(()));
    let wrong = Config { message_events_max: 0, ..Config::default() };
    assert_eq!(wrong.check().expect_err("refused").0, "message_events_max");
}

#[test]
fn an_idle_stream_is_small() {
    assert!(size_of::<WatchStream>() <= 768, "{}", size_of::<WatchStream>());
}
