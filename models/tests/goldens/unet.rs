//! The UNet's predictions.

use candle_core::{DType, Device, Tensor};
use easel_models::denoisers::{Adapters, Context, Hooks, Residuals, UNet, UNetConfig};

use crate::common::{Faults, MANIFEST, MODULE_ERROR, relative_error, repository, tensors};

#[test]
fn the_unet_predicts_what_the_reference_does_with_a_timestep_for_each_row() {
    let mut faults = Faults::default();
    for model in MANIFEST.models.iter().map(|model| &model.name) {
        let golden = tensors(format_args!("modules/{model}.safetensors"));
        let (repository, file) = (repository(model), "unet/config.json");
        let config = UNetConfig::from_json(file, &repository.text(file).unwrap()).unwrap();
        let unet = UNet::new(&config, &repository.tensors("unet", DType::F32, &Device::Cpu).unwrap()).unwrap();
        let mut compare = |case: &str, hooks: &Hooks| {
            let get = |name: &str| &golden[&format!("unet.{case}.{name}")];
            let timesteps: Vec<f64> = get("t").to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect();
            let context = Context { states: get("states"), added: None, guidance: None };
            let condition = unet.condition(&context, &Adapters::default()).unwrap();
            let found = unet.forward(get("x"), &timesteps, &condition, hooks).unwrap();
            faults.error(format_args!("{model} unet.{case}"), relative_error(&found, get("y")), MODULE_ERROR);
        };
        compare("even", &Hooks::default());
        compare("odd", &Hooks::default());

        let channels_last = |tensor: &Tensor| tensor.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
        let down = (0..).map_while(|at| golden.get(&format!("unet.residuals.{at}"))).map(channels_last).collect();
        let residuals = Residuals { down, mid: channels_last(&golden["unet.residuals.mid"]) };
        compare("residuals", &Hooks { residuals: Some(residuals), ..Hooks::default() });
    }
    faults.finish();
}
