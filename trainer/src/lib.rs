//! Data-parallel training, as a client of `ringtree`: every rank has the whole model and a part of each batch; gradients
//! are averaged in buckets while the backward pass still runs.
//!
//! | to | see |
//! | --- | --- |
//! | wrap a candle model | [`DataParallel`] |
//! | open data, and divide it over ranks | [`data`] |
//! | use a model that comes with it | [`models`] |
//! | bring another framework's gradients | [`GradientExchange`] |
//! | step parameters | [`Optimizing`], [`optimiser`] |
//! | stop and go on | [`checkpoint`] |
//!
//! # On GPUs
//!
//! With the feature `cuda`, which needs CUDA's toolkit to build, [`DataParallel::on_device`] has parameters, gradients
//! and the optimiser's state on an NVIDIA GPU: a bucket travels in a stream of its own beside candle's, by the GPU
//! path of `ringtree`. The host waits for the exchange in the first step, and later only where it asks for numbers: an
//! [`Optimizing`] does once a step, for the gradients' norm. [`GradientExchange::on_gpu`] needs neither the feature nor
//! candle's tensors. The program `ringtree-train` has `--device cuda` then.
//!
//! The exchange is tested against a stand-in for the CUDA driver, which executes the kernels and runs what is queued
//! as late as it may. What leads from candle's tensors to it is type-checked only, and its optimisers are compared
//! with the host's on the host: no run on a real GPU has been made.

pub mod checkpoint;
#[cfg(feature = "cuda")]
mod cuda;
pub mod data;
mod data_parallel;
mod error;
mod exchange;
mod gradients;
mod init;
mod model;
pub mod models;
pub mod optimiser;
mod optimizing;
mod parameters;
mod real;

pub use data_parallel::DataParallel;
pub use error::{Error, Result};
pub use exchange::{BucketTimes, ExchangeSettings, Exchanged, Gpu, GradientExchange, Host, Part};
pub use model::{Batch, Model};
pub use optimizing::Optimizing;
pub use parameters::Parameter;
pub use real::Real;
