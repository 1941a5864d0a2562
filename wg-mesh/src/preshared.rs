//! Pre-shared keys: known to the device, and to everybody else by a fingerprint.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

/// A key that both ends of a tunnel mix into WireGuard's handshakes, so that it stays secret although
/// Curve25519 should fall. Equal keys have equal fingerprints (the first 8 bytes of SHA-256: of 32 random
/// bytes they betray nothing). What a device tells has the fingerprint alone, and asked for again it means
/// "the one that you have".
#[derive(Clone)]
pub struct PresharedKey {
    fingerprint: [u8; 8],
    secret: Option<Zeroizing<[u8; 32]>>,
}

impl PresharedKey {
    /// A key of these bytes.
    #[must_use]
    pub fn new(secret: Zeroizing<[u8; 32]>) -> Self {
        Self { fingerprint: fingerprint(&secret), secret: Some(secret) }
    }

    /// The same without the secret.
    #[must_use]
    pub const fn without_secret(&self) -> Self {
        Self { fingerprint: self.fingerprint, secret: None }
    }

    pub(crate) fn secret(&self) -> Option<&[u8; 32]> {
        self.secret.as_deref()
    }
}

fn fingerprint(secret: &[u8; 32]) -> [u8; 8] {
    let mut fingerprint = [0; 8];
    for (to, from) in fingerprint.iter_mut().zip(Sha256::digest(secret)) {
        *to = from;
    }
    fingerprint
}

impl PartialEq for PresharedKey {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for PresharedKey {}

impl fmt::Display for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fingerprint.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PresharedKey({self})")
    }
}

#[derive(Serialize, Deserialize)]
struct Wire {
    fingerprint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl Serialize for PresharedKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let secret = self.secret.as_ref().map(|secret| STANDARD.encode(secret.as_slice()));
        Wire { fingerprint: self.to_string(), secret }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PresharedKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = Wire::deserialize(deserializer)?;
        let number = u64::from_str_radix(&wire.fingerprint, 16).ok().filter(|_| wire.fingerprint.len() == 16);
        let fingerprint =
            number.ok_or_else(|| D::Error::custom("fingerprint is not 16 hexadecimal digits"))?;
        let fingerprint = fingerprint.to_be_bytes();
        let Some(text) = &wire.secret else { return Ok(Self { fingerprint, secret: None }) };
        let mut secret = Zeroizing::new([0; 32]);
        let decoded = STANDARD.decode_slice(text.as_bytes(), secret.as_mut_slice());
        let key = Self::new(secret);
        match decoded {
            Ok(32) if key.fingerprint == fingerprint => Ok(key),
            _ => Err(D::Error::custom("secret is not 32 bytes of base64 with this fingerprint")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> PresharedKey {
        PresharedKey::new(Zeroizing::new([byte; 32]))
    }

    #[test]
    fn keys_are_told_apart_and_not_shown() {
        assert_eq!(key(1), key(1).without_secret());
        assert_ne!(key(1), key(2));
        // printf '\1%.0s' {1..32} | sha256sum
        assert_eq!(format!("{:?}", key(1)), "PresharedKey(72cd6e8422c407fb)");
        assert_eq!(key(1).without_secret().secret(), None);
    }

    #[test]
    fn the_wire_form_is_faithful_and_checked() {
        let json = serde_json::to_string(&key(7)).unwrap();
        let read: PresharedKey = serde_json::from_str(&json).unwrap();
        assert_eq!((&read, read.secret()), (&key(7), Some(&[7; 32])));
        let bare = serde_json::to_string(&key(7).without_secret()).unwrap();
        assert!(!bare.contains("secret"), "{bare}");
        assert_eq!(serde_json::from_str::<PresharedKey>(&bare).unwrap().secret(), None);
        let forged = json.replace(&key(7).to_string(), &key(8).to_string());
        for wrong in [forged, json.replace("BwcH", "Bw"), bare.replace(&key(7).to_string(), "+7")] {
            assert!(serde_json::from_str::<PresharedKey>(&wrong).is_err(), "{wrong}");
        }
    }
}
