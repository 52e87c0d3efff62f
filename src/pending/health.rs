//! How receivers of PRE events do, as all replicas know it together: what an answer changes is merged into the row that they share.
//!
//! ```text
//! row --read with the statement that accepts an event--> known here --> may it be asked?
//!  ^                                                                        |
//!  `-- merged under the row's lock, a tenant's answers at a time <-- an answer that changes something
//! ```
//!
//! A listener that is well has no row, and an answer that changes nothing writes nothing. One connection at a time writes a tenant's, so
//! that listeners that fail fast take none from other tenants.

use super::Core;
use super::receivers::Receiver;
use crate::domain::announcement::Announcement;
use crate::domain::event::Lineage;
use crate::domain::health::{Ended, HealthRow, merge};
use crate::domain::ids::{SubscriptionNo, TenantId};
use crate::feed::{Head, News};
use crate::publish::registry::Entry;
use crate::store::StoreError;
use crate::store::heads::RegistryChange;
use crate::store::health::Merged;
use crate::store::subscriptions::ServerReason;
use std::collections::{BTreeMap, HashMap, btree_map};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// An answer that changes how its receiver does.
pub(super) struct Note {
    pub receiver: Arc<Receiver>,
    pub entry: Arc<Entry>,
    pub ended: Ended,
    /// Of what follows from the question.
    pub lineage: Lineage,
    /// Dropped once it counts.
    pub counts: oneshot::Sender<()>,
}

/// The answers that wait to be merged, by tenant; a tenant that is here has a task that writes them.
#[derive(Default)]
pub(super) struct Notes(Mutex<HashMap<TenantId, Vec<Note>>>);

/// The answers of one receiver, merged together.
struct Group {
    receiver: Arc<Receiver>,
    entry: Arc<Entry>,
    ended: Vec<Ended>,
    /// Of what follows from the last one.
    lineage: Lineage,
}

impl Notes {
    /// Adds one. True where nobody writes this tenant's.
    fn add(&self, tenant: TenantId, note: Note) -> bool {
        let mut all = self.all();
        let idle = !all.contains_key(&tenant);
        all.entry(tenant).or_default().push(note);
        idle
    }

    /// What waits of a tenant; none where that is nothing, and then nobody writes its any more.
    fn take(&self, tenant: TenantId) -> Option<Vec<Note>> {
        let mut all = self.all();
        let waiting = std::mem::take(all.get_mut(&tenant)?);
        if waiting.is_empty() {
            all.remove(&tenant);
            return None;
        }
        Some(waiting)
    }

    fn all(&self) -> MutexGuard<'_, HashMap<TenantId, Vec<Note>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answers by receiver, and who waits for them to count. Of two versions of a subscription the later one counts.
fn grouped(notes: Vec<Note>) -> (BTreeMap<SubscriptionNo, Group>, Vec<oneshot::Sender<()>>) {
    let (mut groups, mut waiting) = (BTreeMap::<_, Group>::new(), Vec::new());
    for Note { receiver, entry, ended, lineage, counts } in notes {
        waiting.push(counts);
        let (no, version) = (entry.subscription.no, entry.subscription.registry_version);
        let anew = |lineage| Group { receiver, entry, ended: Vec::new(), lineage };
        match groups.entry(no) {
            btree_map::Entry::Vacant(vacant) => vacant.insert(anew(lineage)).ended.push(ended),
            btree_map::Entry::Occupied(group) if group.get().version() > version => {}
            btree_map::Entry::Occupied(mut group) => {
                if group.get().version() < version {
                    group.insert(anew(lineage));
                } else {
                    group.get_mut().lineage = lineage;
                }
                group.get_mut().ended.push(ended);
            }
        }
    }
    (groups, waiting)
}

impl Group {
    fn version(&self) -> i64 {
        self.entry.subscription.registry_version
    }

    /// How the last question ended.
    fn class(&self) -> &'static str {
        self.ended.last().map_or("", |ended| ended.outcome.class.code())
    }

    fn merged(&self, row: &HealthRow) -> Option<Merged> {
        let subscription = &self.entry.subscription;
        let (row, verdict) = merge(row, self.version(), &subscription.policy, &self.ended)?;
        let told = verdict
            .told
            .map(|_| Announcement::circuit_changed(subscription, &row.circuit).following(self.lineage.clone()));
        Some(Merged { row, told, disable: verdict.disable })
    }
}

impl Core {
    /// Has an answer merged into what replicas share.
    pub(super) fn note(self: &Arc<Self>, tenant: TenantId, note: Note) {
        if self.receivers.notes.add(tenant, note) {
            let core = self.clone();
            self.tasks.spawn(async move {
                while let Some(notes) = core.receivers.notes.take(tenant) {
                    core.write_notes(tenant, notes).await;
                }
            });
        }
    }

    /// Merges answers of a tenant's receivers, all of them in one transaction.
    async fn write_notes(self: &Arc<Self>, tenant: TenantId, notes: Vec<Note>) {
        let (groups, waiting) = grouped(notes);
        let groups = Arc::new(groups);
        let versions: Vec<_> = groups.iter().map(|(no, group)| (*no, group.version())).collect();
        let written = self.write(|| {
            let groups = groups.clone();
            let merge = move |rows: Vec<HealthRow>| {
                rows.iter().filter_map(|row| groups.get(&row.subscription_no)?.merged(row)).collect()
            };
            self.store.merge_health(tenant, versions.clone(), merge)
        });
        let written = written.await.map(|(merged, change)| {
            for Merged { row, disable, .. } in merged {
                let Some(group) = groups.get(&row.subscription_no) else { continue };
                group.receiver.health().adopt(&row);
                if disable {
                    let (version, class) = (group.version(), group.class());
                    self.disable(tenant, row.subscription_no, ServerReason::Failing { version, class });
                }
            }
            change
        });
        self.tell(tenant, written, "how a listener does could not be written");
        drop(waiting);
    }

    /// Disables the subscription of a receiver, as that of any other event is. One that goes on as before says so again, should this be
    /// lost.
    pub(super) fn disable(self: &Arc<Self>, tenant: TenantId, no: SubscriptionNo, reason: ServerReason) {
        let core = self.clone();
        self.tasks.spawn(async move {
            let disabled = core.write(|| core.store.disable_by_server(tenant, no, reason)).await;
            core.tell(tenant, disabled, "a subscription could not be disabled");
        });
    }

    fn tell(&self, tenant: TenantId, change: Result<Option<RegistryChange>, StoreError>, failed: &'static str) {
        match change {
            Ok(Some(RegistryChange { position, registry_version })) => {
                self.feed.send(&News::Head(Head { tenant, position, registry_version, deferred_version: 0 }));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%tenant, %error, "{failed}"),
        }
    }
}
