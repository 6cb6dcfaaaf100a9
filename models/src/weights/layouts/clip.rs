//! CLIP's text encoders: transformers' names under a prefix, and OpenCLIP's.

use super::{Form, Layout, Place, block, is_extra, renamed, row_count, under};
use crate::weights::tensors::TensorSource;

/// What becomes of the projection of the pooled state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::weights) enum Projection {
    /// The family takes the pooled state as it is: there is no projection.
    None,
    /// It is in the file.
    Stored,
    /// The family's class has one, which was never trained: it changes nothing.
    Identity,
}

/// Where a `CLIPTextModel`, or with a projection a `CLIPTextModelWithProjection`, is in the tensors under `prefix`, which
/// have transformers' names.
pub(in crate::weights) fn clip(source: &dyn TensorSource, prefix: &str, projection: Projection) -> Layout {
    let mut layout = Layout::default();
    for (key, name) in under(source, prefix).iter().filter(|(_, name)| !is_extra(name)) {
        let whole = name.starts_with("text_model.") && !name.ends_with(".position_ids");
        if whole || (name == "text_projection.weight" && projection == Projection::Stored) {
            layout.whole(name.as_str(), key);
        }
    }
    if projection == Projection::Identity {
        let key = format!("{prefix}text_model.final_layer_norm.weight");
        layout.0.insert("text_projection.weight".to_owned(), Place::Identity(row_count(source, &key)));
    }
    layout
}

/// What is outside of OpenCLIP's layers.
const OUTSIDE: &[(&str, &str)] = &[
    ("token_embedding", "text_model.embeddings.token_embedding"),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final", "text_model.final_layer_norm"),
];

/// What is in one of OpenCLIP's layers, except for the fused query, key and value.
const LAYER: &[(&str, &str)] = &[
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
];

/// Where a text encoder is in the tensors under `prefix`, which have OpenCLIP's names. Layers from `layers` on are left out:
/// Stable Diffusion 2 was trained on the last but one, so that is the last in diffusers.
pub(in crate::weights) fn open_clip(
    source: &dyn TensorSource,
    prefix: &str,
    projection: Projection,
    layers: Option<usize>,
) -> Layout {
    let mut layout = Layout::default();
    for (key, name) in under(source, prefix).iter().filter(|(_, name)| !is_extra(name)) {
        if let Some((number, rest)) = block(name, "transformer.resblocks") {
            let at = format!("text_model.encoder.layers.{number}");
            if layers.is_some_and(|layers| number >= layers) {
                continue;
            }
            if let Some(rest) = renamed(rest, LAYER) {
                layout.whole(format!("{at}.{rest}"), key);
            } else if let Some(end) = rest.strip_prefix("attn.in_proj_") {
                let names = ["q", "k", "v"].map(|name| format!("{at}.self_attn.{name}_proj.{end}"));
                layout.split(names, key, row_count(source, key));
            }
        } else if name == "text_projection" && projection == Projection::Stored {
            layout.put("text_projection.weight", key, Vec::new(), Form::Transposed);
        } else if let Some(wanted) = renamed(name, OUTSIDE) {
            layout.whole(wanted, key);
        }
    }
    layout
}
