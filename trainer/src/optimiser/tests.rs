//! Values against PyTorch's, and bits that do not depend on how the range is cut.

use super::*;

const ELEMENTS: usize = 5;
const STEPS: u64 = 5;

/// Where every run of this file's reference values begins.
const BEGIN: [f64; ELEMENTS] = [0.5, -1.25, 3.0, 0.0, 1e-3];

/// What PyTorch 2.15.0 has in double precision after five steps from [`BEGIN`] with the gradients of [`gradient`]:
/// `torch.optim.SGD([p], lr=..., ...)` or `torch.optim.AdamW([p], lr=..., ...)`, the parameters and the state.
struct Reference {
    optimiser: Optimiser,
    learning_rate: f64,
    parameters: [f64; ELEMENTS],
    state: &'static [(StateKind, [f64; ELEMENTS])],
}

const REFERENCES: [Reference; 5] = [
    Reference {
        optimiser: Optimiser::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.01 },
        learning_rate: 0.1,
        parameters: [
            0.5474801198275495,
            -1.243413012081374,
            2.9352046202149724,
            0.17472537470007501,
            -0.14890526471009502,
        ],
        state: &[],
    },
    Reference {
        optimiser: Optimiser::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.01 },
        learning_rate: 0.1,
        parameters: [
            0.5558710953193495,
            -1.5035282920608741,
            2.783809597335772,
            0.39025564643007504,
            -0.21610481345975144,
        ],
        state: &[(
            StateKind::Momentum,
            [
                -0.46444923718849507,
                -0.3595962444037625,
                0.47615380092228005,
                -1.5043246900507499,
                1.4219330838305242,
            ],
        )],
    },
    Reference {
        optimiser: Optimiser::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.01 },
        learning_rate: 0.1,
        parameters: [
            0.597592959680622,
            -1.470357400998206,
            2.7414883729878365,
            0.52500570593099,
            -0.3437936633236968,
        ],
        state: &[(
            StateKind::Momentum,
            [
                -0.464445127913908,
                -0.3618027227328554,
                0.4749477419906071,
                -1.502458919317974,
                1.4214604328728244,
            ],
        )],
    },
    Reference {
        optimiser: Optimiser::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 },
        learning_rate: 0.1,
        parameters: [
            0.6052345828685219,
            -1.4065966285478335,
            2.786305615195892,
            0.24566302612424096,
            -0.12518267999713076,
        ],
        state: &[
            (
                StateKind::FirstMoment,
                [
                    -0.048580000000000005,
                    -0.030162499999999988,
                    0.03580249999999999,
                    -0.15095749999999997,
                    0.14245999999999995,
                ],
            ),
            (
                StateKind::SecondMoment,
                [
                    0.002370815186437752,
                    0.004241511055689066,
                    0.002369691873750064,
                    0.002932566435250565,
                    0.003867634057501003,
                ],
            ),
        ],
    },
    Reference {
        optimiser: Optimiser::AdamW { beta1: 0.8, beta2: 0.95, epsilon: 1e-6, weight_decay: 0.1 },
        learning_rate: 0.01,
        parameters: [
            0.5076051778895476,
            -1.2582029420329253,
            2.9663649558351937,
            0.02381284845929619,
            -0.011264234674049432,
        ],
        state: &[
            (
                StateKind::FirstMoment,
                [
                    -0.09735999999999997,
                    -0.10439999999999995,
                    0.05487999999999998,
                    -0.26543999999999995,
                    0.27751999999999993,
                ],
            ),
            (
                StateKind::SecondMoment,
                [
                    0.10861062500000009,
                    0.19259072265625016,
                    0.10600783203125008,
                    0.1350095507812501,
                    0.17641437500000012,
                ],
            ),
        ],
    },
];

/// The gradient of an element at a step: multiples of a quarter, which every type has exactly.
fn gradient(element: usize, step: u64) -> f64 {
    ((7 * element + 3 * step as usize) % 11) as f64 / 4.0 - 1.25
}

fn at(number: u64, learning_rate: f64) -> Step {
    Step { number, learning_rate, gradient_scale: 1.0 }
}

#[track_caller]
fn assert_near<T: Real>(found: &[T], expected: &[f64], tolerance: f64, what: &str) {
    for (found, expected) in found.iter().zip(expected) {
        let error = (found.to_f64() - expected).abs() / expected.abs().max(1.0);
        assert!(error <= tolerance, "{what}: {found}, not {expected}");
    }
}

/// After all steps with gradients that are `1 / gradient_scale` of those of the reference.
fn run<T: Real>(reference: &Reference, gradient_scale: f64) -> (Vec<T>, OptimiserState<T>) {
    let mut parameters: Vec<T> = BEGIN.iter().map(|value| T::from_f64(*value)).collect();
    let mut state = OptimiserState::new(reference.optimiser, ELEMENTS);
    for step in 1..=STEPS {
        let scaled = |element| T::from_f64(gradient(element, step) / gradient_scale);
        let gradients: Vec<T> = (0..ELEMENTS).map(scaled).collect();
        let at = Step { gradient_scale, ..at(step, reference.learning_rate) };
        state.update(at, true, 0..ELEMENTS, &mut parameters, &gradients);
    }
    (parameters, state)
}

fn assert_is_pytorchs<T: Real>(tolerance: f64) {
    for reference in &REFERENCES {
        for gradient_scale in [1.0, 0.5] {
            let what = format!("{:?}, gradients times {gradient_scale}", reference.optimiser);
            let (parameters, state) = run::<T>(reference, gradient_scale);
            assert_near(&parameters, &reference.parameters, tolerance, &what);
            for (kind, values) in reference.state {
                let array = state.array(*kind).expect("an array of the kind");
                assert_near(array, values, tolerance, &format!("{what}: {kind}"));
            }
        }
    }
}

#[test]
fn steps_are_pytorchs_in_double_precision() {
    assert_is_pytorchs::<f64>(1e-14);
}

#[test]
fn steps_are_pytorchs_in_single_precision() {
    assert_is_pytorchs::<f32>(5e-7);
}

#[test]
fn parameters_without_decay_keep_their_size() {
    for reference in &REFERENCES {
        let mut parameters = [2.0_f64, 2.0];
        let mut state = OptimiserState::new(reference.optimiser, 2);
        for (element, decay) in [(0, false), (1, true)] {
            let parameter = &mut parameters[element..element + 1];
            state.update(at(1, 0.1), decay, element..element + 1, parameter, &[0.0]);
        }
        assert_eq!(parameters[0], 2.0, "{:?}", reference.optimiser);
        assert!(parameters[1] < 2.0, "{:?}", reference.optimiser);
    }
}

/// Whole, and in pieces of all lengths in another order: vector code and its remainders must round alike.
fn assert_same_bits_in_pieces<T: Real>() {
    const ELEMENTS: usize = 131;
    let value = |element: usize| T::from_f64((element as f64 * 0.7).sin());
    for reference in &REFERENCES {
        let mut whole: Vec<T> = (0..ELEMENTS).map(value).collect();
        let mut pieces = whole.clone();
        let mut state = OptimiserState::new(reference.optimiser, ELEMENTS);
        let mut pieces_state = state.clone();
        for step in 1..=3 {
            let at = Step { gradient_scale: 0.7, ..at(step, reference.learning_rate) };
            let gradients: Vec<T> = (1000..1000 + ELEMENTS).map(value).collect();
            state.update(at, true, 0..ELEMENTS, &mut whole, &gradients);
            let mut end = ELEMENTS;
            for length in (1..).take_while(|length| length * (length + 1) / 2 <= ELEMENTS + 10) {
                let range = end.saturating_sub(length)..end;
                let (parameters, gradients) =
                    (&mut pieces[range.clone()], &gradients[range.clone()]);
                end = range.start;
                pieces_state.update(at, true, range, parameters, gradients);
            }
            assert_eq!(end, 0, "all elements are stepped");
        }
        assert_eq!(T::to_bytes(&whole), T::to_bytes(&pieces), "{:?}", reference.optimiser);
        for kind in reference.optimiser.state_kinds() {
            assert_eq!(state.array(*kind), pieces_state.array(*kind), "{kind}");
        }
    }
}

#[test]
fn bits_do_not_depend_on_how_the_range_is_cut() {
    assert_same_bits_in_pieces::<f32>();
    assert_same_bits_in_pieces::<f64>();
}

#[test]
fn the_state_says_what_it_takes() {
    let bytes: Vec<usize> =
        REFERENCES.iter().map(|r| OptimiserState::<f32>::new(r.optimiser, 100).bytes()).collect();
    assert_eq!(bytes, [0, 400, 400, 800, 800]);
    let plain = OptimiserState::<f64>::new(REFERENCES[0].optimiser, 100);
    assert_eq!(plain.elements(), 100);
    assert!(StateKind::ALL.iter().all(|kind| plain.array(*kind).is_none()));
}

#[test]
fn a_settings_file_names_what_differs_from_pytorchs_defaults() {
    let optimiser: Optimiser =
        serde_json::from_str(r#"{"kind": "adamw", "beta2": 0.95}"#).expect("settings of AdamW");
    let expected = Optimiser::AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.01 };
    assert_eq!(optimiser, expected);
    let error = serde_json::from_str::<Optimiser>(r#"{"kind": "sgd", "beta2": 0.95}"#)
        .expect_err("SGD has no beta2");
    assert!(error.to_string().contains("beta2"), "{error}");
}

#[test]
fn settings_out_of_range_are_refused() {
    let sgd = |momentum, nesterov| Optimiser::Sgd { momentum, nesterov, weight_decay: 0.0 };
    let adamw = |beta1, epsilon| Optimiser::AdamW { beta1, beta2: 0.9, epsilon, weight_decay: 0.0 };
    let wrong = [
        (sgd(-0.1, false), "momentum"),
        (sgd(f64::NAN, false), "momentum"),
        (sgd(0.0, true), "nesterov"),
        (adamw(1.0, 1e-8), "beta1"),
        (adamw(0.9, f64::INFINITY), "epsilon"),
    ];
    for (optimiser, setting) in wrong {
        let error = optimiser.check().expect_err("a wrong setting").to_string();
        assert!(error.starts_with(setting), "{error}");
    }
    assert!(REFERENCES.iter().all(|reference| reference.optimiser.check().is_ok()));
}
