//! Whether AMX is there: the processor, the system's permission, and right sums.

use std::{
    arch::x86_64::{__cpuid, __cpuid_count, _xgetbv},
    sync::LazyLock,
};

use half::bf16;

use super::{Form, Rows, amx::Task, packed::PackedBf16, tiles};

/// What is known of AMX here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tiles {
    /// It is not there, not permitted, or not wanted.
    Absent,
    /// Its sums are wrong, so it is not taken.
    Wrong,
    /// Products of bf16 are computed by it.
    Taken,
}

static TILES: LazyLock<Tiles> = LazyLock::new(|| {
    let unwanted = std::env::var("EASEL_VECTORS").is_ok_and(|asked| asked == "avx512");
    if unwanted || !processor() || !permitted() {
        return Tiles::Absent;
    }
    if right::<tiles::Amx>(Form::Tiles) { Tiles::Taken } else { Tiles::Wrong }
});

/// What is known of AMX here; found out at the first call.
pub(super) fn tiles() -> Tiles {
    *TILES
}

/// Whether the processor has tiles and products of bf16, and the system keeps them from one thread to the next.
#[allow(unused_unsafe, reason = "newer compilers know that asking the processor is safe")]
fn processor() -> bool {
    /// XCR0's bits for the tiles' configuration and what they hold.
    const STATE: u64 = 1 << 17 | 1 << 18;
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const OSXSAVE: u32 = 1 << 27;

    /// # Safety
    /// The instruction must be there, which OSXSAVE says.
    #[target_feature(enable = "xsave")]
    unsafe fn state() -> u64 {
        // SAFETY: the caller's promise.
        unsafe { _xgetbv(0) }
    }

    // SAFETY: every processor of this architecture answers; what is asked is within its leaves.
    let features = unsafe {
        if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
            return false;
        }
        __cpuid_count(7, 0).edx
    };
    // SAFETY: the system uses XSAVE, as was just asked.
    features & BF16 != 0 && features & TILE != 0 && unsafe { state() } & STATE == STATE
}

/// Whether Linux lets this process use tiles: it keeps room for them only for those who ask.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call takes numbers, and changes nothing but what was asked for.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// How other systems permit it, we have not tried.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Whether small products by these tiles are what they should be, to the rounding of f32.
pub(super) fn right<T: super::tiles::Tiles>(form: Form) -> bool {
    // Rows where they are, and copied ones; whole tiles and rests in every direction; new sums and old ones.
    [(32, 64, 32), (37, 70, 41)].into_iter().all(|(rows, depth, columns)| {
        let value = |index: usize| bf16::from_f32(((index * 7919 + 13) % 1009) as f32 / 256.0 - 2.0);
        let left: Vec<bf16> = (0..rows * depth).map(value).collect();
        let right = PackedBf16::new(form, (1, depth), columns, |k, column| value(k * columns + column + 1));
        let table: Vec<_> = left.chunks_exact(depth).map(<[bf16]>::as_ptr).collect();
        let pitch = PackedBf16::pitch(columns);
        let mut sums = vec![0.5_f32; rows * pitch];
        // SAFETY: the instructions are there, the pointers are at `depth` values, and the sums are whole vectors.
        unsafe {
            let rows = Rows { table: &table, count: rows, taps: 1, channels: depth };
            let mut task = Task::<T>::new();
            task.sums(&rows, &right, sums.as_mut_ptr(), pitch, true);
            task.sums(&rows, &right, sums.as_mut_ptr(), pitch, false);
        }
        (0..rows * columns).all(|index| {
            let (row, column) = (index / columns, index % columns);
            let products =
                (0..depth).map(|k| left[row * depth + k].to_f64() * value(k * columns + column + 1).to_f64());
            let (sum, size) = products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()));
            (f64::from(sums[row * pitch + column]) - 2.0 * sum).abs() <= 1e-5 * size
        })
    })
}
