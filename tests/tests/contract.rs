//! What the library promises about its calls beside their values: order, ownership, errors.

use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use ringtree::{
    Algorithm, Collective, Communicator, Costs, DataType, Error, Factor, Op, Pending, Settings,
    Transports,
};
use ringtree_tests::pages::bytes_in_large_pages;
use ringtree_tests::random::Random;
use ringtree_tests::ranks::{TRANSPORTS, communicators, each, on_ranks};
use ringtree_transport::pages::large_page_bytes;

/// What every rank contributes to a sum, and what it must come to.
fn sum_of(communicator: &Communicator, factor: f32) -> (f32, f32) {
    let ranks = communicator.ranks() as f32;
    ((communicator.rank() as f32 + 1.0) * factor, ranks * (ranks + 1.0) / 2.0 * factor)
}

/// An all-reduce that must succeed.
fn works(communicator: &Communicator, count: usize, factor: f32) {
    let (mine, all) = sum_of(communicator, factor);
    let mut buffer = vec![mine; count];
    communicator.all_reduce(&mut buffer, Op::Sum).expect("an all-reduce");
    assert!(buffer.iter().all(|x| *x == all), "{count} elements of {mine} gave {buffer:?}");
}

#[test]
fn threads_that_take_turns_share_a_communicator() {
    const THREADS: usize = 3;
    const TURNS: usize = 60;
    on_ranks(3, Transports::Shm, |communicator| {
        let (turn, changed) = (Mutex::new(0), Condvar::new());
        each((0..THREADS).collect(), |thread| {
            for mine in (thread..TURNS).step_by(THREADS) {
                let turn = turn.lock().expect("no thread panicked");
                let mut turn = changed.wait_while(turn, |turn| *turn != mine).expect("as above");
                works(communicator, 100 * thread + mine, mine as f32);
                *turn += 1;
                changed.notify_all();
            }
        });
    });
}

#[test]
fn all_ranks_choose_by_the_costs_of_rank_0() {
    let default = Costs::default();
    let mut dear_messages = default;
    dear_messages.shm.message_s = 1.0;
    let chosen_with = |of_rank_0: Costs, of_others: Costs| {
        let costs = |rank| if rank == 0 { of_rank_0 } else { of_others };
        let communicators =
            Communicator::in_process_with(4, |settings| settings.costs = costs(settings.rank));
        let chosen = Mutex::new(Vec::new());
        each(communicators.expect("communicators"), |communicator| {
            let explanation = communicator.explain(Collective::AllReduce, 1 << 22, DataType::F32);
            chosen.lock().expect("no thread panicked").push(explanation.candidates[0].choice);
            works(&communicator, 1 << 22, 1.0);
        });
        let chosen = chosen.into_inner().expect("as above");
        assert!(chosen.iter().all(|choice| *choice == chosen[0]), "{chosen:?}");
        chosen[0].algorithm
    };
    let (usual, by_rank_0) = (chosen_with(default, default), chosen_with(dear_messages, default));
    assert_ne!(usual, by_rank_0);
    assert_eq!(chosen_with(default, dear_messages), usual);

    let unusable = |settings: &mut Settings| settings.costs.tcp.bytes_per_s = 0.0;
    let error = Communicator::in_process_with(2, unusable).expect_err("no such speed");
    assert!(error.to_string().contains("costs.tcp.bytes_per_s is 0"), "{error}");
}

#[test]
fn many_communicators_in_one_process() {
    const MANY: usize = 6;
    // all[c][r] is rank r of communicator c; each thread is one rank in all of them.
    let all: Vec<_> =
        (0..MANY).map(|c| communicators(3, TRANSPORTS[c % TRANSPORTS.len()])).collect();
    let mut ranks: Vec<Vec<Communicator>> = (0..3).map(|_| Vec::new()).collect();
    for communicator in all.into_iter().flatten() {
        ranks[communicator.rank() as usize].push(communicator);
    }
    each(ranks, |mut communicators| {
        for round in 0..10 {
            for (c, communicator) in communicators.iter().enumerate() {
                works(communicator, 1 + 997 * c, (round * MANY + c) as f32);
            }
            // Those that are left work on when others have gone.
            if round > 4 {
                communicators.pop();
            }
        }
    });
}

/// A buffer that leaves its number where all can see it when it is freed.
struct Logged {
    data: Vec<f32>,
    number: usize,
    log: Arc<Mutex<Vec<usize>>>,
}

impl AsMut<[f32]> for Logged {
    fn as_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        if let Ok(mut log) = self.log.lock() {
            log.push(self.number);
        }
    }
}

#[test]
fn calls_complete_in_the_order_of_posting() {
    const IN_FLIGHT: usize = 8;
    for transports in TRANSPORTS {
        on_ranks(3, transports, |communicator| {
            let log = Arc::new(Mutex::new(Vec::new()));
            for round in 0..5 {
                for number in 0..IN_FLIGHT {
                    let data = vec![number as f32; 1 + 3_000 * ((number + round) % 3)];
                    let buffer = Logged { data, number, log: log.clone() };
                    // Nobody waits: the buffer is freed when the operation is done with it.
                    drop(communicator.all_reduce_async(buffer, Op::Sum).expect("posted"));
                }
                // A blocking call comes after everything that was posted before it.
                works(communicator, 10, 2.0);
                let done = std::mem::take(&mut *log.lock().expect("no panic"));
                assert_eq!(done, (0..IN_FLIGHT).collect::<Vec<_>>());
            }
        });
    }
}

#[test]
fn asynchronous_calls_between_blocking_ones_give_their_own_results() {
    for transports in TRANSPORTS {
        on_ranks(4, transports, |communicator| {
            let mut random = Random::new(7);
            let mut pending: Vec<(f32, Pending<Vec<f32>>)> = Vec::new();
            for call in 0..60 {
                let (count, factor) = (random.below(5_000), call as f32);
                let (mine, all) = sum_of(communicator, factor);
                match random.below(3) {
                    0 => works(communicator, count, factor),
                    _ if pending.len() == 8 => {
                        // Waited for in any order.
                        let (all, pending) = pending.swap_remove(random.below(8));
                        let buffer = pending.wait().expect("an all-reduce");
                        assert!(buffer.iter().all(|x| *x == all));
                    }
                    _ => {
                        let posted = communicator.all_reduce_async(vec![mine; count], Op::Sum);
                        pending.push((all, posted.expect("posted")));
                    }
                }
            }
            for (all, pending) in pending {
                assert!(pending.wait().expect("an all-reduce").iter().all(|x| *x == all));
            }
        });
    }
}

#[test]
fn every_collective_is_there_asynchronous_and_prepared() {
    for transports in TRANSPORTS {
        on_ranks(3, transports, |communicator| {
            let (mine, all) = sum_of(communicator, 2.0);
            let into = communicator
                .all_reduce_into_async(vec![mine; 5_000], vec![0.0; 5_000], Op::Sum)
                .expect("posted");
            let given = communicator.broadcast_async(vec![mine; 700], 1).expect("posted");
            let (input, output) = into.wait().expect("an all-reduce");
            assert!(input.iter().all(|x| *x == mine) && output.iter().all(|x| *x == all));
            assert!(given.wait().expect("a broadcast").iter().all(|x| *x == 4.0));

            let mut prepared =
                communicator.prepare_broadcast(vec![0.0_f32; 300], 2).expect("ready");
            for round in 0..50 {
                prepared.buffer().fill(mine + round as f32);
                prepared.run().expect("a broadcast");
                assert!(prepared.buffer().iter().all(|x| *x == 6.0 + round as f32));
            }
            let mut prepared = communicator
                .prepare_all_reduce_into(vec![mine; 300], vec![0.0; 300], Op::Sum)
                .expect("ready");
            for round in 0..50 {
                prepared.input().fill(mine + round as f32);
                prepared.run().expect("an all-reduce");
                let sum = all + 3.0 * round as f32;
                assert!(prepared.output().iter().all(|x| *x == sum));
                assert!(prepared.input().iter().all(|x| *x == mine + round as f32));
            }

            let (next, before) = ((communicator.rank() + 1) % 3, (communicator.rank() + 2) % 3);
            let barrier = communicator.barrier_async().expect("posted");
            let sent =
                communicator.send_async(vec![communicator.rank() as i32; 9], next).expect("posted");
            let received = communicator.receive_async(vec![9_i32; 9], before).expect("posted");
            assert_eq!(received.wait().expect("a message"), vec![before as i32; 9]);
            assert_eq!(sent.wait().expect("sent"), vec![communicator.rank() as i32; 9]);
            barrier.wait().expect("a barrier");

            let short = communicator.all_reduce_into_async(vec![mine; 4], vec![0.0; 5], Op::Sum);
            assert!(matches!(short, Err(Error::Argument(_))));
        });
    }
}

#[test]
fn a_communicator_that_is_dropped_completes_what_was_posted() {
    for transports in TRANSPORTS {
        let pending = each(communicators(3, transports), |communicator| {
            let post = |count: usize| {
                let (mine, all) = sum_of(&communicator, count as f32);
                let posted = communicator.all_reduce_async(vec![mine; count], Op::Sum);
                (all, posted.expect("posted"))
            };
            [1, 70_000, 0, 300_000].map(post)
        });
        for (all, pending) in pending.into_iter().flatten() {
            let buffer = pending.wait().expect("the operation was completed");
            assert!(buffer.iter().all(|x| *x == all));
        }
    }
}

/// An empty buffer may have the address of another one, which does not make the call one in place.
#[test]
fn an_empty_buffer_beside_another_is_not_the_same() {
    on_ranks(3, Transports::Shm, |communicator| {
        let rank = communicator.rank() as usize;
        let all: Vec<i32> = (0..12).collect();
        let mut buffer = [-1; 16];
        let (nothing, output) = buffer.split_at_mut(0);
        let given = if rank == 0 { &all[..] } else { nothing };
        communicator.scatter_into(given, &mut output[..4], 0).expect("scattered");
        assert_eq!(output[..4], all[4 * rank..][..4]);
        assert!(output[4..].iter().all(|x| *x == -1), "{output:?}");
        communicator.scatter_v_into(given, &mut output[..4], &[4; 3], 0).expect("scattered");
        assert_eq!(output[..4], all[4 * rank..][..4]);

        let mut buffer: Vec<i32> = vec![rank as i32; 4];
        buffer.extend([-1; 12]);
        let (nothing, input) = buffer.split_at_mut(0);
        let mut gathered = [0; 12];
        let output = if rank == 0 { &mut gathered[..] } else { nothing };
        communicator.gather_into(&input[..4], output, 0).expect("gathered");
        assert!(rank > 0 || gathered == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], "{gathered:?}");
    });
}

/// Two ranks that do not agree on what one gives the other.
#[test]
fn blocks_of_another_length_than_expected_end_the_call_everywhere() {
    for transports in TRANSPORTS {
        for (expected, given) in [(10, 11), (11, 10), (0, 1), (300_000, 300_001), (300_001, 1)] {
            let ended = on_ranks(3, transports, |communicator| {
                let rank = communicator.rank() as usize;
                let (mut gives, mut gets) = ([5, 5, 5], [5, 5, 5]);
                if rank == 1 {
                    gives[2] = given;
                }
                if rank == 2 {
                    gets[1] = expected;
                }
                let input = vec![1_u8; gives.iter().sum()];
                let mut output = vec![0_u8; gets.iter().sum()];
                let called = communicator.all_to_all_v_into(&input, &gives, &mut output, &gets);
                // Who was done before the other looked hears of it in the next call.
                called.and_then(|()| communicator.barrier()).map_err(|error| error.to_string())
            });
            for ended in ended {
                let error = ended.expect_err("rank 1 gives another length");
                let names = error.contains("rank 2 aborted") && error.contains("rank 1");
                let says = error.contains(&format!("{expected} bytes"));
                assert!(names && says && error.contains("counts"), "{error}");
            }
        }
    }
}

#[test]
fn lengths_that_all_must_know_are_compared() {
    let ended = on_ranks(2, Transports::Shm, |communicator| {
        let counts = if communicator.rank() == 0 { [3, 4] } else { [4, 3] };
        let input = vec![1.0_f32; counts[communicator.rank() as usize]];
        let mut output = [0.0; 7];
        communicator.all_gather_v_into(&input, &mut output, &counts).map_err(|e| e.to_string())
    });
    for error in ended {
        let error = error.expect_err("other counts");
        assert!(error.contains("all-gather-v of 7 f32 in all") && error.contains('#'), "{error}");
    }
}

/// A buffer whose length is another each time somebody asks.
struct Shrinking(Vec<f32>);

impl AsMut<[f32]> for Shrinking {
    fn as_mut(&mut self) -> &mut [f32] {
        self.0.pop();
        &mut self.0
    }
}

#[test]
fn a_buffer_that_changes_its_length_is_refused() {
    on_ranks(2, Transports::Shm, |communicator| {
        let mut prepared =
            communicator.prepare_all_reduce(Shrinking(vec![1.0; 9]), Op::Sum).expect("prepared");
        assert!(matches!(prepared.run(), Err(Error::Argument(_))));
        let posted = communicator.all_reduce_async(Shrinking(vec![1.0; 9]), Op::Sum);
        assert!(matches!(posted.expect("posted").wait(), Err(Error::Argument(_))));
        works(communicator, 100, 3.0);
    });
}

/// A buffer that works for the first `left` times that somebody asks.
struct Panicking {
    data: Vec<f32>,
    left: usize,
}

impl AsMut<[f32]> for Panicking {
    fn as_mut(&mut self) -> &mut [f32] {
        assert!(self.left > 0, "this buffer panics, as it is meant to");
        self.left -= 1;
        &mut self.data
    }
}

#[test]
fn a_panic_in_an_asynchronous_call_hangs_nobody() {
    on_ranks(2, Transports::Shm, |communicator| {
        let panicking = Panicking { data: vec![1.0; 9], left: 1 };
        let first = communicator.all_reduce_async(panicking, Op::Sum).expect("posted");
        assert!(matches!(first.wait(), Err(Error::Panicked)));
        let after = communicator.all_reduce_async(vec![1.0_f32], Op::Sum).expect("posted");
        assert!(after.wait().is_err());
        assert!(communicator.barrier().is_err());
    });
}

#[test]
fn a_prepared_call_runs_a_thousand_times() {
    for transports in TRANSPORTS {
        on_ranks(3, transports, |communicator| {
            let (mine, all) = sum_of(communicator, 1.0);
            let mut prepared =
                communicator.prepare_all_reduce(vec![0.0_f32; 50], Op::Sum).expect("prepared");
            for _ in 0..1000 {
                prepared.buffer().fill(mine);
                prepared.run().expect("a run");
                assert!(prepared.buffer().iter().all(|x| *x == all));
            }
            assert_eq!(prepared.into_inner(), vec![all; 50]);
        });
    }
}

#[test]
fn buffers_of_a_loop_are_moved_into_large_pages_and_keep_their_values() {
    const COUNT: usize = 4 << 20;
    let has_large_pages = large_page_bytes().is_some();
    assert!(has_large_pages || std::env::var("CI").as_deref() != Ok("true"), "no large pages");
    for transports in TRANSPORTS {
        on_ranks(2, transports, |communicator| {
            let (mine, all) = sum_of(communicator, 1.0);
            let alloc = || communicator.alloc::<f32>(COUNT).expect("memory");
            let (mut input, mut output) = (alloc(), alloc());
            input.fill(mine);
            let call = |input: &[f32], output: &mut [f32]| {
                output.fill(-1.0);
                communicator.all_reduce_into(input, output, Op::Sum).expect("an all-reduce");
                assert!(output.iter().all(|x| *x == all), "over {transports}");
            };
            // Only one buffer of this process can be in large pages at a time.
            for is_input in [true, false] {
                let mut ordinary = Vec::new();
                if communicator.rank() == 0 {
                    ordinary = vec![mine; COUNT];
                }
                for _ in 0..3 {
                    match (communicator.rank(), is_input) {
                        (0, true) => call(&ordinary, &mut output),
                        (0, false) => call(&input, &mut ordinary),
                        _ => call(&input, &mut output),
                    }
                }
                if communicator.rank() == 0 && has_large_pages {
                    // In memory that is in pieces some pages may not find room.
                    let bytes = bytes_in_large_pages(&ordinary);
                    assert!(bytes >= 2 * COUNT, "{bytes} bytes, input: {is_input}");
                }
            }
        });
    }
}

#[test]
fn allocated_memory_serves_in_every_position() {
    const COUNT: usize = 100_001;
    for transports in TRANSPORTS {
        on_ranks(2, transports, |communicator| {
            let (mine, all) = sum_of(communicator, 1.0);
            let (rank, peer) = (communicator.rank(), 1 - communicator.rank());
            let mut input = communicator.alloc::<f32>(COUNT).expect("memory");
            let mut output = communicator.alloc::<f32>(COUNT).expect("memory");
            let mut plain = vec![0.0; COUNT];
            assert!(input.len() == COUNT && input.iter().all(|x| *x == 0.0));
            let is = |buffer: &[f32], value: f32| assert!(buffer.iter().all(|x| *x == value));

            input.fill(mine);
            communicator.all_reduce_into(&input, &mut output, Op::Sum).expect("both");
            is(&output, all);
            communicator.all_reduce_into(&input, &mut plain, Op::Sum).expect("input");
            is(&plain, all);
            plain.fill(mine);
            communicator.all_reduce_into(&plain, &mut output[..], Op::Max).expect("output");
            is(&output, 2.0);
            communicator.broadcast(&mut input, 1).expect("in place");
            is(&input, 2.0);
            input.fill(mine);
            communicator.broadcast_into(&input, &mut output, 0).expect("out of place");
            is(&output, 1.0);
            communicator.all_reduce(&mut input[1..], Op::Sum).expect("a part");
            is(&input[1..], all);
            is(&input[..1], mine);

            // By turns: both ranks sending at once could wait for each other.
            for sender in 0..2 {
                output.fill(mine);
                match sender == rank {
                    true => communicator.send(&output[3..], peer).expect("sent"),
                    false => communicator.receive(&mut input[3..], peer).expect("received"),
                }
            }
            is(&input[3..], peer as f32 + 1.0);

            let posted = communicator.all_reduce_async(output, Op::Sum).expect("posted");
            is(&posted.wait().expect("the buffer"), all);
            input.fill(mine);
            let mut prepared = communicator.prepare_all_reduce(input, Op::Sum).expect("prepared");
            prepared.run().expect("a run");
            is(&prepared.into_inner(), all);
            works(communicator, 9, 1.0);
            assert_eq!(communicator.alloc::<f64>(0).expect("no memory at all").len(), 0);
        });
    }
}

#[test]
fn nobody_leaves_a_barrier_before_all_have_come() {
    for transports in TRANSPORTS {
        for ranks in [1, 2, 3, 5, 8] {
            let came = AtomicU32::new(0);
            on_ranks(ranks, transports, |communicator| {
                let mut random = Random::new(u64::from(communicator.rank()));
                for round in 1..=20 {
                    random.dawdle(20_000);
                    came.fetch_add(1, Ordering::SeqCst);
                    communicator.barrier().expect("a barrier");
                    let came = came.load(Ordering::SeqCst);
                    assert!(came >= round * ranks, "{came} came to barrier {round} of {ranks}");
                }
            });
        }
    }
}

#[test]
fn a_call_that_makes_no_sense_is_refused_and_harms_nothing() {
    on_ranks(3, Transports::Shm, |communicator| {
        let refused = |result: Result<(), Error>, says: &str| match result {
            Err(Error::Argument(message)) => assert!(message.contains(says), "{message}"),
            other => panic!("{other:?} instead of \"{says}\""),
        };
        let (mut a, mut b) = ([0.0_f32; 4], [0.0_f32; 5]);
        // Only one rank makes each mistake: it is not a call at all.
        if communicator.rank() == 1 {
            let tree = communicator.using(Algorithm::Tree);
            refused(communicator.broadcast(&mut a, 3), "root 3");
            refused(communicator.broadcast_into(&b, &mut a, 1), "5");
            refused(communicator.all_reduce_into(&b, &mut a, Op::Sum), "5");
            refused(communicator.send(&a, 3), "rank 3");
            refused(communicator.send(&a, 1), "rank 1");
            refused(communicator.receive(&mut b, u32::MAX), "4294967295");
            refused(tree.all_reduce(&mut a, Op::Sum), "tree does not serve");
            refused(tree.all_reduce_into(&b[..4], &mut a, Op::Sum), "tree does not serve");
            refused(tree.all_reduce_async(vec![1.0_f32], Op::Sum).map(drop), "tree");
            refused(tree.prepare_all_reduce(vec![1.0_f32], Op::Sum).map(drop), "tree");
            refused(communicator.all_reduce(&mut a, Op::BitXor), "f32 has no xor");
            refused(communicator.reduce(&mut [1_u8], Op::Average, 0), "u8 has no average");
            let halves = Op::PreMulSum(Factor::new(0.5));
            refused(communicator.reduce_scatter(&mut [1_i64; 3], halves), "i64 has no premulsum");
            refused(communicator.using(Algorithm::Ring).broadcast(&mut a, 0), "ring");
            refused(communicator.all_gather_v(&mut a, &[1, 2]), "2 counts");
            refused(communicator.all_gather_v(&mut a, &[1, 2, 3]), "6");
            refused(communicator.all_gather_v(&mut a, &[1, usize::MAX, 3]), "too large");
            refused(communicator.all_gather_v_into(&b, &mut a, &[1, 2, 1]), "must have 2");
            refused(communicator.gather_v_into(&a, &mut b, &[1, 3, 1], 1), "must have 3");
            let halving = communicator.using(Algorithm::HalvingDoubling);
            refused(halving.all_gather_v(&mut a, &[1, 2, 1]), "all-gather-v, which takes");
            let given = [1, 2, 1];
            refused(communicator.all_to_all_v_into(&a, &given, &mut b, &[1, 3, 1]), "itself");
            refused(communicator.using(Algorithm::Dissemination).broadcast(&mut a, 0), "dissem");
        }
        works(communicator, 1000, 1.0);
        communicator.broadcast(&mut a, 2).expect("a broadcast");
        communicator.barrier().expect("a barrier");
    });
}

#[test]
fn only_the_root_needs_an_input_to_broadcast() {
    on_ranks(3, Transports::Tcp, |communicator| {
        let input = if communicator.rank() == 1 { &[3_i32, 4, 5][..] } else { &[] };
        let mut output = [0; 3];
        communicator.broadcast_into(input, &mut output, 1).expect("a broadcast");
        assert_eq!(output, [3, 4, 5]);
    });
}

#[test]
fn an_abort_ends_the_calls_of_all_with_its_reason() {
    for transports in TRANSPORTS {
        on_ranks(3, transports, |communicator| {
            works(communicator, 1000, 1.0);
            let ended = if communicator.rank() == 2 {
                communicator.barrier().expect("a barrier");
                communicator.abort("the loss is not a number");
                communicator.barrier()
            } else {
                // The abort may come while these are still leaving the first barrier.
                let posted = |()| communicator.all_reduce_async(vec![1.0_f32; 10], Op::Sum);
                communicator.barrier().and_then(posted).and_then(Pending::wait).map(drop)
            };
            let message = ended.expect_err("the communicator is over").to_string();
            assert!(message.contains("the loss is not a number"), "{message}");
            assert!(message.contains("rank 2"), "{message}");
        });
    }
}

#[test]
fn a_rank_that_panics_is_named() {
    for transports in TRANSPORTS {
        each(communicators(3, transports), |communicator| {
            let run = AssertUnwindSafe(move || {
                if communicator.rank() == 1 {
                    panic!("this rank panics, as it is meant to");
                }
                communicator.barrier().expect_err("rank 1 does not come")
            });
            let Ok(error) = catch_unwind(run) else { return };
            assert!(error.to_string().contains("rank 1 aborted: it panicked"), "{error}");
            // This is what a `main` that returns the error prints.
            assert_eq!(format!("{error:?}"), error.to_string());
        });
    }
}

/// Settings of a rank that is alone.
fn settings(secret: &str) -> Settings {
    let variables = [
        ("RINGTREE_RANK", "0"),
        ("RINGTREE_RANKS", "1"),
        ("RINGTREE_RENDEZVOUS", "127.0.0.1:9"),
        ("RINGTREE_SECRET", secret),
    ];
    let variables = variables.map(|(name, value)| (name.to_string(), value.to_string()));
    Settings::from_variables(&variables.into_iter().collect()).expect("settings")
}

#[test]
fn a_rank_that_is_none_is_refused() {
    for (rank, ranks) in [(1, 1), (7, 3), (0, 0)] {
        let joined = Communicator::with(Settings { rank, ranks, ..settings("x") });
        assert!(matches!(joined, Err(Error::Settings(_))), "rank {rank} of {ranks}");
    }
}

#[test]
fn a_rendezvous_that_nobody_can_host_is_told_with_the_reason() {
    // An address for documentation (RFC 5737), which is no machine's.
    let elsewhere = Settings {
        rendezvous: "192.0.2.1:7000".to_string(),
        timeout: Duration::from_millis(200),
        ..settings("x")
    };
    let error = Communicator::with(elsewhere).expect_err("nobody is there").to_string();
    assert!(error.contains("cannot listen") && error.contains("192.0.2.1:7000"), "{error}");

    let no_address = Settings { rendezvous: "no such host:7000".to_string(), ..settings("x") };
    let error = Communicator::with(no_address).expect_err("no address").to_string();
    assert!(error.contains("cannot listen") && error.contains("no such host:7000"), "{error}");
}

/// Where nobody listens.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

#[test]
fn a_communicator_may_come_while_the_one_before_goes() {
    come_and_go(&free_address());
}

#[test]
fn so_it_may_where_a_file_tells_the_address() {
    let path = std::env::temp_dir().join(format!("ringtree-contract-{}", std::process::id()));
    come_and_go(&format!("file:{}", path.display()));
    assert!(!path.exists());
}

fn come_and_go(rendezvous: &str) {
    const TURNS: usize = 20;
    each((0..2).collect(), |rank| {
        let settings = Settings {
            rank,
            ranks: 2,
            rendezvous: rendezvous.to_string(),
            timeout: Duration::MAX,
            ..settings("x")
        };
        let mut before = None;
        for turn in 0..TURNS {
            let next = std::thread::scope(|scope| {
                scope.spawn(|| drop(before.take()));
                Communicator::with(settings.clone()).expect("a communicator")
            });
            works(&next, 10, turn as f32);
            before = Some(next);
        }
        // Its parts meet at the same place.
        let last = before.expect("a communicator");
        let part = last.split(Some(0), 0).expect("a part").expect("one for all");
        works(&part, 10, 0.0);
    });
}

#[test]
fn debug_output_is_short_and_shows_no_secret() {
    let secret = "correct horse battery staple";
    let settings = settings(secret);
    let shown = format!("{settings:?} {:?}", settings.job);
    assert!(!shown.contains(secret) && shown.contains("Secret(..)"), "{shown}");
    on_ranks(2, Transports::Auto, |communicator| {
        works(communicator, 10, 1.0);
        let prepared = communicator.prepare_all_reduce(vec![0.0_f32], Op::Sum).expect("prepared");
        let using = communicator.using(Algorithm::Ring);
        for shown in [format!("{communicator:?}"), format!("{using:?} {prepared:?}")] {
            assert!(shown.len() < 500 && shown.contains("ranks: 2"), "{shown}");
        }
    });
}

/// Whoever is first out of the barrier may be gone before another one has looked who has come.
#[test]
fn ranks_that_leave_right_after_a_barrier_disturb_nobody() {
    for turn in 0..100 {
        let ended = each(communicators(2 + turn % 3, Transports::Shm), |communicator| {
            communicator.barrier().and_then(|()| communicator.barrier())
        });
        assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    }
}
