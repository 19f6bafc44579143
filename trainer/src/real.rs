//! The numbers that models are trained in: f32, or f64 where a test wants to see more digits.

use candle_core::{CpuStorage, WithDType};

/// A type of parameters and gradients.
pub trait Real: ringtree::Element + WithDType {
    /// The elements of a tensor's storage, if they are of this type.
    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

impl Real for f32 {
    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [f32]> {
        match storage {
            CpuStorage::F32(elements) => Some(elements),
            _ => None,
        }
    }
}

impl Real for f64 {
    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [f64]> {
        match storage {
            CpuStorage::F64(elements) => Some(elements),
            _ => None,
        }
    }
}
