//! Connections: sockets, TLS, frames, streams and peers, on one thread.
mod accept;
mod calls;
mod connection;
mod dial;
pub mod handler;
mod http;
mod link;
mod meters;
mod peers;
pub mod requests;
pub mod routes;
pub mod run;
mod session;
mod wire;

#[cfg(test)]
mod tests;

pub use run::{Config, Credentials, Limits, NetHandle, NetInbox, channel, spawn};
