//! Where ranks are, and the order in which plans that go from neighbour to neighbour pass them.
//!
//! An algorithm writes its plans for places in a row: 0, 1, 2 and so on. Which rank stands at which place is
//! not its matter. In the order of their numbers, ranks that were dealt out to hosts like cards would cross
//! between hosts at every step of a ring; and what is near inside a host, its wiring says.

use std::collections::HashMap;

use crate::{Collective, Plan, Space, Span, Step};

/// Of the ranks of a communicator: their hosts, and an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Of each rank: any numbers that are equal for ranks of one host.
    hosts: Vec<u32>,
    /// The rank at each place.
    order: Vec<u32>,
    /// The place of each rank.
    places: Vec<u32>,
}

impl Places {
    /// Ranks of these hosts: those of a host in a row, in the order of their numbers, and hosts in the order
    /// of their first ranks.
    pub fn on(hosts: &[u32]) -> Places {
        let mut first: HashMap<u32, usize> = HashMap::new();
        for (rank, host) in hosts.iter().enumerate() {
            first.entry(*host).or_insert(rank);
        }
        let mut order: Vec<u32> = (0..hosts.len() as u32).collect();
        order.sort_by_key(|rank| first[&hosts[*rank as usize]]);
        Places::in_order(hosts, order).expect("an order of all ranks")
    }

    /// Ranks of these hosts in another order; `None` unless it has each rank once.
    pub fn in_order(hosts: &[u32], order: Vec<u32>) -> Option<Places> {
        let mut places = vec![u32::MAX; hosts.len()];
        for (place, rank) in order.iter().enumerate() {
            let free = places.get_mut(*rank as usize).filter(|free| **free == u32::MAX)?;
            *free = place as u32;
        }
        let is_whole = order.len() == hosts.len();
        is_whole.then(|| Places { hosts: hosts.to_vec(), order, places })
    }

    /// How many ranks there are.
    pub fn ranks(&self) -> u32 {
        self.hosts.len() as u32
    }

    /// The ranks of each host, hosts in the order of their first places. Those of a host come in the order of their
    /// numbers, in whatever order a ring takes them: the k-th of all hosts, which speak with each other, then
    /// have the same device and port where hosts are alike.
    pub fn ranks_by_host(&self) -> Vec<Vec<u32>> {
        let mut number_of: HashMap<u32, usize> = HashMap::new();
        let mut groups: Vec<Vec<u32>> = Vec::new();
        for rank in &self.order {
            let number = *number_of.entry(self.hosts[*rank as usize]).or_insert(groups.len());
            if number == groups.len() {
                groups.push(Vec::new());
            }
            groups[number].push(*rank);
        }
        groups.iter_mut().for_each(|ranks| ranks.sort_unstable());
        groups
    }

    /// The rank at each place.
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// Whether ranks stand in the order of their numbers.
    pub(crate) fn are_numbers(&self) -> bool {
        self.order.is_sorted()
    }

    /// The place of a rank.
    pub(crate) fn of(&self, rank: u32) -> u32 {
        self.places[rank as usize]
    }

    /// The same collective, among places.
    pub(crate) fn seen(&self, collective: Collective) -> Collective {
        collective.root().map_or(collective, |root| collective.with_root(self.of(root)))
    }

    /// A plan that was written for a place, as the rank there carries it out. Blocks are those of ranks; the
    /// chunks of what is no blocks stay as they are, since they belong to nobody.
    pub(crate) fn at(&self, mut plan: Plan, collective: Collective) -> Plan {
        let rank_at = |place: &mut u32| *place = self.order[*place as usize];
        rank_at(&mut plan.rank);
        plan.steps.iter_mut().filter_map(peer_of).for_each(rank_at);
        if collective.is_of_blocks() {
            let spans = plan.steps.iter_mut().flat_map(spans_of).chain(&mut plan.sources);
            for span in spans.filter(|span| span.space != Space::Scratch) {
                assert!(span.len == 1, "blocks are named one by one");
                rank_at(&mut span.start);
            }
            plan.scratch.iter_mut().for_each(rank_at);
        }
        plan
    }
}

fn peer_of(step: &mut Step) -> Option<&mut u32> {
    match step {
        Step::Send { peer, .. } | Step::Recv { peer, .. } | Step::RecvReduce { peer, .. } => {
            Some(peer)
        }
        Step::Copy { .. } | Step::Reduce { .. } | Step::Flush { .. } => None,
    }
}

fn spans_of(step: &mut Step) -> impl Iterator<Item = &mut Span> {
    let (one, other) = match step {
        Step::Send { src, .. } => (src, None),
        Step::Recv { dst, .. } | Step::Reduce { dst, .. } => (dst, None),
        Step::RecvReduce { src, dst, .. } | Step::Copy { src, dst } => (src, Some(dst)),
        Step::Flush { span } => (span, None),
    };
    std::iter::once(one).chain(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_a_host_stand_in_a_row() {
        let places = Places::on(&[7, 3, 7, 3, 9, 7]);
        assert_eq!(places.order(), [0, 2, 5, 1, 3, 4]);
        assert_eq!(places.of(1), 3);
        assert!(!places.are_numbers());
        assert!(Places::on(&[0, 0, 1, 1]).are_numbers());
    }

    #[test]
    fn hosts_come_in_the_order_of_their_places() {
        let places = Places::in_order(&[7, 3, 7, 3, 9], vec![4, 2, 0, 1, 3]).expect("an order");
        assert_eq!(places.ranks_by_host(), [vec![4], vec![0, 2], vec![1, 3]]);
    }

    #[test]
    fn an_order_has_each_rank_once() {
        for order in [vec![0, 1], vec![0, 1, 1], vec![0, 1, 3], vec![0, 1, 2, 2]] {
            assert_eq!(Places::in_order(&[0, 0, 0], order.clone()), None, "{order:?}");
        }
        assert!(Places::in_order(&[0, 0, 0], vec![2, 0, 1]).is_some());
    }
}
