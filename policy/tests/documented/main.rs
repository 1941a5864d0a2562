//! Policies as the documentation of Cilium and of Kubernetes has them, with the verdicts that the words there
//! give. Nothing here was written by looking at what the code says.

mod cilium_connectivity;
mod cilium_deny;
mod cilium_guides;
mod cilium_hosts;
mod cilium_ingress;
mod cilium_kubernetes;
mod cilium_layer3;
mod cilium_layer4;
mod cilium_releases;
mod cilium_together;
mod cilium_unsupported;
mod galaxy;
mod kubernetes;
mod recipes;
mod scene;
