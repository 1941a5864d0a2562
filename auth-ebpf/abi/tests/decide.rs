//! Truth tables of the decision, hook by hook.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on should stop"
)]

#[path = "decide/frames.rs"]
mod frames;
#[path = "decide/life.rs"]
mod life;
#[path = "decide/scene.rs"]
mod scene;
#[path = "decide/tables.rs"]
mod tables;

#[path = "decide/borders.rs"]
mod borders;
#[path = "decide/connections.rs"]
mod connections;
#[path = "decide/corpus.rs"]
mod corpus;
#[path = "decide/direct.rs"]
mod direct;
#[path = "decide/exchange.rs"]
mod exchange;
#[path = "decide/flow_model.rs"]
mod flow_model;
#[path = "decide/flows.rs"]
mod flows;
#[path = "decide/fragments.rs"]
mod fragments;
#[path = "decide/handover.rs"]
mod handover;
#[path = "decide/hold.rs"]
mod hold;
#[path = "decide/hostile.rs"]
mod hostile;
#[path = "decide/intruders.rs"]
mod intruders;
#[path = "decide/model.rs"]
mod model;
#[path = "decide/modes.rs"]
mod modes;
#[path = "decide/outside.rs"]
mod outside;
#[path = "decide/pods.rs"]
mod pods;
#[path = "decide/service_flows.rs"]
mod service_flows;
#[path = "decide/service_model.rs"]
mod service_model;
#[path = "decide/services.rs"]
mod services;
