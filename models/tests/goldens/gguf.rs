//! Models whose transformers and T5 are GGUF files.

use std::fs;

use easel_models::families::{Placement, open};
use easel_models::weights::Repository;

use crate::cases::Cases;
use crate::common::data;
use crate::folders::copy;

/// The committed cases, or those that `scripts/goldens_gguf.py --random` made in the folder that `EASEL_GGUF` names.
fn cases() -> Cases {
    match std::env::var_os("EASEL_GGUF") {
        Some(folder) => Cases::read(folder),
        None => Cases::read(data("gguf")),
    }
}

#[test]
fn the_pictures_of_gguf_files_are_diffusers() {
    cases().compare();
}

#[test]
fn a_gguf_file_beside_the_files_of_comfyui_draws_the_same_picture() {
    let cases = cases();
    let case = cases.cases.iter().find(|case| case.file == "flux-00.png").unwrap();
    let folder = tempfile::tempdir().unwrap();
    // The transformer is the model, T5 is beside it, and the rest in a folder of its name, T5's configuration included.
    let (own, file) = (folder.path().join("flux1-tiny"), folder.path().join("flux1-tiny.gguf"));
    copy(&data("gguf/flux"), &own);
    fs::rename(own.join("transformer/flux1-tiny-Q4_K_S.gguf"), &file).unwrap();
    let t5 = "t5-v1_1-xxl-encoder-Q4_K_S.gguf";
    fs::rename(own.join("text_encoder_2").join(t5), folder.path().join(t5)).unwrap();
    let pipeline = open(&Repository::open_file(&file).unwrap(), &Placement::CPU, "flux1-tiny").unwrap();
    let psnr = cases.psnr(case, &cases.picture(case, pipeline.as_ref()).0);
    assert!(psnr >= 60.0, "PSNR {psnr:.1} dB");
}
