//! How the learning rate changes over a training.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The learning rate of each step, as a multiple of the highest. It rises on a line over the steps of the warm-up,
/// whose last has the highest; from there it goes to the final fraction, which the last step of all has.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Schedule {
    /// It stays the highest.
    Constant {
        /// The steps of the warm-up.
        #[serde(default)]
        warm_up_steps: u64,
    },
    /// It falls on half a cosine (Loshchilov and Hutter, arXiv 1608.03983, without restarts).
    Cosine {
        /// The steps of the warm-up.
        #[serde(default)]
        warm_up_steps: u64,
        /// What is left at the end, 0 to 1.
        #[serde(default)]
        final_fraction: f64,
    },
    /// It falls on a line.
    Linear {
        /// The steps of the warm-up.
        #[serde(default)]
        warm_up_steps: u64,
        /// What is left at the end, 0 to 1.
        #[serde(default)]
        final_fraction: f64,
    },
}

impl Schedule {
    /// What the highest learning rate is multiplied by in a step, counted from 1, of so many steps. Later steps have
    /// what the last one has.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        let (warm_up_steps, final_fraction) = self.settings();
        if step < warm_up_steps {
            return step as f64 / warm_up_steps as f64;
        }
        // A warm-up as long as the training, or longer, leaves nothing to fall over.
        let falling_steps = steps.saturating_sub(warm_up_steps).max(1);
        let fallen = ((step - warm_up_steps) as f64 / falling_steps as f64).min(1.0);
        let left = match self {
            Schedule::Constant { .. } => 1.0,
            // Not `f64::cos`, which is the C library's: ranks on different machines must step alike.
            Schedule::Cosine { .. } => 0.5 * (1.0 + libm::cos(PI * fallen)),
            Schedule::Linear { .. } => 1.0 - fallen,
        };
        final_fraction + (1.0 - final_fraction) * left
    }

    /// Refuses a final fraction that is none.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] says what it may be.
    pub fn check(&self) -> Result<()> {
        let (_, final_fraction) = self.settings();
        if (0.0..=1.0).contains(&final_fraction) {
            return Ok(());
        }
        let what = format!("final_fraction is {final_fraction}; it must be between 0 and 1");
        Err(Error::Argument(what))
    }

    /// The steps of the warm-up, and the final fraction.
    fn settings(&self) -> (u64, f64) {
        match *self {
            Schedule::Constant { warm_up_steps } => (warm_up_steps, 1.0),
            Schedule::Cosine { warm_up_steps, final_fraction }
            | Schedule::Linear { warm_up_steps, final_fraction } => (warm_up_steps, final_fraction),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_factors(schedule: Schedule, steps: u64, expected: &[(u64, f64)]) {
        for &(step, factor) in expected {
            let found = schedule.factor(step, steps);
            assert!((found - factor).abs() < 1e-15, "step {step}: {found}, not {factor}");
        }
    }

    #[test]
    fn constant_warms_up_and_stays() {
        let schedule = Schedule::Constant { warm_up_steps: 4 };
        let expected = [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0), (5, 1.0), (100, 1.0), (900, 1.0)];
        assert_factors(schedule, 100, &expected);
        assert_factors(Schedule::Constant { warm_up_steps: 0 }, 100, &[(1, 1.0), (100, 1.0)]);
    }

    #[test]
    fn cosine_passes_its_closed_values() {
        let schedule = Schedule::Cosine { warm_up_steps: 20, final_fraction: 0.1 };
        let half_root = 0.5 * (1.0 + 0.5_f64.sqrt());
        let expected = [
            (10, 0.5),
            (20, 1.0),
            (40, 0.1 + 0.9 * half_root),
            (60, 0.55),
            (80, 0.1 + 0.9 * (1.0 - half_root)),
            (100, 0.1),
            (101, 0.1),
        ];
        assert_factors(schedule, 100, &expected);
    }

    #[test]
    fn linear_passes_its_closed_values() {
        let schedule = Schedule::Linear { warm_up_steps: 0, final_fraction: 0.0 };
        assert_factors(schedule, 10, &[(1, 0.9), (5, 0.5), (9, 0.1), (10, 0.0), (11, 0.0)]);
        let schedule = Schedule::Linear { warm_up_steps: 2, final_fraction: 0.5 };
        assert_factors(schedule, 10, &[(1, 0.5), (2, 1.0), (6, 0.75), (10, 0.5)]);
    }

    #[test]
    fn a_warm_up_may_be_longer_than_the_training() {
        for schedule in [
            Schedule::Constant { warm_up_steps: 10 },
            Schedule::Cosine { warm_up_steps: 10, final_fraction: 0.0 },
            Schedule::Linear { warm_up_steps: 10, final_fraction: 0.0 },
        ] {
            assert_factors(schedule, 5, &[(1, 0.1), (5, 0.5)]);
            assert_factors(schedule, 10, &[(9, 0.9), (10, 1.0)]);
        }
    }

    #[test]
    fn a_final_fraction_is_one() {
        for fraction in [-0.1, 1.1, f64::NAN] {
            let cosine = Schedule::Cosine { warm_up_steps: 0, final_fraction: fraction };
            let error = cosine.check().expect_err("no fraction").to_string();
            assert!(error.contains("between 0 and 1"), "{error}");
        }
        assert!(Schedule::Linear { warm_up_steps: 0, final_fraction: 1.0 }.check().is_ok());
    }

    #[test]
    fn a_settings_file_names_them() {
        let text = r#"{"kind": "cosine", "warm_up_steps": 100}"#;
        let schedule: Schedule = serde_json::from_str(text).expect("a schedule");
        assert_eq!(schedule, Schedule::Cosine { warm_up_steps: 100, final_fraction: 0.0 });
        assert!(serde_json::from_str::<Schedule>(r#"{"kind": "linear", "x": 1}"#).is_err());
    }
}
