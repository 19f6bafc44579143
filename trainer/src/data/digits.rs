//! The handwritten digits that come with the trainer (`trainer/data/README.md` says whence).

use std::io::Read;

use flate2::read::GzDecoder;

use super::images::{ImageSize, Images};
use super::{Split, images};

const FILE: &[u8] = include_bytes!("../../data/digits.csv.gz");
const SIDE: usize = 8;
const BRIGHTEST: u8 = 16;
const CLASSES: usize = 10;

/// 1,797 grey digits of 8 x 8 pixels, of which every fifth (359) is for validation.
pub fn digits() -> Split<Images> {
    let mut text = String::new();
    GzDecoder::new(FILE).read_to_string(&mut text).expect("the file that was built in is whole");
    let empty = || Images::empty(1, ImageSize { height: SIDE, width: SIDE }, BRIGHTEST, CLASSES);
    let mut split = Split { train: empty(), validation: empty() };
    for (index, line) in text.lines().enumerate() {
        let numbers: Vec<u8> =
            line.split(',').map(|n| n.parse().expect("the file has numbers alone")).collect();
        let (digit, pixels) = numbers.split_last().expect("a line has 65 numbers");
        images::part(&mut split, index).push(pixels, u32::from(*digit));
    }
    split
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::data::{Dataset, Facts, Input};

    #[test]
    fn all_digits_are_there_and_every_fifth_is_for_validation() {
        let Split { train, validation } = digits();
        assert_eq!((train.len(), validation.len()), (1438, 359));
        let input = Input::Image { channels: 1, height: 8, width: 8 };
        assert_eq!(train.facts(), Facts { input, classes: 10 });
    }

    #[test]
    fn a_batch_has_pixels_from_0_to_1_and_the_digits() {
        // The file begins with the digits 0 1 2 3 4 5, of which the fifth, 4, is for validation.
        let Split { train, validation } = digits();
        let batch = train.batch(&[4, 0], DType::F64).expect("two digits");
        assert_eq!(batch.input.dims(), [2, 1, 8, 8]);
        assert_eq!(batch.target.to_vec1::<u32>().expect("classes"), [5, 0]);
        let rows = batch.input.flatten_from(1).and_then(|i| i.to_vec2::<f64>()).expect("numbers");
        assert_eq!(rows[1][..8], [0., 0., 5., 13., 9., 1., 0., 0.].map(|pixel| pixel / 16.));
        let batch = validation.batch(&[0], DType::F32).expect("one digit");
        assert_eq!(batch.target.to_vec1::<u32>().expect("classes"), [4]);
    }
}
