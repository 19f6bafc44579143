//! The checker's verdict on every algorithm, for all ranks from 1 to 64 and every root.

use ringtree_plan::{Algorithm, Collective, Places, Plan, Step, prove};

fn plans(algorithm: Algorithm, collective: Collective, ranks: u32) -> Vec<Plan> {
    (0..ranks).map(|rank| algorithm.plan(collective, rank, ranks)).collect()
}

fn prove_up_to_64(algorithm: Algorithm, collectives: impl Fn(u32) -> Vec<Collective>) {
    for ranks in 1..=64 {
        for collective in collectives(ranks) {
            prove(collective, &plans(algorithm, collective, ranks))
                .unwrap_or_else(|error| panic!("{algorithm}, {ranks} ranks: {error}"));
        }
    }
}

macro_rules! all_reduce {
    ($($name:ident: $algorithm:expr,)*) => {$(
        #[test]
        fn $name() {
            prove_up_to_64($algorithm, |_| vec![Collective::AllReduce]);
        }
    )*};
}

all_reduce! {
    ring_is_proved: Algorithm::Ring,
    double_tree_is_proved: Algorithm::DoubleTree,
    doubling_is_proved: Algorithm::Doubling,
    hierarchical_is_proved: Algorithm::Hierarchical,
    one_shot_is_proved: Algorithm::OneShot,
    two_shot_is_proved: Algorithm::TwoShot,
    star_is_proved: Algorithm::Star,
    halving_doubling_is_proved: Algorithm::HalvingDoubling,
}

macro_rules! from_and_to_every_root {
    ($($name:ident: $collective:ident,)*) => {$(
        #[test]
        fn $name() {
            let serves = |a: &Algorithm| a.serves(Collective::$collective { root: 0 });
            for algorithm in Algorithm::ALL.into_iter().filter(serves) {
                prove_up_to_64(algorithm, |ranks| {
                    (0..ranks).map(|root| Collective::$collective { root }).collect()
                });
            }
        }
    )*};
}

from_and_to_every_root! {
    broadcast_is_proved: Broadcast,
    reduce_is_proved: Reduce,
    gather_is_proved: Gather,
    scatter_is_proved: Scatter,
}

#[test]
fn exchanges_of_blocks_are_proved() {
    for collective in [Collective::AllGather, Collective::ReduceScatter, Collective::AllToAll] {
        for algorithm in Algorithm::ALL.into_iter().filter(|a| a.serves(collective)) {
            prove_up_to_64(algorithm, |_| vec![collective]);
        }
    }
}

#[test]
fn barrier_is_proved() {
    for algorithm in [Algorithm::Dissemination, Algorithm::OneShot] {
        prove_up_to_64(algorithm, |_| vec![Collective::Barrier]);
    }
}

/// Hosts with one rank and with several, as many as each other and not, neighbours apart and together.
#[test]
fn hierarchical_is_proved_on_any_hosts() {
    let mut places: Vec<Vec<u32>> = (1..=16)
        .flat_map(|ranks| (1..=ranks).map(move |hosts| (0..ranks).map(|r| r % hosts).collect()))
        .collect();
    places.extend([
        vec![0, 0, 0, 1],
        vec![7, 3, 3, 3, 7, 9, 9, 9, 9],
        vec![0, 1, 1, 0, 0, 2, 1, 2],
    ]);
    places.push((0..64).map(|rank| rank / 8).collect());
    let given = places.iter().map(|hosts| (hosts.clone(), Places::on(hosts)));
    let backwards = places.iter().filter_map(|hosts| {
        let order = (0..hosts.len() as u32).rev().collect();
        Some((hosts.clone(), Places::in_order(hosts, order)?))
    });
    for (hosts, on) in given.chain(backwards) {
        let plans: Vec<Plan> = (0..hosts.len() as u32)
            .map(|rank| Algorithm::Hierarchical.plan_on(Collective::AllReduce, rank, &on))
            .collect();
        let verdict = prove(Collective::AllReduce, &plans);
        assert!(verdict.is_ok(), "{hosts:?}: {}", verdict.unwrap_err());
    }
}

/// The ring between hosts follows the order of places, as other rings do.
#[test]
fn hierarchical_takes_hosts_in_the_order_of_places() {
    // Hosts 0, 1 and 2 of two ranks each, of which 2 comes second.
    let hosts = [0, 0, 1, 1, 2, 2];
    let places = Places::in_order(&hosts, vec![0, 1, 4, 5, 2, 3]).expect("an order");
    for (rank, next) in [(0, 4), (4, 2), (2, 0), (1, 5), (5, 3), (3, 1)] {
        let plan = Algorithm::Hierarchical.plan_on(Collective::AllReduce, rank, &places);
        for step in &plan.steps {
            if let Step::Send { peer, .. } = step
                && hosts[*peer as usize] != hosts[rank as usize]
            {
                assert_eq!(*peer, next, "from rank {rank}");
            }
        }
    }
}

/// Counted in chunks: among `h` hosts, `2 (h - 1)` of `h` leave each host for each of its parts.
#[test]
fn hierarchical_crosses_between_hosts_no_more_than_needed() {
    for (locals, hosts) in [(1, 2), (2, 2), (4, 2), (3, 5), (8, 4)] {
        let of_ranks: Vec<u32> = (0..locals * hosts).map(|rank| rank / locals).collect();
        let places = Places::on(&of_ranks);
        for host in 0..hosts {
            let mut crossing = 0;
            let mut chunks = 0;
            for rank in host * locals..(host + 1) * locals {
                let plan = Algorithm::Hierarchical.plan_on(Collective::AllReduce, rank, &places);
                chunks = plan.chunks;
                crossing += plan.steps.iter().fold(0, |sum, step| match *step {
                    Step::Send { peer, src, .. } if peer / locals != host => sum + src.len,
                    _ => sum,
                });
            }
            // The whole buffer is `chunks`.
            assert_eq!(
                crossing * hosts,
                2 * (hosts - 1) * chunks,
                "{locals} ranks on {hosts} hosts"
            );
        }
    }
}

/// Backwards, dealt out to hosts like cards, and from the middle on.
#[test]
fn plans_from_neighbour_to_neighbour_are_proved_in_any_order() {
    for ranks in 2..=17 {
        let orders = [
            (0..ranks).rev().collect(),
            Places::on(&(0..ranks).map(|rank| rank % 3).collect::<Vec<_>>()).order().to_vec(),
            (0..ranks).map(|place| (place * 5 + ranks / 2) % ranks).collect::<Vec<_>>(),
        ];
        let in_order = |order| Places::in_order(&vec![0; ranks as usize], order);
        for places in orders.into_iter().filter_map(in_order) {
            for collective in Collective::all(ranks / 3) {
                let follow = |a: &Algorithm| a.serves(collective) && a.has_neighbours(collective);
                for algorithm in Algorithm::ALL.into_iter().filter(follow) {
                    let plans: Vec<Plan> = (0..ranks)
                        .map(|rank| algorithm.plan_on(collective, rank, &places))
                        .collect();
                    let verdict = prove(collective, &plans);
                    let order = places.order();
                    assert!(verdict.is_ok(), "{algorithm}, {order:?}: {}", verdict.unwrap_err());
                }
            }
        }
    }
}

/// A ring of ranks that were dealt out to hosts like cards leaves each host once.
#[test]
fn a_ring_leaves_each_host_once() {
    let hosts: Vec<u32> = (0..12).map(|rank| rank % 3).collect();
    let places = Places::on(&hosts);
    let mut leaving = 0;
    for rank in 0..12 {
        let plan = Algorithm::Ring.plan_on(Collective::AllReduce, rank, &places);
        let host = |rank: u32| hosts[rank as usize];
        let leaves =
            |step: &Step| matches!(step, Step::Send { peer, .. } if host(*peer) != host(rank));
        leaving += u32::from(plan.steps.iter().any(leaves));
    }
    assert_eq!(leaving, 3);
}

/// What of the algorithms the reproducible mode relies on, and that none is left out for no reason.
#[test]
fn what_is_said_to_fold_in_the_order_of_the_ranks_does() {
    for ranks in 3..=20 {
        for collective in Collective::all(ranks / 2).into_iter().filter(|c| c.is_reduction()) {
            for algorithm in Algorithm::ALL.into_iter().filter(|a| a.serves(collective)) {
                let report = prove(collective, &plans(algorithm, collective, ranks)).unwrap();
                let said = algorithm.folds_in_rank_order(collective);
                assert_eq!(report.is_in_rank_order, said, "{algorithm}, {collective:?} of {ranks}");
            }
        }
    }
}
