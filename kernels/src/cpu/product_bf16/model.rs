//! A model of the tiles, after Intel's manual: what the form for AMX computes, on any processor.

use std::cell::Cell;

use half::bf16;

use super::tiles::{Config, ROW_BYTES, ROWS, Tiles};

thread_local! {
    static FORCED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is to take the model.
pub(super) fn forced() -> bool {
    FORCED.get()
}

/// Runs `body` with products of bf16 in the form for AMX on this thread, by the model where the processor has none. A layer
/// chooses when it is made.
pub(crate) fn with_tiles<T>(body: impl FnOnce() -> T) -> T {
    /// Puts the former choice back, also when `body` panics.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let _restore = Restore(FORCED.replace(true));
    body()
}

/// Eight tiles. What the processor refuses to do panics.
#[derive(Default)]
pub(super) struct Model {
    /// `None` until configured: TILES_CONFIGURED.
    tiles: Option<Box<[Tile; 8]>>,
}

#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    row_bytes: usize,
    bytes: [[u8; ROW_BYTES]; ROWS],
}

impl Tile {
    fn f32(&self, row: usize, column: usize) -> f32 {
        f32::from_le_bytes(self.bytes[row][4 * column..][..4].try_into().unwrap())
    }

    fn bf16(&self, row: usize, column: usize) -> f32 {
        bf16::from_le_bytes(self.bytes[row][2 * column..][..2].try_into().unwrap()).to_f32()
    }
}

impl Model {
    /// #UD for a tile without a size.
    fn tile(&mut self, tile: u8) -> &mut Tile {
        let tile = &mut self.tiles.as_mut().expect("tiles are configured before they are used")[usize::from(tile)];
        assert!(tile.rows > 0 && tile.row_bytes > 0 && tile.row_bytes.is_multiple_of(4));
        tile
    }
}

/// Denormal numbers become zeros of their sign: DAZ and FTZ.
fn flushed(value: f32) -> f32 {
    if value.is_subnormal() { 0.0_f32.copysign(value) } else { value }
}

impl Tiles for Model {
    unsafe fn configure(&mut self, config: &Config) {
        // SAFETY: plain bytes without gaps between them.
        let bytes = unsafe { &*std::ptr::from_ref(config).cast::<[u8; 64]>() };
        assert_eq!(bytes[..2], [1, 0], "palette 1 from row 0");
        assert!(bytes[2..16].iter().chain(&bytes[32..48]).chain(&bytes[56..]).all(|byte| *byte == 0), "reserved");
        self.tiles = Some(Box::new(std::array::from_fn(|tile| {
            let row_bytes = usize::from(u16::from_le_bytes([bytes[16 + 2 * tile], bytes[17 + 2 * tile]]));
            let rows = usize::from(bytes[48 + tile]);
            assert!(row_bytes <= ROW_BYTES && rows <= ROWS && (rows == 0) == (row_bytes == 0));
            Tile { rows, row_bytes, bytes: [[0; ROW_BYTES]; ROWS] }
        })));
    }

    unsafe fn release(&mut self) {
        self.tiles = None;
    }

    unsafe fn zero<const TILE: u8>(&mut self) {
        self.tile(TILE).bytes = [[0; ROW_BYTES]; ROWS];
    }

    unsafe fn load<const TILE: u8>(&mut self, from: *const u8, stride: isize) {
        let tile = self.tile(TILE);
        tile.bytes = [[0; ROW_BYTES]; ROWS];
        for row in 0..tile.rows {
            // SAFETY: the caller's promise.
            let bytes =
                unsafe { std::slice::from_raw_parts(from.wrapping_offset(row as isize * stride), tile.row_bytes) };
            tile.bytes[row][..bytes.len()].copy_from_slice(bytes);
        }
    }

    unsafe fn store<const TILE: u8>(&mut self, to: *mut u8, stride: isize) {
        let tile = self.tile(TILE);
        for row in 0..tile.rows {
            // SAFETY: the caller's promise.
            unsafe {
                let to = to.wrapping_offset(row as isize * stride);
                tile.bytes[row].as_ptr().copy_to_nonoverlapping(to, tile.row_bytes);
            }
        }
    }

    unsafe fn multiply<const SUMS: u8, const LEFT: u8, const RIGHT: u8>(&mut self) {
        assert!(SUMS != LEFT && SUMS != RIGHT && LEFT != RIGHT);
        let (left, right, sums) = (*self.tile(LEFT), *self.tile(RIGHT), self.tile(SUMS));
        assert!(sums.rows == left.rows && sums.row_bytes == right.row_bytes && left.row_bytes == 4 * right.rows);
        for row in 0..sums.rows {
            for column in 0..sums.row_bytes / 4 {
                let mut products = [0.0_f32; 2];
                for pair in 0..right.rows {
                    for (half, sum) in products.iter_mut().enumerate() {
                        let left = flushed(left.bf16(row, 2 * pair + half));
                        let right = flushed(right.bf16(pair, 2 * column + half));
                        *sum = flushed(left.mul_add(right, *sum));
                    }
                }
                let sum = flushed(flushed(sums.f32(row, column)) + flushed(products[0] + products[1]));
                sums.bytes[row][4 * column..][..4].copy_from_slice(&sum.to_le_bytes());
            }
            sums.bytes[row][sums.row_bytes..].fill(0);
        }
        sums.bytes[sums.rows..].fill([0; ROW_BYTES]);
    }
}
