//! Collective communication between processes.
