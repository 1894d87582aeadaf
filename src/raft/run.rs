//! The raft thread.
