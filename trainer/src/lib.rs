//! Data-parallel training, as a client of `ringtree`: every rank has the whole model and a part of each batch; gradients
//! are averaged in buckets while the backward pass still runs.
//!
//! | to | see |
//! | --- | --- |
//! | wrap a candle model | [`DataParallel`] |
//! | bring another framework's gradients | [`GradientExchange`] |
//! | step parameters | [`OptimiserState`], [`Schedule`] |
//! | stop and go on | [`checkpoint`] |

pub mod checkpoint;
mod error;
mod model;
pub mod optimiser;
mod real;

pub use error::{Error, Result};
pub use model::{Batch, Model};
pub use optimiser::{Optimiser, OptimiserState, Schedule, StateKind};
pub use real::Real;
