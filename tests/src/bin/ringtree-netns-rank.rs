//! One rank of the tests between two hosts: connects to all others, repeats a verified all-reduce,
//! and says in lines that tests read what became of it.
//!
//! `ringtree-netns-rank COUNT REPEATS [shrink]`, with the job in RINGTREE_*. It prints `link PEER TRANSPORT`
//! for each peer, `network BYTES_PER_S FIGURES` as algorithms are chosen by, `running REPEAT` now and then, and at the end `verified IN_MS` or
//! `error AFTER_MS MESSAGE`, with the time that the last call took; with `shrink`, then `regrouped RANK of RANKS` where it goes on
//! with others, and has had one more call with them, or `alone MESSAGE`, and it
//! stays.

use std::process::ExitCode;
use std::time::Instant;

use ringtree::{Communicator, Error, Op, Shape};

/// It says that it runs after the first repeat and after each of so many.
const SAY_EVERY: usize = 16;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut numbers =
        arguments.by_ref().take(2).map(|text| text.parse::<usize>().expect("a number"));
    let count = numbers.next().expect("a count");
    let repeats = numbers.next().expect("a number of repeats");
    let shrinks = arguments.next().is_some_and(|word| word == "shrink");
    let began = Instant::now();
    let communicator = match connect() {
        Ok(communicator) => communicator,
        Err(error) => return failed(began, &error),
    };
    let mut buffer = vec![0.0; count];
    for repeat in 0..repeats {
        fill(&communicator, repeat, &mut buffer);
        let began = Instant::now();
        if let Err(error) = communicator.all_reduce(&mut buffer, Op::Sum) {
            let code = failed(began, &error);
            if shrinks {
                go_on(&communicator);
            }
            return code;
        }
        let took_ms = began.elapsed().as_millis();
        verify(&communicator, repeat, &buffer);
        if repeat % SAY_EVERY == 0 {
            println!("running {repeat}");
        }
        if repeat + 1 == repeats {
            println!("verified {took_ms}");
        }
    }
    ExitCode::SUCCESS
}

fn go_on(communicator: &Communicator) -> ! {
    let mut buffer = vec![0.0; 1000];
    let gone_on = communicator.shrink().and_then(|regrouped| {
        let next = regrouped.communicator;
        fill(&next, 0, &mut buffer);
        next.all_reduce(&mut buffer, Op::Sum)?;
        verify(&next, 0, &buffer);
        Ok((next.rank(), next.ranks()))
    });
    match gone_on {
        Ok((rank, ranks)) => println!("regrouped {rank} of {ranks}"),
        Err(error) => println!("alone {error}"),
    }
    // The others shall not find that it has ended.
    loop {
        std::thread::park();
    }
}

fn failed(began: Instant, error: &Error) -> ExitCode {
    println!("error {} {error}", began.elapsed().as_millis());
    ExitCode::FAILURE
}

fn connect() -> Result<Communicator, Error> {
    let communicator = Communicator::from_env()?;
    communicator.warm_up()?;
    for peer in (0..communicator.ranks()).filter(|peer| *peer != communicator.rank()) {
        let kind = communicator.transport_to(peer).expect("a link, after warm-up");
        println!("link {peer} {kind}");
    }
    let Shape { costs, network_figures, .. } = communicator.shape();
    println!("network {} {network_figures:?}", costs.tcp.bytes_per_s);
    Ok(communicator)
}

fn fill(communicator: &Communicator, repeat: usize, buffer: &mut [f32]) {
    let rank = communicator.rank();
    buffer.iter_mut().enumerate().for_each(|(index, x)| *x = value(rank, repeat, index));
}

fn verify(communicator: &Communicator, repeat: usize, buffer: &[f32]) {
    for (index, got) in buffer.iter().enumerate() {
        let expected: f32 = (0..communicator.ranks()).map(|rank| value(rank, repeat, index)).sum();
        assert_eq!(*got, expected, "element {index} of all-reduce {repeat}");
    }
}

/// Whole numbers small enough that every sum is exact.
fn value(rank: u32, repeat: usize, index: usize) -> f32 {
    ((rank as usize + 1) * (index % 251 + repeat % 13)) as f32
}
