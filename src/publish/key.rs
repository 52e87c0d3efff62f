//! What an idempotency key stands for.

use aws_lc_rs::digest;

/// SHA-256 of a request's encoding: a key that comes back with another hash was used for something else.
pub fn request_hash(encoded: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, encoded);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}
