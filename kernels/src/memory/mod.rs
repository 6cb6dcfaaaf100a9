//! Large blocks of memory that are kept for the next who asks for as much.
//!
//! A step of a network allocates some large tensors for each of its operations and frees them again. An allocator that gives
//! such blocks back to the system has it clear their pages anew each time, which took a tenth of a step in bf16.
//! [`KeepingAllocator`] keeps them: what is in use and what is kept together are never more than a sixteenth (or 64 MiB)
//! above what was once in use at the same time, so a process hardly grows by it; and [`give_back_memory`] ends it, for times in which
//! nothing is to be computed.
//!
//! Blocks of 2 MiB and more are asked for in huge pages, for which the processor has few entries to look up.

#![expect(unsafe_code, reason = "an allocator deals in pointers, and the system's pages come by foreign functions")]

mod blocks;
mod pages;

use std::alloc::{GlobalAlloc, Layout};
use std::sync::{Mutex, MutexGuard, PoisonError};

use blocks::Blocks;

/// What may be kept beyond what was once in use, however little that was: a small model's blocks of all sizes.
const LEAST_SLACK: usize = 64 << 20;

/// The blocks of this process.
static BLOCKS: Mutex<Blocks> = Mutex::new(Blocks::new(LEAST_SLACK));

/// An allocator that keeps large blocks which were freed, and leaves all others to another one.
///
/// Where memory cannot be mapped as on Unix, the other one has them all.
#[derive(Debug)]
pub struct KeepingAllocator<A> {
    others: A,
}

impl<A> KeepingAllocator<A> {
    /// Has `others` allocate what is not large.
    pub const fn new(others: A) -> Self {
        Self { others }
    }
}

/// Gives the blocks that are kept back to the system, and forgets how much was once in use. Says how many bytes there were.
///
/// Does nothing where [`KeepingAllocator`] is not the program's allocator.
pub fn give_back_memory() -> usize {
    let mut bytes = 0;
    while let Some(block) = { lock().give_back() } {
        bytes += block.size();
        // SAFETY: the block was kept, so nobody uses it.
        unsafe { block.unmap() };
    }
    bytes
}

/// The bytes of the blocks that are kept for the next who asks.
pub fn kept_memory() -> usize {
    lock().kept_bytes()
}

fn lock() -> MutexGuard<'static, Blocks> {
    BLOCKS.lock().unwrap_or_else(PoisonError::into_inner)
}

// SAFETY: a large block has the size of its class, which the layout tells both times, and is mapped or was kept, so that
// it belongs to nobody else; the others are the other allocator's, by the same rule both times.
unsafe impl<A: GlobalAlloc> GlobalAlloc for KeepingAllocator<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match blocks::class(layout) {
            Some(size) => allocate(size).0,
            // SAFETY: the caller's promises.
            None => unsafe { self.others.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(size) = blocks::class(layout) else {
            // SAFETY: the caller's promises.
            return unsafe { self.others.alloc_zeroed(layout) };
        };
        let (start, fresh) = allocate(size);
        if !fresh && !start.is_null() {
            // SAFETY: the block is that long, and ours.
            unsafe { start.write_bytes(0, layout.size()) };
        }
        start
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        match blocks::class(layout) {
            Some(size) => {
                let unkept = { lock().free(start, size) };
                if let Some(block) = unkept {
                    // SAFETY: the caller's promise that nobody uses it any more.
                    unsafe { block.unmap() };
                }
            }
            // SAFETY: the caller's promises.
            None => unsafe { self.others.dealloc(start, layout) },
        }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the size is none that a layout cannot have.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (blocks::class(layout), blocks::class(new)) {
            // SAFETY: the caller's promises.
            (None, None) => unsafe { self.others.realloc(start, layout, size) },
            (Some(from), Some(to)) if from == to => start,
            // SAFETY: both blocks are as long as what is copied, and the old one is freed once.
            _ => unsafe {
                let to = self.alloc(new);
                if !to.is_null() {
                    to.copy_from_nonoverlapping(start, layout.size().min(size));
                    self.dealloc(start, layout);
                }
                to
            },
        }
    }
}

/// A block of a class, and whether the system has just mapped it, so that it holds zeros; null if there is no memory.
fn allocate(size: usize) -> (*mut u8, bool) {
    let kept = { lock().take(size) };
    if let Some(block) = kept {
        return (block.start(), false);
    }
    // What is too much beside the new one goes first.
    while let Some(block) = { lock().surplus(size) } {
        // SAFETY: the block was kept, so nobody uses it.
        unsafe { block.unmap() };
    }
    let mut start = pages::map(size);
    if start.is_null() && give_back_memory() > 0 {
        start = pages::map(size);
    }
    if !start.is_null() {
        lock().mapped(size);
    }
    (start, true)
}

#[cfg(test)]
mod tests;
