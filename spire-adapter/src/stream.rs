//! Supervised server streams: opened a bounded number at a time, each with a deadline on its first message, and
//! opened again with jittered backoff for as long as anyone listens.
//!
//! A stopped agent leaves its connections standing, and pings would have them cut. So a stream on which a newer
//! SVID is overdue is opened anew, on a new connection: an agent that is well says again what it has said.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::opening::Opening;
use crate::snapshot::Heard;
use crate::socket::Dial;
use crate::{ApiError, Svid};

/// How long an opened stream may take to its first message.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// The same for a stream that is opened because the last one has gone silent.
const PROBE: Duration = Duration::from_secs(5);
/// Largest message that is taken; tonic's own default of 4 MiB is too small for many bundles.
pub(crate) const MAX_MESSAGE: usize = 20 << 20;
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// One server-streaming method with its request.
#[derive(Debug, Clone)]
pub(crate) struct Call<Q> {
    pub(crate) api: &'static str,
    pub(crate) method: &'static str,
    /// Metadata that the API wants to see, with the value `true`.
    pub(crate) header: Option<&'static str>,
    pub(crate) request: Q,
}

/// One agent socket: a connection shared by its streams, and the bound on how many are being opened.
#[derive(Debug)]
pub(crate) struct Agent {
    path: PathBuf,
    dial: Dial,
    first_message: Duration,
    opening: Opening,
    connection: Mutex<Connection>,
}

#[derive(Debug, Default)]
struct Connection {
    generation: u64,
    channel: Option<Channel>,
    /// What the channel rests on.
    svid: Option<Svid>,
}

/// A connection in use.
#[derive(Debug, Clone)]
struct Used {
    generation: u64,
    svid: Option<Svid>,
}

impl Agent {
    pub(crate) fn new(path: PathBuf) -> Arc<Self> {
        Self::with_dial(path, Dial::Plain)
    }

    pub(crate) fn with_dial(path: PathBuf, dial: Dial) -> Arc<Self> {
        Self::with_deadline(path, dial, FIRST_MESSAGE)
    }

    pub(crate) fn with_deadline(path: PathBuf, dial: Dial, first_message: Duration) -> Arc<Self> {
        Arc::new(Self {
            path,
            dial,
            first_message,
            opening: Opening::default(),
            connection: Mutex::new(Connection::default()),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    async fn channel(&self) -> Result<(Used, Channel), ApiError> {
        let mut connection = self.connection.lock().await;
        let svid = self.dial.svid();
        let current = connection.channel.clone().filter(|_| connection.svid == svid);
        let channel = match current {
            Some(channel) => channel,
            None => {
                let channel = self.dial.connect(&self.path).await?;
                connection.generation = connection.generation.wrapping_add(1);
                connection.channel = Some(channel.clone());
                connection.svid.clone_from(&svid);
                channel
            }
        };
        Ok((Used { generation: connection.generation, svid }, channel))
    }

    /// The next stream connects anew; streams that still live keep their connection.
    async fn discard(&self, generation: u64) {
        let mut connection = self.connection.lock().await;
        if connection.generation == generation {
            connection.channel = None;
        }
    }
}

/// What is made of messages, and how long none may come.
pub(crate) trait Parse<R, M> {
    /// What is passed on. Of a message that is refused the stream ends, like a lost connection.
    fn parse(&self, response: R) -> Result<M, crate::Error>;

    /// How long the agent may be silent after this message; `None` for as long as it likes.
    fn silence(&self, _message: &M) -> Option<Duration> {
        None
    }
}

impl<R, M, F: Fn(R) -> Result<M, crate::Error>> Parse<R, M> for F {
    fn parse(&self, response: R) -> Result<M, crate::Error> {
        self(response)
    }
}

/// Why a stream has ended.
enum End {
    Failed(ApiError),
    /// Something newer is overdue, or the connection has a newer SVID to rest on.
    Overdue,
}

/// Follows `call` until the receiver of `sink` is gone.
pub(crate) async fn follow<Q, R, M>(
    agent: &Agent,
    call: Call<Q>,
    parse: impl Parse<R, M>,
    sink: mpsc::Sender<Heard<M>>,
) where
    Q: prost::Message + Default + Clone + Send + Sync + 'static,
    R: prost::Message + Default + Send + Sync + 'static,
{
    let mut backoff = Backoff::default();
    let mut deadline = agent.first_message;
    while let Some((end, lasted)) = one_stream(agent, &call, deadline, &parse, &sink).await {
        if lasted {
            backoff = Backoff::default();
        }
        let error = match end {
            End::Failed(error) => error,
            End::Overdue => {
                deadline = PROBE.min(agent.first_message);
                continue;
            }
        };
        deadline = agent.first_message;
        let denied = matches!(error, ApiError::NotAuthorized { .. });
        let heard = if denied { Heard::Denied(error) } else { Heard::Lost(error) };
        if sink.send(heard).await.is_err() {
            return;
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Runs one stream to its end: why it ended, and whether it had brought anything. `None` if nobody listens.
async fn one_stream<Q, R, M>(
    agent: &Agent,
    call: &Call<Q>,
    deadline: Duration,
    parse: &impl Parse<R, M>,
    sink: &mpsc::Sender<Heard<M>>,
) -> Option<(End, bool)>
where
    Q: prost::Message + Default + Clone + Send + Sync + 'static,
    R: prost::Message + Default + Send + Sync + 'static,
{
    let mut lasted = false;
    let Opened { used, mut messages, first: mut next } = match open(agent, call, deadline).await {
        Ok(opened) => opened,
        Err(error) => return Some((End::Failed(error), lasted)),
    };
    loop {
        let silence = match parse.parse(next) {
            Ok(message) => {
                let silence = parse.silence(&message);
                sink.send(Heard::Message(message)).await.ok()?;
                silence
            }
            Err(error) => {
                let reason = error.to_string();
                let error = ApiError::Message { path: agent.path.clone(), reason };
                return Some((End::Failed(error), lasted));
            }
        };
        lasted = true;
        let heard = tokio::select! {
            heard = timeout(silence.unwrap_or(Duration::MAX), messages.message()) => heard,
            () = agent.dial.superseded(used.svid.as_ref()) => return Some((End::Overdue, lasted)),
        };
        let Ok(heard) = heard else {
            agent.discard(used.generation).await;
            return Some((End::Overdue, lasted));
        };
        next = match heard {
            Ok(Some(message)) => message,
            Ok(None) => return Some((End::Failed(ended(agent)), lasted)),
            Err(status) => {
                let error = ApiError::from_status(&agent.path, call.api, &status);
                if matches!(error, ApiError::Lost { .. }) {
                    agent.discard(used.generation).await;
                }
                return Some((End::Failed(error), lasted));
            }
        };
    }
}

/// A stream that has brought its first message.
struct Opened<R> {
    used: Used,
    messages: Streaming<R>,
    first: R,
}

/// Opens a stream and waits for its first message, as one of few at a time.
async fn open<Q, R>(agent: &Agent, call: &Call<Q>, deadline: Duration) -> Result<Opened<R>, ApiError>
where
    Q: prost::Message + Default + Clone + Send + Sync + 'static,
    R: prost::Message + Default + Send + Sync + 'static,
{
    let place = agent.opening.place().await;
    let until = Instant::now() + deadline;
    let stuck = || ApiError::Deadline { path: agent.path.clone(), deadline };
    let channel = timeout_at(until, agent.channel()).await;
    let (used, channel) = channel.unwrap_or_else(|_elapsed| Err(stuck()))?;
    let opened = timeout_at(until, start(channel, call)).await;
    let error = match opened {
        Ok(Ok((messages, Some(first)))) => {
            place.answered();
            return Ok(Opened { used, messages, first });
        }
        Ok(Ok((_, None))) => ended(agent),
        Ok(Err(status)) => agent.dial.explain(ApiError::from_status(&agent.path, call.api, &status)),
        Err(_elapsed) => {
            place.unanswered();
            stuck()
        }
    };
    if !matches!(error, ApiError::NotAuthorized { .. }) {
        agent.discard(used.generation).await;
    }
    Err(error)
}

async fn start<Q, R>(channel: Channel, call: &Call<Q>) -> Result<(Streaming<R>, Option<R>), Status>
where
    Q: prost::Message + Default + Clone + Send + Sync + 'static,
    R: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(call.request.clone());
    if let Some(header) = call.header {
        request.metadata_mut().insert(header, MetadataValue::from_static("true"));
    }
    let codec = ProstCodec::<Q, R>::default();
    let response = grpc.server_streaming(request, PathAndQuery::from_static(call.method), codec).await?;
    let mut messages = response.into_inner();
    let first = messages.message().await?;
    Ok((messages, first))
}

fn ended(agent: &Agent) -> ApiError {
    ApiError::Lost { path: agent.path.clone(), reason: "the stream ended".to_owned() }
}

/// Doubles from [`BACKOFF_MIN`] to [`BACKOFF_MAX`], each time shortened by up to half at random.
#[derive(Debug)]
struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: BACKOFF_MIN }
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = self.next.saturating_mul(2).min(BACKOFF_MAX);
        wait.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_its_bound_and_is_jittered() {
        let mut backoff = Backoff::default();
        let first = backoff.next();
        assert!(first >= BACKOFF_MIN / 2 && first <= BACKOFF_MIN, "{first:?}");
        for _ in 0..20 {
            backoff.next();
        }
        let waits: Vec<_> = (0..50).map(|_| backoff.next()).collect();
        assert!(waits.iter().all(|wait| *wait >= BACKOFF_MAX / 2 && *wait <= BACKOFF_MAX));
        assert!(waits.iter().any(|wait| Some(wait) != waits.first()));
    }
}
