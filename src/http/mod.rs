//! HTTP for the licence: a server on one thread of its own (the only room that names hyper and tokio) and a blocking
//! client (the only room that names ureq). Knows requests and answers, nothing of what they mean.
#![forbid(unsafe_code)]

mod client;
mod server;

pub use client::{ANSWER_BYTES_MAX, Answer, Believed, Client, ClientError};
pub use server::{Bounds, Reply, Request, Server};
