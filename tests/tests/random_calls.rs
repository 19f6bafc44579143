//! Short lists of any calls between ranks that are threads of one process, each against a plain sum.
//! A list that fails is made as short and its calls as plain as they can be before it is printed.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use ringtree::Transports;
use ringtree_plan::Collective;
use ringtree_tests::calls::Way;
use ringtree_tests::ranks::{TRANSPORTS, on_ranks};
use ringtree_tests::values::{Case, Place, algorithms, check, has_call_in_place, reductions};

/// Lists that are tried. They are other ones in every run, which need not be kept: what is printed
/// in the end is all that a failing one is.
const LISTS: u32 = 60;

/// What a communicator is asked to do.
#[derive(Debug)]
struct List {
    ranks: u32,
    transports: Transports,
    calls: Vec<Case>,
}

fn lists() -> impl Strategy<Value = List> {
    (1..=6_u32, select(&TRANSPORTS[..])).prop_flat_map(|(ranks, transports)| {
        vec(call(ranks), 1..=8).prop_map(move |calls| List { ranks, transports, calls })
    })
}

fn call(ranks: u32) -> impl Strategy<Value = Case> {
    let collectives: Vec<Collective> = (0..ranks)
        .flat_map(Collective::all)
        .filter(|collective| *collective != Collective::Barrier)
        .collect();
    let counts =
        prop_oneof![4 => 0..=2 * ranks as usize, 4 => 0..2_000_usize, 1 => 0..150_000_usize];
    // The first of each is the plainest, to which a failing one is simplified.
    let how = (any::<Index>(), select(&[Place::OutOf, Place::In][..]), select(&Way::ALL[..]));
    let memory = (counts, 0..=1_usize, select(&[0, u64::MAX, 0b10_1010][..]));
    let seeds = any::<u64>().no_shrink();
    (select(collectives), select(reductions()), how, memory, seeds).prop_map(
        |(collective, (data_type, op), (algorithm, place, way), memory, seed)| {
            let (count, offset, allocated) = memory;
            let algorithm = *algorithm.get(&algorithms(collective));
            let place = if has_call_in_place(collective) { place } else { Place::OutOf };
            Case {
                collective,
                algorithm,
                data_type,
                op,
                place,
                way,
                count,
                offset,
                allocated,
                seed,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(LISTS)
    })]

    #[test]
    fn every_call_gives_the_plain_sum(list in lists()) {
        on_ranks(list.ranks, list.transports, |communicator| {
            list.calls.iter().for_each(|call| check(communicator, *call));
        });
    }
}
