//! What the benchmarks measure: messages as bytes, and one heart with its driver played by plain code. No socket, no
//! kernel, no clock; `perf/` measures the daemon over real sockets.

pub mod heart;
pub mod messages;
