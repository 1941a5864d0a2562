//! Frames on node sessions and identity handshakes: a length (u32, big endian), then a protobuf message.
//!
//! Fields and messages that a newer node may send are skipped. A frame that is too long or no protobuf ends
//! the connection. What a message says is validated where it is used.

use std::io;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest frame on a node session.
pub const MAX_FRAME: usize = 64 * 1024;
/// Longest frame on an identity handshake.
pub const MAX_HANDSHAKE_FRAME: usize = 1024;
/// Version of the protocol spoken here. From 2 on identities are proven over the session.
pub const VERSION: u32 = 2;
/// What a node announces that wants a handshake for each pair.
pub const VERSION_OF_HANDSHAKES: u32 = 1;
/// How much is read at a time.
const CHUNK: usize = 4096;

/// A frame of a node session.
#[derive(Clone, PartialEq, Message)]
pub struct SessionFrame {
    /// What it says; `None` if it is something newer.
    #[prost(oneof = "SessionMessage", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub message: Option<SessionMessage>,
}

/// What a frame of a node session says.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum SessionMessage {
    /// The first message in each direction.
    #[prost(message, tag = "1")]
    Hello(Announcement),
    /// The same in full, when any of it has changed.
    #[prost(message, tag = "2")]
    Update(Announcement),
    /// An identity of the sender has lost its SVID.
    #[prost(message, tag = "3")]
    Revoke(Revoke),
    /// Are you there?
    #[prost(message, tag = "4")]
    Ping(Ping),
    /// I am.
    #[prost(message, tag = "5")]
    Pong(Ping),
    /// Confirms the tunnel's pre-shared key.
    #[prost(message, tag = "6")]
    Preshared(Preshared),
    /// Whose the addresses of the sender's pods are.
    #[prost(message, tag = "7")]
    Addresses(Addresses),
    /// Nobody else counts as the owner of those any more.
    #[prost(message, tag = "8")]
    AddressesKnown(AddressesKnown),
    /// Asks for a proof of one of the receiver's identities.
    #[prost(message, tag = "9")]
    ProofRequest(ProofRequest),
    /// The proof, or why there is none.
    #[prost(message, tag = "10")]
    ProofAnswer(ProofAnswer),
    /// Two proven identities are to be recorded as a pair.
    #[prost(message, tag = "11")]
    PairRequest(PairRequest),
    /// They are, or not.
    #[prost(message, tag = "12")]
    PairAnswer(PairAnswer),
}

impl SessionFrame {
    /// Whether it is of the exchange of proofs, which has a pace of its own.
    #[must_use]
    pub const fn is_of_proofs(&self) -> bool {
        use SessionMessage as M;
        matches!(
            self.message,
            Some(M::ProofRequest(_) | M::ProofAnswer(_) | M::PairRequest(_) | M::PairAnswer(_))
        )
    }
}

/// What a node says of itself.
#[derive(Clone, PartialEq, Message)]
pub struct Announcement {
    /// Highest version of the protocol that it speaks.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Its name.
    #[prost(string, tag = "2")]
    pub node: String,
    /// Its WireGuard public key; empty while it has none.
    #[prost(bytes = "vec", tag = "3")]
    pub wireguard_key: Vec<u8>,
    /// Its WireGuard port.
    #[prost(uint32, tag = "4")]
    pub wireguard_port: u32,
    /// Its session epoch.
    #[prost(uint32, tag = "5")]
    pub epoch: u32,
    /// The identities that it vouches for, all of them.
    #[prost(uint32, repeated, tag = "6")]
    pub identities: Vec<u32>,
    /// Its port for sessions and handshakes.
    #[prost(uint32, tag = "7")]
    pub handshake_port: u32,
}

/// An identity that has lost its SVID.
#[derive(Clone, PartialEq, Message)]
pub struct Revoke {
    /// The identity.
    #[prost(uint32, tag = "1")]
    pub identity: u32,
}

/// The addresses of a node's pods: all of them, in one message or several.
#[derive(Clone, PartialEq, Message)]
pub struct Addresses {
    /// The last epoch that an assignment of the sender has taken.
    #[prost(uint32, tag = "1")]
    pub epoch: u32,
    /// Some of the addresses.
    #[prost(message, repeated, tag = "2")]
    pub addresses: Vec<OwnedAddress>,
    /// The next message has more of them.
    #[prost(bool, tag = "3")]
    pub more: bool,
}

/// An address and its pod's identity.
#[derive(Clone, PartialEq, Message)]
pub struct OwnedAddress {
    /// Four bytes, or 16.
    #[prost(bytes = "vec", tag = "1")]
    pub address: Vec<u8>,
    /// The identity.
    #[prost(uint32, tag = "2")]
    pub identity: u32,
}

/// Acknowledges [`Addresses`].
#[derive(Clone, Copy, PartialEq, Message)]
pub struct AddressesKnown {
    /// Their epoch.
    #[prost(uint32, tag = "1")]
    pub epoch: u32,
}

/// Shows that the sender has the pre-shared key of the tunnel between these two.
#[derive(Clone, PartialEq, Message)]
pub struct Preshared {
    /// WireGuard public key of the node that has dialled the session.
    #[prost(bytes = "vec", tag = "1")]
    pub client_key: Vec<u8>,
    /// WireGuard public key of the other.
    #[prost(bytes = "vec", tag = "2")]
    pub server_key: Vec<u8>,
    /// A MAC that only the key's holder can make.
    #[prost(bytes = "vec", tag = "3")]
    pub confirmation: Vec<u8>,
}

/// Asks for a proof of one of the receiver's identities.
#[derive(Clone, PartialEq, Message)]
pub struct ProofRequest {
    /// The identity.
    #[prost(uint32, tag = "1")]
    pub identity: u32,
    /// The authenticator request (RFC 9261, section 4). Its context begins with the identity.
    #[prost(bytes = "vec", tag = "2")]
    pub request: Vec<u8>,
}

/// Answers [`ProofRequest`].
#[derive(Clone, PartialEq, Message)]
pub struct ProofAnswer {
    /// Context of the request.
    #[prost(bytes = "vec", tag = "1")]
    pub context: Vec<u8>,
    /// The authenticator (RFC 9261, section 5); empty if there is none.
    #[prost(bytes = "vec", tag = "2")]
    pub authenticator: Vec<u8>,
    /// Why there is none, in one word.
    #[prost(string, tag = "3")]
    pub refused: String,
}

/// Has the receiver record a pair. The sender has the proof of its other end.
#[derive(Clone, PartialEq, Message)]
pub struct PairRequest {
    /// Comes back in the answer.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// The sender's identity.
    #[prost(uint32, tag = "2")]
    pub from: u32,
    /// The receiver's identity.
    #[prost(uint32, tag = "3")]
    pub to: u32,
    /// SHA-256 of the leaf of `from`'s SVID.
    #[prost(bytes = "vec", tag = "4")]
    pub from_leaf: Vec<u8>,
    /// SHA-256 of the leaf that the sender has the proof of.
    #[prost(bytes = "vec", tag = "5")]
    pub to_leaf: Vec<u8>,
}

/// Answers [`PairRequest`].
#[derive(Clone, PartialEq, Message)]
pub struct PairAnswer {
    /// Of the request.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// The pair stands in the receiver's map.
    #[prost(bool, tag = "2")]
    pub recorded: bool,
    /// Why not, in one word.
    #[prost(string, tag = "3")]
    pub refused: String,
    /// SHA-256 of the leaf that `to` has now; empty if it has none.
    #[prost(bytes = "vec", tag = "4")]
    pub to_leaf: Vec<u8>,
}

/// A sign of life.
#[derive(Clone, PartialEq, Message)]
pub struct Ping {
    /// Comes back in the answer.
    #[prost(uint64, tag = "1")]
    pub number: u64,
}

/// A frame of an identity handshake.
#[derive(Clone, PartialEq, Message)]
pub struct HandshakeFrame {
    /// What it says; `None` if it is something newer.
    #[prost(oneof = "HandshakeMessage", tags = "1, 2, 3")]
    pub message: Option<HandshakeMessage>,
}

/// What a frame of an identity handshake says.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum HandshakeMessage {
    /// The first message in each direction.
    #[prost(message, tag = "1")]
    Binding(Binding),
    /// The server has recorded it.
    #[prost(message, tag = "2")]
    Recorded(Recorded),
    /// The server has not.
    #[prost(message, tag = "3")]
    Refused(Refusal),
}

/// Binds a connection to the node session.
#[derive(Clone, PartialEq, Message)]
pub struct Binding {
    /// Number of the sender's node.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// The MAC under the session's key.
    #[prost(bytes = "vec", tag = "2")]
    pub mac: Vec<u8>,
    /// The client's identity.
    #[prost(uint32, tag = "3")]
    pub from: u32,
    /// The server's identity.
    #[prost(uint32, tag = "4")]
    pub to: u32,
    /// Which session.
    #[prost(bytes = "vec", tag = "5")]
    pub session: Vec<u8>,
}

/// The server has recorded the handshake.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Recorded {}

/// The server has not recorded the handshake.
#[derive(Clone, PartialEq, Message)]
pub struct Refusal {
    /// Why, in one word.
    #[prost(string, tag = "1")]
    pub reason: String,
}

/// Why a connection's frames can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A frame is longer than allowed.
    #[error("a frame of {length} bytes, of which {limit} are allowed")]
    TooLong {
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A frame is no such message.
    #[error("a frame that is no message: {0}")]
    Garbage(#[from] prost::DecodeError),
    /// Another message than the one that must come now.
    #[error("{expected} did not come when it had to")]
    Unexpected {
        /// The one that must come.
        expected: &'static str,
    },
    /// The other end has closed.
    #[error("the other end has closed the connection")]
    Closed,
    /// The connection failed.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
}

/// A message with its length before it.
///
/// # Errors
/// When it would be longer than `limit`.
pub fn encode(message: &impl Message, limit: usize) -> Result<Vec<u8>, WireError> {
    let length = message.encoded_len();
    let too_long = || WireError::TooLong { length, limit };
    if length > limit {
        return Err(too_long());
    }
    let prefix = u32::try_from(length).map_err(|_too_large| too_long())?;
    let mut bytes = Vec::with_capacity(length.saturating_add(4));
    bytes.extend(prefix.to_be_bytes());
    bytes.extend(message.encode_to_vec());
    Ok(bytes)
}

/// Writes one message.
///
/// # Errors
/// When it is too long or the connection fails.
pub async fn write<W: AsyncWrite + Unpin>(
    to: &mut W,
    message: &impl Message,
    limit: usize,
) -> Result<(), WireError> {
    to.write_all(&encode(message, limit)?).await?;
    Ok(to.flush().await?)
}

/// Reads messages. Cancelling a read loses nothing.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    buffer: Vec<u8>,
    limit: usize,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Reads frames of at most `limit` bytes.
    pub const fn new(from: R, limit: usize) -> Self {
        Self { from, buffer: Vec::new(), limit }
    }

    /// The same reader with another type of source, which must be the same connection.
    pub fn map<S>(self, with: impl FnOnce(R) -> S) -> Reader<S> {
        Reader { from: with(self.from), buffer: self.buffer, limit: self.limit }
    }

    /// The next message.
    ///
    /// # Errors
    /// When the frame can't be used, or the connection has ended: then nothing more can be read.
    pub async fn next<M: Message + Default>(&mut self) -> Result<M, WireError> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(M::decode(frame.as_slice())?);
            }
            self.buffer.reserve(CHUNK);
            let read = (&mut self.from).take(CHUNK as u64).read_buf(&mut self.buffer).await;
            match read {
                Ok(0) => return Err(WireError::Closed),
                Ok(_) => {}
                // Ends of TLS connections without a close_notify are ends all the same: frames have lengths.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(WireError::Closed),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A whole frame out of the buffer.
    fn take(&mut self) -> Result<Option<Vec<u8>>, WireError> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        if length > self.limit {
            return Err(WireError::TooLong { length, limit: self.limit });
        }
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        let frame = frame.to_vec();
        self.buffer.drain(..length.saturating_add(4));
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn announcement(identities: Vec<u32>) -> Announcement {
        Announcement {
            version: VERSION,
            node: "n1".to_owned(),
            wireguard_key: vec![7; 32],
            wireguard_port: 51871,
            epoch: 3,
            identities,
            handshake_port: 4250,
        }
    }

    fn hello(identities: Vec<u32>) -> SessionFrame {
        SessionFrame { message: Some(SessionMessage::Hello(announcement(identities))) }
    }

    fn read_all<M: Message + Default>(bytes: &[u8], limit: usize) -> (Vec<M>, WireError) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut reader = Reader::new(bytes, limit);
            let mut messages = Vec::new();
            loop {
                match reader.next().await {
                    Ok(message) => messages.push(message),
                    Err(error) => return (messages, error),
                }
                assert!(reader.buffer.len() <= limit + CHUNK + 4);
            }
        })
    }

    #[test]
    fn an_oversize_frame_is_refused_before_it_is_read() {
        let mut bytes = u32::try_from(MAX_FRAME + 1).unwrap().to_be_bytes().to_vec();
        bytes.extend([0; 10]);
        let (messages, error) = read_all::<SessionFrame>(&bytes, MAX_FRAME);
        assert!(messages.is_empty() && matches!(error, WireError::TooLong { .. }), "{error}");
        let too_many = hello(vec![u32::MAX; MAX_FRAME]);
        assert!(matches!(encode(&too_many, MAX_FRAME), Err(WireError::TooLong { .. })));
    }

    #[test]
    fn what_a_newer_node_sends_is_skipped() {
        // Field 100 of a frame, and field 99 within a Revoke, as no version here knows them.
        let newer = [vec![0xa2, 0x06, 1, 0], vec![0x1a, 5, 0x08, 9, 0x98, 0x06, 1]];
        let bytes: Vec<u8> = newer
            .iter()
            .flat_map(|frame| [vec![0, 0, 0, u8::try_from(frame.len()).unwrap()], frame.clone()].concat())
            .collect();
        let (messages, error) = read_all::<SessionFrame>(&bytes, MAX_FRAME);
        assert!(matches!(error, WireError::Closed), "{error}");
        let revoke = SessionMessage::Revoke(Revoke { identity: 9 });
        assert_eq!(messages, [SessionFrame { message: None }, SessionFrame { message: Some(revoke) }]);
    }

    #[test]
    fn an_empty_frame_and_a_cut_one() {
        let (messages, error) = read_all::<HandshakeFrame>(&[0, 0, 0, 0, 0, 0, 0, 9, 1], MAX_HANDSHAKE_FRAME);
        assert_eq!(messages, [HandshakeFrame { message: None }]);
        assert!(matches!(error, WireError::Closed), "{error}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_end_in_an_error_and_bounded_memory(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            read_all::<SessionFrame>(&bytes, MAX_FRAME);
            read_all::<HandshakeFrame>(&bytes, MAX_HANDSHAKE_FRAME);
        }

        #[test]
        fn arbitrary_frames_are_messages_or_refused(frame in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes = [u32::try_from(frame.len()).unwrap().to_be_bytes().to_vec(), frame].concat();
            let (messages, error) = read_all::<SessionFrame>(&bytes, MAX_FRAME);
            prop_assert!(messages.len() == 1 || matches!(error, WireError::Garbage(_)));
        }

        #[test]
        fn messages_come_back_whole_however_they_are_cut(
            identities in prop::collection::vec(any::<u32>(), 0..3000), cut in any::<prop::sample::Index>(),
        ) {
            let bytes = [encode(&hello(identities.clone()), MAX_FRAME).unwrap(), encode(&hello(vec![]), MAX_FRAME).unwrap()].concat();
            let at = cut.index(bytes.len());
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (mut near, far) = tokio::io::duplex(1 << 20);
                let mut reader = Reader::new(far, MAX_FRAME);
                near.write_all(&bytes[..at]).await.unwrap();
                let mut first = Box::pin(reader.next::<SessionFrame>());
                let early = futures::poll!(&mut first);
                drop(first);
                near.write_all(&bytes[at..]).await.unwrap();
                let first = match early {
                    std::task::Poll::Ready(message) => message.unwrap(),
                    std::task::Poll::Pending => reader.next().await.unwrap(),
                };
                assert_eq!(first, hello(identities));
                assert_eq!(reader.next::<SessionFrame>().await.unwrap(), hello(vec![]));
            });
        }
    }
}
