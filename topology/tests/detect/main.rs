//! Detection: on recorded machines, on made-up ones, and on the one that the tests run on.

mod live;
mod made_up;
mod nonsense;
mod recorded;
mod seen;
mod tree;
