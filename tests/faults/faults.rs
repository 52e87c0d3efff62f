//! The faults themselves: each is done to the parts of a stage while traffic goes on, lasts a while, and is undone.
//!
//! A fault is written down with its exact beginning and end. It must leave nothing behind that a later one could meet.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use sqlx::{Connection as _, Executor as _, PgConnection};

use super::parties::receiver::Receiver;
use super::parties::rest;
use super::random::Random;
use super::record::{Answer, Log, Record};
use super::stage::{LEASE, Stage};
use super::until;

/// What can be done to a running service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    KillReplica,
    KillPostgres,
    StopReplica,
    TerminateBackends,
    WithholdCommit,
    Famine,
    DiskFull,
    WalFull,
    ReadOnly,
    ReceiverHang,
    ReceiverReset,
    ReceiverDrip,
    ReceiverFlood,
    ReceiverError,
}

impl Kind {
    /// Every fault.
    pub const ALL: [Self; 14] = [
        Self::KillReplica,
        Self::KillPostgres,
        Self::StopReplica,
        Self::TerminateBackends,
        Self::WithholdCommit,
        Self::Famine,
        Self::DiskFull,
        Self::WalFull,
        Self::ReadOnly,
        Self::ReceiverHang,
        Self::ReceiverReset,
        Self::ReceiverDrip,
        Self::ReceiverFlood,
        Self::ReceiverError,
    ];

    /// Its name in logs and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillReplica => "kill_replica",
            Self::KillPostgres => "kill_postgres",
            Self::StopReplica => "stop_replica",
            Self::TerminateBackends => "terminate_backends",
            Self::WithholdCommit => "withhold_commit",
            Self::Famine => "connection_famine",
            Self::DiskFull => "disk_full",
            Self::WalFull => "wal_full",
            Self::ReadOnly => "read_only",
            Self::ReceiverHang => "receiver_hang",
            Self::ReceiverReset => "receiver_reset",
            Self::ReceiverDrip => "receiver_drip",
            Self::ReceiverFlood => "receiver_flood",
            Self::ReceiverError => "receiver_error",
        }
    }
}

/// How long a fault lasts that has no length of its own.
const WHILE: Duration = Duration::from_secs(3);
const FEW: Duration = Duration::from_millis(50);
/// How long Postgres may find room in what it has.
const FULL_MAX: Duration = Duration::from_secs(20);

/// Does a fault, undoes it, and writes it down.
pub async fn commit(
    kind: Kind,
    stage: &mut Stage,
    receiver: &Receiver,
    random: &mut Random,
    log: &Log,
) -> anyhow::Result<()> {
    let from = log.now();
    let (kills, detail) = match kind {
        Kind::KillReplica => kill_replicas(stage, random).await?,
        Kind::KillPostgres => {
            stage.postgres.kill().await?;
            stage.postgres.restart().await?;
            (1, String::new())
        }
        Kind::StopReplica => (0, stop_owner(stage, receiver).await?),
        Kind::TerminateBackends => (0, terminate(stage, random).await?),
        Kind::WithholdCommit => (0, withhold(stage).await?),
        Kind::Famine => (0, famine(stage).await?),
        Kind::DiskFull => (0, fill_tables(stage).await?),
        Kind::WalFull => (0, fill_wal(stage).await?),
        Kind::ReadOnly => (0, read_only(stage).await?),
        Kind::ReceiverHang => (0, turn(receiver, Answer::Hang).await?),
        Kind::ReceiverReset => (0, turn(receiver, Answer::Reset).await?),
        Kind::ReceiverDrip => (0, turn(receiver, Answer::Drip).await?),
        Kind::ReceiverFlood => (0, turn(receiver, Answer::Flood).await?),
        Kind::ReceiverError => (0, turn(receiver, Answer::Error).await?),
    };
    log.write(&Record::Fault { kind: kind.name().to_owned(), from, to: log.now(), kills, detail });
    Ok(())
}

/// One replica mostly, all of them now and then.
async fn kill_replicas(stage: &mut Stage, random: &mut Random) -> anyhow::Result<(u32, String)> {
    let count = stage.replicas.len();
    let first = random.below(count);
    let victims: Vec<usize> = if random.one_in(6) { (0..count).collect() } else { vec![first] };
    for victim in &victims {
        stage.replicas[*victim].kill();
    }
    for victim in &victims {
        stage.launch(*victim).await?;
    }
    let kills = u32::try_from(victims.len())?;
    Ok((kills, format!("replicas {victims:?}")))
}

/// Freezes the replica that dispatches the tenant until another one does, and lets it go on as if nothing had happened.
///
/// It is frozen in the middle of an attempt, whose result it has when it wakes: what it may no longer write.
async fn stop_owner(stage: &Stage, receiver: &Receiver) -> anyhow::Result<String> {
    const ROUNDS: usize = 3;
    let mut owner = stage.owner().await?;
    for index in (0..stage.replicas.len()).cycle().take(ROUNDS * stage.replicas.len()) {
        let replica = &stage.replicas[index];
        // Whoever was frozen before, the wrong one included, has held up traffic.
        let before = receiver.arrived("/slow");
        until("the slow receiver is called", Duration::from_secs(20), || {
            let arrived = receiver.arrived("/slow");
            std::future::ready(if arrived >= before + 3 { Ok(()) } else { Err(arrived) })
        })
        .await?;
        replica.signal(Signal::STOP);
        let frozen = replaced(&mut owner).await;
        replica.signal(Signal::CONT);
        if frozen? {
            owner.close().await?;
            return Ok(format!("replica {index}"));
        }
    }
    anyhow::bail!("none of the replicas dispatches the tenant")
}

/// Whether a replica that is frozen now dispatched the tenant; waits then until another one has done so for a while.
async fn replaced(owner: &mut PgConnection) -> anyhow::Result<bool> {
    // What was sent before the freeze arrives.
    rest(FEW).await;
    let before = lease(owner).await?;
    // Shorter than a lease, so that the others lose nothing, and longer than it takes to renew one.
    rest(LEASE * 3 / 5).await;
    if lease(owner).await? != before {
        return Ok(false);
    }
    let began = tokio::time::Instant::now();
    while lease(owner).await?.0 == before.0 {
        anyhow::ensure!(began.elapsed() < LEASE * 10, "no other replica takes over from the one that is frozen");
        rest(FEW).await;
    }
    rest(WHILE).await;
    Ok(true)
}

/// The token and the end of the lease under which the tenant is dispatched.
async fn lease(owner: &mut PgConnection) -> anyhow::Result<(i64, String)> {
    let sql = "SELECT l.token, l.expires_at::text FROM shard_leases l JOIN dispatch_cursors c ON c.shard = l.shard
                ORDER BY c.tenant_id LIMIT 1";
    Ok(sqlx::query_as(sql).fetch_one(owner).await?)
}

async fn terminate(stage: &Stage, random: &mut Random) -> anyhow::Result<String> {
    let mut owner = stage.owner().await?;
    let mut ended = 0;
    for _ in 0..3 {
        // Every other backend, or each of them.
        let every = if random.one_in(2) { 1 } else { 2 };
        let pids: Vec<i32> =
            sqlx::query_scalar("SELECT pid FROM pg_stat_activity WHERE application_name = 'carillon' AND pid % $1 = 0")
                .bind(every)
                .fetch_all(&mut owner)
                .await?;
        for pid in pids {
            let done: bool =
                sqlx::query_scalar("SELECT pg_terminate_backend($1)").bind(pid).fetch_one(&mut owner).await?;
            ended += u32::from(done);
        }
        rest(WHILE / 6).await;
    }
    owner.close().await?;
    anyhow::ensure!(ended > 0, "no backend was there to be terminated");
    Ok(format!("{ended} backends"))
}

/// Lets commits through and keeps their answers, three times.
async fn withhold(stage: &Stage) -> anyhow::Result<String> {
    const ANSWERS: usize = 12;
    let before = stage.proxy.withheld();
    for _ in 0..3 {
        stage.proxy.withhold(ANSWERS);
        let done = until("answers are withheld", Duration::from_secs(20), || {
            let left = stage.proxy.left();
            std::future::ready(if left == 0 { Ok(()) } else { Err(left) })
        })
        .await;
        stage.proxy.withhold(0);
        done?;
        // Who got no answer asks again.
        rest(WHILE / 6).await;
    }
    // The others were answers to statements that failed, such as the retry of a publish whose answer was kept back.
    let withheld = stage.proxy.withheld() - before;
    anyhow::ensure!(withheld > 0, "no commit was carried out whose answer was withheld");
    Ok(format!("{} answers, {withheld} of them to commits that were carried out", 3 * ANSWERS))
}

/// Takes every connection that Postgres has, and each that becomes free.
async fn famine(stage: &Stage) -> anyhow::Result<String> {
    let url = stage.plain_url();
    let mut owner = stage.owner().await?;
    let mut eaten = Vec::new();
    let began = tokio::time::Instant::now();
    let mut refused = 0;
    while began.elapsed() < WHILE {
        match PgConnection::connect(&url).await {
            Ok(connection) => eaten.push(connection),
            Err(_) => {
                refused += 1;
                if refused == 1 || refused % 10 == 0 {
                    owner
                        .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'carillon'")
                        .await?;
                }
                rest(FEW / 5).await;
            }
        }
    }
    let detail = format!("{} connections taken, {refused} more refused", eaten.len());
    for connection in eaten {
        connection.close().await?;
    }
    owner.close().await?;
    anyhow::ensure!(refused > 0, "Postgres never ran out of connections");
    Ok(detail)
}

/// Fills the disk that the tables are on.
async fn fill_tables(stage: &Stage) -> anyhow::Result<String> {
    let disks = stage.disks.as_ref().ok_or_else(|| anyhow::anyhow!("disk_full needs the small disks"))?;
    let log = PostgresLog::from_now(stage)?;
    let (ballast, mib) = fill(&disks.tables)?;
    rest(WHILE).await;
    let refused = log.refusals("No space left on device").await;
    fs::remove_file(&ballast)?;
    Ok(format!("{mib} MiB of ballast, {} statements refused", refused?))
}

/// Fills the disk that the write-ahead log is on. Postgres panics where it can write no more of it, may end when it tries to recover,
/// and is started again once there is room.
async fn fill_wal(stage: &mut Stage) -> anyhow::Result<String> {
    let disks = stage.disks.as_ref().ok_or_else(|| anyhow::anyhow!("wal_full needs the small disks"))?;
    let mut owner = stage.owner().await?;
    let (ballast, mib) = fill(&disks.wal)?;
    let (began, mut segments) = (tokio::time::Instant::now(), 0);
    // The segments that are there already have room: they are left one after the other.
    while owner.execute("SELECT pg_switch_wal()").await.is_ok() {
        anyhow::ensure!(began.elapsed() < FULL_MAX, "Postgres goes on without room, {segments} segments later");
        segments += 1;
        rest(FEW).await;
    }
    rest(WHILE).await;
    fs::remove_file(&ballast)?;
    stage.postgres.restart().await?;
    Ok(format!("{mib} MiB of ballast, {segments} segments had room"))
}

/// Fills a disk to its last block; what takes the room, and its size in MiB.
fn fill(disk: &Path) -> anyhow::Result<(PathBuf, u64)> {
    let ballast = disk.join("ballast");
    let mut file = File::create(&ballast)?;
    let block = vec![0_u8; 1 << 20];
    let mut written = 0_u64;
    for size in [block.len(), 4096] {
        while file.write_all(&block[..size]).is_ok() {
            written += u64::try_from(size)?;
        }
    }
    Ok((ballast, written >> 20))
}

async fn read_only(stage: &Stage) -> anyhow::Result<String> {
    let log = PostgresLog::from_now(stage)?;
    let mut owner = stage.owner().await?;
    owner.execute("ALTER SYSTEM SET default_transaction_read_only = on").await?;
    owner.execute("SELECT pg_reload_conf()").await?;
    rest(WHILE).await;
    let refused = log.refusals("in a read-only transaction").await;
    owner.execute("ALTER SYSTEM RESET default_transaction_read_only").await?;
    owner.execute("SELECT pg_reload_conf()").await?;
    owner.close().await?;
    Ok(format!("{} statements refused", refused?))
}

/// What Postgres has logged since a moment.
struct PostgresLog {
    path: PathBuf,
    from: u64,
}

impl PostgresLog {
    fn from_now(stage: &Stage) -> io::Result<Self> {
        let path = stage.postgres.places().log.clone();
        let from = path.metadata()?.len();
        Ok(Self { path, from })
    }

    /// How often statements failed for a reason, once they do: a fault that none of them meets is none.
    async fn refusals(&self, reason: &str) -> anyhow::Result<usize> {
        until(&format!("statements fail: {reason}"), Duration::from_secs(20), || {
            std::future::ready(match self.read().map(|text| text.matches(reason).count()) {
                Ok(count) if count > 0 => Ok(count),
                none => Err(none),
            })
        })
        .await
    }

    fn read(&self) -> io::Result<String> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.from))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Lets the receiver behave badly for a while, and at least until it was called so.
async fn turn(receiver: &Receiver, answer: Answer) -> anyhow::Result<String> {
    let before = receiver.arrived("/turn");
    receiver.turn(answer);
    rest(WHILE).await;
    let arrived = until("the receiver is called", Duration::from_secs(20), || {
        let arrived = receiver.arrived("/turn") - before;
        std::future::ready(if arrived > 0 { Ok(arrived) } else { Err(arrived) })
    })
    .await;
    receiver.turn(Answer::Ok);
    Ok(format!("{} calls", arrived?))
}
