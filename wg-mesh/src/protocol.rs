//! The frames of the tunnel's control socket: one JSON object a line, with a version in each.
//!
//! Unknown fields are ignored and a request of the next version is accepted, so that daemon and tunnel can
//! be upgraded apart. What a field of a later version would demand must be asked for after `hello`.

use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _};

use crate::{Applied, Desired, Status};

/// The version that this side speaks.
pub const VERSION: u32 = 1;
/// Versions of requests that are understood: the one before (there was none), ours and the next.
pub(crate) const UNDERSTOOD: std::ops::RangeInclusive<u32> = 1..=VERSION + 1;
/// The longest request.
pub(crate) const MAX_REQUEST: usize = 1 << 20;
/// The longest answer; a status tells more of a peer than a request does.
pub(crate) const MAX_RESPONSE: usize = 8 << 20;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verb {
    Hello,
    Apply,
    Status,
    Shutdown,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) version: u32,
    pub(crate) request: Verb,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) desired: Option<Desired>,
    /// With `shutdown`: take the interface away as well.
    #[serde(default)]
    pub(crate) remove_device: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Response {
    pub(crate) version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<Refusal>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hello: Option<Hello>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) applied: Option<Applied>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<Status>,
}

/// Why a request was refused; nothing of it was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) field: Option<String>,
    pub(crate) message: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) interface: String,
    pub(crate) pid: u32,
    pub(crate) program: String,
}

impl Request {
    pub(crate) const fn new(request: Verb) -> Self {
        Self { version: VERSION, request, desired: None, remove_device: false }
    }

    /// Parses a frame; what is wrong with it is said by the name of the field.
    pub(crate) fn parse(frame: &[u8]) -> Result<Self, Refusal> {
        let mut json = serde_json::Deserializer::from_slice(frame);
        let request: Self = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            Refusal::new((path != ".").then_some(path), error.into_inner().to_string())
        })?;
        json.end().map_err(|error| Refusal::new(None, error.to_string()))?;
        if !UNDERSTOOD.contains(&request.version) {
            let message =
                format!("version {} is not understood, only {}..{}", request.version, VERSION, VERSION + 1);
            return Err(Refusal::new(Some("version".into()), message));
        }
        if request.request == Verb::Apply && request.desired.is_none() {
            return Err(Refusal::new(Some("desired".into()), "missing field `desired`".into()));
        }
        Ok(request)
    }
}

impl Response {
    pub(crate) fn new() -> Self {
        Self { version: VERSION, ..Self::default() }
    }
}

impl Refusal {
    pub(crate) const fn new(field: Option<String>, message: String) -> Self {
        Self { field, message }
    }
}

impl From<Refusal> for Response {
    fn from(refusal: Refusal) -> Self {
        Self { error: Some(refusal), ..Self::new() }
    }
}

/// Reads one line of at most `limit` bytes into `frame`, without its end.
///
/// Returns false at the end of the stream. A longer line is [`io::ErrorKind::FileTooLarge`], a line that
/// the stream's end cuts off [`io::ErrorKind::UnexpectedEof`].
pub(crate) async fn read_frame<R: AsyncBufRead + Unpin>(
    reader: &mut R,
    frame: &mut Vec<u8>,
    limit: usize,
) -> io::Result<bool> {
    frame.clear();
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return if frame.is_empty() { Ok(false) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let part = available.get(..end.unwrap_or(available.len())).unwrap_or_default();
        if frame.len() + part.len() > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        frame.extend_from_slice(part);
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

    fn refusal(frame: &str) -> (String, String) {
        let refusal = Request::parse(frame.as_bytes()).unwrap_err();
        (refusal.field.unwrap_or_default(), refusal.message)
    }

    #[test]
    fn a_request_survives_the_wire() {
        let mut request = Request::new(Verb::Apply);
        let peer = format!(
            r#"{{"public_key":"{KEY}","endpoint":"[2001:db8::1]:51871","allowed_ips":["10.1.0.0/24","fd00::/64"]}}"#
        );
        let desired = format!(r#"{{"listen_port":51871,"mtu":1420,"peers":[{peer}]}}"#);
        request.desired = Some(serde_json::from_str(&desired).unwrap());
        let wire = serde_json::to_vec(&request).unwrap();
        let read = Request::parse(&wire).unwrap();
        assert_eq!(read.desired, request.desired);
        assert_eq!(read.request, Verb::Apply);
    }

    #[test]
    fn fields_of_the_future_are_ignored() {
        let request = Request::parse(br#"{"version":2,"request":"status","since":"yesterday"}"#).unwrap();
        assert_eq!(request.request, Verb::Status);
    }

    #[test]
    fn errors_name_the_field() {
        assert_eq!(refusal(r#"{"version":9,"request":"status"}"#).0, "version");
        assert_eq!(refusal(r#"{"version":0,"request":"status"}"#).0, "version");
        assert_eq!(refusal(r#"{"version":1,"request":"explode"}"#).0, "request");
        assert_eq!(refusal(r#"{"version":1,"request":"apply"}"#).0, "desired");
        let peer = format!(r#"{{"public_key":"{KEY}","endpoint":"here:1","allowed_ips":[]}}"#);
        let apply = format!(
            r#"{{"version":1,"request":"apply","desired":{{"listen_port":1,"mtu":1420,"peers":[{peer}]}}}}"#
        );
        assert_eq!(refusal(&apply).0, "desired.peers[0].endpoint");
        let twice = apply.replace("here:1", "10.0.0.1:1").replace(&peer.replace("here:1", "10.0.0.1:1"), "P");
        let good = peer.replace("here:1", "10.0.0.1:1");
        let (field, message) = refusal(&twice.replace('P', &format!("{good},{good}")));
        assert_eq!(field, "desired.peers");
        assert!(message.contains("listed twice"), "{message}");
        assert!(refusal("no json").1.contains("expected"));
        assert!(refusal(r#"{"version":1,"request":"status"} x"#).1.contains("trailing"));
    }

    #[tokio::test]
    async fn frames_are_bounded() {
        let mut frame = Vec::new();
        let mut lines = &b"one\n\ntwo"[..];
        assert!(read_frame(&mut lines, &mut frame, 3).await.unwrap());
        assert_eq!(frame, b"one");
        assert!(read_frame(&mut lines, &mut frame, 3).await.unwrap());
        assert!(frame.is_empty());
        let cut = read_frame(&mut lines, &mut frame, 3).await.unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
        assert!(!read_frame(&mut lines, &mut frame, 3).await.unwrap());
        let long = read_frame(&mut &b"four\n"[..], &mut frame, 3).await.unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::FileTooLarge);
    }
}
