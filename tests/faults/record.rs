//! What the parties write down: one JSON object per line, appended as it happens, one file per party.
//!
//! The parties write, the checker reads; the two share nothing else. Times are microseconds since the run began, by one
//! clock. A record must never say what should have happened, only what its party did or saw.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Microseconds since the run began.
pub type Micros = u64;

/// How a receiver answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// 200 at once.
    Ok,
    /// 500.
    Error,
    /// 409: a PRE event is refused.
    Reject,
    /// Never.
    Hang,
    /// The connection ends before an answer.
    Reset,
    /// 200, and then a byte now and then for ever.
    Drip,
    /// 200, and then bytes without end.
    Flood,
}

impl Answer {
    /// Whether the sender may rightly take it for a success.
    pub fn may_succeed(self) -> bool {
        matches!(self, Self::Ok | Self::Flood | Self::Drip)
    }
}

/// Which events of its type a subscription or a watch takes: those whose `n` leaves `remainder` when divided by `modulus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub modulus: i64,
    pub remainder: i64,
}

impl Share {
    /// Every event.
    pub const ALL: Self = Self { modulus: 1, remainder: 0 };

    /// The filter as Carillon takes it.
    pub fn expression(self) -> String {
        if self == Self::ALL { String::new() } else { format!("data.n % {} == {}", self.modulus, self.remainder) }
    }

    /// The same decision, made here.
    pub fn takes(self, n: i64) -> bool {
        n % self.modulus == self.remainder
    }
}

/// One thing that a party did or saw.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Record {
    /// The run itself.
    Run { seed: u64, lease_us: Micros, planted: String },
    /// A publish call goes out; a retry writes one of these again.
    Send { at: Micros, key: String, event_type: String, n: i64 },
    /// It was answered OK.
    Acknowledged {
        at: Micros,
        key: String,
        event_id: String,
        position: i64,
        duplicate: bool,
        invocations: Vec<[String; 2]>,
    },
    /// It failed, and whether the event exists is not known; it is tried again.
    Unknown { at: Micros, key: String, error: String },
    /// It was refused for good although nothing is wrong with it.
    Refused { at: Micros, key: String, error: String },
    /// A PRE event was aborted, for this reason.
    Aborted { at: Micros, key: String, reason: String },
    /// A key that had its answer was sent again with another body; the reason of the refusal, or `OK`.
    Reused { at: Micros, key: String, reason: String },
    /// A subscription is so from after this position on.
    Subscribed { at: Micros, subscription: String, event_type: String, share: Share, active: bool, after: i64 },
    /// A subscription has an ordering key: the remainder of `n` divided by this.
    Ordered { subscription: String, keys: i64 },
    /// A subscription decides on PRE events of this type; a lenient one may fail.
    Gate { subscription: String, event_type: String, lenient: bool },
    /// A delivery arrived.
    Received {
        at: Micros,
        path: String,
        invocation: String,
        event_id: String,
        event_type: String,
        verified: bool,
        answer: Answer,
    },
    /// A stream of one reader begins, from nothing or from the cursor it had.
    Opened { at: Micros, stream: u32, share: Share, event_type: String },
    /// A reader was given an event.
    Seen { stream: u32, position: i64, event_id: String },
    /// A version of a watch's filter takes this share of every type.
    Chosen { version: i64, share: Share },
    /// A version of a watch's filter applies after this position; told by the answer to the change, or else by the stream.
    Split { version: i64, after: i64, told: bool },
    /// A stream ended.
    Closed { at: Micros, stream: u32, reason: String },
    /// The reader is done: it has read up to this position.
    Finished { position: i64 },
    /// A final state of an invocation, as it was read while the run went on.
    Final { at: Micros, invocation: String, state: String, attempts: i32, started: String },
    /// A fault and how long it lasted; `kills` counts processes ended by `kill -9`.
    Fault { kind: String, from: Micros, to: Micros, kills: u32, detail: String },
    /// The end: an event of the log.
    Event {
        position: i64,
        event_id: String,
        event_type: String,
        key: String,
        n: i64,
        commit_time: String,
        cause: String,
    },
    /// The end: an invocation.
    Invocation {
        invocation: String,
        event_id: String,
        subscription: String,
        state: String,
        attempts: i32,
        reason: String,
        started: String,
    },
    /// The end: the attempts of an invocation that came again after a success; true for those that succeeded.
    Attempts { invocation: String, attempts: Vec<(i32, bool)> },
}

/// The clock of a run and its folder.
#[derive(Debug, Clone)]
pub struct Journal {
    began: Instant,
    folder: Arc<Path>,
}

impl Journal {
    /// Starts the clock.
    pub fn begin(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self { began: Instant::now(), folder: folder.into() })
    }

    /// Now.
    pub fn now(&self) -> Micros {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(Micros::MAX)
    }

    /// A party's log.
    pub fn open(&self, party: &str) -> io::Result<Log> {
        let path = self.folder.join(format!("{party}.jsonl"));
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Log { journal: self.clone(), file: Arc::new(Mutex::new(file)) })
    }
}

/// A party's log. Clones write to the same file.
#[derive(Debug, Clone)]
pub struct Log {
    journal: Journal,
    file: Arc<Mutex<File>>,
}

impl Log {
    /// Now, by the run's clock.
    pub fn now(&self) -> Micros {
        self.journal.now()
    }

    /// Appends a record. One write per line, so that a line is whole or absent.
    pub fn write(&self, record: &Record) {
        let mut line = serde_json::to_string(record).expect("a record is plain data");
        line.push('\n');
        let mut file = self.file.lock().expect("no writer panics");
        file.write_all(line.as_bytes()).expect("the folder of the run takes more bytes");
    }
}

/// Every party's records, by the party's name.
pub fn read_all(folder: &Path) -> io::Result<Vec<(String, Vec<Record>)>> {
    let mut parties = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "jsonl") {
            continue;
        }
        let party = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut records = Vec::new();
        for line in BufReader::new(File::open(&path)?).lines() {
            records.push(serde_json::from_str(&line?).map_err(io::Error::other)?);
        }
        parties.push((party, records));
    }
    parties.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(parties)
}
