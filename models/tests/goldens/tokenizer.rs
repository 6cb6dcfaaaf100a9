//! Token ids, exactly.

use std::collections::BTreeMap;

use easel_models::text::ClipTokenizer;
use serde::Deserialize;

use crate::common::{Faults, json, repository};

/// What the reference makes of the texts with one model's tokenizer.
#[derive(Deserialize)]
struct Golden {
    context: usize,
    pad: u32,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    text: String,
    /// The ids with their marks, cut to the context, without the padding.
    ids: Vec<u32>,
    /// Ids before they were cut, where they were.
    whole: Option<usize>,
    /// What the pipeline warns that it left out.
    removed: Option<String>,
}

#[test]
fn every_text_becomes_the_ids_that_the_reference_gives() {
    let goldens: BTreeMap<String, Golden> = json("tokens.json");
    let mut faults = Faults::default();
    for (model, Golden { context, pad, rows }) in goldens {
        let tokenizer = ClipTokenizer::open(&repository(&model), "tokenizer").unwrap();
        assert_eq!(tokenizer.max_length(), Some(context), "{model}");
        for row in rows {
            let tokens = tokenizer.encode(&row.text, context).unwrap();
            let mut wanted = row.ids.clone();
            wanted.resize(context, pad);
            let text = &row.text;
            let ids = &tokens.ids;
            faults.check(*ids == wanted, format_args!("{model}, {text:?}:\n  {ids:?} instead of\n  {wanted:?}"));
            let seen = tokens.mask.iter().filter(|&&seen| seen == 1).count();
            faults.check(seen == row.ids.len(), format_args!("{model}, {text:?}: the mask shows {seen} ids"));
            let count = row.whole.unwrap_or(row.ids.len()) - 2;
            faults
                .check(tokens.count == count, format_args!("{model}, {text:?}: {} tokens, not {count}", tokens.count));
            let (found, wanted) = (&tokens.truncated, &row.removed);
            faults.check(found == wanted, format_args!("{model}, {text:?}: left out {found:?} instead of {wanted:?}"));
        }
    }
    faults.finish();
}
