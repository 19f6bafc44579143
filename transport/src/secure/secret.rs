//! The secret of a job, from its text to the key of the handshake.

use std::fmt;

use snow::params::HashChoice;
use snow::resolvers::{CryptoResolver, DefaultResolver};

use super::SecureError;

/// Bytes of a key, and of a generated secret.
pub(crate) const KEY_BYTES: usize = 32;

/// What the members of a job know and strangers do not. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; KEY_BYTES]);

impl Secret {
    /// The secret from its text, as RINGTREE_SECRET carries it. White space around it does not
    /// count, since a file ends with a newline. Whoever records a handshake can try guesses against
    /// it later: only a random text ([`Secret::generate`]) withstands that.
    pub fn from_text(text: &str) -> Secret {
        Secret(digest("ringtree: key from a secret text", text.trim().as_bytes()))
    }

    /// The text of a new secret: 32 random bytes in hexadecimal.
    pub fn generate() -> Result<String, SecureError> {
        Ok(hexadecimal(&random_bytes::<KEY_BYTES>()?))
    }

    /// What everybody knows (RINGTREE_INSECURE=1): the handshake then keeps jobs and versions
    /// apart, and nobody out.
    pub fn insecure() -> Secret {
        Secret(digest("ringtree: no secret", b""))
    }

    /// What only those who know the secret can tell of `bytes`, in hexadecimal.
    pub(crate) fn tag(&self, domain: &str, bytes: &[u8]) -> String {
        hexadecimal(&digest(domain, &[&self.0, bytes].concat()))
    }

    pub(super) fn key(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// BLAKE2s of `domain` and `bytes`.
pub(super) fn digest(domain: &str, bytes: &[u8]) -> [u8; KEY_BYTES] {
    let mut hash = DefaultResolver
        .resolve_hash(&HashChoice::Blake2s)
        .expect("BLAKE2s is compiled in: feature use-blake2 of snow");
    hash.input(domain.as_bytes());
    hash.input(&[0]);
    hash.input(bytes);
    let mut out = [0; KEY_BYTES];
    hash.result(&mut out);
    out
}

/// Bytes from the system's random number generator.
///
/// # Errors
/// [`SecureError::Cryptography`] where it gives none.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], SecureError> {
    let mut bytes = [0; N];
    DefaultResolver
        .resolve_rng()
        .and_then(|mut rng| rng.try_fill_bytes(&mut bytes).ok())
        .ok_or(SecureError::Cryptography { reason: "no random numbers from the system".into() })?;
    Ok(bytes)
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
