//! Full-size models, without their weights: every network asks for exactly the tensors that the real one has.
//!
//! `tests/data/true_configs/MODEL/PART.json` is a published configuration, and `PART.keys` beside it lists the tensors of
//! the reference's class for it, which `scripts/true_configs.py` writes. A test here builds easel's network from the
//! configuration. Its weights have the listed shapes and no memory: all their values are one zero, and the plain forms
//! of the operations keep them as they are. So a model of any size is built in a moment.
//!
//! To add a configuration, put its JSON file there and run the script. A class that is new needs its line in
//! [`tests::NETWORKS`], too.

#[cfg(test)]
mod listing;
#[cfg(test)]
mod single_files;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use candle_core::{DType, Device};
    use easel_kernels::with_plain_forms;
    use easel_models::Result;
    use easel_models::autoencoders::{AutoencoderKl, AutoencoderKlConfig};
    use easel_models::denoisers::{
        Flux, Flux2, Flux2Config, FluxConfig, Sd3, Sd3Config, UNet, UNetConfig, ZImage, ZImageConfig,
    };
    use easel_models::text::{ClipText, ClipTextConfig, Qwen3, Qwen3Config, T5Config, T5Encoder};
    use easel_models::weights::Tensors;

    use crate::listing::{Listing, read};

    /// A network of a class of the reference.
    pub(crate) struct Network {
        class: &'static str,
        /// Builds it from its configuration.
        pub(crate) build: fn(&str, &Tensors) -> Result<()>,
        /// Ends of keys that the reference has and easel does not read, and why.
        unused: &'static [(&'static str, &'static str)],
    }

    /// Every class that has a configuration here, and how it is built.
    const NETWORKS: &[Network] = &[
        Network { class: "UNet2DConditionModel", build: unet, unused: &[] },
        Network { class: "AutoencoderKL", build: kl, unused: &[] },
        Network { class: "CLIPTextModel", build: clip, unused: &[] },
        Network { class: "CLIPTextModelWithProjection", build: clip, unused: &[] },
        Network { class: "FluxTransformer2DModel", build: flux, unused: &[] },
        Network { class: "SD3Transformer2DModel", build: sd3, unused: &[] },
        Network { class: "T5EncoderModel", build: t5, unused: &[] },
        Network {
            class: "AutoencoderKLFlux2",
            build: kl,
            unused: &[("bn.num_batches_tracked", "a count of training steps")],
        },
        Network { class: "Flux2Transformer2DModel", build: flux2, unused: &[] },
        Network { class: "ZImageTransformer2DModel", build: z_image, unused: &[] },
        Network { class: "Qwen3ForCausalLM", build: qwen3, unused: &[] },
    ];

    fn unet(json: &str, weights: &Tensors) -> Result<()> {
        UNet::new(&UNetConfig::from_json("config.json", json)?, weights).map(drop)
    }

    fn kl(json: &str, weights: &Tensors) -> Result<()> {
        AutoencoderKl::new(&AutoencoderKlConfig::from_json("config.json", json)?, weights).map(drop)
    }

    fn clip(json: &str, weights: &Tensors) -> Result<()> {
        let config: ClipTextConfig = serde_json::from_str(json).unwrap();
        config.check("config.json")?;
        ClipText::new(&config, weights).map(drop)
    }

    fn flux(json: &str, weights: &Tensors) -> Result<()> {
        Flux::new(&FluxConfig::from_json("config.json", json)?, weights).map(drop)
    }

    fn sd3(json: &str, weights: &Tensors) -> Result<()> {
        Sd3::new(&Sd3Config::from_json("config.json", json)?, weights).map(drop)
    }

    fn t5(json: &str, weights: &Tensors) -> Result<()> {
        let config: T5Config = serde_json::from_str(json).unwrap();
        config.check("config.json")?;
        T5Encoder::new(&config, weights).map(drop)
    }

    fn flux2(json: &str, weights: &Tensors) -> Result<()> {
        Flux2::new(&Flux2Config::from_json("config.json", json)?, weights).map(drop)
    }

    fn z_image(json: &str, weights: &Tensors) -> Result<()> {
        ZImage::new(&ZImageConfig::from_json("config.json", json)?, weights).map(drop)
    }

    fn qwen3(json: &str, weights: &Tensors) -> Result<()> {
        Qwen3::new(&Qwen3Config::from_json("config.json", json)?, weights).map(drop)
    }

    /// The configurations, in alphabetical order.
    fn configurations() -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/true_configs");
        let entries = |folder: &Path| -> Vec<PathBuf> {
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
        };
        let mut files: Vec<PathBuf> = entries(&folder).iter().flat_map(|model| entries(model)).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
        files.sort();
        files
    }

    /// The network of a configuration; its class where there is none.
    pub(crate) fn network(json: &str) -> std::result::Result<&'static Network, String> {
        let config: serde_json::Value = serde_json::from_str(json).unwrap();
        let class = config["_class_name"].as_str().or(config["architectures"][0].as_str()).unwrap();
        NETWORKS.iter().find(|network| network.class == class).ok_or_else(|| class.to_owned())
    }

    /// What is wrong with the network of this configuration.
    fn fault(file: &Path) -> Option<String> {
        let json = fs::read_to_string(file).unwrap();
        let network = match network(&json) {
            Ok(network) => network,
            Err(class) => return Some(format!("{class} is not in NETWORKS")),
        };
        let listing = Arc::new(Listing::new(read(&file.with_extension("keys"))));
        let weights = Tensors::new(listing.clone(), DType::F32, &Device::Cpu);
        if let Err(error) = with_plain_forms(|| (network.build)(&json, &weights)) {
            return Some(error.to_string());
        }
        let mut left = listing.left();
        left.retain(|key| !network.unused.iter().any(|(end, _)| key.ends_with(end)));
        (!left.is_empty()).then(|| format!("{} tensors are not read: {}", left.len(), left.join(", ")))
    }

    #[test]
    fn every_network_asks_for_exactly_the_tensors_of_the_reference_at_full_size() {
        let files = configurations();
        assert!(files.len() > 10, "{} configurations", files.len());
        let faults: Vec<String> =
            files.iter().filter_map(|file| Some(format!("{}: {}", file.display(), fault(file)?))).collect();
        assert!(faults.is_empty(), "\n{}", faults.join("\n"));
        // Their weights would take tens of gigabytes. The process has other tests, too, which take some memory.
        #[cfg(target_os = "linux")]
        {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
            let mib = peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10;
            println!("{} networks were built in {mib} MiB", files.len());
            assert!(mib < 1024, "{mib} MiB: the weights were copied");
        }
    }

    #[test]
    fn a_wrong_shape_and_a_key_that_nothing_reads_are_found() {
        let file = configurations().into_iter().find(|file| file.ends_with("sd15/text_encoder.json")).unwrap();
        let json = fs::read_to_string(&file).unwrap();
        let built = |change: fn(&mut BTreeMap<String, Vec<usize>>)| {
            let mut shapes = read(&file.with_extension("keys"));
            change(&mut shapes);
            let listing = Arc::new(Listing::new(shapes));
            let weights = Tensors::new(listing.clone(), DType::F32, &Device::Cpu);
            with_plain_forms(|| clip(&json, &weights)).map(|()| listing.left()).map_err(|error| error.to_string())
        };
        assert_eq!(built(|_| {}), Ok(Vec::new()));
        assert_eq!(built(|shapes| drop(shapes.insert("other".to_owned(), vec![1]))), Ok(vec!["other".to_owned()]));
        let key = "text_model.encoder.layers.7.mlp.fc1.weight";
        let wrong = built(|shapes| shapes.get_mut("text_model.encoder.layers.7.mlp.fc1.weight").unwrap()[1] += 1);
        assert_eq!(wrong, Err(format!("the list: {key} has shape [3072, 769]; [3072, 768] is expected")));
    }
}
