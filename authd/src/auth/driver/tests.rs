//! The driver with handshakes and a map that do as the test says.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use super::*;
use crate::auth::stats::Stats;
use crate::auth::tests::{jitter, key, success};
use crate::auth::{Accepted, Desired};
use crate::clock::BootClock;

#[derive(Default)]
struct Table {
    entries: Mutex<BTreeMap<AuthKey, AuthEntry>>,
    refuses_inserts: AtomicBool,
    refuses_removals: AtomicBool,
    refused: AtomicUsize,
}

impl Table {
    fn refuse(&self, refuses: &AtomicBool) -> Result<(), TableError> {
        if refuses.load(Ordering::Relaxed) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err("no".into());
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.entries.lock().unwrap().len()
    }
}

impl AuthTable for Table {
    fn insert(&self, key: AuthKey, entry: AuthEntry) -> Result<(), TableError> {
        self.refuse(&self.refuses_inserts)?;
        self.entries.lock().unwrap().insert(key, entry);
        Ok(())
    }

    fn remove(&self, key: &AuthKey) -> Result<(), TableError> {
        self.refuse(&self.refuses_removals)?;
        self.entries.lock().unwrap().remove(key);
        Ok(())
    }

    fn entries(&self) -> Result<Vec<(AuthKey, AuthEntry)>, TableError> {
        Ok(self.entries.lock().unwrap().iter().map(|(key, entry)| (*key, *entry)).collect())
    }
}

/// What a dial does.
#[derive(Clone, Copy)]
enum Dial {
    Succeed,
    Take(Duration),
    Hang,
    Panic,
}

/// How long SVIDs and proofs are good: longer than any test takes, so that nothing is due to be renewed meanwhile.
const LIFE: Duration = Duration::from_secs(3600);

struct Fake {
    dial: Dial,
    told: Mutex<Vec<(NodeNumber, IdentityNumber)>>,
    /// Verifications on this node take until it is false.
    verifying: AtomicBool,
}

fn proof(key: AuthKey) -> Proof {
    success(key, BootClock.now().saturating_add(LIFE), 1).proof
}

impl Handshakes for Fake {
    fn dial(&self, key: AuthKey) -> BoxFuture<'static, Result<Proof, Failure>> {
        match self.dial {
            Dial::Succeed => futures::future::ready(Ok(proof(key))).boxed(),
            Dial::Take(time) => async move {
                tokio::time::sleep(time).await;
                Ok(proof(key))
            }
            .boxed(),
            Dial::Hang => futures::future::pending().boxed(),
            Dial::Panic => async { panic!("a fault in a handshake") }.boxed(),
        }
    }

    fn verify_local(&self, key: AuthKey) -> Result<Proof, Failure> {
        while self.verifying.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        Ok(Proof { epoch: 0, ..proof(key) })
    }

    fn give_up(&self, _key: AuthKey) {}

    fn revoke(&self, node: NodeNumber, identity: IdentityNumber) {
        self.told.lock().unwrap().push((node, identity));
    }
}

struct Rig {
    table: Arc<Table>,
    stats: Arc<Stats>,
    handle: Handle,
    fake: Arc<Fake>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

/// A driver for which 256 and 257 are here and 300 is on node 1, all of them well.
async fn rig(table: Arc<Table>, dial: Dial) -> Rig {
    rig_of(table, dial, 256..258, 300..301).await
}

/// The same for these identities here and on node 1.
async fn rig_of(
    table: Arc<Table>,
    dial: Dial,
    here: std::ops::Range<u32>,
    there: std::ops::Range<u32>,
) -> Rig {
    let stats = Arc::new(Stats::default());
    let settings = Settings {
        config: Config::default(),
        jitter: jitter(),
        clock: Arc::new(BootClock),
        table: Arc::<Table>::clone(&table),
        observer: Arc::<Stats>::clone(&stats),
    };
    let (driver, handle) = Driver::new(settings).unwrap();
    let (fake, stop) = (
        Arc::new(Fake { dial, told: Mutex::default(), verifying: AtomicBool::default() }),
        CancellationToken::new(),
    );
    let task = tokio::spawn(driver.run(Arc::<Fake>::clone(&fake), stop.clone()));
    let placed = [(0, here.clone().collect()), (1, there.clone().collect())].into();
    handle.tell(Event::Desired(Arc::new(Desired { pairs: None, placed }))).await;
    let expires = BootClock.now().saturating_add(LIFE);
    for identity in here {
        handle.tell(Event::SvidChanged { identity, expires }).await;
    }
    handle.tell(Event::PeerUp { node: 1, epoch: 1, identities: Arc::new(there.collect()) }).await;
    Rig { table, stats, handle, fake, stop, task }
}

async fn until(holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap();
}

#[tokio::test]
async fn entries_are_written_listed_and_left_at_the_end() {
    let rig = rig(Arc::default(), Dial::Succeed).await;
    assert!(rig.handle.ask(key(256, 300, 1)) && rig.handle.ask(key(256, 257, 0)));
    rig.handle.records().wait_for(|records| records.len() == 3).await.unwrap();
    assert_eq!(rig.table.len(), 3);
    assert_eq!((rig.stats.count(Side::Client, "ok"), rig.stats.count(Side::Local, "ok")), (1, 1));
    rig.stop.cancel();
    rig.task.await.unwrap();
    assert_eq!(rig.table.len(), 3);
    assert!(!rig.handle.ask(key(256, 300, 1)));
}

#[tokio::test]
async fn a_withdrawal_is_told_to_the_peer() {
    let rig = rig(Arc::default(), Dial::Succeed).await;
    assert!(rig.handle.ask(key(256, 300, 1)));
    until(|| rig.table.len() == 1).await;
    rig.handle.tell(Event::SvidWithdrawn(256)).await;
    until(|| rig.table.len() == 0).await;
    assert_eq!(*rig.fake.told.lock().unwrap(), [(1, 256)]);
}

#[tokio::test]
async fn a_removal_that_fails_is_tried_again_until_it_is_done() {
    let rig = rig(Arc::default(), Dial::Succeed).await;
    assert!(rig.handle.ask(key(256, 300, 1)));
    until(|| rig.table.len() == 1).await;
    rig.table.refuses_removals.store(true, Ordering::Relaxed);
    rig.handle.tell(Event::SvidWithdrawn(256)).await;
    until(|| rig.table.refused.load(Ordering::Relaxed) >= 3).await;
    rig.table.refuses_removals.store(false, Ordering::Relaxed);
    until(|| rig.table.len() == 0).await;
}

#[tokio::test]
async fn a_handshake_of_another_node_is_recorded_or_refused_as_the_map_has_it() {
    let rig = rig(Arc::default(), Dial::Hang).await;
    let pair = key(256, 300, 1);
    let accepted = || Accepted {
        key: pair,
        began: BootClock.now(),
        success: success(pair, BootClock.now().saturating_add(Duration::from_secs(60)), 1),
    };
    rig.table.refuses_inserts.store(true, Ordering::Relaxed);
    assert_eq!(rig.handle.accept(accepted()).await, Err(Refused::Full));
    assert_eq!(rig.table.len(), 0);
    rig.table.refuses_inserts.store(false, Ordering::Relaxed);
    assert_eq!(rig.handle.accept(accepted()).await, Ok(()));
    assert_eq!(rig.table.len(), 1);
    rig.stop.cancel();
    rig.task.await.unwrap();
    assert_eq!(rig.handle.accept(accepted()).await, Err(Refused::Full), "nobody there");
}

#[tokio::test]
async fn a_full_queue_drops_requests_and_counts_them() {
    let settings = Settings {
        config: Config::default(),
        jitter: jitter(),
        clock: Arc::new(BootClock),
        table: Arc::new(Table::default()),
        observer: Arc::new(Stats::default()),
    };
    let (_driver, handle) = Driver::new(settings).unwrap();
    let taken = (0..wanted::EACH + 10).filter(|_| handle.ask(key(256, 300, 1))).count();
    assert_eq!((taken, handle.dropped()), (wanted::EACH + 10, 0), "one pair waits once");
    let taken = (1000..).take(wanted::EACH + 10).filter(|remote| handle.ask(key(256, *remote, 1))).count();
    assert_eq!((taken, handle.dropped()), (wanted::EACH - 1, 11));
}

#[tokio::test]
async fn a_handshake_that_panics_has_failed() {
    let rig = rig(Arc::default(), Dial::Panic).await;
    assert!(rig.handle.ask(key(256, 300, 1)));
    until(|| rig.stats.count(Side::Client, "panic") == 1).await;
    assert_eq!(rig.handle.load().0, 0);
}

#[tokio::test]
async fn what_stands_in_the_map_at_the_start_is_listed_and_proven_anew() {
    let table = Arc::new(Table::default());
    let expires = BootClock.now().saturating_add(Duration::from_secs(2)).0;
    table.insert(key(256, 300, 1), AuthEntry { expires, epoch: 1, flags: 0 }).unwrap();
    table.insert(key(257, 300, 1), AuthEntry { expires: 1, epoch: 1, flags: 0 }).unwrap();
    let rig = rig(table, Dial::Succeed).await;
    until(|| rig.stats.count(Side::Client, "ok") == 1).await;
    until(|| rig.table.entries().unwrap().iter().all(|(_, entry)| entry.expires > expires)).await;
    assert_eq!(rig.table.len(), 1);
}

/// In another system each request had a task of its own, without a bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_at_once_are_bounded_and_all_served_in_the_end() {
    const PAIRS: usize = 10_000;
    let (here, there) = (256..356, 1000..1100);
    let rig = rig_of(Arc::default(), Dial::Take(Duration::from_millis(1)), here.clone(), there.clone()).await;
    let all: Vec<AuthKey> =
        here.flat_map(|local| there.clone().map(move |remote| key(local, remote, 1))).collect();
    let taken = all.iter().filter(|pair| rig.handle.ask(**pair)).count();
    assert!((wanted::REQUESTS..PAIRS).contains(&taken), "{taken}: there is a bound, and room");
    assert_eq!(rig.handle.dropped(), u64::try_from(PAIRS - taken).unwrap(), "each is counted");
    // As the kernel does it: packets of those that lack it ask again.
    let asks = tokio::spawn({
        let (handle, table) = (rig.handle.clone(), Arc::clone(&rig.table));
        async move {
            loop {
                let standing: BTreeSet<AuthKey> = table.entries.lock().unwrap().keys().copied().collect();
                let mut lacking = all.iter().filter(|pair| !standing.contains(pair));
                // Until there is no room: to go on would take the time that serving them takes.
                let _full = lacking.find(|pair| !handle.ask(**pair));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });
    let mut most = 0;
    let serving = async {
        while rig.table.len() < PAIRS {
            let (running, waiting) = rig.handle.load();
            most = most.max(running);
            assert!(running <= Config::default().max_running && waiting <= PAIRS, "{running} {waiting}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(180), serving).await.expect("somebody starves");
    asks.abort();
    assert!(most > 0);
    until(|| rig.handle.load() == (0, 0)).await;
    assert_eq!(rig.stats.count(Side::Client, "ok"), 10_000, "each once");
}

/// In another system the word of a rotation was dropped when its queue was full.
#[tokio::test]
async fn a_thousand_withdrawals_at_once_lose_none() {
    let here = 256..1256;
    let rig = rig_of(Arc::default(), Dial::Succeed, here.clone(), 5000..5001).await;
    for local in here.clone() {
        while !rig.handle.ask(key(local, 5000, 1)) {
            tokio::task::yield_now().await;
        }
    }
    until(|| rig.table.len() == 1000).await;
    let told = here.map(|identity| rig.handle.tell(Event::SvidWithdrawn(identity)));
    futures::future::join_all(told).await;
    until(|| rig.table.len() == 0).await;
}

/// Signatures of many pairs on this node keep nobody from being heard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pairs_on_this_node_are_verified_beside_the_driver() {
    let rig = rig_of(Arc::default(), Dial::Succeed, 256..356, 5000..5001).await;
    rig.fake.verifying.store(true, Ordering::Relaxed);
    for remote in 257..356 {
        assert!(rig.handle.ask(key(256, remote, 0)));
    }
    assert!(rig.handle.ask(key(300, 5000, 1)));
    until(|| rig.table.len() == 1).await;
    rig.fake.verifying.store(false, Ordering::Relaxed);
    until(|| rig.table.len() == 1 + 2 * 99).await;
}
