//! The gradient of every parameter of every model against finite differences.
//!
//! Some layers of candle have no backward, or a wrong one, and say nothing: only this shows it.

mod common;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use common::{random_values, randomise};
use ringtree_trainer::data::{Facts, Input};
use ringtree_trainer::models::{
    Activation, CnnSettings, GptSettings, MlpSettings, ModelSettings, build,
};
use ringtree_trainer::{Batch, Model};

/// How far a parameter is moved. The error of central differences grows with its square, that of rounding shrinks.
const MOVE: f64 = 1e-5;

/// How far gradient and difference may lie apart, relative to the largest gradient of the parameter's tensor.
const TOLERANCE: f64 = 1e-6;

fn loss(model: &dyn Model, batch: &Batch) -> f64 {
    model.loss(batch).and_then(|loss| loss.to_scalar()).expect("a loss")
}

/// What central differences make of a tensor's gradient.
fn differences(var: &Var, model: &dyn Model, batch: &Batch) -> Vec<f64> {
    let start: Vec<f64> = var.flatten_all().and_then(|v| v.to_vec1()).expect("numbers");
    let loss_at = |index: usize, value: f64| {
        let mut values = start.clone();
        values[index] = value;
        set(var, values);
        loss(model, batch)
    };
    let difference = |index: usize| {
        let (up, down) = (start[index] + MOVE, start[index] - MOVE);
        (loss_at(index, up) - loss_at(index, down)) / (up - down)
    };
    let differences = (0..start.len()).map(difference).collect();
    set(var, start);
    differences
}

fn set(var: &Var, values: Vec<f64>) {
    let tensor = Tensor::from_vec(values, var.shape(), &Device::Cpu).expect("as many values");
    var.set(&tensor).expect("the same shape");
}

fn check(model: &dyn Model, parameters: &BTreeMap<String, Var>, batch: &Batch) {
    let gradients = model.loss(batch).and_then(|loss| loss.backward()).expect("a backward pass");
    for (name, var) in parameters {
        let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
        let gradient: Vec<f64> = gradient.flatten_all().and_then(|g| g.to_vec1()).expect("numbers");
        let largest = gradient.iter().fold(0f64, |largest, g| largest.max(g.abs()));
        assert!(largest > 1e-4, "{name} has a gradient of zero");
        for (index, difference) in differences(var, model, batch).into_iter().enumerate() {
            let apart = (gradient[index] - difference).abs() / largest;
            let gradient = gradient[index];
            assert!(apart < TOLERANCE, "{name}[{index}]: {gradient} and {difference}");
        }
    }
}

fn check_model(settings: ModelSettings, facts: Facts, batch: Batch, parameters: usize) {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
    let model = build(&settings, vb, &facts).expect("a model");
    let vars = randomise(&map, 0.5);
    assert_eq!(vars.len(), parameters, "{:?}", vars.keys());
    check(&*model, &vars, &batch);
}

fn image_batch(channels: usize, height: usize, width: usize, classes: &[u32]) -> Batch {
    let shape = (classes.len(), channels, height, width);
    let pixels = random_values("pixels", shape.0 * channels * height * width, 1.);
    Batch {
        input: Tensor::from_vec(pixels, shape, &Device::Cpu).expect("an input"),
        target: Tensor::new(classes, &Device::Cpu).expect("a target"),
    }
}

#[test]
fn mlp() {
    for activation in [Activation::Relu, Activation::Gelu] {
        let settings = ModelSettings::Mlp(MlpSettings { hidden: vec![7, 5], activation });
        let input = Input::Image { channels: 1, height: 2, width: 3 };
        let batch = image_batch(1, 2, 3, &[2, 0, 1, 2]);
        check_model(settings, Facts { input, classes: 3 }, batch, 6);
    }
}

#[test]
fn cnn() {
    // Odd sizes, too, of which the last row and column are left out.
    for (height, width) in [(8, 8), (5, 7)] {
        let settings = ModelSettings::Cnn(CnnSettings { channels: [3, 4] });
        let input = Input::Image { channels: 2, height, width };
        let batch = image_batch(2, height, width, &[2, 0]);
        check_model(settings, Facts { input, classes: 3 }, batch, 6);
    }
}

#[test]
fn gpt() {
    let settings = ModelSettings::Gpt(GptSettings { layers: 2, heads: 2, width: 8 });
    // Samples shorter than the model's block, as a prompt is.
    let tokens = |tokens: [[u32; 4]; 2]| Tensor::new(&tokens, &Device::Cpu).expect("tokens");
    let batch = Batch {
        input: tokens([[0, 3, 2, 3], [4, 1, 1, 0]]),
        target: tokens([[3, 2, 3, 4], [1, 1, 0, 2]]),
    };
    let facts = Facts { input: Input::Tokens { block: 5 }, classes: 5 };
    check_model(settings, facts, batch, 2 + 2 * 12 + 2);
}
