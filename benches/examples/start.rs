//! How long a communicator takes to be ready, and what idle ranks hold: one JSON object on standard
//! output. `start processes` under a launcher, `start threads N` alone; `benches/host/start.py` runs
//! both.

use std::error::Error;
use std::fs;
use std::time::Instant;

use ringtree::{Communicator, Op};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["processes"] => processes(),
        ["threads", ranks] => threads(ranks.parse()?),
        _ => Err("usage: start processes, under a launcher, or start threads N".into()),
    }
}

/// Ready is a rank when its first barrier is over.
fn processes() -> Result<(), Box<dyn Error>> {
    let began_s = monotonic_s()?;
    let before_kib = own_memory_kib()?;
    let comm = Communicator::from_env()?;
    comm.barrier()?;
    let ready_s = monotonic_s()?;
    let idle_kib = own_memory_kib()? - before_kib;
    comm.warm_up()?;
    comm.barrier()?;
    let linked_kib = own_memory_kib()? - before_kib;
    let mut most = [-began_s, ready_s, idle_kib, linked_kib];
    comm.all_reduce(&mut most, Op::Max)?;
    let [minus_first_s, ready_s, idle_kib, linked_kib] = most;
    if comm.rank() == 0 {
        println!(
            "{{\"ranks\": {}, \"ready_s\": {:.3}, \"idle_mib_a_rank\": {:.2}, \
             \"all_linked_mib_a_rank\": {:.2}}}",
            comm.ranks(),
            ready_s + minus_first_s,
            idle_kib / 1024.0,
            linked_kib / 1024.0
        );
    }
    Ok(())
}

fn threads(ranks: u32) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    let communicators = Communicator::in_process(ranks)?;
    std::thread::scope(|scope| {
        let barrier = |comm: Communicator| scope.spawn(move || comm.barrier().map(|()| comm));
        let started: Vec<_> = communicators.into_iter().map(barrier).collect();
        let ended = started.into_iter().map(|thread| thread.join().expect("no panic"));
        let communicators: Result<Vec<_>, _> = ended.collect();
        let ready_s = began.elapsed().as_secs_f64();
        println!("{{\"ranks\": {ranks}, \"ready_s\": {ready_s:.3}}}");
        communicators.map(drop)
    })?;
    Ok(())
}

/// Seconds on the clock that all processes of the machine share.
fn monotonic_s() -> Result<f64, Box<dyn Error>> {
    let text = fs::read_to_string("/proc/uptime")?;
    Ok(text.split_whitespace().next().ok_or("an empty /proc/uptime")?.parse()?)
}

/// What this process holds beside the pages of files: its own memory and the shared memory that it
/// has touched.
fn own_memory_kib() -> Result<f64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| -> Result<f64, Box<dyn Error>> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.split_whitespace().next());
        Ok(number.ok_or_else(|| format!("no {name} in /proc/self/status"))?.parse()?)
    };
    Ok(field("RssAnon:")? + field("RssShmem:")?)
}
