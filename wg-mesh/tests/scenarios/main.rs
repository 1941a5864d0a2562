//! Real tunnels between network namespaces, judged by what arrives and by what is on the wire.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on shall say where; clippy.toml spares only what is inside a test function"
)]
#![expect(clippy::print_stdout, reason = "what is skipped is said where the runner shows it")]

mod control;
mod namespace;
mod node;
mod steering;
mod tunnel;
mod wire;
