//! Memory that is registered: it serves in every position, and gives what other memory gives.

use ringtree::{Op, Transports};
use ringtree_tests::ranks::{TRANSPORTS, on_ranks};

const COUNT: usize = 100_003;

#[test]
fn ordinary_memory_serves_while_it_is_registered_and_comes_back() {
    for transports in TRANSPORTS {
        on_ranks(2, transports, |communicator| {
            let mine = communicator.rank() as f32 + 1.0;
            let mut owned = communicator.register(vec![mine; COUNT]).expect("a guard");
            communicator.all_reduce(&mut owned, Op::Sum).expect("an all-reduce");
            assert!(owned.iter().all(|x| *x == 3.0));
            let boxed = vec![mine; COUNT].into_boxed_slice();
            let input = communicator.register(boxed).expect("a guard");
            communicator.all_reduce_into(&input, &mut owned, Op::Max).expect("an all-reduce");
            assert!(owned.iter().all(|x| *x == 2.0));
            let posted = communicator.all_reduce_async(owned, Op::Sum).expect("posted");
            let back: Vec<f32> = posted.wait().expect("the guard").into_inner();
            assert!(back.iter().all(|x| *x == 4.0));
        });
    }
}

#[test]
fn memory_of_another_communicator_can_be_written_in_place() {
    on_ranks(3, Transports::Shm, |communicator| {
        let part = communicator.split(Some(0), 0).expect("a part").expect("one for all");
        let mut memory = communicator.alloc::<i64>(COUNT).expect("memory");
        memory.fill(i64::from(communicator.rank()));
        {
            let mut registered = part.register(&mut memory).expect("a guard");
            part.all_reduce(&mut registered, Op::Sum).expect("an all-reduce");
            assert!(registered.iter().all(|x| *x == 3));
        }
        let registered = part.register(&memory).expect("a guard");
        let mut output = vec![0; COUNT];
        part.all_reduce_into(&registered, &mut output, Op::Sum).expect("an all-reduce");
        assert!(output.iter().all(|x| *x == 9));
    });
}
