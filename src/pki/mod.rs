//! Not written yet.

pub mod seal;
