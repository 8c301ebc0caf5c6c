//! What a licence says and what it grants: keys, signed documents, the cache, grace and clocks. Pure: `now` is an
//! argument, and asking the licence server is somebody else's job.
#![forbid(unsafe_code)]

mod document;
mod key;
mod signature;

pub use document::{DOCUMENT_BYTES_MAX, Document, DocumentError, LimitTerms, Signed};
pub use key::{KeyError, KeyHash, LicenceKey};
pub use signature::{PublicKey, SigningKey, SigningKeyError, is_evaluation_build};
