//! Every certificate of the matrix as other programs see it: `authctl svid check`, which explains it, and
//! OpenSSL and go-spiffe, which present it to our TLS endpoints in both roles, and judge it themselves. And Envoy,
//! with a few of them.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

#[path = "certificates/check.rs"]
mod check;
#[path = "certificates/endpoint.rs"]
mod endpoint;
#[path = "certificates/envoy.rs"]
mod envoy;
#[path = "certificates/gospiffe.rs"]
mod gospiffe;
#[path = "../../spire-adapter/tests/certificates/matrix.rs"]
mod matrix;
#[path = "certificates/openssl.rs"]
mod openssl;
#[path = "certificates/resumption.rs"]
mod resumption;
#[path = "certificates/verdicts.rs"]
mod verdicts;
