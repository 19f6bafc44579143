//! No form of an instruction without a case: every alternative at every place of every pattern must be
//! in the opcode of a case.

use std::collections::HashSet;

use super::{Case, control, floats, integers, memory};
use crate::ptx::forms::{self, FORMS};

#[test]
fn every_alternative_of_every_form_has_a_case() {
    let cases: Vec<Case> = [integers::cases(), floats::cases(), memory::cases(), control::cases()]
        .into_iter()
        .flatten()
        .collect();
    let mut seen = HashSet::new();
    for case in &cases {
        for opcode in case.opcodes() {
            let matched = forms::find(opcode).unwrap_or_else(|what| panic!("{what}"));
            seen.insert((matched.form, usize::MAX, ""));
            for (position, modifier) in matched.modifiers.iter().enumerate() {
                seen.extend(modifier.map(|modifier| (matched.form, position, modifier)));
            }
        }
    }
    let mut missing = Vec::new();
    for (number, form) in FORMS.iter().enumerate() {
        if !seen.contains(&(number, usize::MAX, "")) {
            missing.push(format!("`{}`", form.pattern));
        }
        for (position, place) in form.positions.iter().enumerate() {
            for alternative in &place.alternatives {
                if !seen.contains(&(number, position, *alternative)) {
                    missing.push(format!("`.{alternative}` in `{}`", form.pattern));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{} have no case: {}", missing.len(), missing.join(", "));
}
