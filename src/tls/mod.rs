//! TLS by rustls, sans-io: a record layer for the shard loop and for the client. Knows bytes and certificates, never
//! sockets, threads or frames. The only room that names rustls.
#![forbid(unsafe_code)]
