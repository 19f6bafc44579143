//! The cost model agrees with the closed formulas to 1 %.

use ringtree_plan::{Algorithm, Collective, Machine, Program, Work, lower, predict};

/// Where latency counts most, where bandwidth does, and where reduction does.
const MACHINES: [Machine; 3] = [
    Machine { latency_s: 20e-6, bandwidth_bytes_per_s: 12e9, reduction_bytes_per_s: 8e9 },
    Machine { latency_s: 1e-6, bandwidth_bytes_per_s: 1e9, reduction_bytes_per_s: 10e9 },
    Machine { latency_s: 1e-6, bandwidth_bytes_per_s: 20e9, reduction_bytes_per_s: 5e9 },
];

fn programs(algorithm: Algorithm, collective: Collective, ranks: u32) -> Vec<Program> {
    (0..ranks).map(|rank| lower(&algorithm.plan(collective, rank, ranks))).collect()
}

#[track_caller]
fn assert_agrees(
    algorithm: Algorithm,
    collective: Collective,
    programs: &[Program],
    machine: Machine,
    work: Work,
) {
    let ranks = programs.len() as u32;
    let predicted_s = predict(programs, machine, work);
    let formula_s = algorithm.closed_form(collective, ranks, &machine, &work);
    let error = (predicted_s - formula_s).abs();
    assert!(
        error <= 0.01 * formula_s,
        "{algorithm}, {ranks} ranks, {machine:?}, {work:?}: {predicted_s} s, by formula {formula_s} s"
    );
}

fn one_round_agrees(algorithm: Algorithm, collective: Collective, ranks: &[u32]) {
    for &ranks in ranks {
        let programs = programs(algorithm, collective, ranks);
        for machine in MACHINES {
            for bytes in [0.0, 8.0, 65536.0, 1e6, 256e6] {
                assert_agrees(algorithm, collective, &programs, machine, Work::whole(bytes));
                let rounds = Work { bytes, rounds: 3, lanes: 1 };
                // Whoever has its result first begins the next round while others still wait.
                if collective.root().is_none() && algorithm != Algorithm::Star {
                    assert_agrees(algorithm, collective, &programs, machine, rounds);
                }
            }
        }
    }
}

#[test]
fn symmetric_algorithms_take_what_the_formulas_say() {
    let all = [Algorithm::Ring, Algorithm::TwoShot, Algorithm::OneShot, Algorithm::Star];
    for algorithm in all {
        one_round_agrees(algorithm, Collective::AllReduce, &[1, 2, 3, 4, 7, 16, 33, 64]);
    }
    let barrier = Collective::Barrier;
    one_round_agrees(Algorithm::Dissemination, barrier, &[1, 2, 3, 5, 16, 64]);
    for ranks in [1, 2, 3, 5, 16, 64] {
        let programs = programs(Algorithm::OneShot, barrier, ranks);
        let nothing = Work::whole(0.0);
        for machine in MACHINES {
            assert_agrees(Algorithm::OneShot, barrier, &programs, machine, nothing);
        }
    }
}

#[test]
fn exchanges_of_blocks_take_what_the_formulas_say() {
    let ranks = [1, 2, 3, 4, 7, 16, 33, 64];
    for collective in Collective::all(0).into_iter().filter(|c| c.is_of_blocks()) {
        for algorithm in [Algorithm::Ring, Algorithm::Direct, Algorithm::Pairwise] {
            if algorithm.serves(collective) {
                one_round_agrees(algorithm, collective, &ranks);
            }
        }
    }
}

#[test]
fn a_reduction_takes_what_the_formula_says() {
    let ranks = [1, 2, 4, 8, 16, 32, 64, 128];
    one_round_agrees(Algorithm::Tree, Collective::Reduce { root: 0 }, &ranks);
    let any = [1, 2, 3, 4, 7, 16, 33, 64];
    one_round_agrees(Algorithm::TwoShot, Collective::Reduce { root: 0 }, &any);
}

#[test]
fn a_tree_of_blocks_takes_what_the_formula_says() {
    let ranks = [1, 2, 4, 8, 16, 32, 64, 128];
    one_round_agrees(Algorithm::Tree, Collective::Gather { root: 0 }, &ranks);
    one_round_agrees(Algorithm::Tree, Collective::Scatter { root: 0 }, &ranks);
}

/// Of other numbers, ranks whose messages come in two pieces run ahead and meet others' at a port.
#[test]
fn halving_doubling_takes_what_the_formula_says() {
    let powers = [1, 2, 4, 8, 16, 32, 64];
    one_round_agrees(Algorithm::HalvingDoubling, Collective::AllReduce, &powers);
    one_round_agrees(Algorithm::HalvingDoubling, Collective::AllGather, &powers);
    one_round_agrees(Algorithm::HalvingDoubling, Collective::ReduceScatter, &powers);
    for ranks in 3..=64 {
        let programs = programs(Algorithm::HalvingDoubling, Collective::AllReduce, ranks);
        for machine in MACHINES {
            let work = Work::whole(1e6);
            let formula_s = Algorithm::HalvingDoubling.closed_form(
                Collective::AllReduce,
                ranks,
                &machine,
                &work,
            );
            let ratio = predict(&programs, machine, work) / formula_s;
            assert!((0.7..1.5).contains(&ratio), "{ranks} ranks, {machine:?}: {ratio}");
        }
    }
}

#[test]
fn a_chain_takes_what_the_formula_says() {
    let ranks = [1, 2, 3, 4, 7, 16, 33, 64];
    one_round_agrees(Algorithm::Chain, Collective::Broadcast { root: 0 }, &ranks);
    one_round_agrees(Algorithm::Chain, Collective::Reduce { root: 0 }, &ranks);
}

#[test]
fn a_double_tree_from_or_to_a_root_takes_what_the_formula_says_to_two_messages() {
    for collective in [Collective::Broadcast { root: 0 }, Collective::Reduce { root: 0 }] {
        for ranks in [2, 3, 4, 5, 8, 9, 16, 17, 33, 64, 100, 128] {
            let programs = programs(Algorithm::DoubleTree, collective, ranks);
            for machine in MACHINES {
                let work = Work::whole(1e8);
                let formula_s =
                    Algorithm::DoubleTree.closed_form(collective, ranks, &machine, &work);
                let reduction_s = machine.reduction_s(work.bytes / 2.0, 2);
                let message_s = machine.transfer_s(work.bytes / 2.0)
                    + if collective.is_reduction() { reduction_s } else { 0.0 };
                let error_s = (predict(&programs, machine, work) - formula_s).abs();
                assert!(error_s <= 2.0 * message_s, "{collective:?}, {ranks} ranks, {machine:?}");
            }
        }
    }
}

#[test]
fn doubling_takes_what_the_formula_says() {
    one_round_agrees(Algorithm::Doubling, Collective::AllReduce, &[1, 2, 4, 8, 16, 32, 64]);
}

#[test]
fn doubling_of_any_ranks_takes_what_the_formula_says_to_a_message_a_turn() {
    for ranks in 2..=64 {
        let programs = programs(Algorithm::Doubling, Collective::AllReduce, ranks);
        for machine in MACHINES {
            let work = Work::whole(1e6);
            let formula_s =
                Algorithm::Doubling.closed_form(Collective::AllReduce, ranks, &machine, &work);
            let message_s = machine.latency_s + machine.transfer_s(work.bytes);
            let error_s = (predict(&programs, machine, work) - formula_s).abs();
            assert!(error_s <= f64::from(ranks.ilog2()) * message_s, "{ranks} ranks, {machine:?}");
        }
    }
}

#[test]
fn a_broadcast_takes_what_the_formula_says() {
    let ranks = [1, 2, 4, 8, 16, 32, 64, 128];
    one_round_agrees(Algorithm::Tree, Collective::Broadcast { root: 0 }, &ranks);
}

#[test]
fn a_double_tree_of_one_round_takes_what_the_formula_says_to_two_transfers() {
    for ranks in [2, 4, 8, 16, 32, 64, 128] {
        let programs = programs(Algorithm::DoubleTree, Collective::AllReduce, ranks);
        for machine in &MACHINES[..2] {
            for bytes in [0.0, 8.0, 65536.0, 1e6, 256e6] {
                let work = Work::whole(bytes);
                let formula_s =
                    Algorithm::DoubleTree.closed_form(Collective::AllReduce, ranks, machine, &work);
                let error_s = (predict(&programs, *machine, work) - formula_s).abs();
                let transfers_s = 2.0 * machine.transfer_s(bytes / 2.0);
                assert!(error_s <= 0.01 * formula_s + transfers_s, "{ranks} ranks, {bytes}");
            }
        }
    }
}

#[test]
fn a_double_tree_with_lanes_enough_is_bound_by_its_ports() {
    for ranks in [2, 3, 4, 5, 8, 13, 16, 31, 64] {
        let programs = programs(Algorithm::DoubleTree, Collective::AllReduce, ranks);
        for chunk_bytes in [4e3, 64e3] {
            let work = Work { bytes: 2048.0 * chunk_bytes, rounds: 1024, lanes: 16 };
            assert_agrees(
                Algorithm::DoubleTree,
                Collective::AllReduce,
                &programs,
                MACHINES[1],
                work,
            );
        }
    }
}

#[test]
fn a_double_tree_with_few_lanes_is_bound_by_its_depth() {
    for ranks in [4, 8, 16, 31, 64] {
        let programs = programs(Algorithm::DoubleTree, Collective::AllReduce, ranks);
        for (rounds, lanes) in [(64, 1), (64, 2), (256, 4)] {
            // A latency is worth 240 kB here.
            let work = Work { bytes: 1e3 * f64::from(rounds), rounds, lanes };
            assert_agrees(
                Algorithm::DoubleTree,
                Collective::AllReduce,
                &programs,
                MACHINES[0],
                work,
            );
        }
    }
}

#[test]
fn a_broadcast_of_any_ranks_takes_no_longer_than_the_formula_says() {
    for ranks in 2..=64 {
        let broadcast = Collective::Broadcast { root: 1 };
        let programs = programs(Algorithm::Tree, broadcast, ranks);
        let work = Work::whole(1e6);
        let formula_s = Algorithm::Tree.closed_form(broadcast, ranks, &MACHINES[1], &work);
        assert!(predict(&programs, MACHINES[1], work) <= formula_s * 1.000001, "{ranks} ranks");
    }
}
