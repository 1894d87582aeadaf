//! Connections: sockets, TLS, frames, streams and peers, on one thread.
pub mod handler;
pub mod requests;
pub mod routes;
