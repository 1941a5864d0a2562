//! A process that speaks TLS, verifies with go-spiffe and has exported authenticators, asked in JSON; see
//! `tests/peers/gospiffe`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Map, Value, json};
use spire_adapter::Bundles;

use crate::binaries;

/// The process; it ends with this.
#[derive(Debug)]
pub struct GoSpiffe {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl GoSpiffe {
    /// Starts it.
    ///
    /// # Errors
    /// When `scripts/peers` has not built it.
    pub fn start() -> Result<Self> {
        let mut command = Command::new(binaries::peer("gospiffe")?);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let requests = child.stdin.take().context("no standard input")?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { child, requests, answers })
    }

    /// A request about a chain, leaf first, and the bundles to verify with.
    #[must_use]
    pub fn request<C: AsRef<[u8]>>(what: &str, chain: &[C], bundles: &Bundles) -> Value {
        let anchors = |bundle: &spire_adapter::Bundle| {
            let anchors: Vec<_> = bundle.certificates().map(|der| Self::base64(der)).collect();
            (bundle.trust_domain().to_string(), json!(anchors))
        };
        let bundles: Map<_, _> = bundles.iter().map(anchors).collect();
        let chain: Vec<_> = chain.iter().map(|der| Self::base64(der.as_ref())).collect();
        json!({"Do": what, "Chain": chain, "Bundles": bundles})
    }

    /// Bytes as Go reads them from JSON.
    #[must_use]
    pub fn base64(bytes: &[u8]) -> String {
        BASE64_STANDARD.encode(bytes)
    }

    /// Bytes as Go writes them into JSON.
    ///
    /// # Errors
    /// When it has written something else.
    pub fn bytes(written: &Value) -> Result<Vec<u8>> {
        Ok(BASE64_STANDARD.decode(written.as_str().context("not a string")?)?)
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// When the process is gone. What it could not do is in the answer.
    pub fn ask(&mut self, request: &Value) -> Result<Value> {
        self.send(request)?;
        self.receive()
    }

    /// Asks alone; the answer comes when it is done.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn send(&mut self, request: &Value) -> Result<()> {
        Ok(writeln!(self.requests, "{request}")?)
    }

    /// Waits for the answer to what was sent.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(self.answers.read_line(&mut line)? > 0, "the peer with go-spiffe has ended");
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for GoSpiffe {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Mutual handshakes between two ends in that process, both with one SVID, for comparison with ours.
#[derive(Debug)]
pub struct Handshakes {
    process: GoSpiffe,
    request: Value,
}

#[expect(
    clippy::indexing_slicing,
    reason = "a request is an object; of an answer, what is not there is null"
)]
impl Handshakes {
    /// The application protocol that they agree on.
    pub const PROTOCOL: &str = "test/1";

    /// Starts the process, for so many handshakes at a time.
    ///
    /// # Errors
    /// As [`GoSpiffe::start`].
    pub fn start<C: AsRef<[u8]>>(chain: &[C], key: &[u8], bundles: &Bundles, times: usize) -> Result<Self> {
        let mut request = GoSpiffe::request("handshakes", chain, bundles);
        request["Key"] = json!(GoSpiffe::base64(key));
        request["Protocol"] = json!(Self::PROTOCOL);
        request["Times"] = json!(times);
        Ok(Self { process: GoSpiffe::start()?, request })
    }

    /// Processor time of one, both ends together, in microseconds.
    ///
    /// # Errors
    /// When the process is gone, a handshake fails, or it has another key exchange than ours.
    pub fn microseconds(&mut self) -> Result<f64> {
        let answer = self.process.ask(&self.request)?;
        ensure!(answer["Error"] == "", "{answer}");
        ensure!(answer["Group"] == "X25519MLKEM768", "{answer}");
        Ok(answer["Nanoseconds"].as_f64().context("no time")? / 1e3)
    }
}
