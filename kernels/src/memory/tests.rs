use std::alloc::System;

use super::blocks::Block;
use super::*;

const MIB: usize = 1 << 20;

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 64).unwrap()
}

/// A block of which only the address is looked at.
fn address(number: usize) -> *mut u8 {
    std::ptr::without_provenance_mut(number * MIB)
}

#[test]
#[cfg(unix)]
fn large_blocks_have_a_size_that_their_layout_tells() {
    assert_eq!(blocks::class(layout(2 * MIB - 1)), None);
    assert_eq!(blocks::class(layout(2 * MIB)), Some(2 * MIB));
    assert_eq!(blocks::class(layout(2 * MIB + 1)), Some(2 * MIB + MIB / 4));
    assert_eq!(blocks::class(layout(21 * MIB - 5)), Some(22 * MIB));
    assert_eq!(blocks::class(Layout::from_size_align(2 * MIB, 8192).unwrap()), None, "not aligned so by every system");
    assert!(blocks::class(layout(isize::MAX as usize - 63)).is_some());
}

#[test]
fn what_is_used_and_kept_is_hardly_more_than_what_was_used_at_once() {
    let mut blocks = Blocks::new(0);
    let (mut used, mut most, mut again): (Vec<(usize, usize)>, usize, usize) = (Vec::new(), 0, 0);
    let mut unmapped = Vec::new();
    for step in 0..4000_usize {
        let random = step.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        if random % 2 == 0 && used.len() < 40 {
            let size = MIB * (1 + random % 7);
            match blocks.take(size) {
                Some(block) => {
                    assert_eq!(block.size(), size);
                    used.push((block.start().addr(), size));
                    again += 1;
                }
                None => {
                    while let Some(block) = blocks.surplus(size) {
                        unmapped.push(block.start().addr());
                    }
                    blocks.mapped(size);
                    used.push((address(step + 1).addr(), size));
                }
            }
        } else if !used.is_empty() {
            let (start, size) = used.swap_remove(random % used.len());
            assert!(blocks.free(std::ptr::without_provenance_mut(start), size).is_none());
        }
        let bytes: usize = used.iter().map(|(_, size)| size).sum();
        most = most.max(bytes);
        assert!(bytes + blocks.kept_bytes() <= most + most / 16, "after {step}");
        assert!(used.iter().all(|(start, _)| !unmapped.contains(start)), "a block in use was given back");
    }
    assert!(again > 1000, "blocks are used again: {again}");
    while blocks.give_back().is_some() {}
    assert_eq!(blocks.kept_bytes(), 0);
}

#[test]
fn a_small_program_may_keep_a_little_more() {
    let mut blocks = Blocks::new(3 * MIB);
    blocks.mapped(2 * MIB);
    assert!(blocks.free(address(1), 2 * MIB).is_none());
    assert!(blocks.surplus(3 * MIB).is_none(), "5 MiB beside a peak of 3");
    assert_eq!(blocks.surplus(4 * MIB).map(Block::start), None, "6 MiB beside a peak of 4");
    blocks.mapped(3 * MIB);
    assert!(blocks.free(address(2), 3 * MIB).is_none());
    assert_eq!(blocks.surplus(2 * MIB).map(Block::start), Some(address(1)), "7 MiB beside a peak of 3");
}

#[test]
fn the_block_freed_first_is_given_back_first_and_the_one_freed_last_is_used_first() {
    let mut blocks = Blocks::new(0);
    for number in 1..=3 {
        assert!(blocks.take(MIB).is_none());
        blocks.mapped(MIB);
        assert!(blocks.surplus(0).is_none(), "{number} in use");
    }
    for number in 1..=3 {
        assert!(blocks.free(address(number), MIB).is_none());
    }
    assert_eq!(blocks.take(MIB).map(Block::start), Some(address(3)));
    assert!(blocks.take(2 * MIB).is_none());
    assert_eq!(blocks.surplus(2 * MIB).map(Block::start), Some(address(1)));
    assert_eq!(blocks.surplus(2 * MIB).map(Block::start), Some(address(2)), "one in use and two new ones are three");
    assert!(blocks.surplus(2 * MIB).is_none());
}

#[test]
fn there_are_places_for_so_many_blocks_and_no_more() {
    let mut blocks = Blocks::new(0);
    (0..600).for_each(|_| blocks.mapped(MIB));
    let refused = (1..=600).filter(|&number| blocks.free(address(number), MIB).is_some()).count();
    assert_eq!((refused, blocks.kept_bytes()), (600 - 512, 512 * MIB));
}

/// The only test of the process's own blocks, for nobody else must use them meanwhile.
#[test]
#[cfg(unix)]
fn blocks_hold_what_is_written_and_zeros_where_they_are_asked_for() {
    let allocator = KeepingAllocator::new(System);
    let filled = |start: *mut u8, size: usize, value: u8| {
        // SAFETY: the blocks are that long, and written.
        unsafe { std::slice::from_raw_parts(start, size) }.iter().all(|byte| *byte == value)
    };
    // SAFETY: every block is used for its layout, and freed once.
    unsafe {
        // More than any machine has; it counts for nothing.
        assert!(allocator.alloc(layout(1 << 60)).is_null());
        let start = allocator.alloc(layout(3 * MIB));
        assert!(start.addr().is_multiple_of(2 * MIB));
        start.write_bytes(7, 3 * MIB);
        assert_eq!(allocator.realloc(start, layout(3 * MIB), 3 * MIB - 100), start, "it is of the same class");
        let longer = allocator.realloc(start, layout(3 * MIB - 100), 5 * MIB);
        assert!(filled(longer, 3 * MIB - 100, 7));
        assert_eq!(kept_memory(), 3 * MIB);
        let again = allocator.alloc_zeroed(layout(3 * MIB));
        assert_eq!(again, start, "it was kept");
        assert!(filled(again, 3 * MIB, 0));
        again.write_bytes(9, 3 * MIB);
        let short = allocator.realloc(again, layout(3 * MIB), 1000);
        assert!(filled(short, 1000, 9));
        let shorter = allocator.realloc(short, layout(1000), 100);
        let long = allocator.realloc(shorter, layout(100), 2 * MIB);
        assert!(filled(long, 100, 9));
        allocator.dealloc(long, layout(2 * MIB));
        allocator.dealloc(longer, layout(5 * MIB));
    }
    let kept = kept_memory();
    assert!(kept > 0);
    assert_eq!(give_back_memory(), kept);
    assert_eq!((kept_memory(), give_back_memory()), (0, 0));
}
