//! Requests and answers (placeholder until the contract lands).
