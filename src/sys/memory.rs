//! Fresh memory from the kernel in larger steps than the allocator takes it.

use std::cell::Cell;
use std::hint::black_box;

/// Bytes of growth after which the next step is taken.
const STEP: usize = 64 << 10;
/// Bytes that are taken then: what the growth of a step takes with its bookkeeping, and less than what glibc maps apart or
/// gives back at once (128 KiB each).
const AHEAD: usize = 112 << 10;

thread_local! {
    /// What this thread keeps more since its last step: glibc's arenas belong to threads.
    static GROWN: Cell<usize> = const { Cell::new(0) };
}

/// This thread keeps about so many bytes more. Whoever says so of memory that grows without end keeps the allocator ahead.
///
/// glibc gives a thread that is not the first one an arena, and lets that grow page by page: a system call for each 4 KiB,
/// which hold six or seven resources of 256 bytes. A larger block, asked for and given back, leaves its room at the arena's
/// end. It is not touched, so that what is not used takes no memory. Where there is room already it costs a malloc and a
/// free, and with another allocator no more than those do there.
pub fn grown(bytes: usize) {
    let grown = GROWN.get() + bytes;
    if grown < STEP {
        GROWN.set(grown);
    } else {
        GROWN.set(0);
        drop(black_box(Vec::<u8>::with_capacity(AHEAD)));
    }
}
