//! Data-parallel training, as a client of `ringtree`: every rank has the whole model and a part of each batch; gradients
//! are averaged in buckets while the backward pass still runs.
//!
//! | to | see |
//! | --- | --- |
//! | wrap a candle model | [`DataParallel`] |
//! | open data, and divide it over ranks | [`data`] |
//! | use a model that comes with it | [`models`] |
//! | bring another framework's gradients | [`GradientExchange`] |

pub mod data;
mod error;
mod model;
pub mod models;

pub use error::{Error, Result};
pub use model::{Batch, Model};
