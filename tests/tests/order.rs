//! Ranks stand in the order that their hosts' wiring says, and get the same results in it.

use std::collections::BTreeSet;

use ringtree::{Algorithm, Collective, Communicator, DataType, Error, Op, TopologySource};
use ringtree_plan::{Places, prove};
use ringtree_tests::files::TemporaryFile;
use ringtree_tests::ranks::each;

/// Four GPUs in slots, two on each socket, and between these pairs of them a direct link.
fn machine_with_pairs(pairs: [[usize; 2]; 2]) -> String {
    let bus_id = |gpu: usize| format!("0000:{}1:00.0", gpu + 1);
    let gpu = |number: usize| {
        let partner = pairs.iter().find_map(|pair| match *pair {
            [a, b] if a == number => Some(b),
            [a, b] if b == number => Some(a),
            _ => None,
        });
        format!(
            r#"<pci busid="{}" class="0x030200" link_speed="16.0 GT/s PCIe" link_width="16">
              <gpu dev="{number}" sm="80"><nvlink target="{}" count="12" tclass="0x030200"/></gpu>
            </pci>"#,
            bus_id(number),
            bus_id(partner.expect("each GPU has a partner")),
        )
    };
    let socket = |number: usize| {
        format!(
            r#"<cpu numaid="{number}" affinity="{}" arch="x86_64" vendor="AuthenticAMD" familyid="25"
            modelid="1">{}{}</cpu>"#,
            ["0000ffff", "ffff0000"][number],
            gpu(2 * number),
            gpu(2 * number + 1),
        )
    };
    format!(r#"<system version="1">{}{}</system>"#, socket(0), socket(1))
}

fn communicators(ranks: u32, topology: &TopologySource) -> Result<Vec<Communicator>, Error> {
    Communicator::in_process_with(ranks, |settings| settings.topology = topology.clone())
}

/// Whether two ranks are neighbours in a ring.
fn are_neighbours(order: &[u32], a: usize, b: usize) -> bool {
    let at = |rank: usize| order.iter().position(|other| *other == rank as u32).expect("a rank");
    let apart = at(a).abs_diff(at(b));
    apart == 1 || apart == order.len() - 1
}

#[test]
fn rings_of_unlike_hosts_take_the_ranks_in_unlike_orders() {
    let mut orders = Vec::new();
    for (name, pairs) in [("side-by-side", [[0, 1], [2, 3]]), ("across", [[0, 2], [1, 3]])] {
        let file = TemporaryFile::new(&format!("{name}.xml"), &machine_with_pairs(pairs));
        let topology = TopologySource::File(file.path().to_owned());
        let all = communicators(4, &topology).expect("communicators");
        for communicator in &all {
            let order = communicator.shape().order.as_ref().expect("an order");
            for [a, b] in pairs {
                assert!(are_neighbours(&order.ranks, a, b), "{name}: {:?}", order.ranks);
            }
            assert_eq!(order, all[0].shape().order.as_ref().expect("the same order"));
        }
        let explained = all[0].explain(Collective::AllReduce, 1 << 20, DataType::F32).to_string();
        assert!(explained.contains("in the order"), "{explained}");
        assert!(explained.contains("GPU3"), "{explained}");
        orders.push(all[0].shape().order.as_ref().expect("an order").ranks.clone());
        each(all, |communicator| results_are_right(&communicator));
    }
    assert_ne!(orders[0], orders[1]);
}

/// Each collective that goes from neighbour to neighbour, by each algorithm that does.
fn results_are_right(communicator: &Communicator) {
    Algorithm::ALL.into_iter().for_each(|algorithm| gives_results(communicator, algorithm, 1003));
}

/// Each collective that goes from neighbour to neighbour by this algorithm.
fn gives_results(communicator: &Communicator, algorithm: Algorithm, count: usize) {
    let (rank, ranks) = (communicator.rank(), communicator.ranks());
    let given = |rank: u32, at: usize| (rank + 1) as f32 * (at % 17) as f32;
    let sum = |at: usize| (0..ranks).map(|rank| given(rank, at)).sum::<f32>();
    let mine = |count: usize| (0..count).map(|at| given(rank, at)).collect::<Vec<f32>>();
    let on = communicator.using(Some(algorithm));
    let has = |collective: Collective| {
        algorithm.serves(collective) && algorithm.has_neighbours(collective)
    };
    if has(Collective::AllReduce) {
        let mut buffer = mine(count);
        on.all_reduce(&mut buffer, Op::Sum).expect("an all-reduce");
        assert_eq!(buffer, (0..count).map(sum).collect::<Vec<f32>>(), "{algorithm}");
    }
    if has(Collective::AllGather) {
        let mut all = vec![0.0; count * ranks as usize];
        on.all_gather_into(&mine(count), &mut all).expect("an all-gather");
        for (from, block) in all.chunks(count).enumerate() {
            let expected: Vec<f32> = (0..count).map(|at| given(from as u32, at)).collect();
            assert_eq!(block, expected, "{algorithm}, block {from}");
        }
    }
    if has(Collective::ReduceScatter) {
        let mut block = vec![0.0; count];
        on.reduce_scatter_into(&mine(count * ranks as usize), &mut block, Op::Sum)
            .expect("a reduce-scatter");
        let first = rank as usize * count;
        assert_eq!(block, (first..first + count).map(sum).collect::<Vec<f32>>(), "{algorithm}");
    }
    for root in 0..ranks {
        if has(Collective::Broadcast { root }) {
            let mut buffer = mine(count);
            on.broadcast(&mut buffer, root).expect("a broadcast");
            let expected: Vec<f32> = (0..count).map(|at| given(root, at)).collect();
            assert_eq!(buffer, expected, "{algorithm} from {root}");
        }
        if has(Collective::Reduce { root }) {
            let mut buffer = mine(count);
            on.reduce(&mut buffer, Op::Sum, root).expect("a reduction");
            if rank == root {
                let expected: Vec<f32> = (0..count).map(sum).collect();
                assert_eq!(buffer, expected, "{algorithm} to {root}");
            }
        }
    }
}

/// Four GPUs of which each has a link to each other one.
fn machine_of_a_mesh() -> String {
    let bus_id = |gpu: usize| format!("0000:{}1:00.0", gpu + 1);
    let gpu = |number: usize| {
        let links = (0..4).filter(|other| *other != number).map(|other| {
            format!(r#"<nvlink target="{}" count="2" tclass="0x030200"/>"#, bus_id(other))
        });
        format!(
            r#"<pci busid="{}" class="0x030200" link_speed="16.0 GT/s PCIe" link_width="16">
            <gpu dev="{number}" sm="80">{}</gpu></pci>"#,
            bus_id(number),
            links.collect::<String>(),
        )
    };
    let gpus: String = (0..4).map(gpu).collect();
    format!(
        r#"<system version="1"><cpu numaid="0" affinity="ffff" arch="x86_64" vendor="AuthenticAMD" familyid="25"
        modelid="1">{gpus}</cpu></system>"#
    )
}

#[test]
fn lanes_take_different_rings_where_the_wiring_has_several() {
    let file = TemporaryFile::new("mesh.xml", &machine_of_a_mesh());
    let topology = TopologySource::File(file.path().to_owned());
    let all = communicators(4, &topology).expect("communicators");
    let order = all[0].shape().order.clone().expect("an order");
    // Each of the twelve ways between two GPUs is in one of them.
    let ways = order.rings().flat_map(|ring| {
        ring.iter().zip(ring.iter().cycle().skip(1)).map(|(from, to)| (*from, *to))
    });
    assert_eq!(ways.collect::<BTreeSet<_>>().len(), 12, "{order:?}");
    for ring in order.rings() {
        let places = Places::in_order(&[0; 4], ring.to_vec()).expect("each rank once");
        let plan = |rank| Algorithm::Ring.plan_on(Collective::AllReduce, rank, &places);
        let proof = prove(Collective::AllReduce, &(0..4).map(plan).collect::<Vec<_>>());
        proof.unwrap_or_else(|error| panic!("{ring:?}: {error}"));
    }
    let explained = all[0].explain(Collective::AllReduce, 1 << 20, DataType::F32).to_string();
    assert!(explained.contains("by turns"), "{explained}");
    // So many rounds that each lane has some.
    each(all, |communicator| {
        let around = Algorithm::ALL.into_iter().filter(|algorithm| algorithm.goes_around());
        around.for_each(|algorithm| gives_results(&communicator, algorithm, (5 << 18) + 3));
    });
}

#[test]
fn without_places_of_their_own_ranks_stand_in_the_order_of_their_numbers() {
    let all = communicators(4, &TopologySource::Off).expect("communicators");
    assert!(all.iter().all(|communicator| communicator.shape().order.is_none()));
}

#[test]
fn a_file_that_describes_no_machine_is_an_error_that_says_where() {
    let file =
        TemporaryFile::new("damaged.xml", "<system version=\"1\"><cpu numaid=\"0\"></system>");
    let topology = TopologySource::File(file.path().to_owned());
    let error = communicators(4, &topology).expect_err("no communicators").to_string();
    assert!(error.contains("RINGTREE_TOPOLOGY") && error.contains("line 1"), "{error}");
}
