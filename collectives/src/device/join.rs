//! How the ranks of a communicator find out whether small calls can be one kernel of each of their GPUs.

use std::sync::Arc;

use ringtree_transport::cuda::{Device, OpenedMemory, PublicMemory, Relaxed, Told, Way};

use super::board::BOARD_BYTES;
use super::{Boards, MOST_OPERANDS};
use crate::{Collective, Communicator, DataType, Error};

/// What a rank says that reaches all others.
const REACHES_ALL: u32 = u32::MAX;

impl Communicator {
    /// Has small calls on GPUs be one kernel of each rank, if all reach the memory of all others: no copy passes the host,
    /// and nobody there has to do anything before the result is on the GPU. All ranks call it, each with its GPU, once all
    /// that is to be is on them; several ranks may have the same GPU. It waits for the others.
    ///
    /// Where it gives `true`, collectives of which each rank gives 16 KiB at most, all its blocks together, are carried out
    /// like that from then on, unless an algorithm is named ([`Communicator::using`]), blocks differ in length, or all
    /// buffers are on the host. All ranks must make such a call on GPUs, in a stream of the one that they
    /// joined with, or none: a call on a GPU and one on the host are different calls then. Reductions are folded in the
    /// order of the ranks, and rounded once: the bits of `one-shot`, and of the reproducible mode.
    ///
    /// Where it gives `false`, to all ranks, as it does with [checksums](crate::Settings::checksums), calls are carried out as before; the log names two ranks that do not reach each
    /// other.
    ///
    /// # Errors
    /// [`Error::Argument`] if they have joined before; or what ends the communicator.
    pub fn join_devices(&self, device: &Device) -> Result<bool, Error> {
        if self.inner.boards().is_some() {
            let what = "the ranks have joined their GPUs before, which stays: join those of another communicator";
            return Err(Error::Argument(what.to_owned()));
        }
        if self.settings().checksums {
            tracing::info!(
                "small calls on GPUs pass the host: what GPUs read of each other has no checksums"
            );
            return Ok(false);
        }
        let (ranks, hosts) = (self.ranks(), self.shape().hosts);
        if ranks == 1 || ranks as usize > MOST_OPERANDS || hosts > 1 {
            if ranks > 1 {
                tracing::info!(
                    "small calls on GPUs pass the host: there are {ranks} ranks on {hosts} hosts, and one kernel serves at \
                     most {MOST_OPERANDS} of one host"
                );
            }
            return Ok(false);
        }
        let _relaxed = Relaxed::new(device.driver());
        let mut missed = None;
        for way in [Way::Handle, Way::Descriptor] {
            match self.join_by(device, way)? {
                Ok(boards) => {
                    self.inner.join(Arc::new(boards));
                    return Ok(true);
                }
                Err(pair) => missed = missed.or(Some(pair)),
            }
        }
        if let Some((at, peer)) = missed {
            tracing::info!(
                "small calls on GPUs pass the host: the GPU of rank {at} cannot read memory of that of rank {peer}"
            );
        }
        Ok(false)
    }

    /// Tries it with boards that get to other processes by one way. All ranks learn the same: whether they reach all
    /// boards, or two ranks that do not.
    fn join_by(&self, device: &Device, way: Way) -> Result<Result<Boards, (u32, u32)>, Error> {
        let (rank, ranks) = (self.rank(), self.ranks() as usize);
        let made = PublicMemory::new(device, BOARD_BYTES, way);
        if let Err(error) = &made {
            tracing::info!("rank {rank} has no board by {way:?} for small calls on GPUs: {error}");
        }
        let own = made.ok();
        if way == Way::Descriptor {
            self.engine().warm_up()?;
            if let Some(own) = &own {
                self.engine().pass_memory(own);
            }
        }
        let mut told = vec![0_u8; ranks * (1 + Told::BYTES)];
        let mine = own
            .as_ref()
            .map_or(vec![0; 1 + Told::BYTES], |own| [&[1][..], &own.told().to_bytes()].concat());
        let plain = self.using(None);
        plain.all_gather_into(&mine, &mut told)?;
        let boards = self.open(device, own, &told);
        let mut missed = vec![0; ranks];
        let mine = boards.as_ref().map_or_else(|peer| *peer, |_| REACHES_ALL);
        plain.all_gather_into(&[mine], &mut missed)?;
        Ok(match (missed.iter().position(|missed| *missed != REACHES_ALL), boards) {
            (Some(at), _) => Err((at as u32, missed[at])),
            (None, boards) => boards.map_err(|peer| (rank, peer)),
        })
    }

    /// Whether a collective of `count` elements on GPUs, or of so many in each block where it has blocks, is one kernel of
    /// each rank: see [`Communicator::join_devices`].
    pub fn is_one_kernel(&self, collective: Collective, count: usize, data_type: DataType) -> bool {
        let boards = self.inner.boards().filter(|_| self.algorithm().is_none());
        boards.is_some_and(|boards| boards.serve(collective, count as u64, data_type))
    }

    /// Opens everyone's boards; or names a rank whose board it cannot read.
    fn open(&self, device: &Device, own: Option<PublicMemory>, told: &[u8]) -> Result<Boards, u32> {
        let rank = self.rank();
        let own = own.ok_or(rank)?;
        let mut missed = None;
        let mut peers: Vec<Option<OpenedMemory>> = Vec::new();
        for (peer, told) in (0..).zip(told.chunks_exact(1 + Told::BYTES)) {
            if peer == rank {
                peers.push(None);
                continue;
            }
            let opened = match told.split_first() {
                Some((1, told)) => {
                    let told = told.try_into().ok().and_then(Told::from_bytes).ok_or(peer)?;
                    let descriptor = self.engine().passed_memory(peer, told.nonce());
                    own.open(&told, descriptor).map_err(|error| error.to_string())
                }
                _ => Err("it has no board".to_owned()),
            };
            match opened {
                Ok(opened) => peers.push(Some(opened)),
                Err(why) => {
                    tracing::info!("rank {rank} does not reach the board of rank {peer}: {why}");
                    missed.get_or_insert(peer);
                }
            }
        }
        match missed {
            Some(peer) => Err(peer),
            None => Boards::new(device, rank, own, peers).map_err(|error| {
                tracing::warn!("rank {rank} has no board for small calls on GPUs: {error}");
                rank
            }),
        }
    }
}
