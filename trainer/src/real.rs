//! The number types that a model can be trained in.

use candle_core::{CpuStorage, WithDType};
use ringtree::Element;

/// `f32` or `f64`: what parameters, gradients and optimiser states are made of. Nothing else can implement it,
/// since nobody else can add an [`Element`].
pub trait Real: Element + WithDType + OnDevices {
    /// Its type in a safetensors file.
    const SAFETENSORS_TYPE: safetensors::Dtype;

    /// The elements of a tensor's storage, if they are of this type.
    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;

    /// The square root, correctly rounded.
    fn sqrt(self) -> Self;

    /// The values' bytes, lowest first.
    fn to_bytes(values: &[Self]) -> Vec<u8>;

    /// Reads as many values as there is room for, from bytes that are lowest first.
    ///
    /// # Panics
    ///
    /// Where there are not exactly as many bytes as the values have.
    fn from_bytes(bytes: &[u8], values: &mut [Self]);
}

/// What a number type must be for tensors on the devices that the crate is built for.
#[cfg(feature = "cuda")]
pub trait OnDevices:
    candle_core::cuda::CudaDType + candle_core::cuda::cudarc::driver::DeviceRepr
{
}

/// What a number type must be for tensors on the devices that the crate is built for.
#[cfg(not(feature = "cuda"))]
pub trait OnDevices {}

macro_rules! real {
    ($type:ty, $safetensors_type:ident) => {
        impl OnDevices for $type {}

        impl Real for $type {
            const SAFETENSORS_TYPE: safetensors::Dtype = safetensors::Dtype::$safetensors_type;

            fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
                match storage {
                    CpuStorage::$safetensors_type(elements) => Some(elements),
                    _ => None,
                }
            }

            fn sqrt(self) -> Self {
                self.sqrt()
            }

            fn to_bytes(values: &[Self]) -> Vec<u8> {
                let mut bytes = vec![0; size_of_val(values)];
                for (bytes, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
                    *bytes = value.to_le_bytes();
                }
                bytes
            }

            fn from_bytes(bytes: &[u8], values: &mut [Self]) {
                assert_eq!(bytes.len(), size_of_val(values), "as many bytes as the values have");
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *value = Self::from_le_bytes(*bytes);
                }
            }
        }
    };
}

real!(f32, F32);
real!(f64, F64);
