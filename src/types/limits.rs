//! Sizes that the product promises.

/// An encoded change: 1.5 MiB.
pub const MAX_CHANGE_BYTES: usize = 3 << 19;
/// A secret's data is smaller than this (reference: 500 KiB).
pub const MAX_SECRET_BYTES: usize = 512_000;
/// A config's or resource's data is smaller than this.
pub const MAX_CONFIG_BYTES: usize = 1_024_000;
/// Keys and values of an object's labels and indices together.
pub const MAX_LABEL_BYTES: usize = 16 << 10;
/// A frame's body on an authenticated connection.
pub const MAX_FRAME_BYTES: usize = 4 << 20;
/// A frame's body before authentication.
pub const MAX_UNAUTHENTICATED_FRAME_BYTES: usize = 64 << 10;
/// Remembered change ids: how many, and their bytes.
pub const MAX_REMEMBERED_CHANGES: usize = 131_072;
/// Bytes of remembered change ids.
pub const MAX_REMEMBERED_BYTES: usize = 4 << 20;
/// The watch ring.
pub const WATCH_RING_BYTES: usize = 8 << 20;
/// The watch ring in the `sdcard` profile.
pub const WATCH_RING_BYTES_SDCARD: usize = 2 << 20;
