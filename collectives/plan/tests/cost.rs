//! The cost model agrees with the closed formulas to 1 %, and a few ranks stand for all.

use ringtree_plan::{
    Algorithm, Collective, Local, Machine, Places, Program, Representatives, Work, lower, predict,
    trace,
};

/// Where latency counts most, where bandwidth does, and where reduction does.
const MACHINES: [Machine; 3] =
    [machine(20e-6, 0.0, 12e9, 8e9), machine(1e-6, 0.0, 1e9, 10e9), machine(1e-6, 2e-6, 20e9, 5e9)];

const fn machine(
    latency_s: f64,
    message_s: f64,
    bandwidth_bytes_per_s: f64,
    reduction_bytes_per_s: f64,
) -> Machine {
    Machine { latency_s, message_s, bandwidth_bytes_per_s, reduction_bytes_per_s, local: None }
}

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

/// Algorithms with the collectives that they serve.
fn all() -> impl Iterator<Item = (Algorithm, Collective)> {
    let serving = |c: Collective| Algorithm::ALL.into_iter().filter(move |a| a.serves(c));
    Collective::all(0).into_iter().flat_map(move |c| serving(c).map(move |a| (a, c)))
}

#[test]
fn formulas_that_are_called_exact_are_what_the_plans_take() {
    let mut compared = 0;
    for (algorithm, collective) in all() {
        for ranks in [1, 2, 3, 5, 8, 33, 64, 100, 1024] {
            // Of many ranks one is enough.
            let machines = if ranks > 100 { &MACHINES[2..] } else { &MACHINES[..] };
            for &machine in machines {
                for work in [
                    Work::whole(0.0),
                    Work::whole(65536.0),
                    Work::whole(1e8),
                    Work { bytes: 1e7, rounds: 5, lanes: 1 },
                ] {
                    let has_form = algorithm.has_exact_form(collective, ranks, &work);
                    if !has_form || (collective == Collective::Barrier && work.bytes > 0.0) {
                        continue;
                    }
                    let representatives =
                        Representatives::new(algorithm, collective, ranks, machine).expect("few");
                    let predicted_s = representatives.predict(work).expect("few messages");
                    let formula_s = algorithm.closed_form(collective, ranks, &machine, &work);
                    let error_s = (predicted_s - formula_s).abs();
                    assert!(
                        error_s <= 0.01 * formula_s,
                        "{algorithm}, {collective:?}, {ranks} ranks, {machine:?}, {work:?}: \
                         {predicted_s} s, by formula {formula_s} s"
                    );
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 500, "{compared}");
}

/// Ranks, ranks a host, and what they have among themselves.
fn on_hosts(machine: Machine, locals: u32) -> Machine {
    let local =
        Local { ranks: locals, latency_s: 0.2e-6, message_s: 0.1e-6, bandwidth_bytes_per_s: 8e9 };
    Machine { local: (locals > 1).then_some(local), ..machine }
}

#[test]
fn representatives_take_as_long_as_all() {
    for (algorithm, collective) in all() {
        for (ranks, locals) in [(2, 1), (7, 1), (8, 2), (16, 1), (16, 4), (16, 16), (18, 3)] {
            for flat in MACHINES {
                let machine = on_hosts(flat, locals);
                let hosts: Vec<u32> = (0..ranks).map(|rank| rank / locals).collect();
                let places = Places::on(&hosts);
                let programs: Vec<Program> = (0..ranks)
                    .map(|rank| lower(&algorithm.plan_on(collective, rank, &places)))
                    .collect();
                let representatives =
                    Representatives::new(algorithm, collective, ranks, machine).expect("few");
                for work in [
                    Work::whole(0.0),
                    Work::whole(1e5),
                    Work { bytes: 1e7, rounds: 41, lanes: 2 },
                    Work { bytes: 1e8, rounds: 100, lanes: 4 },
                ] {
                    let all_s = predict(&programs, machine, work);
                    let few_s = representatives.predict(work).expect("few messages");
                    assert!(
                        (few_s - all_s).abs() <= 0.01 * all_s,
                        "{algorithm}, {collective:?}, {ranks} ranks, {locals} a host, {flat:?}, \
                         {work:?}: {few_s} s, all {all_s} s"
                    );
                }
            }
        }
    }
}

#[test]
fn of_many_rounds_the_first_ones_tell_how_long_all_take() {
    let broadcast = Collective::Broadcast { root: 0 };
    for (algorithm, collective, lanes, most_error) in [
        (Algorithm::Chain, broadcast, 16, 0.01),
        (Algorithm::Tree, broadcast, 8, 0.01),
        (Algorithm::DoubleTree, broadcast, 8, 0.03),
        (Algorithm::DoubleTree, Collective::AllReduce, 16, 0.03),
    ] {
        let programs = programs(algorithm, collective, 64);
        // Twice as many messages as are run, or more.
        let rounds = if collective == broadcast { 32_000 } else { 8_000 };
        let work = Work { bytes: 256e3 * f64::from(rounds), rounds, lanes };
        let representatives =
            Representatives::new(algorithm, collective, 64, MACHINES[0]).expect("few ranks");
        let first_s = representatives.predict(work).expect("few messages");
        let all_s = predict(&programs, MACHINES[0], work);
        assert!(
            (first_s - all_s).abs() <= most_error * all_s,
            "{algorithm}: {first_s} s, {all_s} s"
        );
        assert_ne!(first_s, all_s, "all rounds were run");
    }
}

#[test]
fn ranks_of_a_host_share_its_port() {
    // All to all: each of 4 ranks has 2 blocks for the other host, which pass one port.
    let machine = on_hosts(machine(1e-6, 0.0, 1e9, 1e9), 2);
    let exchange =
        Representatives::new(Algorithm::Direct, Collective::AllToAll, 4, machine).expect("few");
    let block_s = 1e-3;
    let predicted_s = exchange.predict(Work::whole(4e6)).expect("few messages");
    let expected_s = 1e-6 + 4.0 * block_s;
    assert!((predicted_s - expected_s).abs() < 1e-6, "{predicted_s} s, not {expected_s} s");
    let sent = exchange.sent(Work::whole(4e6));
    assert_eq!((sent.messages, sent.host_bytes), (3, 4e6));
}

#[test]
fn too_many_messages_are_not_run() {
    let machine = on_hosts(MACHINES[0], 1024);
    let direct = Representatives::new(Algorithm::Direct, Collective::AllToAll, 16384, machine);
    assert!(direct.is_none());
}

#[test]
fn a_trace_has_every_message_and_when_it_comes() {
    let programs = programs(Algorithm::Ring, Collective::AllReduce, 3);
    let machine = machine(1.0, 0.0, 1.0, f64::INFINITY);
    let transfers = trace(&programs, machine, Work::whole(6.0));
    assert_eq!(transfers.len(), 3 * 4);
    for (index, transfer) in transfers.iter().enumerate() {
        // Each turn takes a latency and a third of the buffer.
        let turn = (index / 3) as f64;
        assert_eq!(transfer.to, (transfer.from + 1) % 3);
        assert_eq!((transfer.start_s, transfer.end_s), (3.0 * turn, 3.0 * turn + 3.0));
    }
}
