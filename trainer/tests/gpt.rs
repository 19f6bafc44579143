//! The GPT computes what PyTorch's does, and looks at no later token.

mod common;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use common::randomise;
use ringtree_trainer::models::{Gpt, GptSettings};
use ringtree_trainer::{Batch, Model};

/// What `tests/data/nanogpt.py` has recorded.
fn recorded() -> HashMap<String, Tensor> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nanogpt.safetensors");
    candle_core::safetensors::load(file, &Device::Cpu).expect("a recorded model")
}

/// The largest difference of two tensors' values.
fn apart(one: &Tensor, other: &Tensor) -> f64 {
    assert_eq!(one.dims(), other.dims());
    let difference = (one - other).and_then(|d| d.abs()).and_then(|d| d.flatten_all());
    let values: Vec<f64> = difference.and_then(|d| d.to_vec1()).expect("numbers");
    assert!(values.iter().all(|value| value.is_finite()));
    values.into_iter().fold(0., f64::max)
}

#[test]
fn its_logits_loss_and_gradient_are_those_of_pytorch() {
    let recorded = recorded();
    let embedding = "transformer.wte.weight";
    let var = recorded[embedding].to_dtype(DType::F64).and_then(|t| Var::from_tensor(&t));
    let var = var.expect("a parameter");
    let mut parameters = recorded.clone();
    parameters.insert(embedding.into(), var.as_tensor().clone());
    let vb = VarBuilder::from_tensors(parameters, DType::F64, &Device::Cpu);
    let settings = GptSettings { layers: 2, heads: 2, width: 16 };
    let gpt = Gpt::new(&settings, 8, 11, vb).expect("names and shapes are PyTorch's");

    let batch = Batch { input: recorded["tokens"].clone(), target: recorded["target"].clone() };
    let logits = gpt.logits(&batch.input).expect("logits");
    assert!(apart(&logits, &recorded["logits"]) < 1e-12);
    let loss = gpt.loss(&batch).expect("a loss");
    assert!(apart(&loss, &recorded["loss"]) < 1e-12);
    let gradients = loss.backward().expect("a backward pass");
    let gradient = gradients.get(&var).expect("a gradient");
    assert!(apart(gradient, &recorded["embedding gradient"]) < 1e-12);
}

#[test]
fn a_later_token_changes_no_earlier_logits() {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
    let settings = GptSettings { layers: 2, heads: 2, width: 8 };
    let gpt = Gpt::new(&settings, 6, 5, vb).expect("a model");
    randomise(&map, 0.5);
    let logits = |tokens: [u32; 6]| -> Vec<Vec<f64>> {
        let tokens = Tensor::new(&[tokens], &Device::Cpu).expect("tokens");
        gpt.logits(&tokens).and_then(|logits| logits.to_vec2()).expect("logits")
    };
    let before = logits([0, 1, 2, 3, 4, 0]);
    for place in 0..6 {
        let mut tokens = [0, 1, 2, 3, 4, 0];
        tokens[place] += 1;
        tokens[place] %= 5;
        let after = logits(tokens);
        assert_eq!(before[..place], after[..place], "token {place} looks back");
        assert_ne!(before[place..], after[place..], "token {place} is not seen");
    }
}
