//! cuDNN plans convolutions for a GPU that is not there, so that what is asked of it can be tested anywhere with cuDNN.

use super::*;
use crate::Padding;

/// An H200, as cuDNN describes GPUs.
const H200: &str = r#"{"cudaDeviceId":0,"deviceVer":900,"driverVer":13000,"isTccDriver":0,"l2CacheSize":62914560,
    "maxBlockSize":[1024,1024,64],"maxCtasPerSM":32,"maxGridSize":[2147483647,65535,65535],"maxRegistersPerSM":65536,
    "maxSharedMemoryPerBlock":49152,"maxSharedMemoryPerBlockOptin":232448,"maxThreadsPerBlock":1024,
    "maxThreadsPerSM":2048,"memClockRateKHz":3201000,"multiProcessorCount":132,"oversizedSharedMemoryPerBlock":232448,
    "pciDeviceId":0,"regsPerBlock":65536,"reservedSharedMemoryPerBlock":1024,"smClockRateKHz":1980000,
    "supportCoopLaunch":1,"totalGlobalMem":150754820096,"warpSize":32,"deviceName":"NVIDIA H200"}"#;

fn h200() -> Result<Target> {
    let json: Vec<u8> = H200.bytes().filter(|byte| *byte != b'\n').chain([0]).collect();
    let properties = Descriptor::new(Kind::CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR)?
        .set(Name::CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, &json)?
        .finalize()?;
    Ok(Target::Described(properties))
}

/// Convolutions of a UNet and of an autoencoder, and awkward ones.
fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        for (side, window, channels, stride, padding) in [
            (64, 3, (320, 320), 1, Padding::same(1)),
            (64, 3, (4, 320), 1, Padding::same(1)),
            (64, 3, (320, 4), 1, Padding::same(1)),
            (64, 3, (320, 320), 2, Padding::same(1)),
            (8, 3, (2560, 1280), 1, Padding::same(1)),
            (128, 3, (128, 128), 2, Padding { top: 0, left: 0, bottom: 1, right: 1 }),
            (512, 3, (128, 3), 1, Padding::same(1)),
            (7, 3, (37, 21), 1, Padding::same(1)),
            (64, 2, (16, 64), 2, Padding::default()),
        ] {
            let config = Conv2dConfig { stride, padding };
            let output = config.output_size((side, side), (window, window)).unwrap();
            let (image, window) = ((side, side), (window, window));
            shapes.extend([false, true].map(|bias| Shape {
                image,
                window,
                channels,
                output,
                stride,
                padding,
                dtype,
                bias,
            }));
        }
    }
    shapes
}

#[test]
fn every_convolution_has_an_engine_that_serves_any_number_of_rows() -> Result<()> {
    if !super::super::library::has_cudnn_alone() {
        eprintln!("skipped: there is no cuDNN here (EASEL_CUDA_LIBRARIES can name its folder)");
        return Ok(());
    }
    let target = h200()?;
    for shape in shapes() {
        let choice = shape.choose(&target)?;
        for rows in [1, 2, 3, 8, 16] {
            let plan = shape.plan(&choice, rows, &target);
            assert!(plan.is_ok(), "{rows} rows of {shape:?} by {choice:?}: {plan:?}");
        }
    }
    Ok(())
}
