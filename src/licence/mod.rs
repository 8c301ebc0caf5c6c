//! What a licence says and what it grants: keys, signed documents, the cache, grace and clocks. Pure: `now` is an
//! argument, and asking the licence server is somebody else's job.
#![forbid(unsafe_code)]

mod cache;
mod clock;
mod document;
mod holder;
mod key;
mod lapse;
mod signature;
mod usage;

pub use cache::{CACHE_BYTES_MAX, Cache};
pub use clock::{Clock, KeptClock, Reading, SKEW_REPORTED_MS, date};
pub use document::{DOCUMENT_BYTES_MAX, Document, DocumentError, LimitTerms, Signed};
pub use holder::{AnswerError, Beginning, FRESH_MS, GRACE_MS, Given, Holder, LOOK_MS, RETRY_MS, Standing};
pub use key::{KeyError, KeyHash, LicenceKey};
pub use lapse::{Lapse, WARNING_MS};
pub use signature::{PublicKey, SigningKey, SigningKeyError, is_evaluation_build};
pub use usage::{DAYS_KEPT, Day, USAGE_BYTES_MAX, Usage};
