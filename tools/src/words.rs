//! How things are said.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

use ringtree_launcher::report;

/// Prints, and ends with `status`. Whoever closes the pipe has seen enough.
pub fn say(text: &str, status: u8) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            report(&format!("cannot print: {error}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::from(status),
    }
}

/// A value as one line of JSON.
pub fn json<T: Serialize>(value: &T) -> String {
    // None of ours has keys that are no texts, which alone cannot be written.
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

/// `1 rank`, `2 ranks`.
pub fn counted<N: Display + PartialEq + From<u8>>(number: N, what: &str) -> String {
    let plural = if number == N::from(1) { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// `8 MiB`, `1.5 GiB`: a number of bytes with the largest unit that it has one of.
pub fn bytes(number: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| number >= *unit) {
        None => format!("{number} bytes"),
        Some((unit, name)) => {
            let tenths = (number as f64 / unit as f64 * 10.0).round() / 10.0;
            format!("{tenths} {name}")
        }
    }
}

/// `0-3, 6` for 0, 1, 2, 3 and 6.
pub fn ranges(numbers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let names = runs.iter().map(|&(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    names.collect::<Vec<_>>().join(", ")
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

    #[test]
    fn bytes_have_the_unit_that_fits() {
        let cases =
            [(0, "0 bytes"), (1023, "1023 bytes"), (8 << 20, "8 MiB"), (3 << 29, "1.5 GiB")];
        for (number, said) in cases {
            assert_eq!(bytes(number), said);
        }
    }

    #[test]
    fn neighbouring_numbers_are_a_range() {
        assert_eq!(ranges(&[0, 1, 2, 3, 6, 8, 9]), "0-3, 6, 8-9");
        assert_eq!(ranges(&[5]), "5");
    }
}
