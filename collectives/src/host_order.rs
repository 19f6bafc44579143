//! The order of hosts in rings, trees and chains: those below the same switches are neighbours, so that a ring crosses
//! from switch to switch as rarely as can be. Where nobody tells of switches, hosts stand in the order of their first
//! ranks.

use std::collections::HashMap;

/// The ranks in a row: those of a host together, in the order of their numbers. `hosts` names the host of each rank,
/// `switches` those that it is below, from the uppermost down, separated by full stops; empty where they are not known.
/// Of the ranks of one host the first counts. Among equals, whoever has the lowest rank comes first.
pub(crate) fn in_a_row(hosts: &[u32], switches: &[&str]) -> Vec<u32> {
    let mut first_on: HashMap<u32, usize> = HashMap::new();
    let mut first_below: HashMap<&str, usize> = HashMap::new();
    let mut keys: Vec<Vec<usize>> = Vec::with_capacity(hosts.len());
    for (rank, host) in hosts.iter().enumerate() {
        let first = *first_on.entry(*host).or_insert(rank);
        let key = match first == rank {
            true => {
                let groups = groups(switches[rank]);
                let of_groups = groups.map(|group| *first_below.entry(group).or_insert(rank));
                of_groups.chain([rank]).collect()
            }
            false => keys[first].clone(),
        };
        keys.push(key);
    }
    let mut row: Vec<u32> = (0..hosts.len() as u32).collect();
    row.sort_by_key(|rank| &keys[*rank as usize]);
    row
}

/// What one switch after the other leads to: `a`, `a.b` and `a.b.c` of `a.b.c`.
fn groups(switches: &str) -> impl Iterator<Item = &str> {
    let ends = switches.match_indices('.').map(|(at, _)| at).chain([switches.len()]);
    ends.filter(|end| *end > 0).map(|end| &switches[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_below_the_same_switches_are_neighbours() {
        // Two ranks a host; the leaves come one after the other, those of one spine together.
        let hosts = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4];
        let of_hosts = ["s0.l0", "s1.l2", "s0.l1", "s0.l0", "s1.l2"];
        let switches = hosts.map(|host| of_hosts[host as usize]);
        assert_eq!(in_a_row(&hosts, &switches), [0, 1, 6, 7, 4, 5, 2, 3, 8, 9]);
    }

    #[test]
    fn without_switches_hosts_stand_in_the_order_of_their_first_ranks() {
        let hosts = [7, 3, 7, 3, 9, 7];
        assert_eq!(in_a_row(&hosts, &[""; 6]), [0, 2, 5, 1, 3, 4]);
    }

    #[test]
    fn ranks_of_a_host_that_tell_different_things_stay_together() {
        let hosts = [0, 1, 0, 1];
        assert_eq!(in_a_row(&hosts, &["a", "b", "b", "a"]), [0, 2, 1, 3]);
        assert_eq!(in_a_row(&hosts, &["", "b", "", "b"]), [0, 2, 1, 3]);
    }

    #[test]
    fn switches_of_one_name_below_different_ones_are_different() {
        let hosts = [0, 1, 2];
        assert_eq!(in_a_row(&hosts, &["a.leaf", "b.leaf", "a.leaf"]), [0, 2, 1]);
    }
}
