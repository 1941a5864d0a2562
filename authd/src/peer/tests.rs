//! Nodes in one process, over loopback, with real TLS and SVIDs of a real CA.

/// Each of these tests in both ways in which pairs are proven.
macro_rules! both_ways {
    ($($test:ident),* $(,)?) => {
        mod by_handshake {
            $(#[tokio::test]
            async fn $test() {
                super::$test(crate::peer::PairProof::Handshake).await;
            })*
        }
        mod over_the_session {
            $(#[tokio::test]
            async fn $test() {
                super::$test(crate::peer::PairProof::Session).await;
            })*
        }
    };
}
use both_ways;

mod addresses;
mod attacks;
mod audit;
mod ciphers;
mod clocks;
mod cluster;
mod corpus;
mod handshakes;
mod hostile;
mod port;
mod proofs;
mod raw;
mod replay;
mod sessions;
mod spire;
mod versions;
