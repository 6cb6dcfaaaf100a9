//! The keys of T5's encoder as llama.cpp writes them, and as transformers has them.

/// The key under which a network asks for the tensor that a GGUF file calls `name`; the name itself if it is not T5's.
pub(super) fn key(name: &str) -> String {
    translate(name).unwrap_or_else(|| name.to_owned())
}

fn translate(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("shared.weight".to_owned()),
        "enc.output_norm.weight" => return Some("encoder.final_layer_norm.weight".to_owned()),
        _ => {}
    }
    let (block, rest) = name.strip_prefix("enc.blk.")?.split_once('.')?;
    let inside = match rest.strip_suffix(".weight")? {
        "attn_q" => "layer.0.SelfAttention.q",
        "attn_k" => "layer.0.SelfAttention.k",
        "attn_v" => "layer.0.SelfAttention.v",
        "attn_o" => "layer.0.SelfAttention.o",
        "attn_rel_b" => "layer.0.SelfAttention.relative_attention_bias",
        "attn_norm" => "layer.0.layer_norm",
        "ffn_gate" => "layer.1.DenseReluDense.wi_0",
        "ffn_up" => "layer.1.DenseReluDense.wi_1",
        "ffn_down" => "layer.1.DenseReluDense.wo",
        "ffn_norm" => "layer.1.layer_norm",
        _ => return None,
    };
    Some(format!("encoder.block.{block}.{inside}.weight"))
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn the_keys_of_llama_cpp_become_those_of_transformers() {
        assert_eq!(key("enc.blk.23.ffn_gate.weight"), "encoder.block.23.layer.1.DenseReluDense.wi_0.weight");
        assert_eq!(key("token_embd.weight"), "shared.weight");
        assert_eq!(key("double_blocks.0.img_attn.qkv.weight"), "double_blocks.0.img_attn.qkv.weight");
    }
}
