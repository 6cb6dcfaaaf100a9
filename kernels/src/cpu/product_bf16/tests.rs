use super::{
    Form, Rows,
    amx::Task,
    finish::Finish,
    model::Model,
    packed::{LANES, PackedBf16},
    tiles::{CONFIG, Tiles},
};
use crate::cpu::{convert::round, product::Addends};
use half::bf16;

/// Pseudo-random values in about -2..2, the same on every machine.
fn noise(seed: u64, count: usize) -> Vec<bf16> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bf16::from_f32((state >> 40) as f32 / (1 << 22) as f32 - 2.0)
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// A product, and where the rows of its left side are.
struct Product {
    count: usize,
    taps: usize,
    channels: usize,
    columns: usize,
    values: Vec<bf16>,
    /// Where row r of tap t begins is at `t * count + r`.
    places: Vec<usize>,
    right: Vec<bf16>,
    bias: Vec<f32>,
    residual: Vec<bf16>,
}

impl Product {
    /// Rows at one distance, as those of a matrix are, or with every third one elsewhere, as at an image's borders.
    fn new((count, taps, channels, columns): (usize, usize, usize, usize), even: bool) -> Self {
        let place = |tap: usize, row: usize| match (tap * count + row) % 3 {
            0 if !even => (row * 5 + tap) % (count * taps),
            _ => tap * count + row,
        };
        let places = (0..taps).flat_map(|tap| (0..count).map(move |row| place(tap, row) * channels));
        Self {
            count,
            taps,
            channels,
            columns,
            values: noise(1, count * taps * channels),
            places: places.collect(),
            right: noise(2, taps * channels * columns),
            bias: noise(3, columns).into_iter().map(bf16::to_f32).collect(),
            residual: noise(4, count * columns),
        }
    }

    fn packed(&self, form: Form) -> PackedBf16 {
        let value = |depth: usize, column: usize| self.right[depth * self.columns + column];
        PackedBf16::new(form, (self.taps, self.channels), self.columns, value)
    }

    /// The product of the rows of a range, by these tiles.
    fn multiply<T: Tiles>(&self, form: Form, rows: std::ops::Range<usize>) -> Vec<bf16> {
        let table: Vec<_> = (0..self.taps)
            .flat_map(|tap| rows.clone().map(move |row| tap * self.count + row))
            .map(|index| self.values[self.places[index]..][..self.channels].as_ptr())
            .collect();
        let right = self.packed(form);
        let residual = &self.residual[rows.start * self.columns..];
        let rows = Rows { table: &table, count: rows.len(), taps: self.taps, channels: self.channels };
        let mut result = vec![bf16::ZERO; rows.count * self.columns];
        // SAFETY: the pointers are at `channels` values, and the result has all columns of all rows.
        unsafe {
            Task::<T>::new().multiply(
                &rows,
                &right,
                0..right.panels(),
                Addends { bias: Some(&self.bias), residual: Some(residual) },
                result.as_mut_ptr(),
            );
        }
        result
    }

    /// The sum of an element as Intel's manual orders it: of each 32 depths of a tap the even and the odd ones by themselves.
    fn sum(&self, row: usize, column: usize) -> f32 {
        let mut sum = 0.0;
        for tap in 0..self.taps {
            let left = &self.values[self.places[tap * self.count + row]..][..self.channels];
            for (step, left) in left.chunks(32).enumerate() {
                let mut halves = [0.0_f32; 2];
                for (k, left) in left.iter().enumerate() {
                    let depth = tap * self.channels + step * 32 + k;
                    let right = self.right[depth * self.columns + column];
                    halves[k % 2] = left.to_f32().mul_add(right.to_f32(), halves[k % 2]);
                }
                sum += halves[0] + halves[1];
            }
        }
        sum
    }
}

/// Whole tiles, and rests of rows, of depth and of columns; one panel and several, of one vector and of two.
const SIZES: [(usize, usize, usize, usize); 12] = [
    (32, 1, 32, 32),
    (1, 1, 32, 16),
    (2, 1, 40, 17),
    (16, 1, 64, 48),
    (17, 9, 32, 33),
    (31, 4, 34, 64),
    (48, 2, 96, 5),
    (33, 9, 4, 80),
    (7, 3, 2, 1),
    (77, 1, 770, 40),
    (130, 1, 66, 100),
    (40, 9, 320, 20),
];

/// By these tiles: every element has the bits that its own row and column give, whatever other rows there are.
fn assert_products<T: Tiles>(form: Form) {
    for (sizes, even) in SIZES.into_iter().flat_map(|sizes| [(sizes, true), (sizes, false)]) {
        let product = Product::new(sizes, even);
        let result = product.multiply::<T>(form, 0..product.count);
        for (index, value) in result.iter().enumerate() {
            let (row, column) = (index / product.columns, index % product.columns);
            let expected = round(product.sum(row, column) + product.bias[column] + product.residual[index].to_f32());
            assert_eq!(
                value.to_bits(),
                expected.to_bits(),
                "{sizes:?}, row {row}, column {column}: {value}, {expected}"
            );
        }
        for rows in [0..1, product.count / 2..product.count, product.count - 1..product.count] {
            let alone = product.multiply::<T>(form, rows.clone());
            assert!(result[rows.start * product.columns..].starts_with(&alone[..rows.len() * product.columns]));
        }
    }
}

/// By these tiles: sums are begun and added to, and nothing is written beyond their vectors.
fn assert_sums<T: Tiles>(form: Form) {
    for sizes in SIZES.into_iter().filter(|sizes| sizes.1 == 1) {
        let product = Product::new(sizes, true);
        let (count, pitch) = (product.count, PackedBf16::pitch(product.columns) + LANES);
        let table: Vec<_> = product.values.chunks_exact(product.channels).map(<[bf16]>::as_ptr).collect();
        let rows = Rows { table: &table, count, taps: 1, channels: product.channels };
        let right = product.packed(form);
        let mut sums = vec![7.5_f32; count * pitch];
        // SAFETY: the pointers are at `channels` values, and the sums have room for whole vectors.
        let add = |sums: &mut [f32], first| unsafe {
            let mut task = Task::<T>::new();
            task.sums(&rows, &right, sums.as_mut_ptr(), pitch, first);
        };
        add(&mut sums, true);
        let once = sums.clone();
        add(&mut sums, false);
        for index in 0..count * pitch {
            let (row, column) = (index / pitch, index % pitch);
            if column < product.columns {
                assert_eq!(once[index].to_bits(), product.sum(row, column).to_bits(), "{sizes:?}, {row}, {column}");
                // Adding up the same products again differs from twice the sums by rounding only.
                assert!((sums[index] - 2.0 * once[index]).abs() < 1e-3, "{sizes:?}, {row}, {column}");
            }
            assert!(column < pitch - LANES || sums[index] == 7.5, "{sizes:?}: wrote beyond row {row}");
        }
    }
}

#[test]
fn tiles_are_for_layers_that_fill_half_of_one() {
    super::with_tiles(|| {
        let form = |form| super::available().then_some(form);
        assert_eq!(super::form(14), form(Form::Vectors));
        assert_eq!([16, 320].map(super::form), [form(Form::Model); 2]);
        assert_eq!([0, 33].map(super::form), [None; 2]);
    });
}

#[test]
fn products_in_tiles_are_those_of_intels_manual_to_the_last_bit() {
    assert_products::<Model>(Form::Model);
    assert_sums::<Model>(Form::Model);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_processors_tiles_compute_what_the_model_does() {
    // Elsewhere there is nothing to compare: the model stands for such processors in the other tests.
    if super::detect::tiles() != super::detect::Tiles::Absent {
        assert_products::<super::tiles::Amx>(Form::Tiles);
        assert_sums::<super::tiles::Amx>(Form::Tiles);
        assert_eq!(super::detect::tiles(), super::detect::Tiles::Taken);
        println!("compared the processor's tiles with the model");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_check_at_first_use_passes_right_tiles_and_finds_wrong_ones() {
    /// Right but for a tile's sums in one place: `WRONG` is what is left out.
    #[derive(Default)]
    struct Broken<const WRONG: usize>(Model, usize);

    impl<const WRONG: usize> Tiles for Broken<WRONG> {
        unsafe fn configure(&mut self, config: &super::tiles::Config) {
            unsafe { self.0.configure(config) };
        }
        unsafe fn release(&mut self) {
            unsafe { self.0.release() };
        }
        unsafe fn zero<const TILE: u8>(&mut self) {
            unsafe { self.0.zero::<TILE>() };
        }
        unsafe fn load<const TILE: u8>(&mut self, from: *const u8, stride: isize) {
            // The stride is not heeded.
            unsafe { self.0.load::<TILE>(from, if WRONG == 1 { 64 } else { stride }) };
        }
        unsafe fn store<const TILE: u8>(&mut self, to: *mut u8, stride: isize) {
            if WRONG != 2 || TILE != 3 {
                unsafe { self.0.store::<TILE>(to, stride) };
            }
        }
        unsafe fn multiply<const SUMS: u8, const LEFT: u8, const RIGHT: u8>(&mut self) {
            self.1 += 1;
            // The last of many products is lost, as where another program's tiles were put in place of ours.
            if WRONG != 3 || self.1 != 8 {
                unsafe { self.0.multiply::<SUMS, LEFT, RIGHT>() };
            }
        }
    }

    assert!(super::detect::right::<Broken<0>>(Form::Model));
    assert!(!super::detect::right::<Broken<1>>(Form::Model));
    assert!(!super::detect::right::<Broken<2>>(Form::Model));
    assert!(!super::detect::right::<Broken<3>>(Form::Model));
}

#[test]
fn sums_are_rounded_the_same_with_the_instruction_and_without() {
    let (rows, width, pitch) = (5, 41, 48);
    let sums: Vec<f32> =
        noise(5, rows * pitch).iter().zip(noise(6, rows * pitch)).map(|(x, y)| x.to_f32() / y.to_f32()).collect();
    let bias: Vec<f32> = noise(7, width).into_iter().map(bf16::to_f32).collect();
    let residual = noise(8, rows * width);
    for (bias, residual) in [(None, None), (Some(&bias[..]), None), (Some(&bias[..]), Some(&residual[..]))] {
        let mut results = [(); 2].map(|()| vec![bf16::ZERO; rows * width]);
        let finish = |to: &mut [bf16]| {
            let addends = Addends { bias, residual };
            Finish { sums: &sums, pitch, addends, rows, width, to: to.as_mut_ptr(), stride: width }
        };
        // SAFETY: the results have all columns of all rows.
        unsafe {
            finish(&mut results[0]).run();
            finish(&mut results[1]).one_by_one();
        }
        let bits = results.map(|result| result.into_iter().map(bf16::to_bits).collect::<Vec<_>>());
        assert_eq!(bits[0], bits[1]);
    }
}

/// One product of full tiles: each row of the left side is `left`, each column of the right one `right`; by these tiles.
fn step<T: Tiles>(left: [f32; 32], right: [f32; 32], sum: f32) -> f32 {
    let left = [left.map(bf16::from_f32); 16];
    let right: [[[bf16; 2]; 16]; 16] =
        std::array::from_fn(|pair| [[bf16::from_f32(right[2 * pair]), bf16::from_f32(right[2 * pair + 1])]; 16]);
    let mut sums = [[sum; 16]; 16];
    let mut tiles = T::default();
    // SAFETY: each tile is configured before its use, and read from or written to 16 rows of 64 bytes.
    unsafe {
        tiles.configure(&CONFIG);
        tiles.load::<2>(sums.as_ptr().cast(), 64);
        tiles.load::<5>(left.as_ptr().cast(), 64);
        tiles.load::<7>(right.as_ptr().cast(), 64);
        tiles.multiply::<2, 5, 7>();
        tiles.store::<2>(sums.as_mut_ptr().cast(), 64);
        tiles.release();
    }
    assert!(sums.as_flattened().iter().all(|sum| sum.to_bits() == sums[0][0].to_bits()));
    sums[0][0]
}

/// What only the manual says: the order of a step's sums, and that numbers too small for f32's full precision are zeros.
fn assert_manual<T: Tiles>() {
    let of = |values: &[(usize, f32)]| {
        let mut all = [0.0; 32];
        values.iter().for_each(|(index, value)| all[*index] = *value);
        all
    };
    let ones = [1.0; 32];
    // 2^24 swallows a 1 that is added to it. The even depths go first, then the odd ones, and what stood there comes last.
    let large = 16_777_216.0;
    assert_eq!(step::<T>(of(&[(0, large), (1, 1.0), (2, -large)]), ones, 0.0), 1.0);
    assert_eq!(step::<T>(of(&[(0, large), (2, 1.0), (4, -large)]), ones, 0.0), 0.0);
    assert_eq!(step::<T>(of(&[(0, 1.0), (1, -2.0 * large)]), ones, 2.0 * large), 0.0);
    assert_eq!(step::<T>(of(&[(30, 1.0), (31, 1.0)]), ones, large), large + 2.0);
    // A product is not rounded before it is added: (1 + 2^-7)^2 - 1 has a last place that f32 keeps, too.
    let just = 1.0 + 1.0 / 128.0;
    assert_eq!(step::<T>(of(&[(0, -1.0), (2, just)]), of(&[(0, 1.0), (2, just)]), 0.0), just * just - 1.0);
    // Small numbers on either side, in what stood there, and in the result.
    let (small, least) = (f32::MIN_POSITIVE / 2.0, f32::MIN_POSITIVE);
    assert_eq!(step::<T>(of(&[(0, small)]), [large; 32], 0.0), 0.0);
    assert_eq!(step::<T>([large; 32], of(&[(0, small)]), 0.0), 0.0);
    assert_eq!(step::<T>([0.0; 32], ones, small), 0.0);
    assert_eq!(step::<T>(of(&[(0, least)]), [0.5; 32], 0.0), 0.0);
    assert_eq!(step::<T>(of(&[(0, least)]), ones, 0.0), least);
    // Nothing else is a zero, and infinities and NaN go on.
    assert!(step::<T>(of(&[(3, f32::INFINITY)]), ones, 0.0).is_infinite());
    assert!(step::<T>(of(&[(3, f32::INFINITY)]), [0.0; 32], 1.0).is_nan());
}

#[test]
fn a_step_in_tiles_is_that_of_intels_manual() {
    assert_manual::<Model>();
    #[cfg(target_arch = "x86_64")]
    if super::detect::tiles() != super::detect::Tiles::Absent {
        assert_manual::<super::tiles::Amx>();
    }
}
