//! Data-parallel training, as a client of `ringtree`: every rank has the whole model and a part of each batch; gradients
//! are averaged in buckets while the backward pass still runs.
//!
//! | to | see |
//! | --- | --- |
//! | wrap a candle model | [`DataParallel`] |
//! | open data, and divide it over ranks | [`data`] |
//! | use a model that comes with it | [`models`] |
//! | bring another framework's gradients | [`GradientExchange`] |
//! | step parameters | [`OptimiserState`], [`Schedule`] |
//! | stop and go on | [`checkpoint`] |

pub mod checkpoint;
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
