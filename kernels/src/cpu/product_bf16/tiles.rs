//! The instructions of AMX on tiles.

/// The rows of a tile.
pub(super) const ROWS: usize = 16;
/// The bytes of a tile's row.
pub(super) const ROW_BYTES: usize = 64;

/// What LDTILECFG reads: Intel's "Architectures Software Developer's Manual", volume 1, chapter 18.
#[repr(C, align(64))]
pub(super) struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight tiles at their full size. It stays so for all products: rests are filled up, since another configuration
/// would clear the sums.
pub(super) static CONFIG: Config = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        (row_bytes[tile], rows[tile]) = (ROW_BYTES as u16, ROWS as u8);
        tile += 1;
    }
    Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

/// A thread's eight tiles: those of the processor, or a model of them.
///
/// # Safety
/// Whoever calls a method answers for the instructions being there, and for tiles being configured before they are used.
pub(super) trait Tiles: Default {
    /// LDTILECFG: gives all tiles these sizes, and clears them.
    unsafe fn configure(&mut self, config: &Config);

    /// TILERELEASE: back to where the processor was.
    unsafe fn release(&mut self);

    /// TILEZERO.
    unsafe fn zero<const TILE: u8>(&mut self);

    /// TILELOADD: row r is at `from + r * stride` bytes, which must be readable.
    unsafe fn load<const TILE: u8>(&mut self, from: *const u8, stride: isize);

    /// TILESTORED: row r goes to `to + r * stride` bytes, which must be writable.
    unsafe fn store<const TILE: u8>(&mut self, to: *mut u8, stride: isize);

    /// TDPBF16PS: adds the products of pairs of bf16, rows of LEFT times columns of RIGHT, to the f32 of SUMS.
    unsafe fn multiply<const SUMS: u8, const LEFT: u8, const RIGHT: u8>(&mut self);
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::Amx;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{arch::asm, marker::PhantomData};

    use super::{Config, Tiles};

    /// The processor's tiles. They are a thread's own, so this must stay on the thread.
    ///
    /// The compiler never touches a tile by itself, so they keep what they hold from one instruction here to the next.
    #[derive(Default)]
    pub(in super::super) struct Amx(PhantomData<*mut ()>);

    impl Tiles for Amx {
        #[inline(always)]
        unsafe fn configure(&mut self, config: &Config) {
            // SAFETY: the caller's promise; the configuration is 64 bytes long.
            unsafe {
                asm!(
                    "ldtilecfg [{config}]", config = in(reg) config, options(nostack, preserves_flags, readonly),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                );
            }
        }

        #[inline(always)]
        unsafe fn release(&mut self) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    "tilerelease", options(nostack, preserves_flags, nomem),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                );
            }
        }

        #[inline(always)]
        unsafe fn zero<const TILE: u8>(&mut self) {
            // SAFETY: the caller's promise.
            unsafe { asm!("tilezero tmm{tile}", tile = const TILE, options(nostack, preserves_flags, nomem)) };
        }

        #[inline(always)]
        unsafe fn load<const TILE: u8>(&mut self, from: *const u8, stride: isize) {
            // SAFETY: the caller's promises.
            unsafe {
                asm!(
                    "tileloadd tmm{tile}, [{from} + {stride}*1]", tile = const TILE, from = in(reg) from,
                    stride = in(reg) stride, options(nostack, preserves_flags, readonly),
                );
            }
        }

        #[inline(always)]
        unsafe fn store<const TILE: u8>(&mut self, to: *mut u8, stride: isize) {
            // SAFETY: the caller's promises.
            unsafe {
                asm!(
                    "tilestored [{to} + {stride}*1], tmm{tile}", tile = const TILE, to = in(reg) to,
                    stride = in(reg) stride, options(nostack, preserves_flags),
                );
            }
        }

        #[inline(always)]
        unsafe fn multiply<const SUMS: u8, const LEFT: u8, const RIGHT: u8>(&mut self) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    "tdpbf16ps tmm{sums}, tmm{left}, tmm{right}", sums = const SUMS, left = const LEFT,
                    right = const RIGHT, options(nostack, preserves_flags, nomem),
                );
            }
        }
    }
}
