//! A model on several ranks is the model on one: gradients and parameters agree, whatever the buckets.

mod ranks;

use candle_core::{DType, Device, Result as CandleResult, Tensor, Var};
use candle_nn::{Module, VarBuilder};
use ranks::ranks;
use ringtree::Communicator;
use ringtree_trainer::{Batch, DataParallel, Error, ExchangeSettings, Model};

/// Two layers with tied weights in between, a layer without a bias, and one that is not always used.
struct Net {
    first: candle_nn::Linear,
    tied: Tensor,
    last: candle_nn::Linear,
    seldom: Tensor,
}

impl Net {
    fn new(vb: VarBuilder<'static>) -> CandleResult<Net> {
        let init = candle_nn::init::DEFAULT_KAIMING_NORMAL;
        Ok(Net {
            first: candle_nn::linear(6, 8, vb.pp("first"))?,
            tied: vb.get_with_hints((8, 8), "tied", init)?,
            last: candle_nn::linear_no_bias(8, 3, vb.pp("last"))?,
            seldom: vb.get_with_hints(8, "seldom", init)?,
        })
    }

    fn logits_with(&self, input: &Tensor, uses_all: bool) -> CandleResult<Tensor> {
        let mut hidden = self.first.forward(input)?.tanh()?;
        hidden = hidden.matmul(&self.tied.t()?)?.tanh()?.matmul(&self.tied)?;
        if uses_all {
            hidden = hidden.broadcast_add(&self.seldom)?;
        }
        self.last.forward(&hidden)
    }
}

impl Model for Net {
    fn logits(&self, input: &Tensor) -> CandleResult<Tensor> {
        self.logits_with(input, true)
    }
}

/// Samples `range` of a data set without end.
fn batch(range: std::ops::Range<usize>) -> Batch {
    let values: Vec<f64> = range
        .clone()
        .flat_map(|sample| (0..6).map(move |at| ((sample * 7 + at * 3) as f64).sin()))
        .collect();
    let classes: Vec<u32> = range.clone().map(|sample| (sample * 5 % 3) as u32).collect();
    Batch {
        input: Tensor::from_vec(values, (range.len(), 6), &Device::Cpu).unwrap(),
        target: Tensor::from_vec(classes, range.len(), &Device::Cpu).unwrap(),
    }
}

fn settings(bucket_bytes: usize, sharded: bool) -> ExchangeSettings {
    ExchangeSettings { bucket_bytes, first_bucket_bytes: 1, sharded, ..Default::default() }
}

fn wrap(communicator: &Communicator, settings: ExchangeSettings) -> DataParallel<Net, f64> {
    DataParallel::new(communicator, 3, settings, Net::new).unwrap()
}

fn descend(model: &mut DataParallel<Net, f64>) {
    let change = |parameters: &mut [f64], gradients: &[f64]| {
        parameters.iter_mut().zip(gradients).for_each(|(value, gradient)| *value -= 0.3 * gradient);
    };
    model.update(|_, parameters, gradients| change(parameters, gradients)).unwrap();
}

fn values(model: &DataParallel<Net, f64>) -> Vec<f64> {
    let read = |parameter: &ringtree_trainer::Parameter| {
        parameter.read(|values: &[f64]| values.to_vec()).unwrap()
    };
    model.parameters().iter().flat_map(read).collect()
}

/// All parameters after some steps, of `samples` each, which one rank or several share.
fn train(count: u32, samples: usize, settings: &ExchangeSettings) -> Vec<f64> {
    let mut ended = ranks(count, |communicator| {
        let (rank, ranks) = (communicator.rank() as usize, communicator.ranks() as usize);
        let mut model = wrap(&communicator, settings.clone());
        for step in 0..8 {
            let first = step * samples;
            // As evenly as possible; some may get none.
            let own = first + samples * rank / ranks..first + samples * (rank + 1) / ranks;
            if !own.is_empty() {
                let share = own.len() as f64 / samples as f64;
                let loss = model.model().loss(&batch(own)).unwrap();
                model.backward(&loss, share).unwrap();
            }
            model.finish().unwrap();
            model.gradient_norm().unwrap();
            descend(&mut model);
            model.check_equal().unwrap();
        }
        values(&model)
    });
    ended.pop().unwrap()
}

fn assert_near(left: &[f64], right: &[f64], tolerance: f64, what: &str) {
    assert_eq!(left.len(), right.len());
    for (at, (left, right)) in left.iter().zip(right).enumerate() {
        let near = (left - right).abs() <= tolerance * (1.0 + left.abs());
        assert!(near, "{what}: number {at} is {left} and {right}");
    }
}

#[test]
fn several_ranks_do_what_one_does() {
    let alone = train(1, 12, &settings(1 << 20, false));
    for count in [2, 3, 4] {
        for (bucket_bytes, sharded) in [(1, false), (300, true), (1 << 20, false), (1 << 20, true)]
        {
            let together = train(count, 12, &settings(bucket_bytes, sharded));
            let what = format!("{count} ranks, {bucket_bytes}, sharded: {sharded}");
            assert_near(&alone, &together, 1e-12, &what);
        }
    }
}

#[test]
fn ranks_without_samples_do_not_hold_up_the_others() {
    let alone = train(1, 2, &settings(1, false));
    assert_near(&alone, &train(4, 2, &settings(1, false)), 1e-12, "2 samples for 4 ranks");
    assert_near(&alone, &train(3, 2, &settings(200, true)), 1e-12, "2 samples for 3 ranks");
}

#[test]
fn micro_batches_add_up_without_an_exchange() {
    let gradients = |parts: &[std::ops::Range<usize>]| {
        let communicator = Communicator::in_process(1).unwrap().remove(0);
        let mut model = wrap(&communicator, settings(1, false));
        let (last, before) = parts.split_last().unwrap();
        for part in before {
            let loss = model.model().loss(&batch(part.clone())).unwrap();
            model.accumulate(&loss, part.len() as f64 / 10.0).unwrap();
        }
        let loss = model.model().loss(&batch(last.clone())).unwrap();
        model.backward(&loss, last.len() as f64 / 10.0).unwrap();
        assert_eq!(model.finish().unwrap().buckets.len(), 5, "each bucket travels once a step");
        let mut all = Vec::new();
        model.update(|_, _, gradients| all.extend_from_slice(gradients)).unwrap();
        all
    };
    let whole = gradients(&[0..10]);
    assert!(whole.iter().filter(|gradient| **gradient != 0.0).count() > 100);
    assert_near(&whole, &gradients(&[0..4, 4..5, 5..10]), 1e-12, "three parts");
}

#[test]
fn a_parameter_without_a_gradient_on_some_ranks_gets_the_average() {
    let steps = |count: u32| {
        ranks(count, |communicator| {
            let rank = communicator.rank() as usize;
            let mut model = wrap(&communicator, settings(1, false));
            for step in 0..3 {
                let parts = if count == 1 { vec![0, 1] } else { vec![rank] };
                for (number, part) in parts.iter().enumerate() {
                    let batch = batch(step * 4 + part * 2..step * 4 + part * 2 + 2);
                    // Part 1 does not use one of the parameters.
                    let logits = model.model().logits_with(&batch.input, *part == 0).unwrap();
                    let loss = candle_nn::loss::cross_entropy(&logits, &batch.target).unwrap();
                    match number + 1 == parts.len() {
                        true => model.backward(&loss, 0.5).unwrap(),
                        false => model.accumulate(&loss, 0.5).unwrap(),
                    }
                }
                model.finish().unwrap();
                descend(&mut model);
                model.check_equal().unwrap();
            }
            values(&model)
        })
    };
    assert_near(&steps(1)[0], &steps(2)[0], 1e-12, "a parameter that is seldom used");
}

#[test]
fn different_models_and_different_parameters_are_noticed() {
    let errors = ranks(3, |communicator| {
        let inputs = if communicator.rank() == 2 { 7 } else { 6 };
        DataParallel::<_, f32>::new(&communicator, 0, ExchangeSettings::default(), |vb| {
            candle_nn::linear(inputs, 2, vb)
        })
        .map(|_| ())
    });
    for error in errors {
        let text = error.unwrap_err().to_string();
        assert!(text.starts_with("rank 2 has built another model than rank 0"), "{text}");
    }
    ranks(2, |communicator| {
        let model = wrap(&communicator, ExchangeSettings::default());
        model.check_equal().unwrap();
        if communicator.rank() == 1 {
            model.parameters()[0].write(|values: &mut [f64]| values[3] += 1e-15).unwrap();
        }
        let error = model.check_equal().unwrap_err();
        assert!(matches!(&error, Error::Argument(text) if text.starts_with("rank 1 ")), "{error}");
        model.share_parameters().unwrap();
    });
}

#[test]
fn buffers_are_averaged() {
    ranks(3, |communicator| {
        let model = wrap(&communicator, ExchangeSettings::default());
        let rank = f64::from(communicator.rank());
        let values = Tensor::new(&[[rank, 1.0], [2.0 * rank, -rank]], &Device::Cpu).unwrap();
        let buffer = Var::from_tensor(&values).unwrap();
        model.average_buffers(&[("running_mean".to_owned(), buffer.clone())]).unwrap();
        assert_eq!(buffer.to_vec2::<f64>().unwrap(), [[1.0, 1.0], [2.0, -1.0]]);
    });
}

#[test]
fn tied_names_are_one_parameter_and_types_must_fit() {
    let communicator = Communicator::in_process(1).unwrap().remove(0);
    let build = |dtype: DType| {
        DataParallel::<_, f32>::new(&communicator, 0, ExchangeSettings::default(), move |vb| {
            let first = vb.get((2, 3), "one")?;
            let again = vb.get((2, 3), "one")?;
            assert_eq!(first.id(), again.id());
            assert!(vb.get((3, 2), "one").is_err(), "another shape");
            vb.to_dtype(dtype).get(4, "other")
        })
    };
    assert_eq!(build(DType::F32).unwrap().parameters().len(), 2);
    assert!(build(DType::F64).is_err());
}
