//! Text embeddings by content: a prompt that comes again is not encoded again.

use std::sync::Arc;

use easel_models::{Conditioning, Prompt};
use lru::LruCache;

/// Least recently used first out, bounded by bytes because a context is 240 kB in one family and 4 MB in another.
pub(super) struct Embeddings {
    entries: LruCache<(usize, Prompt), Arc<Conditioning>>,
    bytes: usize,
    limit: usize,
}

impl Embeddings {
    /// An empty cache of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { entries: LruCache::unbounded(), bytes: 0, limit }
    }

    /// What `prompt` means to the model at place `model` of the registry, if it is known.
    pub(super) fn get(&mut self, model: usize, prompt: &Prompt) -> Option<Arc<Conditioning>> {
        self.entries.get(&(model, prompt.clone())).cloned()
    }

    /// Keeps an embedding, at the cost of those longest unused. One larger than the whole cache is not kept.
    pub(super) fn put(&mut self, model: usize, prompt: Prompt, conditioning: Arc<Conditioning>) {
        let bytes = size(&conditioning);
        if bytes > self.limit {
            return;
        }
        if let Some((_, replaced)) = self.entries.push((model, prompt), conditioning) {
            self.bytes -= size(&replaced);
        }
        self.bytes += bytes;
        while self.bytes > self.limit {
            let Some((_, oldest)) = self.entries.pop_lru() else { break };
            self.bytes -= size(&oldest);
        }
    }

    /// Gives up everything, when the device's memory is short.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }
}

/// Bytes of the tensors.
fn size(conditioning: &Conditioning) -> usize {
    let bytes = |tensor: &candle_core::Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
    bytes(&conditioning.states) + conditioning.pooled.as_ref().map_or(0, bytes)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    fn prompt(text: &str) -> Prompt {
        Prompt::new(text)
    }

    fn conditioning() -> Arc<Conditioning> {
        let states = Tensor::zeros((4, 4), DType::F32, &Device::Cpu).unwrap();
        Arc::new(Conditioning { states, pooled: None, mask: None, tokens: 2, truncated: None })
    }

    #[test]
    fn the_longest_unused_embedding_makes_room() {
        // Each takes 64 bytes, so two fit.
        let mut cache = Embeddings::new(128);
        cache.put(0, prompt("a"), conditioning());
        cache.put(0, prompt("b"), conditioning());
        assert!(cache.get(0, &prompt("a")).is_some());
        cache.put(0, prompt("c"), conditioning());
        assert!(cache.get(0, &prompt("a")).is_some());
        assert!(cache.get(0, &prompt("b")).is_none());
        assert_eq!(cache.bytes, 128);
    }

    #[test]
    fn models_and_clip_skips_have_their_own_embeddings() {
        let mut cache = Embeddings::new(1024);
        cache.put(0, prompt("a"), conditioning());
        assert!(cache.get(1, &prompt("a")).is_none());
        assert!(cache.get(0, &Prompt { clip_skip: 1, ..prompt("a") }).is_none());
    }

    #[test]
    fn putting_the_same_prompt_again_does_not_count_it_twice() {
        let mut cache = Embeddings::new(1024);
        cache.put(0, prompt("a"), conditioning());
        cache.put(0, prompt("a"), conditioning());
        assert_eq!(cache.bytes, 64);
        cache.clear();
        assert_eq!(cache.bytes, 0);
    }

    #[test]
    fn an_embedding_larger_than_the_cache_is_not_kept() {
        let mut cache = Embeddings::new(63);
        cache.put(0, prompt("a"), conditioning());
        assert!(cache.get(0, &prompt("a")).is_none());
    }
}
