//! What a licence says and what it grants: keys, signed documents, the cache, grace and clocks. Pure: `now` is an
//! argument, and asking the licence server is somebody else's job.
#![forbid(unsafe_code)]
