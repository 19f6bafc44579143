//! Ctrl-C and SIGTERM: the first one asks the run to write a checkpoint and leave, the second one ends it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringtree_trainer::Error;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Whether somebody has asked this rank to leave.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches signals from here on.
    ///
    /// # Errors
    /// [`Error::Argument`]: the system refuses it.
    pub fn catch() -> Result<Interrupt, Error> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the second signal finds the word set by the first.
            flag::register_conditional_shutdown(signal, 128 + signal, asked.clone())
                .and_then(|_| flag::register(signal, asked.clone()))
                .map_err(|error| Error::Argument(format!("signals cannot be caught: {error}")))?;
        }
        Ok(Interrupt(asked))
    }

    /// As after a signal.
    #[cfg(test)]
    pub fn asked() -> Interrupt {
        Interrupt(Arc::new(AtomicBool::new(true)))
    }

    /// Whether a signal has come.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
