//! The checker's verdict on every algorithm, for all ranks from 1 to 64 and every root.

use ringtree_plan::{Algorithm, Collective, Plan, prove};

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
    one_shot_is_proved: Algorithm::OneShot,
    two_shot_is_proved: Algorithm::TwoShot,
}

#[test]
fn broadcast_is_proved_from_every_root() {
    let every_root = |ranks| (0..ranks).map(|root| Collective::Broadcast { root }).collect();
    prove_up_to_64(Algorithm::Tree, every_root);
}

#[test]
fn barrier_is_proved() {
    prove_up_to_64(Algorithm::Dissemination, |_| vec![Collective::Barrier]);
}
