//! What happens when something goes wrong: who notices, who decides, who is told.
//!
//! ```text
//!   driving thread --FlightRecorder--> monitor thread ==control connection==> service
//!        ^                              (one a process)                      (one a job:
//!        |                                   |                        an Arbiter a communicator)
//!        +----------- AbortWord <------------+ <============== verdict ==============+
//! ```
//!
//! The thread that drives an operation writes into the [`FlightRecorder`] what it does, and tells
//! its [`Control`] when an operation makes no progress, a frame belongs to another call or a link
//! fails. The monitor thread passes that on to the [`ControlService`], answers the service's
//! questions from the recorder whatever the driving thread is doing, and watches the processes of
//! local peers. The service decides one [`Verdict`] for a communicator and sends it to everyone;
//! the monitor first makes sure that a rank declared dead can write nothing any more, then sets the
//! [`AbortWord`] that every wait looks at.

mod abort;
mod arbiter;
mod codec;
mod handle;
mod judge;
mod member;
mod monitor;
mod poller;
mod recorder;
pub(crate) mod regroup;
mod regroups;
mod service;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod verdict;
mod visit;
mod wire;

pub use abort::AbortWord;
pub use arbiter::{Arbiter, Refusal, Send};
pub use handle::{Control, ControlError, Membership};
pub use recorder::{Entry, FlightRecorder, Operation, RECORDER_ENTRIES, State, Stream, Ticket};
pub use regroup::{Ballot, Member, Progress, Roster, Without};
pub use service::ControlService;
pub use verdict::{Awaited, Death, Place, Side, Verdict};
pub(crate) use visit::{Answer, Missing, Visit, Visitor, knock};
pub use wire::{LinkFailure, Stall, Suspicion, ToArbiter, ToMember};
