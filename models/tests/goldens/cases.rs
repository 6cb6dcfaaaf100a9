//! Whole pictures of the families that keep them in a folder of their own: `cases.json`, the tiny pipelines, the pictures
//! and the finished latents.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use easel_models::families::{Placement, check, open};
use easel_models::samplers::SamplingSpec;
use easel_models::text::{QwenTokenizer, Thinking};
use easel_models::weights::Repository;
use easel_models::{GrayImage, InitImage, Pipeline, Prompt, RenderSpec, RgbImage, Stage, Trajectory};
use serde::Deserialize;

use crate::common::{Faults, relative_error};

/// What the task asks for. Rounding alone leaves 70 dB and more; the latents are compared more strictly.
const PICTURE_PSNR: f64 = 45.0;

/// The relative error that rounding leaves in latents, after a few steps of networks some ten layers deep.
const LATENTS_ERROR: f64 = 1e-4;

/// The same where a picture is looked at, of which a value half way between two bytes may become either when it is resized.
const REFERENCE_ERROR: f64 = 1e-3;

/// One picture and everything it depends on.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Case {
    pub(crate) file: String,
    pub(crate) model: String,
    prompt: String,
    negative: Option<String>,
    pub(crate) width: u32,
    pub(crate) height: u32,
    steps: usize,
    pub(crate) guidance: f64,
    /// `true_cfg_scale`, of families that have it.
    #[serde(default)]
    true_guidance: Option<f64>,
    seed: u64,
    strength: Option<f64>,
    pub(crate) mask: bool,
    pub(crate) references: Vec<(u32, u32)>,
    /// The model's own, unless it is named.
    #[serde(default)]
    sampler: Option<String>,
    #[serde(default)]
    schedule: Option<String>,
    #[serde(default)]
    clip_skip: usize,
    #[serde(default)]
    eta: Option<f64>,
    #[serde(default)]
    guidance_rescale: f64,
    /// The model `base` denoises up to this share of the schedule.
    #[serde(default)]
    until: Option<f64>,
    #[serde(default)]
    base: Option<String>,
}

/// A text in its chat template.
#[derive(Deserialize)]
struct Chat {
    text: String,
    thinking: bool,
    ids: Vec<u32>,
    mask: Vec<u8>,
}

/// A family's folder.
pub(crate) struct Cases {
    folder: PathBuf,
    pub(crate) cases: Vec<Case>,
}

impl Cases {
    /// The family's cases in this folder.
    pub(crate) fn read(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        let cases = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
        Self { folder, cases }
    }

    /// A tiny pipeline whose parts do not fit into memory together, so that they are placed in turn.
    pub(crate) fn cramped(&self, model: &str) -> Arc<dyn Pipeline> {
        let placement = Placement { memory: Some(1), ..Placement::CPU };
        let repository = Repository::folder(self.folder.join(model)).unwrap();
        check(&repository).unwrap();
        open(&repository, &placement, model).unwrap()
    }

    /// Holds what is predicted of the memory of a model's first part to what its file has, less those tensors that nothing
    /// asks for.
    pub(crate) fn unasked(&self, model: &str, of: impl Fn(&str) -> bool) {
        let predicted = self.pipeline(model, DType::F32).parts().remove(0);
        let repository = Repository::folder(self.folder.join(model)).unwrap();
        let in_f32 = |shape: &[usize]| 4 * shape.iter().product::<usize>() as u64;
        let whole = repository.part(&predicted.name, in_f32).unwrap();
        let left = repository.part_of(&predicted.name, in_f32, of).unwrap().bytes;
        assert!(left > 0, "{model} has no such tensors");
        assert_eq!((predicted.parameters, predicted.bytes), (whole.parameters, whole.bytes - left), "{model}");
    }

    /// A tiny pipeline, in this type.
    pub(crate) fn pipeline(&self, model: &str, dtype: DType) -> Arc<dyn Pipeline> {
        let placement = Placement { dtype, ..Placement::CPU };
        open(&Repository::folder(self.folder.join(model)).unwrap(), &placement, model).unwrap()
    }

    /// The row that makes a picture; where two models share it, the second one's.
    pub(crate) fn begin(&self, case: &Case, pipeline: &dyn Pipeline) -> Trajectory {
        let Some((base, until)) = case.base.as_ref().zip(case.until) else {
            return self.begin_stage(case, pipeline, Stage::Whole);
        };
        let base = self.pipeline(base, DType::F32);
        let mut first = self.begin_stage(case, base.as_ref(), Stage::First { until });
        while !first.done() {
            base.denoise(&mut [&mut first]).unwrap();
        }
        assert!(first.query().unwrap().is_none());
        self.begin_stage(case, pipeline, Stage::Second { from: until, latents: first.latents().clone() })
    }

    fn begin_stage(&self, case: &Case, pipeline: &dyn Pipeline, stage: Stage) -> Trajectory {
        let start = |(width, height): (u32, u32)| {
            let (width, height, pixels) = self.png(&format!("start-{width}x{height}.png"), png::ColorType::Rgb);
            RgbImage::new(width, height, pixels).unwrap()
        };
        let size = (case.width, case.height);
        let mask = case.mask.then(|| {
            let name = format!("mask-{}x{}.png", case.width, case.height);
            let (width, height, pixels) = self.png(&name, png::ColorType::Grayscale);
            GrayImage::new(width, height, pixels).unwrap()
        });
        let sampling = SamplingSpec {
            sampler: case.sampler.clone(),
            schedule: case.schedule.clone(),
            eta: case.eta,
            ..SamplingSpec::steps(case.steps)
        };
        let spec = RenderSpec {
            guidance: case.guidance,
            guidance_rescale: case.guidance_rescale,
            stage,
            true_guidance: case.true_guidance.filter(|_| case.negative.is_some()).unwrap_or(1.0),
            init: case.strength.map(|strength| InitImage { image: start(size), strength }),
            mask,
            references: case.references.iter().map(|&size| start(size)).collect(),
            ..RenderSpec::new(case.width, case.height, case.seed, sampling)
        };
        let encode = |prompt: &Prompt| Arc::new(pipeline.encode(prompt).unwrap());
        let negative = Prompt { text: case.negative.clone(), ..Prompt::default() };
        let negative = pipeline.guided(&spec).then(|| encode(&negative));
        let positive = Prompt { clip_skip: case.clip_skip, ..Prompt::new(&case.prompt) };
        let row = pipeline.begin(&spec, encode(&positive), negative);
        row.unwrap_or_else(|error| panic!("{}: {error}", case.file))
    }

    /// Compares each text's ids and mask, inside of its chat template, with transformers'.
    pub(crate) fn chats(&self) {
        let texts: BTreeMap<String, Vec<Chat>> =
            serde_json::from_slice(&std::fs::read(self.folder.join("tokens.json")).unwrap()).unwrap();
        let mut faults = Faults::default();
        for (model, chats) in &texts {
            let repository = Repository::folder(self.folder.join(model)).unwrap();
            let tokenizer = QwenTokenizer::open(&repository, "tokenizer").unwrap();
            for Chat { text, thinking, ids, mask } in chats {
                let thinking = if *thinking { Thinking::Enabled } else { Thinking::Disabled };
                let found = tokenizer.encode(text, thinking, ids.len()).unwrap();
                let right = found.ids == *ids && found.mask == *mask;
                faults.check(right, format_args!("{model} {thinking:?} {text:?}: {:?}, not {ids:?}", found.ids));
            }
            assert!(chats.len() > 50, "{model}: {} texts", chats.len());
        }
        faults.finish();
    }

    /// Makes every picture alone, and compares pictures and latents with the reference's.
    pub(crate) fn compare(&self) {
        let latents = candle_core::safetensors::load(self.folder.join("latents.safetensors"), &Device::Cpu).unwrap();
        let mut faults = Faults::default();
        let mut pipeline: Option<(String, Arc<dyn Pipeline>)> = None;
        for case in &self.cases {
            if pipeline.as_ref().is_none_or(|(model, _)| *model != case.model) {
                pipeline = Some((case.model.clone(), self.pipeline(&case.model, DType::F32)));
            }
            let Some((_, pipeline)) = &pipeline else { continue };
            let made = self.picture(case, pipeline.as_ref());
            let wanted = &latents[&case.file];
            let limit = if case.references.is_empty() { LATENTS_ERROR } else { REFERENCE_ERROR };
            faults.error(format_args!("{} latents", case.file), relative_error(&made.1, wanted), limit);
            let psnr = self.psnr(case, &made.0);
            println!("{}: PSNR {psnr:.1} dB", case.file);
            faults.check(psnr >= PICTURE_PSNR, format_args!("{}: PSNR {psnr:.1} dB\n  {case:?}", case.file));
        }
        faults.finish();
    }

    /// A picture and the latents it was decoded from.
    pub(crate) fn picture(&self, case: &Case, pipeline: &dyn Pipeline) -> (RgbImage, candle_core::Tensor) {
        let mut row = self.begin(case, pipeline);
        while !row.done() {
            pipeline.denoise(&mut [&mut row]).unwrap();
        }
        let latents = row.latents().clone();
        (pipeline.decode(std::slice::from_ref(&latents)).unwrap().remove(0), latents)
    }

    /// The peak signal-to-noise ratio to the reference's picture, in dB.
    pub(crate) fn psnr(&self, case: &Case, made: &RgbImage) -> f64 {
        let (width, height, wanted) = self.png(&case.file, png::ColorType::Rgb);
        assert_eq!((made.width, made.height), (width, height));
        let squares: u64 = made.pixels.iter().zip(&wanted).map(|(&a, &b)| u64::from(a.abs_diff(b)).pow(2)).sum();
        10.0 * (255.0_f64.powi(2) * wanted.len() as f64 / squares as f64).log10()
    }

    /// Makes the pictures of these cases in one batch and alone: the latents must agree to the bit.
    pub(crate) fn company(&self, model: &str, of: impl Fn(&Case) -> bool) {
        let pipeline = self.pipeline(model, DType::F32);
        let cases: Vec<&Case> = self.cases.iter().filter(|case| case.model == model && of(case)).collect();
        assert!(cases.len() > 1, "a company of {} is none", cases.len());
        let run = |rows: &mut Vec<Trajectory>| {
            while rows.iter().any(|row| !row.done()) {
                let mut unfinished: Vec<&mut Trajectory> = rows.iter_mut().filter(|row| !row.done()).collect();
                pipeline.denoise(&mut unfinished).unwrap();
            }
            let bits = |row: &Trajectory| -> Vec<u32> {
                row.latents().flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
            };
            rows.iter().map(bits).collect::<Vec<_>>()
        };
        let company = run(&mut cases.iter().map(|case| self.begin(case, pipeline.as_ref())).collect());
        for (case, in_company) in cases.iter().zip(company) {
            let alone = run(&mut vec![self.begin(case, pipeline.as_ref())]);
            assert!(alone[0] == in_company, "{} differs in company", case.file);
        }
    }

    /// Makes a model's pictures in another type, which must stay within `least` dB of the reference's.
    pub(crate) fn narrow(&self, model: &str, dtype: DType, least: f64) {
        let pipeline = self.pipeline(model, dtype);
        let mut faults = Faults::default();
        for case in self.cases.iter().filter(|case| case.model == model).take(3) {
            let psnr = self.psnr(case, &self.picture(case, pipeline.as_ref()).0);
            println!("{} in {dtype:?}: PSNR {psnr:.1} dB", case.file);
            faults.check(psnr >= least, format_args!("{} in {dtype:?}: PSNR {psnr:.1} dB", case.file));
        }
        faults.finish();
    }

    fn png(&self, name: &str, color: png::ColorType) -> (u32, u32, Vec<u8>) {
        read_png(&self.folder.join("pictures").join(name), color)
    }
}

fn read_png(path: &Path, color: png::ColorType) -> (u32, u32, Vec<u8>) {
    let file = std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.color_type, info.bit_depth), (color, png::BitDepth::Eight), "{}", path.display());
    (info.width, info.height, pixels)
}
