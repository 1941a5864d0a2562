//! Registration at the authority, by the API that SPIRE's server has.

use anyhow::{Context, Result, bail};
use spire_adapter::{Entry, EntryClient, Outcome, Selector, SpiffeId, TrustDomain};
use tokio::runtime::Runtime;

use crate::Lab;
use crate::issuer::Kind;

/// Who may obtain which SVID: each node's agent those of the node and of what it hosts.
#[derive(Debug)]
pub struct Registry {
    client: EntryClient,
    runtime: Runtime,
    trust_domain: TrustDomain,
    issuer: Kind,
}

impl Registry {
    /// A registry at a lab's issuer.
    ///
    /// # Errors
    /// When no runtime starts, or the trust domain is none.
    pub fn new(lab: &Lab, issuer: Kind, trust_domain: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = EntryClient::new(lab.outside("authority/server.sock"));
        Ok(Self { client, runtime, trust_domain: TrustDomain::new(trust_domain)?, issuer })
    }

    /// Who issues.
    #[must_use]
    pub const fn issuer(&self) -> Kind {
        self.issuer
    }

    /// Registers the daemon of a node.
    ///
    /// # Errors
    /// When the authority refuses or does not answer.
    pub fn add_node(&self, node: &str) -> Result<()> {
        self.create(node, &format!("/authd/node/{node}"), [Selector::new("unix", "uid:0")])
    }

    /// Registers an identity for a node that runs a pod of it.
    ///
    /// # Errors
    /// When the authority refuses or does not answer.
    pub fn add_identity(&self, identity: u32, node: &str) -> Result<()> {
        let selector = Selector::new("authd", format!("identity:{identity}"));
        self.create(node, &format!("/identity/{identity}"), [selector])
    }

    /// Registers an identity for a node's processes of this user, as SPIRE's agent attests them.
    ///
    /// # Errors
    /// When the authority refuses or does not answer.
    pub fn add_user(&self, identity: u32, node: &str, uid: u32) -> Result<()> {
        let selector = Selector::new("unix", format!("uid:{uid}"));
        self.create(node, &format!("/identity/{identity}"), [selector])
    }

    /// Registers a service account at a node, as whoever registers workloads by these does.
    ///
    /// # Errors
    /// When the authority refuses or does not answer.
    pub fn add_account(&self, namespace: &str, account: &str, node: &str) -> Result<()> {
        let selectors = [("ns", namespace), ("sa", account)]
            .map(|(kind, value)| Selector::new("k8s", format!("{kind}:{value}")));
        self.create(node, &format!("/ns/{namespace}/sa/{account}"), selectors)
    }

    /// The nodes whose agents are given an identity, once for each entry.
    ///
    /// # Errors
    /// When the authority does not answer.
    pub fn nodes_of(&self, identity: u32) -> Result<Vec<String>> {
        let wanted = self.id(&format!("/identity/{identity}"))?;
        let entries = self.runtime.block_on(self.client.list(None))?;
        let of_identity = entries.iter().filter(|entry| entry.spiffe_id == wanted);
        let node = |entry: &Entry| entry.parent_id.path().rsplit('/').next().unwrap_or_default().to_owned();
        let mut nodes: Vec<_> = of_identity.map(node).collect();
        nodes.sort();
        Ok(nodes)
    }

    /// Deletes every entry.
    ///
    /// # Errors
    /// When the authority refuses or does not answer.
    pub fn clear(&self) -> Result<()> {
        let entries = self.runtime.block_on(self.client.list(None))?;
        let ids: Vec<_> = entries.into_iter().map(|entry| entry.id).collect();
        let outcomes = self.runtime.block_on(self.client.delete(&ids))?;
        let all = outcomes.iter().all(|outcome| matches!(outcome, Outcome::Deleted(_)));
        if all { Ok(()) } else { bail!("delete all entries: {outcomes:?}") }
    }

    /// How many entries there are.
    ///
    /// # Errors
    /// When the authority does not answer.
    pub fn entries(&self) -> Result<usize> {
        Ok(self.runtime.block_on(self.client.list(None))?.len())
    }

    /// Withdraws an identity everywhere; how many entries that were.
    ///
    /// # Errors
    /// When the authority refuses or does not answer.
    pub fn withdraw(&self, identity: u32) -> Result<usize> {
        let wanted = self.id(&format!("/identity/{identity}"))?;
        let entries = self.runtime.block_on(self.client.list(None))?;
        let ids: Vec<_> =
            entries.into_iter().filter(|entry| entry.spiffe_id == wanted).map(|entry| entry.id).collect();
        let outcomes = self.runtime.block_on(self.client.delete(&ids))?;
        Ok(outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Deleted(_))).count())
    }

    fn create<const N: usize>(&self, node: &str, path: &str, selectors: [Selector; N]) -> Result<()> {
        let parent = self.issuer.agent_id(&self.trust_domain, node)?;
        let entry = Entry::new(parent, self.id(path)?, selectors);
        match self.runtime.block_on(self.client.create(&[entry]))?.as_slice() {
            [Outcome::Created(_) | Outcome::Exists(_)] => Ok(()),
            other => bail!("register {path} for {node}: {other:?}"),
        }
    }

    fn id(&self, path: &str) -> Result<SpiffeId> {
        let text = format!("spiffe://{}{path}", self.trust_domain);
        SpiffeId::new(&text).with_context(|| text)
    }
}
