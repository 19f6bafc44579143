//! Sizes as nccl-tests writes them, and the sizes of a sweep.

/// A sweep stops being one long before this many sizes.
const MAX_SIZES: usize = 10_000;

/// How a sweep goes from one size to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// That many bytes more.
    Add(u64),
    /// That many times as large; at least 2.
    Multiply(u64),
}

/// Why there are no sizes to measure.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizesError {
    /// The sweep ends before it begins.
    #[error("-b {first_bytes} is above -e {last_bytes}: swap them, or give one only")]
    Empty {
        /// Where it begins.
        first_bytes: u64,
        /// Where it ends.
        last_bytes: u64,
    },
    /// The sweep would not move.
    #[error("-i must be at least 1 and -f at least 2")]
    NoStep,
    /// The sweep has too many sizes.
    #[error("that makes more than {MAX_SIZES} sizes: give a larger -i, or -f 2")]
    TooMany,
}

/// A number of bytes: `8`, `64K`, `128M`, `1G` (of 1024). `KB`, `KiB` and lower case are the same.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || "write a number of bytes such as 8, 64K or 128M".to_owned();
    let (number, shift) = split(text, |c| c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// Bytes a second, above 0: `800M`, `12.5G`, with the units of sizes.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    let wrong = || "write a number of bytes a second such as 800M or 12.5G".to_owned();
    let (number, shift) = split(text, |c| c.is_ascii_digit() || c == '.').ok_or_else(wrong)?;
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let rate = number * f64::from(1 << shift);
    if rate > 0.0 && rate.is_finite() { Ok(rate) } else { Err(wrong()) }
}

/// A number and the power of two that its unit stands for.
fn split(text: &str, is_of_number: impl Fn(char) -> bool) -> Option<(&str, u32)> {
    let end = text.find(|c: char| !is_of_number(c)).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return None,
    };
    Some((number, shift))
}

/// The sizes from `first_bytes` to `last_bytes`.
pub fn sweep(first_bytes: u64, last_bytes: u64, step: Step) -> Result<Vec<u64>, SizesError> {
    if matches!(step, Step::Add(0) | Step::Multiply(0 | 1)) {
        return Err(SizesError::NoStep);
    }
    if first_bytes > last_bytes {
        return Err(SizesError::Empty { first_bytes, last_bytes });
    }
    let mut sizes = Vec::new();
    let mut next = Some(first_bytes);
    while let Some(size) = next.filter(|&size| size <= last_bytes) {
        if sizes.len() == MAX_SIZES {
            return Err(SizesError::TooMany);
        }
        sizes.push(size);
        next = match step {
            Step::Add(bytes) => size.checked_add(bytes),
            // No factor leads away from nothing.
            Step::Multiply(_) if size == 0 => Some(8),
            Step::Multiply(factor) => size.checked_mul(factor),
        };
    }
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in
            [("0", 0), ("8", 8), ("64K", 65_536), ("1m", 1 << 20), ("2GiB", 2 << 30), ("7kb", 7168)]
        {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "12Q", "-4", "1.5M", "99999999999G", "8 K"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_have_the_units_of_sizes_and_fractions() {
        for (text, rate) in [
            ("125000000", 125e6),
            ("12.5G", 12.5 * f64::from(1 << 30)),
            ("0.5k", 512.0),
            ("1MiB", 1_048_576.0),
        ] {
            assert_eq!(parse_rate(text), Ok(rate), "{text}");
        }
        for text in ["", "G", "0", "0.0M", "-1", "1e9", "1.2.3", "inf", "5T"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sweeps_multiply_or_add() {
        assert_eq!(sweep(8, 128, Step::Multiply(4)), Ok(vec![8, 32, 128]));
        assert_eq!(sweep(8, 127, Step::Multiply(4)), Ok(vec![8, 32]));
        assert_eq!(sweep(10, 30, Step::Add(10)), Ok(vec![10, 20, 30]));
        assert_eq!(sweep(0, 32, Step::Multiply(2)), Ok(vec![0, 8, 16, 32]));
        assert_eq!(sweep(u64::MAX, u64::MAX, Step::Multiply(2)), Ok(vec![u64::MAX]));
    }

    #[test]
    fn sweeps_end() {
        assert_eq!(sweep(8, 16, Step::Multiply(1)), Err(SizesError::NoStep));
        assert_eq!(sweep(8, 16, Step::Add(0)), Err(SizesError::NoStep));
        assert_eq!(sweep(0, 1 << 40, Step::Add(1)), Err(SizesError::TooMany));
        let swapped = SizesError::Empty { first_bytes: 16, last_bytes: 8 };
        assert_eq!(sweep(16, 8, Step::Add(1)), Err(swapped));
    }
}
