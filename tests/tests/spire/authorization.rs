//! SPIRE's authorisation policy as it is shipped: what the operator may do by TCP without an administrator's SVID,
//! proven by trying what it may not.

use std::time::Duration;

use authd_tests::spire::Options;
use spire_adapter::registration::Owner;
use spire_adapter::{
    AgentClient, ApiError, Entry, EntryClient, Outcome, ServerAddress, Subscription, workload,
};

use crate::under_test::{Kind, UnderTest, options, selector, this_program, usable};

/// A server that goes by the policy, and this process as its operator.
pub(crate) async fn confined(svid_ttl: Duration) -> (UnderTest, Subscription) {
    let options = Options { confined: true, svid_ttl, ..options("a.test") };
    let spire = UnderTest::bare(Kind::Real, options);
    let operator = spire.id("/authd/operator");
    spire.create(Entry::new(spire.agent_id("n1"), operator.clone(), this_program())).await;
    let own = workload::subscribe(spire.workload_socket("n1"), operator);
    usable(&own).await;
    (spire, own)
}

pub(crate) async fn the_operator_does_its_work_and_no_more() {
    let (spire, own) = confined(crate::under_test::HOUR).await;
    let address = ServerAddress::Tcp { address: spire.server_address(), own: own.watch() };
    let client = EntryClient::at(address.clone());
    let owner = Owner::default();
    let ours = |mut entry: Entry| {
        entry.id = owner.entry_id(&entry.parent_id, &entry.spiffe_id);
        entry
    };
    let identity = ours(spire.entry("n1", 256));
    let mut node = ours(Entry::new(spire.agent_id("n1"), spire.node_id("n1"), this_program()));

    // Its work.
    assert_eq!(AgentClient::at(address).list().await.unwrap().len(), 2);
    let made = client.create(&[identity.clone(), node.clone()]).await.unwrap();
    assert!(made.iter().all(|outcome| matches!(outcome, Outcome::Created(_))), "{made:?}");
    node.hint = "n1".to_owned();
    let updated = client.update(std::slice::from_ref(&node)).await.unwrap();
    assert_eq!(updated, [Outcome::Updated(node.clone())]);
    assert_eq!(client.list(None).await.unwrap().len(), 3);
    let deleted = client.delete(std::slice::from_ref(&node.id)).await.unwrap();
    assert_eq!(deleted, [Outcome::Deleted(node.id.clone())]);

    // No more.
    let theirs = spire.create(spire.entry("n2", 300)).await;
    let other = ours(spire.entry("n2", 257));
    let with = |change: &dyn Fn(&mut Entry)| {
        let mut entry = other.clone();
        change(&mut entry);
        entry
    };
    let forbidden = [
        with(&|entry| entry.id = String::new()),
        with(&|entry| entry.id = "authd.other.1".to_owned()),
        with(&|entry| entry.spiffe_id = spire.id("/authd/operator")),
        with(&|entry| entry.spiffe_id = spire.id("/ns/shop/sa/web")),
        with(&|entry| entry.spiffe_id = spire.id("/identity/1/x")),
        with(&|entry| entry.spiffe_id = spire.id("/x/identity/1")),
        with(&|entry| entry.parent_id = spire.id("/identity/256")),
        with(&|entry| entry.parent_id = spire.id("/spire/server")),
        with(&|entry| entry.admin = true),
        with(&|entry| entry.downstream = true),
        with(&|entry| entry.store_svid = true),
        with(&|entry| entry.dns_names = ["kubernetes.default".to_owned()].into()),
    ];
    for entry in forbidden {
        refused(&entry, client.create(std::slice::from_ref(&entry)).await);
        // Nor hidden among what it may do.
        refused(&entry, client.create(&[other.clone(), entry.clone()]).await);
        if !entry.id.is_empty() {
            refused(&entry, client.update(std::slice::from_ref(&entry)).await);
        }
    }
    let mut taken = theirs.clone();
    taken.selectors = [selector(256)].into();
    refused(&taken, client.update(std::slice::from_ref(&taken)).await);
    refused(&theirs, client.delete(std::slice::from_ref(&theirs.id)).await);
    refused(&theirs, client.delete(&[identity.id.clone(), theirs.id.clone()]).await);
    let listed = spire.entries.list(None).await.unwrap();
    let mut ids: Vec<_> = listed.iter().map(|entry| entry.spiffe_id.path()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["/authd/operator", "/identity/256", "/identity/300"]);

    // A workload that is not the operator may do nothing at all.
    let stranger = spire.id("/identity/400");
    spire.create(Entry::new(spire.agent_id("n1"), stranger.clone(), this_program())).await;
    let stranger = workload::subscribe(spire.workload_socket("n1"), stranger);
    usable(&stranger).await;
    let address = ServerAddress::Tcp { address: spire.server_address(), own: stranger.watch() };
    refused(&other, EntryClient::at(address.clone()).list(None).await);
    refused(&other, EntryClient::at(address).create(std::slice::from_ref(&other)).await);
}

fn refused<T: std::fmt::Debug>(what: &Entry, outcome: Result<T, ApiError>) {
    let denied = matches!(&outcome, Err(ApiError::NotAuthorized { .. }));
    assert!(denied, "{what:?} was not refused: {outcome:?}");
}
