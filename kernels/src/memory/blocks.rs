//! Which blocks are kept.

use std::alloc::Layout;

use super::pages;

/// Blocks from this size on are large, that of a huge page: smaller ones other allocators keep well themselves, and put
/// together on such pages.
const LARGE: usize = 2 << 20;
/// The part of what was once in use that may be kept beyond it, for blocks are not always needed again in the sizes in which
/// they were freed: a sixteenth.
const SLACK: usize = 16;
/// The alignment of every page.
const ALIGNMENT: usize = 4096;
/// The classes of sizes from one power of two to the next.
const CLASSES: usize = 8;
/// Blocks that can be kept, so that keeping them needs no memory.
const MOST: usize = 512;

/// The size that a block of this layout has, if it is a large one: the next of its power's eighths.
pub(super) fn class(layout: Layout) -> Option<usize> {
    let size = layout.size();
    let large = pages::AVAILABLE && size >= LARGE && layout.align() <= ALIGNMENT;
    large.then(|| size.next_multiple_of((1 << size.ilog2()) / CLASSES))
}

/// A block of pages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    start: *mut u8,
    size: usize,
}

// SAFETY: whoever has a block is the only one to use it.
unsafe impl Send for Block {}

impl Block {
    pub(super) fn start(self) -> *mut u8 {
        self.start
    }

    pub(super) fn size(self) -> usize {
        self.size
    }

    /// Gives the block back to the system.
    ///
    /// # Safety
    /// Nobody may use it any more.
    pub(super) unsafe fn unmap(self) {
        // SAFETY: every block was mapped so.
        unsafe { pages::unmap(self.start, self.size) };
    }
}

/// The blocks that were freed, and how much is in use.
#[derive(Debug)]
pub(super) struct Blocks {
    /// The first `count`, the one that was freed first in front.
    kept: [Block; MOST],
    count: usize,
    kept_bytes: usize,
    used_bytes: usize,
    /// The most that was in use.
    peak_bytes: usize,
    /// What may be kept beyond that at least.
    least_slack: usize,
}

impl Blocks {
    pub(super) const fn new(least_slack: usize) -> Self {
        let none = Block { start: std::ptr::null_mut(), size: 0 };
        Self { kept: [none; MOST], count: 0, kept_bytes: 0, used_bytes: 0, peak_bytes: 0, least_slack }
    }

    pub(super) fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Of the blocks of `size` bytes the one that was freed last, whose pages are the likeliest to be in a cache.
    pub(super) fn take(&mut self, size: usize) -> Option<Block> {
        let place = self.kept[..self.count].iter().rposition(|block| block.size == size)?;
        let block = self.remove(place);
        self.mapped(size);
        Some(block)
    }

    /// A block was mapped, and is in use.
    pub(super) fn mapped(&mut self, size: usize) {
        self.used_bytes += size;
        self.peak_bytes = self.peak_bytes.max(self.used_bytes);
    }

    /// A block is not needed any more. It is kept, or given back if there is no place for it.
    pub(super) fn free(&mut self, start: *mut u8, size: usize) -> Option<Block> {
        self.used_bytes = self.used_bytes.saturating_sub(size);
        let block = Block { start, size };
        if self.count == MOST {
            return Some(block);
        }
        self.kept[self.count] = block;
        self.count += 1;
        self.kept_bytes += size;
        None
    }

    /// A block that is kept beyond what was once in use and a little more, if `more` bytes are used, too: the one that was freed
    /// first. It is to be unmapped.
    pub(super) fn surplus(&mut self, more: usize) -> Option<Block> {
        let used = self.used_bytes.saturating_add(more);
        let peak = self.peak_bytes.max(used);
        let beyond = used.saturating_add(self.kept_bytes) > peak.saturating_add(self.least_slack.max(peak / SLACK));
        (beyond && self.count > 0).then(|| self.remove(0))
    }

    /// All that is kept is to be unmapped, block by block; from then on the peak is what is in use now.
    pub(super) fn give_back(&mut self) -> Option<Block> {
        self.peak_bytes = self.used_bytes;
        (self.count > 0).then(|| self.remove(0))
    }

    fn remove(&mut self, place: usize) -> Block {
        let block = self.kept[place];
        self.kept.copy_within(place + 1..self.count, place);
        self.count -= 1;
        self.kept_bytes -= block.size;
        block
    }
}
