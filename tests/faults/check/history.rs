//! The records of a run, put together for the checks.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::Path;

use crate::record::{self, Answer, Micros, Record, Share};

/// A publish call that went out.
#[derive(Debug, Clone)]
pub struct Send {
    pub at: Micros,
    pub key: String,
    pub event_type: String,
    pub n: i64,
}

/// A publish call that was answered OK.
#[derive(Debug, Clone)]
pub struct Ack {
    pub at: Micros,
    pub key: String,
    pub event_id: String,
    pub position: i64,
    pub duplicate: bool,
    /// Pairs of invocation and subscription.
    pub invocations: Vec<[String; 2]>,
}

/// An event of the log.
#[derive(Debug, Clone)]
pub struct Event {
    pub position: i64,
    pub id: String,
    pub type_name: String,
    pub key: String,
    pub n: i64,
    pub commit_time: String,
    /// The dead letter that it announces.
    pub cause: String,
}

/// How a subscription is after a position.
#[derive(Debug, Clone)]
pub struct Change {
    pub event_type: String,
    pub share: Share,
    pub active: bool,
    pub after: i64,
}

/// A delivery that arrived.
#[derive(Debug, Clone)]
pub struct Receipt {
    pub at: Micros,
    pub event_id: String,
    pub event_type: String,
    pub verified: bool,
    pub answer: Answer,
}

/// An invocation as the end of the run tells it.
#[derive(Debug, Clone)]
pub struct Invocation {
    pub event_id: String,
    pub subscription: String,
    pub state: String,
    pub attempts: i32,
    pub reason: String,
    pub started: String,
}

/// A final state as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Final {
    pub state: String,
    pub attempts: i32,
    pub started: String,
}

/// A fault.
#[derive(Debug, Clone)]
pub struct Fault {
    pub kind: String,
    pub from: Micros,
    pub to: Micros,
    pub kills: u32,
}

/// One reader's records in order.
#[derive(Debug, Clone)]
pub struct Reader {
    pub party: String,
    pub records: Vec<Record>,
}

/// Everything.
#[derive(Debug, Clone, Default)]
pub struct History {
    pub seed: u64,
    pub lease: Micros,
    pub sends: Vec<Send>,
    pub acks: Vec<Ack>,
    pub refused: Vec<(String, String)>,
    /// Keys of PRE events that were aborted, with the reason.
    pub aborted: Vec<(String, String)>,
    /// Subscriptions that decide on PRE events; true for those that may fail.
    pub gates: HashMap<String, bool>,
    /// The types of PRE events.
    pub gate_types: HashSet<String>,
    pub reused: Vec<(String, String)>,
    /// Changes per subscription, in the order in which they took effect.
    pub subscriptions: BTreeMap<String, Vec<Change>>,
    /// Subscriptions with an ordering key, and how many keys each has.
    pub ordered: HashMap<String, i64>,
    /// Per invocation, in order of arrival.
    pub receipts: HashMap<String, Vec<Receipt>>,
    pub readers: Vec<Reader>,
    /// Per invocation, in the order in which they were read.
    pub finals: HashMap<String, Vec<Final>>,
    pub faults: Vec<Fault>,
    /// By position.
    pub log: Vec<Event>,
    pub invocations: HashMap<String, Invocation>,
    /// Per invocation, the numbers of its attempts and whether each succeeded.
    pub attempts: HashMap<String, Vec<(i32, bool)>>,
}

impl History {
    /// Reads the records of a folder.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let mut history = Self::default();
        for (party, records) in record::read_all(folder)? {
            if records.iter().any(|record| matches!(record, Record::Opened { .. } | Record::Closed { .. })) {
                history.readers.push(Reader { party, records });
                continue;
            }
            for record in records {
                history.take(record);
            }
        }
        history.log.sort_by_key(|event| event.position);
        Ok(history)
    }

    fn take(&mut self, record: Record) {
        match record {
            Record::Run { seed, lease_us, planted: _ } => (self.seed, self.lease) = (seed, lease_us),
            Record::Send { at, key, event_type, n } => self.sends.push(Send { at, key, event_type, n }),
            Record::Acknowledged { at, key, event_id, position, duplicate, invocations } => {
                self.acks.push(Ack { at, key, event_id, position, duplicate, invocations });
            }
            Record::Refused { key, error, .. } => self.refused.push((key, error)),
            Record::Aborted { key, reason, .. } => self.aborted.push((key, reason)),
            Record::Gate { subscription, event_type, lenient } => {
                self.gates.insert(subscription, lenient);
                self.gate_types.insert(event_type);
            }
            Record::Ordered { subscription, keys } => {
                self.ordered.insert(subscription, keys);
            }
            Record::Reused { key, reason, .. } => self.reused.push((key, reason)),
            Record::Subscribed { subscription, event_type, share, active, after, .. } => {
                let change = Change { event_type, share, active, after };
                self.subscriptions.entry(subscription).or_default().push(change);
            }
            Record::Received { at, invocation, event_id, event_type, verified, answer, .. } => {
                let receipt = Receipt { at, event_id, event_type, verified, answer };
                self.receipts.entry(invocation).or_default().push(receipt);
            }
            Record::Final { invocation, state, attempts, started, .. } => {
                self.finals.entry(invocation).or_default().push(Final { state, attempts, started });
            }
            Record::Fault { kind, from, to, kills, .. } => self.faults.push(Fault { kind, from, to, kills }),
            Record::Event { position, event_id: id, event_type: type_name, key, n, commit_time, cause } => {
                self.log.push(Event { position, id, type_name, key, n, commit_time, cause });
            }
            Record::Invocation { invocation, event_id, subscription, state, attempts, reason, started } => {
                let found = Invocation { event_id, subscription, state, attempts, reason, started };
                self.invocations.insert(invocation, found);
            }
            Record::Attempts { invocation, attempts } => {
                self.attempts.insert(invocation, attempts);
            }
            Record::Unknown { .. }
            | Record::Opened { .. }
            | Record::Seen { .. }
            | Record::Chosen { .. }
            | Record::Split { .. }
            | Record::Closed { .. }
            | Record::Finished { .. } => {}
        }
    }
}
