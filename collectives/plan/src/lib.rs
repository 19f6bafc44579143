//! Collective algorithms as data.
//!
//! An algorithm does no input or output: it returns a [`Plan`], one rank's steps for one
//! collective, in chunks and never in bytes. Everything else consumes plans: the checker proves
//! them, the cost model predicts them, [`lower`] turns them into the [`Program`] that executors
//! run. This crate imports nothing.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod action;
mod algorithms;
mod checker;
mod collective;
mod cost;
mod lower;
mod notation;
mod places;
mod plan;

pub use action::{Action, Destination, Program, Source};
pub use algorithms::Algorithm;
pub use checker::{
    CheckError, Conditions, Credits, Fault, Report, check, check_programs, prove, prove_programs,
};
pub use collective::Collective;
pub use cost::{Local, Machine, Representatives, Sent, Transfer, Work, predict, trace};
pub use lower::lower;
pub use places::Places;
pub use plan::{Plan, Space, Span, Step};
