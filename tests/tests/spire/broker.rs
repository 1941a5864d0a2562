//! SVIDs of processes, by the Broker API and by the Delegated Identity API.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use spire_adapter::broker::Process;
use spire_adapter::{ApiError, BrokerAgent, Entry, Selector, Snapshot, State, Subscription};

use crate::under_test::{HOUR, Kind, UnderTest, uid, until, usable};

/// A process of this user that does nothing until it is dropped.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "sleep", "300"]);
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    fn process(&self) -> Process {
        Process::open(i32::try_from(self.0.id()).unwrap()).unwrap()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

struct Rig {
    spire: UnderTest,
    node: Subscription,
    broker: BrokerAgent,
}

/// With a workload that is told by its user, as this test's processes are.
async fn rig(kind: Kind, svid_ttl: Duration) -> (Rig, Entry) {
    let spire = UnderTest::start(kind, svid_ttl).await;
    let selector = Selector::new("unix", format!("uid:{}", uid()));
    let web = spire.create(Entry::new(spire.agent_id("n1"), spire.id("/web"), [selector])).await;
    let node = spire.node("n1");
    usable(&node).await;
    let broker = BrokerAgent::new(spire.broker_socket("n1"), node.watch());
    (Rig { spire, node, broker }, web)
}

pub(crate) async fn a_process_has_its_svid_until_it_ends(kind: Kind) {
    let (Rig { spire, broker, .. }, web) = rig(kind, HOUR).await;
    let sleeper = Sleeper::start();
    let subscription = broker.subscribe(sleeper.process(), spire.id("/web"));
    let snapshot = usable(&subscription).await;
    assert_eq!((snapshot.svid().unwrap().spiffe_id(), snapshot.bundles.len()), (&spire.id("/web"), 1));
    spire.delete(&web).await;
    until(&subscription, |next| next.state == State::Withdrawn).await;
    spire.create(Entry { id: String::new(), ..web }).await;
    usable(&subscription).await;
    // The agent would go on for good.
    drop(sleeper);
    has_ended(&subscription).await;
    assert!(Process::open(i32::MAX).is_err());
}

async fn has_ended(subscription: &Subscription) {
    let told = |next: &Snapshot| matches!(next.problem, Some(ApiError::ProcessEnded { .. }));
    assert_eq!(until(subscription, told).await.state, State::Withdrawn);
}

pub(crate) async fn a_process_has_its_svid_by_the_delegated_identity_api_too(kind: Kind) {
    let (Rig { spire, .. }, web) = rig(kind, HOUR).await;
    let agent = spire.delegated("n1");
    let (sleeper, other) = (Sleeper::start(), Sleeper::start());
    let subscription = agent.subscribe_process(sleeper.process(), spire.id("/web"));
    let snapshot = usable(&subscription).await;
    assert_eq!((snapshot.svid().unwrap().spiffe_id(), snapshot.bundles.len()), (&spire.id("/web"), 1));
    // A process that is nobody's workload, by its SPIFFE ID, and one that is gone before it is asked for.
    let nobody = agent.subscribe_process(other.process(), spire.id("/db"));
    until(&nobody, |next| next.state == State::Withdrawn).await;
    let gone = other.process();
    drop(other);
    has_ended(&agent.subscribe_process(gone, spire.id("/web"))).await;
    has_ended(&nobody).await;

    spire.delete(&web).await;
    let withdrawn = until(&subscription, |next| next.state == State::Withdrawn).await;
    // The process is of the node's own user too, of whom the agent goes on telling.
    let ids = [spire.id("/web"), spire.id("/authd/node/n1")].map(|id| id.to_string());
    let [expected, given] = ids;
    assert_eq!(withdrawn.problem, Some(ApiError::OtherIdentity { expected, given }));
    spire.create(Entry { id: String::new(), ..web }).await;
    usable(&subscription).await;
    // The agent would go on for good.
    drop(sleeper);
    has_ended(&subscription).await;
}

pub(crate) async fn a_killed_agent_withdraws_nothing_by_the_broker_api(kind: Kind) {
    let (Rig { mut spire, broker, node }, _web) = rig(kind, HOUR).await;
    let sleeper = Sleeper::start();
    let subscription = broker.subscribe(sleeper.process(), spire.id("/web"));
    let before = usable(&subscription).await;
    spire.kill_agent("n1").await;
    let away = until(&subscription, |next| next.stale && next.problem.is_some()).await;
    assert_eq!((away.svid(), &away.bundles), (before.svid(), &before.bundles));
    spire.start_agent("n1");
    let back = usable(&subscription).await;
    assert_eq!((back.problem, usable(&node).await.problem), (None, None));
}

pub(crate) async fn a_federated_domain_comes_and_goes_by_the_broker_api(kind: Kind) {
    let (Rig { spire, broker, .. }, mut web) = rig(kind, HOUR).await;
    let other = UnderTest::of("b.test", kind, HOUR).await;
    let theirs = usable(&other.node("n1")).await.bundles.get(&other.trust_domain).unwrap().clone();
    let sleeper = Sleeper::start();
    let subscription = broker.subscribe(sleeper.process(), spire.id("/web"));
    assert_eq!(usable(&subscription).await.bundles.len(), 1);
    spire.federate(&theirs);
    web.federates_with.insert(other.trust_domain.clone());
    spire.update(&web).await;
    let both = until(&subscription, |next| next.bundles.len() == 2).await;
    assert_eq!(both.bundles.get(&other.trust_domain), Some(&theirs));
    spire.defederate(&other.trust_domain);
    let alone = until(&subscription, |next| next.svid().is_some() && next.bundles.len() == 1).await;
    assert!(alone.bundles.get(&other.trust_domain).is_none());
}

pub(crate) async fn rotation_of_the_own_svid_makes_a_new_connection(kind: Kind) {
    let (Rig { spire, node, broker }, _web) = rig(kind, Duration::from_secs(20)).await;
    let sleeper = Sleeper::start();
    let subscription = broker.subscribe(sleeper.process(), spire.id("/web"));
    let first = usable(&subscription).await;
    let before = usable(&node).await;
    until(&node, |next| next.svid().is_some() && next.svid() != before.svid()).await;
    until(&subscription, |next| next.svid().is_some() && next.svid() != first.svid()).await;
    // The agent never looks again at who has connected: that shows only because we come anew.
    let entries = spire.entries.list(Some(&spire.agent_id("n1"))).await.unwrap();
    let own = entries.iter().find(|entry| entry.spiffe_id == spire.node_id("n1")).unwrap();
    spire.delete(own).await;
    let denied = until(&subscription, |next| next.state == State::Withdrawn).await;
    assert!(matches!(denied.problem, Some(ApiError::NotAuthorized { .. })), "{:?}", denied.problem);
}

pub(crate) async fn who_is_no_broker_is_told_so(kind: Kind) {
    let (Rig { spire, broker, .. }, _web) = rig(kind, HOUR).await;
    let sleeper = Sleeper::start();
    usable(&broker.subscribe(sleeper.process(), spire.id("/web"))).await;
    let other = spire_adapter::workload::subscribe(spire.workload_socket("n1"), spire.id("/web"));
    usable(&other).await;
    let stranger = BrokerAgent::new(spire.broker_socket("n1"), other.watch());
    let refused = stranger.subscribe(sleeper.process(), spire.id("/web"));
    let refused = until(&refused, |next| next.problem.is_some()).await;
    assert_eq!(refused.state, State::Pending);
    let problem = refused.problem.unwrap().to_string();
    assert!(problem.contains("spiffe://a.test/web") && problem.contains("brokers"), "{problem}");
    // A socket that speaks no TLS is not ours to trust either.
    let wrong = BrokerAgent::new(spire.admin_socket("n1"), other.watch());
    let wrong = wrong.subscribe(sleeper.process(), spire.id("/web"));
    let wrong = until(&wrong, |next| next.problem.is_some()).await;
    assert!(matches!(wrong.problem, Some(ApiError::Connect { .. } | ApiError::Deadline { .. })), "{wrong:?}");
}
