//! The ranks of a job at their rendezvous, before any of them is connected to another.

use std::time::Instant;

use ringtree_transport::rendezvous::{Store, StoreClient};

use crate::hosting::Hosting;
use crate::rendezvous::{self, Found};
use crate::settings::Settings;
use crate::{Error, bootstrap};

/// The store where a job's ranks meet, for what is to be told before there is a
/// [`Communicator`](crate::Communicator), or although there can be none. Rank 0 serves it, unless a
/// launcher does, and stays for a moment when it is dropped until the others have left.
#[derive(Debug)]
pub struct Meeting {
    /// Dropped first: the hosting rank waits for all connections to end.
    store: Store,
    address: String,
    _hosting: Option<Hosting>,
}

impl Meeting {
    /// Joins the store that `settings` name.
    ///
    /// # Errors
    /// Nobody serves there until the deadline, or somebody else's job.
    pub fn with(settings: &Settings) -> Result<Meeting, Error> {
        settings.check()?;
        let deadline = Instant::now() + settings.bounded_timeout();
        let found = rendezvous::find(settings.clone(), deadline)?;
        let Found { settings, meets_at, hosting, not_here } = found;
        let store = StoreClient::connect(&meets_at, &settings.job, deadline)
            .map_err(|error| bootstrap::with_reason(error.into(), not_here.as_deref()))?;
        let address = store.address().to_owned();
        Ok(Meeting { store: Store::Tcp(store), address, _hosting: hosting })
    }

    /// Where the store is, `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What they share.
    pub fn store(&self) -> &Store {
        &self.store
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::Communicator;

    #[test]
    fn ranks_meet_before_they_have_a_communicator() {
        let (_hosted, settings) = bootstrap::in_process(3).unwrap();
        thread::scope(|scope| {
            for settings in settings {
                scope.spawn(move || {
                    let meeting = Meeting::with(&settings).unwrap();
                    assert_eq!(meeting.address(), settings.rendezvous);
                    let deadline = Instant::now() + settings.timeout;
                    let (rank, ranks) = (settings.rank, settings.ranks);
                    let own = [rank as u8 + 10];
                    let all = meeting.store().gather("test", rank, ranks, &own, deadline).unwrap();
                    assert_eq!(all, [[10], [11], [12]]);
                    drop(meeting);
                    assert_eq!(Communicator::with(settings).unwrap().rank(), rank);
                });
            }
        });
    }
}
