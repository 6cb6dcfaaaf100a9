//! The transformer of Z-Image as ComfyUI's files have it.

use super::{Layout, is_extra, row_count, under};
use crate::weights::tensors::TensorSource;

/// Where a `ZImageTransformer2DModel` is in the tensors under `prefix`.
pub(in crate::weights) fn z_image(source: &dyn TensorSource, prefix: &str) -> Layout {
    let mut layout = Layout::default();
    for (key, name) in under(source, prefix).iter().filter(|(_, name)| !is_extra(name)) {
        // A leftover of Lumina, which no layer uses.
        if name == "norm_final.weight" {
            continue;
        }
        if let Some((at, end)) = name.split_once(".attention.qkv.") {
            let names = ["to_q", "to_k", "to_v"].map(|name| format!("{at}.attention.{name}.{end}"));
            layout.split(names, key, row_count(source, key));
            continue;
        }
        // Patches of 2 by 2 pixels and one frame are all that is trained; diffusers has their size in its names.
        let wanted = match (name.strip_prefix("x_embedder."), name.strip_prefix("final_layer.")) {
            (Some(rest), _) => format!("all_x_embedder.2-1.{rest}"),
            (_, Some(rest)) => format!("all_final_layer.2-1.{rest}"),
            _ => name
                .replace(".attention.out.", ".attention.to_out.0.")
                .replace(".attention.q_norm.", ".attention.norm_q.")
                .replace(".attention.k_norm.", ".attention.norm_k."),
        };
        layout.whole(wanted, key);
    }
    layout
}
