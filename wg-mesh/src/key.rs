//! Curve25519 keys as WireGuard uses them.
//!
//! A public key is never all zeros, so no later code has to ask. A private key is made here, wiped when
//! dropped, and has no way to a log, a file or a socket.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use boringtun::x25519;
use rand::RngCore as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use zeroize::Zeroizing;

/// A peer's or our own WireGuard public key; written as 44 characters of base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// Why something is no WireGuard public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not base64 in the form that wg(8) writes.
    #[error("public key is not 44 characters of base64")]
    Encoding,
    /// Decodes to another length.
    #[error("public key has {0} bytes, not 32")]
    Length(usize),
    /// All bytes are zero: no key, and every agreement with it is known to everybody.
    #[error("public key is all zeros")]
    Zero,
}

impl PublicKey {
    /// Accepts raw bytes as a public key.
    ///
    /// # Errors
    /// [`KeyError::Zero`] if all bytes are zero.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
        if bytes == [0; 32] { Err(KeyError::Zero) } else { Ok(Self(bytes)) }
    }

    /// The raw bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn to_x25519(self) -> x25519::PublicKey {
        x25519::PublicKey::from(self.0)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = STANDARD.decode(text).map_err(|_encoding| KeyError::Encoding)?;
        let length = bytes.len();
        Self::from_bytes(bytes.try_into().map_err(|_bytes| KeyError::Length(length))?)
    }
}

impl TryFrom<&[u8]> for PublicKey {
    type Error = KeyError;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        Self::from_bytes(bytes.try_into().map_err(|_length| KeyError::Length(bytes.len()))?)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A WireGuard private key. It leaves this type only into the protocol's own state.
pub struct PrivateKey(x25519::StaticSecret);

impl PrivateKey {
    /// Makes a new key from the operating system's random numbers.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        rand::rng().fill_bytes(bytes.as_mut());
        Self(x25519::StaticSecret::from(*bytes))
    }

    /// The public key that belongs to it.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.0).to_bytes())
    }

    pub(crate) const fn secret(&self) -> &x25519::StaticSecret {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_that_of_wg() {
        let key: PublicKey = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=".parse().unwrap();
        assert_eq!(key.to_string(), "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=");
        assert_eq!(serde_json::to_string(&key).unwrap(), format!("\"{key}\""));
        assert_eq!(serde_json::from_str::<PublicKey>(&format!("\"{key}\"")).unwrap(), key);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert_eq!("".parse::<PublicKey>(), Err(KeyError::Length(0)));
        assert_eq!("no base64!".parse::<PublicKey>(), Err(KeyError::Encoding));
        assert_eq!("AAAA".parse::<PublicKey>(), Err(KeyError::Length(3)));
        assert_eq!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".parse::<PublicKey>(), Err(KeyError::Zero));
        assert_eq!(PublicKey::try_from(&[1_u8; 31][..]), Err(KeyError::Length(31)));
        // Two texts for one key would make two peers of one.
        assert_eq!(
            "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dh=".parse::<PublicKey>(),
            Err(KeyError::Encoding)
        );
    }

    #[test]
    fn private_keys_differ_and_do_not_show() {
        let key = PrivateKey::generate();
        assert_ne!(key.public_key(), PrivateKey::generate().public_key());
        assert_eq!(format!("{key:?}"), "PrivateKey(hidden)");
    }
}
