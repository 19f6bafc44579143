//! Images with a class each, all of one size, as bytes in memory.

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{Dataset, Facts, Input, Split, check_indices};
use crate::{Batch, Result};

/// Every how many images one is for validation.
const VALIDATION_EVERY: usize = 5;

/// The size of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSize {
    /// Rows.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
}

/// Images with a class each: input (samples, channels, height, width) from 0 to 1, target (samples).
#[derive(Clone, Debug)]
pub struct Images {
    pixels: Vec<u8>,
    labels: Vec<u32>,
    channels: usize,
    size: ImageSize,
    brightest: u8,
    classes: usize,
}

impl Images {
    /// No image yet. `brightest` is the value that stands for 1.
    pub(super) fn empty(channels: usize, size: ImageSize, brightest: u8, classes: usize) -> Images {
        Images { pixels: Vec::new(), labels: Vec::new(), channels, size, brightest, classes }
    }

    /// Adds an image: its pixels as (channels, height, width).
    pub(super) fn push(&mut self, pixels: &[u8], label: u32) {
        assert_eq!(pixels.len(), self.values(), "an image of another size");
        self.pixels.extend_from_slice(pixels);
        self.labels.push(label);
    }

    /// Numbers in an image.
    fn values(&self) -> usize {
        self.channels * self.size.height * self.size.width
    }
}

/// The part to which the image of this index belongs: every fifth is for validation.
pub(super) fn part(split: &mut Split<Images>, index: usize) -> &mut Images {
    if index % VALIDATION_EVERY == VALIDATION_EVERY - 1 {
        &mut split.validation
    } else {
        &mut split.train
    }
}

impl Dataset for Images {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn facts(&self) -> Facts {
        let ImageSize { height, width } = self.size;
        let input = Input::Image { channels: self.channels, height, width };
        Facts { input, classes: self.classes }
    }

    fn batch(&self, indices: &[usize], dtype: DType) -> Result<Batch> {
        check_indices(indices, self.len())?;
        let values = self.values();
        let mut pixels = Vec::with_capacity(indices.len() * values);
        for index in indices {
            pixels.extend_from_slice(&self.pixels[index * values..][..values]);
        }
        let labels: Vec<u32> = indices.iter().map(|&index| self.labels[index]).collect();
        let shape = (indices.len(), self.channels, self.size.height, self.size.width);
        let bytes = Tensor::from_vec(pixels, shape, &Device::Cpu)?;
        Ok(Batch {
            input: (bytes.to_dtype(dtype)? / f64::from(self.brightest))?,
            target: Tensor::from_vec(labels, indices.len(), &Device::Cpu)?,
        })
    }
}
