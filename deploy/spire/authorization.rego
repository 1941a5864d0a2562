# Who may do what at spire-server, for SPIRE 1.15: as SPIRE has it by default, and authd's operator beside that,
# which needs no administrator's SVID then. It may list entries and agents, and write entries
#
#   - whose IDs carry the mark of its cluster,
#   - for SPIFFE IDs that are its own to give: those of identities and nodes,
#   - below agents, and with nothing that would give their holder power over the server.
#
# Callers and their patterns are in authorization.json. Both are read when the server starts:
#
#   server { experimental { auth_opa_policy_engine { local {
#     rego_path = "/etc/spire/authorization.rego"  policy_data_path = "/etc/spire/authorization.json"
#   } } } }
#
# Calls by the server's unix socket are an administrator's and are not confined by this.
package spire

result := {
	"allow": allow,
	"allow_if_admin": allow_if_admin,
	"allow_if_agent": allow_if_agent,
	"allow_if_downstream": allow_if_downstream,
	"allow_if_local": allow_if_local,
}

default allow := false

default allow_if_admin := false

default allow_if_agent := false

default allow_if_downstream := false

default allow_if_local := false

# The operator.

entries := "/spire.api.server.entry.v1.Entry/"

agents := "/spire.api.server.agent.v1.Agent/"

operator := rule if {
	some rule in data.operators
	rule.caller == input.caller
	input.caller != ""
}

allow if {
	operator
	input.full_method in {concat("", [entries, "ListEntries"]), concat("", [agents, "ListAgents"])}
}

allow if {
	input.full_method in {concat("", [entries, "BatchCreateEntry"]), concat("", [entries, "BatchUpdateEntry"])}
	rule := operator
	count(input.req.entries) > 0
	every entry in input.req.entries {
		own_id(rule, entry.id)
		regex.match(rule.paths, entry.spiffe_id.path)
		startswith(entry.parent_id.path, "/spire/agent/")
		harmless(entry)
	}
}

allow if {
	input.full_method == concat("", [entries, "BatchDeleteEntry"])
	rule := operator
	count(input.req.ids) > 0
	every id in input.req.ids {
		own_id(rule, id)
	}
}

own_id(rule, id) if {
	rule.entry_ids != ""
	startswith(id, rule.entry_ids)
}

harmless(entry) if {
	not entry.admin
	not entry.downstream
	not entry.store_svid
	count(object.get(entry, "dns_names", [])) == 0
	count(object.get(entry, "federates_with", [])) == 0
}

# Everybody else, as SPIRE's own policy has it.

allow if input.full_method in everybody

everybody := {
	concat("", [agents, "AttestAgent"]),
	"/spire.api.server.bundle.v1.Bundle/GetBundle",
}

allow_if_agent if input.full_method in of_agents

of_agents := {
	concat("", [agents, "PostStatus"]),
	concat("", [agents, "RenewAgent"]),
	concat("", [entries, "GetAuthorizedEntries"]),
	concat("", [entries, "SyncAuthorizedEntries"]),
	"/spire.api.server.bundle.v1.Bundle/GetFederatedBundle",
	"/spire.api.server.svid.v1.SVID/BatchNewWITSVID",
	"/spire.api.server.svid.v1.SVID/BatchNewX509SVID",
	"/spire.api.server.svid.v1.SVID/NewJWTSVID",
}

allow_if_downstream if input.full_method in of_downstream

of_downstream := {
	"/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority",
	"/spire.api.server.bundle.v1.Bundle/PublishWITAuthority",
	"/spire.api.server.svid.v1.SVID/NewDownstreamX509CA",
}

# What is left is for administrators and the unix socket, or for the socket alone.

administrators if {
	some service in [
		"/spire.api.server.agent.v1.Agent/",
		"/spire.api.server.bundle.v1.Bundle/",
		"/spire.api.server.entry.v1.Entry/",
		"/spire.api.server.localauthority.v1.LocalAuthority/",
		"/spire.api.server.svid.v1.SVID/",
		"/spire.api.server.trustdomain.v1.TrustDomain/",
	]
	startswith(input.full_method, service)
	not input.full_method in everybody
	not input.full_method in of_downstream
	not input.full_method in only_agents
}

only_agents := of_agents - {"/spire.api.server.bundle.v1.Bundle/GetFederatedBundle"}

allow_if_admin if administrators

allow_if_local if administrators

allow_if_local if {
	some service in [
		"/grpc.health.v1.Health/",
		"/spire.api.server.debug.v1.Debug/",
		"/spire.api.server.logger.v1.Logger/",
	]
	startswith(input.full_method, service)
}
