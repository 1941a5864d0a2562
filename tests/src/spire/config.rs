//! What server and agents are told, in SPIRE's HCL.

use std::path::Path;

use spire_adapter::TrustDomain;

use super::Options;

/// Where the server listens for agents.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
    /// Where it gives its bundle to servers of other trust domains.
    pub(super) bundle_port: u16,
}

/// The server's configuration. Its keys are on disk, unless it is to be forgetful: then it has another CA when it
/// is started again, and running agents exit.
pub(super) fn server(options: &Options, root: &Path, address: &Address) -> String {
    let Options { trust_domain, svid_ttl, sync, .. } = options;
    let Address { host, port, bundle_port } = address;
    let (root, svid_ttl, sync) = (root.display(), svid_ttl.as_secs(), sync.as_millis());
    let keys = if options.forgetful { FORGETFUL.to_owned() } else { keys_on_disk(&root.to_string()) };
    let policy = if options.confined { policy(&root.to_string()) } else { String::new() };
    format!(
        r#"server {{
  bind_address = "{host}"
  bind_port = "{port}"
  socket_path = "{root}/server.sock"
  data_dir = "{root}/server-data"
  trust_domain = "{trust_domain}"
  log_level = "INFO"
  ca_ttl = "24h"
  default_x509_svid_ttl = "{svid_ttl}s"
  agent_ttl = "1h"
  ratelimit = {{
    attestation = false
    signing = false
  }}
  federation {{
    bundle_endpoint {{
      address = "{host}"
      port = {bundle_port}
      refresh_hint = "1m"
      profile "https_spiffe" {{}}
    }}
  }}
  experimental {{
    cache_reload_interval = "{sync}ms"
{policy}  }}
}}
plugins {{
  DataStore "sql" {{
    plugin_data {{
      database_type = "sqlite3"
      connection_string = "{root}/server-data/ds.sqlite3"
    }}
  }}
{keys}  NodeAttestor "x509pop" {{
    plugin_data {{
      ca_bundle_path = "{root}/node-ca.pem"
      agent_path_template = "/x509pop/cn/{{{{ .Subject.CommonName }}}}"
    }}
  }}
}}
"#
    )
}

const FORGETFUL: &str = r#"  KeyManager "memory" {
    plugin_data {}
  }
"#;

fn keys_on_disk(root: &str) -> String {
    format!(
        r#"  KeyManager "disk" {{
    plugin_data {{
      keys_path = "{root}/server-data/keys.json"
    }}
  }}
"#
    )
}

fn policy(root: &str) -> String {
    format!(
        r#"    auth_opa_policy_engine {{
      local {{
        rego_path = "{root}/{REGO}"
        policy_data_path = "{root}/{DATA}"
      }}
    }}
"#
    )
}

const REGO: &str = "authorization.rego";
const DATA: &str = "authorization.json";

/// The policy that is shipped, and what it is to know, by the names of their files.
pub(super) fn authorization(trust_domain: &TrustDomain) -> [(&'static str, String); 2] {
    let rego = include_str!("../../../deploy/spire/authorization.rego");
    let data = include_str!("../../../deploy/spire/authorization.json");
    [(REGO, rego.to_owned()), (DATA, data.replace("example.org", trust_domain.as_str()))]
}

/// The configuration of a node's agent, whose delegate and broker is the daemon of that node.
pub(super) fn agent(options: &Options, node: &str, root: &Path, address: &Address) -> String {
    let Options { trust_domain, sync, no_brokers, .. } = options;
    let Address { host, port, .. } = address;
    let (root, sync) = (root.display(), sync.as_millis());
    let broker = if no_brokers.contains(node) { "nobody".to_owned() } else { format!("node/{node}") };
    format!(
        r#"agent {{
  trust_domain = "{trust_domain}"
  server_address = "{host}"
  server_port = "{port}"
  insecure_bootstrap = true
  data_dir = "{root}/{node}/data"
  socket_path = "{root}/{node}/workload/api.sock"
  admin_socket_path = "{root}/{node}/admin/api.sock"
  authorized_delegates = ["spiffe://{trust_domain}/authd/node/{node}"]
  log_level = "INFO"
  experimental {{
    sync_interval = "{sync}ms"
    broker {{
      socket_path = "{root}/{node}/admin/broker.sock"
      brokers = [
        {{
          id = "spiffe://{trust_domain}/authd/{broker}"
          allowed_reference_types = [
            {{
              type_url = "type.googleapis.com/spiffe.broker.WorkloadPIDReference"
            }}
          ]
        }}
      ]
    }}
  }}
}}
plugins {{
  NodeAttestor "x509pop" {{
    plugin_data {{
      private_key_path = "{root}/{node}/node.key"
      certificate_path = "{root}/{node}/node.pem"
    }}
  }}
  KeyManager "memory" {{
    plugin_data {{}}
  }}
  WorkloadAttestor "unix" {{
    plugin_data {{
      discover_workload_path = true
      workload_size_limit = -1
    }}
  }}
}}
"#
    )
}
