//! The cost table: what messages and sums are taken to cost when an algorithm is chosen. All ranks
//! of a communicator use rank 0's.

/// What messages cost over one kind of link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkCosts {
    /// From a message's sending until a rank that waits for it has it.
    pub latency_s: f64,
    /// Until a rank that shares its processor runs, for each that does.
    pub turn_s: f64,
    /// Processor time of a message, on both sides.
    pub message_s: f64,
    /// Bytes that cross in a second.
    pub bytes_per_s: f64,
}

/// The cost table of a communicator: [`crate::Settings::costs`]. The default holds round figures
/// of a 2-core machine, between processes of one host and over loopback; for RDMA, nominal ones of a port
/// of 200 Gbit/s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// Between ranks that share memory.
    pub shm: LinkCosts,
    /// Over TCP.
    pub tcp: LinkCosts,
    /// Over RDMA.
    pub rdma: LinkCosts,
    /// Processor time of reading what one peer has published for all.
    pub published_s: f64,
    /// Bytes of one operand that a rank folds in a second.
    pub reduced_bytes_per_s: f64,
}

impl Default for Costs {
    fn default() -> Costs {
        Costs {
            shm: LinkCosts {
                latency_s: 0.1e-6,
                turn_s: 1.5e-6,
                message_s: 0.5e-6,
                bytes_per_s: 16e9,
            },
            tcp: LinkCosts { latency_s: 1e-6, turn_s: 2e-6, message_s: 5e-6, bytes_per_s: 5e9 },
            rdma: LinkCosts { latency_s: 2e-6, turn_s: 2e-6, message_s: 0.5e-6, bytes_per_s: 20e9 },
            published_s: 0.05e-6,
            reduced_bytes_per_s: 40e9,
        }
    }
}

impl Costs {
    /// Length of a table as it is sent.
    pub(crate) const BYTES: usize = 14 * size_of::<f64>();

    /// The table as it is sent.
    pub(crate) fn encode(&self) -> [u8; Costs::BYTES] {
        let mut bytes = [0; Costs::BYTES];
        for (place, figure) in bytes.as_chunks_mut().0.iter_mut().zip(self.figures()) {
            *place = figure.to_le_bytes();
        }
        bytes
    }

    /// What [`Costs::encode`] made, if a table can hold it.
    pub(crate) fn decode(bytes: &[u8; Costs::BYTES]) -> Option<Costs> {
        let mut figures = bytes.as_chunks().0.iter().map(|place| f64::from_le_bytes(*place));
        let mut next = || figures.next();
        let mut link = || {
            Some(LinkCosts {
                latency_s: next()?,
                turn_s: next()?,
                message_s: next()?,
                bytes_per_s: next()?,
            })
        };
        let (shm, tcp, rdma) = (link()?, link()?, link()?);
        let costs = Costs { shm, tcp, rdma, published_s: next()?, reduced_bytes_per_s: next()? };
        costs.check().is_ok().then_some(costs)
    }

    /// # Errors
    /// What a choice cannot be made by.
    pub(crate) fn check(&self) -> Result<(), String> {
        let speeds = [
            ("shm.bytes_per_s", self.shm.bytes_per_s),
            ("tcp.bytes_per_s", self.tcp.bytes_per_s),
            ("rdma.bytes_per_s", self.rdma.bytes_per_s),
            ("reduced_bytes_per_s", self.reduced_bytes_per_s),
        ];
        if let Some((name, speed)) = speeds.iter().find(|(_, speed)| *speed <= 0.0) {
            return Err(format!("costs.{name} is {speed}: it must be above 0"));
        }
        if let Some(figure) = self.figures().iter().find(|f| !f.is_finite() || **f < 0.0) {
            return Err(format!("costs hold {figure}: each must be finite and not below 0"));
        }
        Ok(())
    }

    fn figures(&self) -> [f64; 14] {
        let links = [self.shm, self.tcp, self.rdma];
        let of_links = links
            .iter()
            .flat_map(|link| [link.latency_s, link.turn_s, link.message_s, link.bytes_per_s]);
        let mut all = of_links.chain([self.published_s, self.reduced_bytes_per_s]);
        std::array::from_fn(|_| all.next().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_what_it_was_when_it_has_been_sent() {
        let costs = Costs { published_s: 0.1, reduced_bytes_per_s: 3.5, ..Costs::default() };
        let costs = Costs { tcp: LinkCosts { turn_s: 0.25, ..costs.shm }, ..costs };
        assert_eq!(Costs::decode(&costs.encode()), Some(costs));
    }

    #[test]
    fn no_choice_is_made_by_figures_that_are_none() {
        let default = Costs::default();
        let slow = LinkCosts { bytes_per_s: 0.0, ..default.tcp };
        let unknown = LinkCosts { latency_s: f64::NAN, ..default.shm };
        for costs in [
            Costs { tcp: slow, ..default },
            Costs { shm: unknown, ..default },
            Costs { published_s: -1.0, ..default },
            Costs { reduced_bytes_per_s: f64::INFINITY, ..default },
        ] {
            assert!(costs.check().is_err(), "{costs:?}");
            assert_eq!(Costs::decode(&costs.encode()), None, "{costs:?}");
        }
        assert_eq!(default.check(), Ok(()));
    }
}
