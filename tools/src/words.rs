//! How things are said.

use std::fmt::Display;

/// `1 rank`, `2 ranks`.
pub fn counted<N: Display + PartialEq + From<u8>>(number: N, what: &str) -> String {
    let plural = if number == N::from(1) { "" } else { "s" };
    format!("{number} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!(
            (counted(1, "rank"), counted(0_u64, "step")),
            ("1 rank".into(), "0 steps".into())
        );
    }
}
