//! GGUF files of every type, written as converters write them, and hostile ones.

use candle_core::DType;
use candle_core::quantized::{GgmlDType, QTensor};
use tempfile::TempDir;

use super::*;

/// A file in the making: its values, and its tensors with their types' numbers.
#[derive(Default)]
struct File {
    values: Vec<u8>,
    value_count: u64,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

impl File {
    fn value(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        text(&mut self.values, key);
        self.values.extend(kind.to_le_bytes());
        self.values.extend(value);
        self.value_count += 1;
        self
    }

    fn tensor(mut self, name: &str, shape: &[u64], kind: u32, bytes: Vec<u8>) -> Self {
        self.tensors.push((name.to_owned(), shape.to_vec(), kind, bytes));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [b"GGUF".as_slice(), &3_u32.to_le_bytes()].concat();
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.value_count.to_le_bytes());
        bytes.extend(&self.values);
        let mut data: Vec<u8> = Vec::new();
        for (name, shape, kind, values) in &self.tensors {
            data.resize(data.len().next_multiple_of(32), 0);
            text(&mut bytes, name);
            bytes.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|side| bytes.extend(side.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend((data.len() as u64).to_le_bytes());
            data.extend(values);
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(data);
        bytes
    }
}

/// A folder with this as a part's only weights.
fn folder(bytes: &[u8]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model_index.json"), "{}").unwrap();
    std::fs::create_dir(dir.path().join("transformer")).unwrap();
    std::fs::write(dir.path().join("transformer/model-Q4_K.gguf"), bytes).unwrap();
    dir
}

fn open(bytes: &[u8]) -> Result<GgufSource> {
    let dir = folder(bytes);
    GgufSource::open(&Repository::folder(dir.path()).unwrap(), "transformer/model-Q4_K.gguf")
}

fn in_f32(shape: &[usize]) -> u64 {
    4 * shape.iter().product::<usize>() as u64
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn ramp(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i * 31 % 97) as f32 / 40.0 - 1.0).collect()
}

/// A matrix of 6 rows of 512 in this type, and what candle reads of it.
fn stored(dtype: GgmlDType) -> (Vec<u8>, Vec<f32>) {
    let tensor = Tensor::from_vec(ramp(6 * 512), (6, 512), &Device::Cpu).unwrap();
    let stored = QTensor::quantize(&tensor, dtype).unwrap();
    (stored.data().unwrap().into_owned(), values(&stored.dequantize(&Device::Cpu).unwrap()))
}

const TYPES: [(u32, GgmlDType, &str); 14] = [
    (0, GgmlDType::F32, "F32"),
    (1, GgmlDType::F16, "F16"),
    (30, GgmlDType::BF16, "BF16"),
    (2, GgmlDType::Q4_0, "Q4_0"),
    (3, GgmlDType::Q4_1, "Q4_1"),
    (6, GgmlDType::Q5_0, "Q5_0"),
    (7, GgmlDType::Q5_1, "Q5_1"),
    (8, GgmlDType::Q8_0, "Q8_0"),
    (10, GgmlDType::Q2K, "Q2_K"),
    (11, GgmlDType::Q3K, "Q3_K"),
    (12, GgmlDType::Q4K, "Q4_K"),
    (13, GgmlDType::Q5K, "Q5_K"),
    (14, GgmlDType::Q6K, "Q6_K"),
    (15, GgmlDType::Q8K, "Q8_K"),
];

#[test]
fn every_type_is_read_whole_and_by_rows_and_stays_in_few_bits() {
    for (kind, dtype, name) in TYPES {
        let (bytes, expected) = stored(dtype);
        let count = bytes.len();
        // An odd tensor in front, so that the place of the second is not that of the data.
        let file = File::default().tensor("a", &[3], 0, [1_f32, 2.0, 3.0].map(f32::to_le_bytes).concat());
        let source = open(&file.tensor("b.weight", &[6, 512], kind, bytes).bytes()).unwrap();
        assert_eq!(values(&source.tensor("b.weight").unwrap().unwrap()), expected, "{name}");
        assert_eq!(values(&source.rows("b.weight", 2..4).unwrap().unwrap()), expected[2 * 512..4 * 512], "{name}");
        assert_eq!(values(&source.tensor("a").unwrap().unwrap()), [1.0, 2.0, 3.0]);
        let one = open(&File::default().tensor("one", &[], 0, 4_f32.to_le_bytes().to_vec()).bytes()).unwrap();
        assert_eq!(values(&one.tensor("one").unwrap().unwrap()), [4.0]);
        let info = source.info("b.weight").unwrap();
        assert_eq!((info.shape.as_slice(), info.dtype.as_str(), info.fractional), ([6, 512].as_slice(), name, true));
        let kept = source.quantized("b.weight").unwrap().map(|kept| kept.byte_count());
        let few = (dtype.block_size() > 1).then_some(count);
        assert_eq!((kept, info.kept_bytes()), (few, few.map(|count| count as u64)), "{name}");
        assert!(source.rows("b.weight", 5..7).is_err() && source.tensor("c").unwrap().is_none());
    }
}

#[test]
fn a_part_of_a_folder_may_be_a_gguf_file() {
    let (bytes, _) = stored(GgmlDType::Q4K);
    let file = File::default().tensor("x.weight", &[6, 512], 12, bytes.clone()).tensor("x.bias", &[6], 0, vec![0; 24]);
    let dir = folder(&file.bytes());
    let repository = Repository::folder(dir.path()).unwrap();
    let part = repository.part("transformer", in_f32).unwrap();
    assert_eq!((part.parameters, part.bytes), (6 * 512 + 6, bytes.len() as u64 + 24));
    assert_eq!(part.stored, ["F32", "Q4_K"]);
    let weights = repository.tensors("transformer", DType::F32, &Device::Cpu).unwrap();
    let layer = crate::weights::linear(&weights.pp("x"), 512, 6).unwrap();
    let one = Tensor::ones((1, 512), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(layer.forward(&one).unwrap().dims(), [1, 6]);
    let wrong = crate::weights::linear(&weights.pp("x"), 256, 6).unwrap_err().to_string();
    assert_eq!(wrong, "transformer/model-Q4_K.gguf: x.weight has shape [6, 512]; [6, 256] is expected");

    std::fs::copy(dir.path().join("transformer/model-Q4_K.gguf"), dir.path().join("transformer/b.gguf")).unwrap();
    let two = repository.part("transformer", in_f32).unwrap_err().to_string();
    assert!(two.contains("one GGUF file is expected"), "{two}");
}

#[test]
fn a_shape_that_was_flattened_for_the_blocks_is_given_back() {
    let (bytes, expected) = stored(GgmlDType::Q8_0);
    let shape = [9_u32.to_le_bytes().as_slice(), &5_u32.to_le_bytes(), &3_u64.to_le_bytes()].concat();
    let shape = [shape, [96_i32, 4, 8].map(i32::to_le_bytes).concat()].concat();
    // The value's own type, 9, is written by `value`.
    let file = File::default().value("comfy.gguf.orig_shape.c.weight", 9, &shape[4..]);
    let source = open(&file.tensor("c.weight", &[6, 512], 8, bytes).bytes()).unwrap();
    let tensor = source.tensor("c.weight").unwrap().unwrap();
    assert_eq!((tensor.dims(), values(&tensor)), ([96, 4, 8].as_slice(), expected.clone()));
    assert_eq!(values(&source.rows("c.weight", 95..96).unwrap().unwrap()), expected[95 * 32..]);
}

#[test]
fn the_keys_of_a_text_encoder_are_those_of_transformers() {
    let (bytes, _) = stored(GgmlDType::Q8_0);
    let file = File::default().tensor("enc.blk.0.attn_q.weight", &[6, 512], 8, bytes);
    let mut architecture = Vec::new();
    text(&mut architecture, "t5encoder");
    let source = open(&file.value("general.architecture", 8, &architecture).bytes()).unwrap();
    assert_eq!(source.keys(), ["encoder.block.0.layer.0.SelfAttention.q.weight"]);
}

#[test]
fn a_hostile_file_is_an_error_that_names_it() {
    let (bytes, _) = stored(GgmlDType::Q8_0);
    let whole = File::default().tensor("x", &[6, 512], 8, bytes.clone()).bytes();
    assert!(open(&whole).is_ok());
    let head = |tensors: u64, values: u64, rest: &[u8]| {
        [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &tensors.to_le_bytes(), &values.to_le_bytes(), rest].concat()
    };
    let array_of_arrays = [1_u64.to_le_bytes().as_slice(), b"k", &9_u32.to_le_bytes()].concat();
    let nested = [9_u32.to_le_bytes().as_slice(), &1_u64.to_le_bytes()].concat().repeat(10_000);
    let alignment = |alignment: u32| {
        File::default()
            .value("general.alignment", 4, &alignment.to_le_bytes())
            .tensor("x", &[6, 512], 8, bytes.clone())
            .bytes()
    };
    let hostile = [
        Vec::new(),
        b"GGUF".to_vec(),
        b"GGML\x03\0\0\0".repeat(9),
        [b"GGUF".as_slice(), &3_u32.to_be_bytes()].concat(),
        [b"GGUF".as_slice(), &9_u32.to_le_bytes()].concat(),
        whole[..whole.len() - 1].to_vec(),
        whole[..50].to_vec(),
        head(u64::MAX, 0, &[]),
        head(0, u64::MAX, &[]),
        head(1, 0, &u64::MAX.to_le_bytes()),
        head(0, 1, &[array_of_arrays, nested].concat()),
        head(0, 1, &[1_u64.to_le_bytes().as_slice(), b"k", &99_u32.to_le_bytes()].concat()),
        File::default().tensor("x", &[u64::MAX, u64::MAX], 8, bytes.clone()).bytes(),
        File::default().tensor("x", &[1 << 40, 1 << 40], 0, bytes.clone()).bytes(),
        File::default().tensor("x", &[6, 500], 8, bytes.clone()).bytes(),
        File::default().tensor("x", &[1, 1, 1, 1, 1], 8, bytes.clone()).bytes(),
        File::default().tensor("x", &[6, 512], 21, bytes.clone()).bytes(),
        File::default().tensor("x", &[6, 512], 8, bytes.clone()).tensor("x", &[6, 512], 8, bytes.clone()).bytes(),
        alignment(0),
        alignment(3),
        alignment(1 << 31),
    ];
    for (at, bytes) in hostile.iter().enumerate() {
        let message = open(bytes).err().unwrap_or_else(|| panic!("file {at} was read")).to_string();
        assert!(message.starts_with("transformer/model-Q4_K.gguf: is no whole GGUF file: "), "{at}: {message}");
    }
    let unknown = File::default().tensor("x", &[6, 512], 21, bytes).bytes();
    assert!(open(&unknown).err().unwrap().to_string().contains("x has the type IQ3_S, which cannot be read"));
}

#[test]
fn blocks_and_bytes_have_the_values_of_the_reference() {
    #[derive(serde::Deserialize)]
    struct Blocks {
        bytes: Vec<u8>,
        values: Vec<f32>,
    }
    #[derive(serde::Deserialize)]
    struct Goldens {
        blocks: HashMap<String, Blocks>,
        fp8: HashMap<String, Vec<i32>>,
    }
    let goldens = include_str!("../../../tests/data/few_bits.json");
    let goldens: Goldens = serde_json::from_str(goldens).unwrap();
    for (name, Blocks { bytes, values: expected }) in goldens.blocks {
        let kinds = TYPES.into_iter().map(|(kind, _, name)| (kind, name)).chain([(20, "IQ4_NL"), (23, "IQ4_XS")]);
        let (kind, _) = kinds.into_iter().find(|(_, other)| *other == name).unwrap();
        let shape = [2, expected.len() as u64 / 2];
        let source = open(&File::default().tensor("x", &shape, kind, bytes).bytes()).unwrap();
        let found = values(&source.tensor("x").unwrap().unwrap());
        // The reference rounds a product before a difference where candle may not, or the other way round.
        let scale = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-6 * scale, "{name}: {found} {expected}");
        }
    }
    for (name, bits) in goldens.fp8 {
        let dir = tempfile::tempdir().unwrap();
        let header = format!(r#"{{"x":{{"dtype":"{name}","shape":[2,128],"data_offsets":[0,256]}}}}"#);
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &(0..=255).collect::<Vec<u8>>()].concat();
        std::fs::write(dir.path().join("model_index.json"), "{}").unwrap();
        std::fs::create_dir(dir.path().join("unet")).unwrap();
        std::fs::write(dir.path().join("unet/model.safetensors"), file).unwrap();
        let repository = Repository::folder(dir.path()).unwrap();
        let tensors = repository.tensors("unet", DType::F32, &Device::Cpu).unwrap();
        for (found, expected) in values(&tensors.get("x", &[2, 128]).unwrap()).iter().zip(bits) {
            let expected = f32::from_bits(expected as u32);
            assert!(*found == expected || found.is_nan() && expected.is_nan(), "{name}: {found} {expected}");
        }
        assert_eq!(repository.part("unet", in_f32).unwrap().bytes, 256);
    }
}

#[test]
fn fused_projections_split_as_they_are_stored() {
    let tensor = Tensor::from_vec(ramp(192 * 64), (192, 64), &Device::Cpu).unwrap();
    let stored = QTensor::quantize(&tensor, GgmlDType::Q8_0).unwrap();
    let expected = values(&stored.dequantize(&Device::Cpu).unwrap());
    let floats = |count: usize| vec![0_u8; 4 * count];
    let file = File::default()
        .tensor("img_in.weight", &[64, 4], 0, floats(256))
        .tensor("double_blocks.0.img_attn.norm.key_norm.scale", &[16], 0, floats(16))
        .tensor("double_blocks.0.img_attn.qkv.weight", &[192, 64], 8, stored.data().unwrap().into_owned());
    let dir = folder(&file.bytes());
    let repository = Repository::folder(dir.path()).unwrap();
    let weights = repository.tensors("transformer", DType::F32, &Device::Cpu).unwrap();
    for (at, name) in ["to_q", "to_k", "to_v"].into_iter().enumerate() {
        let name = format!("transformer_blocks.0.attn.{name}.weight");
        let kept = weights.try_quantized(&name, 64, 64).unwrap().expect("it stays in few bits");
        assert_eq!(values(&kept.dequantize().unwrap()), expected[at * 4096..(at + 1) * 4096], "{name}");
        assert_eq!(values(&weights.get(&name, &[64, 64]).unwrap()), expected[at * 4096..(at + 1) * 4096], "{name}");
    }
    assert_eq!(repository.part("transformer", in_f32).unwrap().bytes, 192 * 64 / 32 * 34 + 4 * (256 + 16));
}
