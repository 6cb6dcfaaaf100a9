//! A small honest model: a picture's colour is told by its prompt and its seed, and it takes as long as it is told to.

use std::sync::Arc;
use std::time::Duration;

use candle_core::{Device, Tensor};
use easel_models::samplers::{Progress, Query, Sampler};
use easel_models::{
    Abilities, BatchKey, Conditioning, Fit, ModelCard, Pipeline, Prompt, RenderSpec, Result, RgbImage, Size, Sizes,
    Trajectory,
};

pub(super) struct Fake {
    pub(super) name: String,
    card: ModelCard,
    /// What a model call takes.
    call: Duration,
}

impl Fake {
    /// A model that looks at up to three pictures.
    pub(super) fn editing(name: &str) -> Self {
        let mut fake = Self::exact(name, Duration::ZERO);
        fake.card.abilities = Abilities { edit: true, references: 3, ..Abilities::default() };
        fake
    }

    /// A model that draws from prompts alone.
    pub(super) fn drawing(name: &str) -> Self {
        let mut fake = Self::exact(name, Duration::ZERO);
        fake.card.abilities = Abilities::default();
        fake
    }

    /// A model that makes any size of whole blocks.
    pub(super) fn exact(name: &str, call: Duration) -> Self {
        let sizes = Sizes::Any { multiple: 8, min: 8, max: 512 };
        Self { name: name.into(), card: card(Size { width: 64, height: 64 }, sizes, Fit::Exact), call }
    }

    /// A model that makes one size and brings it to any other.
    pub(super) fn resizing(name: &str) -> Self {
        let native = Size { width: 32, height: 32 };
        Self { name: name.into(), card: card(native, Sizes::List(vec![native]), Fit::Resize), call: Duration::ZERO }
    }
}

fn card(native: Size, sizes: Sizes, fit: Fit) -> ModelCard {
    ModelCard {
        family: "fake".into(),
        description: "Paints one colour.".into(),
        subjects: vec!["colours".into()],
        native,
        sizes,
        fit,
        steps: 4,
        guidance: 1.0,
        sampler: "ddim".into(),
        samplers: vec!["ddim".into(), "euler".into(), "dpmpp_2m".into()],
        abilities: Abilities {
            negative_prompt: true,
            clip_skip: false,
            image_to_image: true,
            inpaint: true,
            ..Abilities::default()
        },
        context_tokens: 77,
        clip_layers: 0,
        parameters: 1,
        dtype: "f32".into(),
        scheduler: easel_models::samplers::SchedulerConfig::default(),
    }
}

struct Constant {
    latents: Tensor,
    progress: Progress,
}

impl Sampler for Constant {
    fn query(&self) -> Result<Option<Query>> {
        let query = Query { timestep: 0.0, sigma: 1.0, input: self.latents.clone() };
        Ok((self.progress.step < self.progress.steps).then_some(query))
    }

    fn advance(&mut self, _: &Tensor) -> Result<()> {
        self.progress.step += 1;
        Ok(())
    }

    fn progress(&self) -> Progress {
        self.progress
    }

    fn latents(&self) -> &Tensor {
        &self.latents
    }

    fn denoised(&self) -> Option<&Tensor> {
        None
    }
}

impl Pipeline for Fake {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn encode(&self, prompt: &Prompt) -> Result<Conditioning> {
        let text = prompt.text.as_deref().unwrap_or_default();
        assert_ne!(text, "panic", "as the prompt says");
        let sum = text.bytes().fold(7u64, |sum, byte| (sum * 31 + u64::from(byte)) % 251);
        let states = Tensor::full(sum as f32, (4, 1), &Device::Cpu)?;
        Ok(Conditioning { states, pooled: None, mask: None, tokens: text.split_whitespace().count(), truncated: None })
    }

    fn begin(
        &self,
        spec: &RenderSpec,
        positive: Arc<Conditioning>,
        negative: Option<Arc<Conditioning>>,
    ) -> Result<Trajectory> {
        let latent = [1, spec.height as usize / 8, spec.width as usize / 8];
        let mut colour = positive.states.flatten_all()?.to_vec1::<f32>()?[0] + (spec.seed % 97) as f32;
        // What it starts from, or looks at, shows: its colour is the first one's red, and one more for each reference.
        if let Some(init) = &spec.init {
            colour = f32::from(init.image.pixels[0]);
        } else if let Some(first) = spec.references.first() {
            colour = f32::from(first.pixels[0]) + spec.references.len() as f32;
        }
        let latents = Tensor::full(colour, latent.as_slice(), &Device::Cpu)?;
        let sampler = Box::new(Constant { latents, progress: Progress { step: 0, steps: spec.sampling.steps } });
        let key = BatchKey { model: self.name.clone(), latent, context: 4, references: Vec::new() };
        Ok(Trajectory::new(sampler, positive, negative, spec.guidance, 0.0, key))
    }

    fn denoise(&self, rows: &mut [&mut Trajectory]) -> Result<()> {
        std::thread::sleep(self.call);
        for row in rows {
            let latents = row.latents().clone();
            row.advance(&latents)?;
        }
        Ok(())
    }

    fn decode(&self, latents: &[Tensor]) -> Result<Vec<RgbImage>> {
        latents.iter().map(|latents| paint(latents, 8)).collect()
    }

    fn preview(&self, latents: &Tensor) -> Result<RgbImage> {
        paint(latents, 1)
    }

    fn row_bytes(&self, width: u32, height: u32) -> u64 {
        u64::from(width) * u64::from(height)
    }
}

fn paint(latents: &Tensor, scale: usize) -> Result<RgbImage> {
    let (_, height, width) = latents.dims3()?;
    let colour = latents.flatten_all()?.to_vec1::<f32>()?[0] as u32;
    let (width, height) = (width * scale, height * scale);
    let pixel = [(colour % 256) as u8, (colour * 7 % 256) as u8, 128];
    RgbImage::new(width as u32, height as u32, pixel.repeat(width * height))
}
