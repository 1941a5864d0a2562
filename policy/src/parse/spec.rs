//! One `spec` of a policy: its subject, its lists of rules, and its rules.

use auth_ebpf_abi::{AuthType, Direction};

use super::node::{Fields, Node};
use super::peers::{self, PeerFields};
use super::policy_error::Fault;
use super::ports::{self, Keeping, PortRules, Ports};
use super::selector;
use crate::condition::{Condition, ConditionKind};
use crate::label::Source;
use crate::object::{Kind, ObjectRef, RuleList};
use crate::peer::Peers;
use crate::rule::{Rule, Spec, Subject};

const FIELDS: [&str; 10] = [
    "endpointSelector",
    "nodeSelector",
    "ingress",
    "ingressDeny",
    "egress",
    "egressDeny",
    "enableDefaultDeny",
    "labels",
    "description",
    "log",
];

const AUTHENTICATION_MODES: [(&str, AuthType); 3] = [
    ("disabled", AuthType::Disabled),
    ("required", AuthType::Spire),
    ("test-always-fail", AuthType::AlwaysFail),
];

/// Most characters in `log.value`.
const MAX_LOG: usize = 32;

/// Whether a rule's traffic must travel encrypted: a field of our own, which others ignore.
const ENCRYPTION_MODES: [(&str, bool); 2] = [("required", true), ("default", false)];

pub(super) fn parse(
    node: &Node<'_>,
    place: Option<usize>,
    object: &ObjectRef,
    conditions: &mut Vec<Condition>,
) -> Result<Spec, Fault> {
    let fields = node.fields(&FIELDS)?;
    let subject = parse_subject(node, &fields, object, conditions)?;
    let subject_is_init = is_init(&subject);
    let (ingress, egress) = parse_default_deny(&fields)?;
    let mut rules = Vec::new();
    for list in RuleList::ALL {
        let default_deny = if list.direction() == Direction::Ingress { ingress } else { egress };
        let is_open = default_deny == Some(false);
        for (index, node) in fields.items(list.as_str())?.unwrap_or_default().iter().enumerate() {
            let mut context =
                RuleContext { object, subject_is_init, list, is_open, conditions, effect: Effect::AsWritten };
            rules.extend(parse_rule(node, index, &mut context)?);
        }
    }
    let has = |direction| rules.iter().any(|rule: &Rule| rule.list.direction() == direction);
    let default_deny = [(RuleList::Ingress, ingress), (RuleList::Egress, egress)];
    name_what_says_nothing(node, &fields, &rules, default_deny, conditions);
    Ok(Spec {
        place,
        subject,
        default_deny_ingress: ingress.unwrap_or_else(|| has(Direction::Ingress)),
        default_deny_egress: egress.unwrap_or_else(|| has(Direction::Egress)),
        description: fields.text("description")?.map(str::to_owned),
        labels: parse_labels(&fields)?,
        log: parse_log(&fields)?,
        rules,
    })
}

/// Names what looks like a default deny and isn't: empty lists, or no rules at all.
fn name_what_says_nothing(
    node: &Node<'_>,
    fields: &Fields<'_>,
    rules: &[Rule],
    default_deny: [(RuleList, Option<bool>); 2],
    conditions: &mut Vec<Condition>,
) {
    let mut found = Vec::new();
    for (list, is_set) in default_deny {
        let is_said = rules.iter().any(|rule| rule.list.direction() == list.direction());
        let field = fields.get(list.as_str()).filter(Node::is_empty);
        if let (Some(field), false, None) = (field, is_said, is_set) {
            let words = format!(
                "an empty list says nothing and denies nothing; `{}: [{{}}]` denies what no rule allows",
                list.as_str()
            );
            found.push((field.path().to_owned(), words));
        }
    }
    let is_asked = default_deny.iter().any(|(_, is_set)| *is_set == Some(true));
    if found.is_empty() && rules.is_empty() && !is_asked {
        let words = "has no rules, so it says nothing and denies nothing; `ingress: [{}]` and `egress: [{}]` \
                     deny what no rule allows";
        found.push((node.path().to_owned(), words.to_owned()));
    }
    let condition = |(path, message)| Condition { kind: ConditionKind::SelectsNothing, path, message };
    conditions.extend(found.into_iter().map(condition));
}

fn parse_subject(
    node: &Node<'_>,
    fields: &Fields<'_>,
    object: &ObjectRef,
    conditions: &mut Vec<Condition>,
) -> Result<Subject, Fault> {
    match (fields.get("endpointSelector"), fields.get("nodeSelector")) {
        (Some(endpoints), None) => {
            let (selector, wrong) = selector::parse_subject(&endpoints, object)?;
            if let Some((kind, message)) = wrong {
                conditions.push(Condition { kind, path: endpoints.path().to_owned(), message });
            }
            Ok(Subject::Endpoints(selector))
        }
        (None, Some(nodes)) if object.kind == Kind::CiliumClusterwideNetworkPolicy => {
            let selector = selector::parse(&nodes)?;
            let message = "no hook enforces policies for nodes yet: whatever this one denies passes; a trace \
                           to or from a node shows what it says";
            let (path, message) = (nodes.path().to_owned(), message.to_owned());
            conditions.push(Condition { kind: ConditionKind::Unsupported, path, message });
            Ok(Subject::Nodes(selector))
        }
        (None, Some(nodes)) => Err(nodes.invalid("only a CiliumClusterwideNetworkPolicy can have it")),
        (Some(_), Some(nodes)) => Err(nodes.invalid("can't be beside `endpointSelector`")),
        (None, None) => Err(node.invalid("needs an `endpointSelector`; `{}` selects every endpoint")),
    }
}

fn is_init(subject: &Subject) -> bool {
    let Subject::Endpoints(selector) = subject else { return false };
    selector.requirements.iter().any(|one| one.key.source() == Source::Reserved && one.key.key() == "init")
}

fn parse_default_deny(fields: &Fields<'_>) -> Result<(Option<bool>, Option<bool>), Fault> {
    let Some(node) = fields.get("enableDefaultDeny") else { return Ok((None, None)) };
    let fields = node.fields(&["ingress", "egress"])?;
    Ok((fields.boolean("ingress")?, fields.boolean("egress")?))
}

/// A text for flows, which others read: Cilium's bounds.
fn parse_log(fields: &Fields<'_>) -> Result<Option<String>, Fault> {
    let Some(log) = fields.get("log") else { return Ok(None) };
    let Some(value) = log.fields(&["value"])?.get("value") else { return Ok(None) };
    let text = value.text()?;
    if text.chars().count() > MAX_LOG || text.contains(char::is_control) {
        return Err(value.invalid(format!("must be at most {MAX_LOG} printable characters")));
    }
    Ok(Some(text.to_owned()))
}

fn parse_labels(fields: &Fields<'_>) -> Result<Vec<String>, Fault> {
    let mut labels = Vec::new();
    for node in fields.items("labels")?.unwrap_or_default() {
        let fields = node.fields(&["key", "value", "source"])?;
        let key = fields.require("key")?.text()?;
        let source = fields.text("source")?.filter(|source| !source.is_empty()).unwrap_or("unspec");
        labels.push(format!("{source}:{key}={}", fields.text("value")?.unwrap_or_default()));
    }
    Ok(labels)
}

/// The rule, and what it requires of others.
fn parse_rule(
    node: &Node<'_>,
    index: usize,
    context: &mut RuleContext<'_>,
) -> Result<impl Iterator<Item = Rule> + use<>, Fault> {
    let list = context.list;
    let names: &PeerFields = match list.direction() {
        Direction::Ingress => &peers::FROM,
        Direction::Egress if list.is_deny() => &peers::TO_DENY,
        Direction::Egress => &peers::TO,
    };
    let mut known: Vec<&str> = names.names().chain(["toPorts", "icmps"]).collect();
    if !list.is_deny() {
        known.extend(["authentication", "encryption"]);
    }
    if let Some(names) = node.child("toFQDNs").filter(|_| list == RuleList::EgressDeny) {
        return Err(
            names.invalid("a rule that denies can't be about names of DNS; deny addresses (`toCIDRSet`)")
        );
    }
    let fields = node.fields(&known)?;
    let peers = peers::parse(&fields, names, context)?;
    let ports = ports::parse(&fields, context)?;
    let unmet = peers::unmet(&fields, names, context)?;
    let authentication = fields
        .get("authentication")
        .map(|node| node.fields(&["mode"])?.require("mode")?.one_of(&AUTHENTICATION_MODES))
        .transpose()?;
    let encryption = fields
        .get("encryption")
        .map(|node| node.fields(&["mode"])?.require("mode")?.one_of(&ENCRYPTION_MODES))
        .transpose()?;
    let peers = match (peers, &ports) {
        (Some(peers), _) => peers,
        (None, Some(_)) => Peers::Any,
        // The empty rule selects no one: it only makes what no other rule allows denied.
        (None, None) => Peers::NONE,
    };
    let any = || PortRules { kept: Some(Ports::any()), denied: None };
    let PortRules { kept, denied } = ports.unwrap_or_else(any);
    let (list, effect) = (context.list, context.effect);
    let about = |list: RuleList, peers: Peers, ports: Ports| Rule {
        list,
        index,
        peers,
        ports: ports.prefixes,
        named_ports: ports.named,
        authentication: None,
        encryption: false,
    };
    let kept = kept.map(|ports| Rule {
        authentication,
        encryption: encryption.unwrap_or_default(),
        ..about(list, effect.on(peers.clone(), list), ports)
    });
    // A rule of requirements selects no peers, so that ports which can't be kept are denied everybody.
    let unmet = if denied.is_some() { unmet.map(|_| Peers::Any) } else { unmet };
    let denied = denied.map(|ports| about(list.unkept(), effect.on(peers, list.unkept()), ports));
    let unmet = unmet.map(|peers| about(list.unkept(), peers, Ports::any()));
    Ok([kept, denied, unmet].into_iter().flatten())
}

/// What an unsupported field leaves of a rule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    /// Nothing is unsupported.
    AsWritten,
    /// A rule that allows is without effect; one that denies is as it is without the field.
    Unrestricted,
    /// The same, and the field may have meant any peer.
    AnyPeer,
}

impl Effect {
    fn on(self, peers: Peers, list: RuleList) -> Peers {
        match (self, list.is_deny()) {
            (Self::AsWritten, _) | (Self::Unrestricted, true) => peers,
            (Self::Unrestricted | Self::AnyPeer, false) => Peers::NONE,
            (Self::AnyPeer, true) => Peers::Any,
        }
    }
}

/// The rule that is being parsed.
pub(super) struct RuleContext<'a> {
    pub(super) object: &'a ObjectRef,
    pub(super) subject_is_init: bool,
    list: RuleList,
    /// Whether nothing is denied by default in this direction.
    is_open: bool,
    conditions: &'a mut Vec<Condition>,
    effect: Effect,
}

impl RuleContext<'_> {
    pub(super) const fn is_deny(&self) -> bool {
        self.list.is_deny()
    }

    pub(super) fn is_ingress(&self) -> bool {
        self.list.direction() == Direction::Ingress
    }

    /// Something in the rule isn't supported: an allowing rule allows nothing, a denying one ignores it and
    /// so denies more.
    pub(super) fn unsupported(&mut self, path: &str, what: &str) {
        self.lessen(path, what, Effect::Unrestricted);
    }

    /// Something in an element of `toPorts` isn't supported. Where nothing is denied by default, it is a restriction of
    /// what is in the packets that would deny.
    pub(super) fn unsupported_ports(&mut self, path: &str, restricts: bool, is_alone: bool) -> Keeping {
        let (keeping, consequence) = match (self.is_deny(), restricts && self.is_open, is_alone) {
            (true, _, _) => (Keeping::AsWritten, "the rule denies all that it could mean"),
            (false, true, _) => (Keeping::Denies, "the rule denies these ports"),
            (false, false, true) => (Keeping::AllowsNothing, "the rule allows nothing"),
            (false, false, false) => (Keeping::AllowsNothing, "the rule allows nothing at these ports"),
        };
        self.name(path, "this field", consequence);
        keeping
    }

    /// An allowing rule allows nothing, which has been named.
    pub(super) fn allow_nothing(&mut self) {
        self.effect = self.effect.max(Effect::Unrestricted);
    }

    /// The same for the choice of peers.
    pub(super) fn unsupported_peers(&mut self, path: &str, what: &str) {
        self.lessen(path, what, Effect::AnyPeer);
    }

    /// A list is there, but empty.
    pub(super) fn selects_nothing(&mut self, path: &str) {
        let message = "an empty list selects nothing; leave it out to select everything".to_owned();
        self.conditions.push(Condition {
            kind: ConditionKind::SelectsNothing,
            path: path.to_owned(),
            message,
        });
    }

    fn lessen(&mut self, path: &str, what: &str, effect: Effect) {
        let does = if self.is_deny() { "denies all that it could mean" } else { "allows nothing" };
        self.name(path, what, &format!("the rule {does}"));
        self.effect = self.effect.max(effect);
    }

    fn name(&mut self, path: &str, what: &str, consequence: &str) {
        let message = format!("{what} is not supported yet: {consequence}");
        self.conditions.push(Condition { kind: ConditionKind::Unsupported, path: path.to_owned(), message });
    }
}
