//! What one model call is for every family: gather what the rows ask, call once, guide, and hand out the answers.

use std::any::Any;

use candle_core::Tensor;

use super::guidance::guide;
use crate::{Error, Result, Trajectory};

/// What a family keeps in a row: the prompt as its denoiser wants it, and the negative prompt where the row is guided.
pub(super) struct Guided<C> {
    /// There exactly when the row takes two places in a call.
    pub(super) negative: Option<C>,
    /// The prompt.
    pub(super) positive: C,
}

/// The places of one model call: a guided picture takes two, the negative one first.
pub(super) struct Call<'a, C> {
    /// The latents as the sampler scales them, (c, h, w) each.
    pub(super) inputs: Vec<Tensor>,
    /// The model's time input of each.
    pub(super) timesteps: Vec<f64>,
    /// What each is conditioned on.
    pub(super) conditions: Vec<&'a C>,
}

/// How a guided picture's two predictions become one: `(negative, positive, row)`, each (c, h, w).
pub(super) type Combine = fn(&Tensor, &Tensor, &Trajectory) -> Result<Tensor>;

/// Classifier-free guidance by the row's `guidance`, as most families have it.
pub(super) fn classifier_free(negative: &Tensor, positive: &Tensor, row: &Trajectory) -> Result<Tensor> {
    guide(negative, positive, row.guidance(), row.guidance_rescale())
}

/// Takes every row that is not done one model call further.
///
/// `call` gets all places and answers (places, c, h, w). Every row must carry a [`Guided<C>`].
///
/// # Errors
/// When a row is of another model, or the call or a sampler fails. All that can run out of memory is done before the
/// first row moves on.
pub(super) fn step<C: Any + Send>(
    rows: &mut [&mut Trajectory],
    combine: Combine,
    call: impl FnOnce(&Call<'_, C>) -> Result<Tensor>,
) -> Result<()> {
    let mut places = Call { inputs: Vec::new(), timesteps: Vec::new(), conditions: Vec::new() };
    // The places of each row: none for one that is done.
    let mut counts = Vec::with_capacity(rows.len());
    for row in rows.iter() {
        let Some(query) = row.query()? else {
            counts.push(0);
            continue;
        };
        let Some(Guided { negative, positive }) = row.state::<Guided<C>>() else {
            return Err(Error::Unsupported("a row of another model cannot be denoised by this one".to_owned()));
        };
        let before = places.inputs.len();
        for condition in negative.iter().chain([positive]) {
            places.inputs.push(query.input.clone());
            places.timesteps.push(query.timestep);
            places.conditions.push(condition);
        }
        counts.push(places.inputs.len() - before);
    }
    if places.inputs.is_empty() {
        return Ok(());
    }
    let outputs = call(&places)?;
    let mut at = 0;
    let mut answers = Vec::with_capacity(rows.len());
    for (row, &count) in rows.iter().zip(&counts) {
        answers.push(match count {
            0 => None,
            1 => Some(outputs.get(at)?),
            _ => Some(combine(&outputs.get(at)?, &outputs.get(at + 1)?, row)?),
        });
        at += count;
    }
    for (row, answer) in rows.iter_mut().zip(&answers) {
        if let Some(answer) = answer {
            row.advance(answer)?;
        }
    }
    Ok(())
}
