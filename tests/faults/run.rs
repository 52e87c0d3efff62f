//! One run: build a stage, let the parties play, commit faults in the order that the seed decides, wait for the end, and
//! write down what the service then says.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{anyhow, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::check::AFTERMATH;
use super::faults::{self, Kind};
use super::parties::reader::Taste;
use super::parties::receiver::Receiver;
use super::parties::{Link, Scene, TYPES, auditor, gate, publisher, reader, subscriber, switcher};
use super::random::Random;
use super::record::{Journal, Log, Record, Share};
use super::stage::{LEASE, Shape, Stage};
use super::{dump, until};

const PUBLISHERS: usize = 6;
/// Faults between two rests, in which nothing that runs again is excused.
const REST_EVERY: usize = 10;

/// What a run consists of.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub shape: Shape,
    /// In the order in which they are committed.
    pub faults: Vec<Kind>,
    /// How long traffic goes on far from any fault: at the beginning, at the end, and now and then in between.
    pub calm: Duration,
    /// How long nothing may move before a part of the run is given up and left to the checker.
    pub patience: Duration,
}

impl Plan {
    /// So many kills, and every other fault of a list so many times, in an order that the seed decides.
    pub fn mix(seed: u64, kills: usize, others: &[Kind], times: usize) -> Vec<Kind> {
        // Of ten kills three are Postgres's.
        let of_kill = |n: usize| if matches!(n % 10, 1 | 4 | 7) { Kind::KillPostgres } else { Kind::KillReplica };
        let mut list: Vec<Kind> = (0..kills).map(of_kill).collect();
        for _ in 0..times {
            list.extend(others.iter().filter(|kind| !matches!(kind, Kind::KillPostgres | Kind::KillReplica)));
        }
        Random::new(seed).shuffle(&mut list);
        list
    }
}

/// Runs a plan; the records are in `folder` afterwards. Says where delivery was not back in time after a fault: the faults that should
/// have followed are left out then, and the rest is for the checker to judge.
pub async fn run(plan: &Plan, folder: &Path) -> anyhow::Result<Option<String>> {
    let mut random = Random::new(plan.seed);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // A stage that is dropped half built ends what it has started.
    let mut stage = tokio::select! {
        stage = Stage::build(plan.shape.clone()) => stage?,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    };
    let journal = Journal::begin(folder)?;
    let outcome = tokio::select! {
        outcome = play(plan, &mut stage, &journal, &mut random) => outcome,
        _ = interrupt.recv() => Err(anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow!("terminated")),
    };
    stage.keep_logs(folder)?;
    stage.end().await?;
    outcome
}

async fn play(
    plan: &Plan,
    stage: &mut Stage,
    journal: &Journal,
    random: &mut Random,
) -> anyhow::Result<Option<String>> {
    let scene = Scene {
        directory: stage.directory.clone(),
        key: stage.key.clone(),
        publisher: stage.publisher.clone(),
        counts: Arc::default(),
        stop: CancellationToken::new(),
        complete: CancellationToken::new(),
        end: Arc::default(),
    };
    let log = journal.open("driver")?;
    let lease_us = u64::try_from(LEASE.as_micros())?;
    log.write(&Record::Run { seed: plan.seed, lease_us, planted: plan.shape.planted.clone() });
    let receiver = Arc::new(Receiver::start(&scene, journal.open("receiver")?).await?);
    let subscriptions = journal.open("subscriber")?;
    let mut link = Link::new(&scene, random.fork());
    subscriber::prepare(&mut link, &subscriptions, &receiver).await?;
    gate::prepare(&mut link, &subscriptions, &receiver).await?;

    let mut writers = JoinSet::new();
    for index in 0..PUBLISHERS {
        let party = journal.open(&format!("publisher-{index}"))?;
        let link = Link::new(&scene, random.fork());
        writers.spawn(publisher::run(link, party, i64::try_from(index)?, PUBLISHERS));
    }
    writers.spawn(gate::run(Link::new(&scene, random.fork()), journal.open("gate-publisher")?));
    writers.spawn(subscriber::run(Link::new(&scene, random.fork()), subscriptions, receiver.clone()));
    writers.spawn(auditor::run(Link::new(&scene, random.fork()), journal.open("auditor")?));
    let mut readers = JoinSet::new();
    let every = |event_type: &str, share| Taste { event_type: event_type.to_owned(), share };
    let tastes =
        [every("", Share::ALL), every("CUSTOM_*", Share::ALL), every(TYPES[0], Share { modulus: 2, remainder: 1 })];
    for (index, taste) in tastes.into_iter().enumerate() {
        let party = journal.open(&format!("watcher-{index}"))?;
        readers.spawn(reader::watch(Link::new(&scene, random.fork()), party, taste));
    }
    readers.spawn(switcher::run(Link::new(&scene, random.fork()), journal.open("switcher")?));
    readers.spawn(reader::list(Link::new(&scene, random.fork()), journal.open("lister")?));

    // What the checker excuses by a fault comes within so long after it, and begins a lease before the next.
    let aftermath = LEASE + Duration::from_micros(AFTERMATH);
    scene.pause(plan.calm + LEASE).await;
    let mut not_back = None;
    for (index, kind) in plan.faults.iter().enumerate() {
        commit(plan, stage, &scene, &receiver, random, &log, (index, *kind)).await?;
        if let Err(error) = recovered(plan, &scene).await {
            let left = plan.faults.len() - index - 1;
            not_back = Some(format!("NOT BACK after {}: {error:#}: {left} faults are left out", kind.name()));
            break;
        }
        let is_last = index + 1 == plan.faults.len();
        if !is_last && (index + 1) % REST_EVERY == 0 {
            scene.pause(aftermath + plan.calm + LEASE).await;
        }
        scene.pause(Duration::from_millis(u64::try_from(500 + random.below(1_500))?)).await;
    }
    scene.pause(aftermath + plan.calm).await;

    scene.stop.cancel();
    join(&mut writers, plan.patience * 2, "publishers, the subscriber and the auditor").await;
    dump::settle(&mut link, plan.patience).await;
    let party = journal.open("dump")?;
    let end = dump::write(&mut link, &party, &receiver.repeated(), plan.patience).await?;
    scene.end.store(end, Ordering::SeqCst);
    scene.complete.cancel();
    join(&mut readers, plan.patience, "readers").await;
    Ok(not_back)
}

async fn commit(
    plan: &Plan,
    stage: &mut Stage,
    scene: &Scene,
    receiver: &Receiver,
    random: &mut Random,
    log: &Log,
    (index, kind): (usize, Kind),
) -> anyhow::Result<()> {
    let counts = &scene.counts;
    let look = || (counts.sent.load(Ordering::SeqCst), counts.unknown.load(Ordering::SeqCst));
    let (sent, unknown) = look();
    let began = log.now();
    faults::commit(kind, stage, receiver, random, log).await?;
    let after = look();
    eprintln!(
        "faults: {:>6.1} s  {:>3}/{} {:<18} {:>4.1} s, {:>4} publish calls met it, {:>3} of them without an answer",
        f64::from(u32::try_from(began / 1_000)?) / 1_000.0,
        index + 1,
        plan.faults.len(),
        kind.name(),
        f64::from(u32::try_from((log.now() - began) / 1_000)?) / 1_000.0,
        after.0 - sent,
        after.1 - unknown,
    );
    Ok(())
}

/// Waits until what was published after the fault is delivered.
async fn recovered(plan: &Plan, scene: &Scene) -> anyhow::Result<()> {
    let counts = &scene.counts;
    let mark = counts.acknowledged_n.load(Ordering::SeqCst) + 8;
    until("what is published after a fault is delivered", plan.patience, || {
        let (acknowledged, delivered) =
            (counts.acknowledged_n.load(Ordering::SeqCst), counts.delivered_n.load(Ordering::SeqCst));
        let state = format!("number {acknowledged} acknowledged, number {delivered} delivered, waiting for {mark}");
        std::future::ready(if delivered > mark { Ok(()) } else { Err(state) })
    })
    .await
}

/// Waits for tasks; those that do not end are left to the checker, which finds their logs unfinished.
async fn join(tasks: &mut JoinSet<()>, patience: Duration, who: &str) {
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(patience, all).await.is_err() {
        eprintln!("faults: {who} did not end within {} s", patience.as_secs());
        tasks.shutdown().await;
    }
}
