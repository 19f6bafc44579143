//! Tests of measured times: what is chosen by them, what is kept, and that all ranks go by rank 0's.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::*;
use crate::selection::{Shape, choose, explain};
use crate::{Communicator, Costs, DataType, NetworkFigures, Op};

/// Four ranks of one host.
fn shape() -> Shape {
    Shape {
        ranks: 4,
        hosts: 1,
        shared_memory: true,
        rdma: false,
        local_ranks: 4,
        processors: 2,
        fewest_local_ranks: 4,
        reproducible: false,
        large_pages: false,
        costs: Costs::default(),
        network_figures: NetworkFigures::Default,
        order: None,
        tuned: None,
    }
}

fn measured_on(shape: &Shape) -> MeasuredOn {
    let links = Links {
        rdma: shape.rdma,
        way: if shape.shared_memory { Way::Shm } else { Way::Network },
        in_one_process: false,
        interface: None,
        sockets: 1,
        encrypts: false,
        checksums: false,
        attach: "auto".into(),
    };
    MeasuredOn::new(shape, links)
}

/// All-reduces of which one algorithm is the fastest, as if they had been measured.
fn fastest(algorithm: Algorithm, measured_on: MeasuredOn) -> Tuned {
    let serving = Algorithm::ALL.into_iter().filter(|a| a.serves(Collective::AllReduce));
    let times = |a| if a == algorithm { vec![1000, 4000] } else { vec![2000, 8000] };
    let times = Times {
        collective: Collective::AllReduce,
        sizes_bytes: vec![1024, 4096],
        by_algorithm: serving.map(|a| (a, times(a))).collect(),
    };
    Tuned { measured_on, times: vec![times] }
}

/// All-reduces of which only one algorithm was measured.
fn only(algorithm: Algorithm, measured_on: MeasuredOn) -> Tuned {
    let mut tuned = fastest(algorithm, measured_on);
    tuned.times[0].by_algorithm.retain(|(other, _)| *other == algorithm);
    tuned
}

/// Ring faster for 1024 bytes, one-shot for 4096.
fn crossing(measured_on: MeasuredOn) -> Tuned {
    let times = Times {
        collective: Collective::AllReduce,
        sizes_bytes: vec![1024, 4096],
        by_algorithm: vec![
            (Algorithm::Ring, vec![1000, 7000]),
            (Algorithm::OneShot, vec![2000, 5000]),
        ],
    };
    Tuned { measured_on, times: vec![times] }
}

#[test]
fn times_between_sizes_lie_on_a_line() {
    let table = crossing(measured_on(&shape()));
    let time = |bytes| table.time_s(Collective::AllReduce, Algorithm::Ring, bytes);
    assert_eq!(
        (time(0), time(8)),
        (Some(1e-6), Some(1e-6)),
        "the smallest is for all smaller ones"
    );
    assert_eq!((time(1024), time(2560), time(4096)), (Some(1e-6), Some(4e-6), Some(7e-6)));
    assert_eq!((time(8192), time(16_384)), (Some(14e-6), Some(28e-6)), "in proportion, for a step");
    assert_eq!(time(16_385), None);
    assert_eq!(table.time_s(Collective::AllReduce, Algorithm::TwoShot, 1024), None);
    assert_eq!(table.time_s(Collective::AllGather, Algorithm::Ring, 1024), None);
}

#[test]
fn what_took_least_is_chosen_where_it_was_measured() {
    let figures = shape();
    let tuned = Arc::new(crossing(measured_on(&figures)));
    let tuned = Shape { tuned: Some(tuned), ..figures.clone() };
    let chosen = |bytes| choose(Collective::AllReduce, bytes, &tuned, None).algorithm;
    assert_eq!((chosen(8), chosen(1024)), (Algorithm::Ring, Algorithm::Ring));
    assert_eq!((chosen(4096), chosen(16_384)), (Algorithm::OneShot, Algorithm::OneShot));

    let explanation = explain(Collective::AllReduce, 1024, &tuned, None);
    assert_eq!(explanation.candidates.len(), 2, "what was not measured is no candidate");
    assert_eq!(explanation.candidates[0].measured_s, Some(1e-6));
    let text = explanation.to_string();
    assert!(text.contains("over shared memory, by measured times:"), "{text}");
    assert!(text.contains("measured          1.0 us"), "{text}");
    let forced = explain(Collective::AllReduce, 1024, &tuned, Some(Algorithm::TwoShot)).to_string();
    assert!(forced.contains("not measured"), "{forced}");
}

#[test]
fn elsewhere_the_choice_is_by_the_figures() {
    let figures = shape();
    let tuned = Arc::new(crossing(measured_on(&figures)));
    let same = |collective, bytes, shape: &Shape| {
        let with = Shape { tuned: Some(tuned.clone()), ..shape.clone() };
        let explanation = explain(collective, bytes, &with, None);
        assert!(!explanation.to_string().contains("measured"), "{explanation}");
        assert_eq!(explanation.candidates, explain(collective, bytes, shape, None).candidates);
    };
    same(Collective::AllReduce, 1 << 20, &figures);
    same(Collective::AllGather, 1024, &figures);
    for other in [
        Shape { ranks: 3, ..figures.clone() },
        Shape { hosts: 2, ..figures.clone() },
        Shape { local_ranks: 3, ..figures.clone() },
        Shape { processors: 4, ..figures.clone() },
        Shape { fewest_local_ranks: 1, ..figures.clone() },
        Shape { large_pages: true, ..figures.clone() },
        Shape { shared_memory: false, ..figures.clone() },
    ] {
        same(Collective::AllReduce, 1024, &other);
    }
}

/// What is fast counts only among what gives the same bits.
#[test]
fn where_results_are_reproducible_other_algorithms_are_no_candidates() {
    let figures = Shape { reproducible: true, ..shape() };
    let tuned = Arc::new(fastest(Algorithm::Ring, measured_on(&figures)));
    let shape = Shape { tuned: Some(tuned), ..figures.clone() };
    let explanation = explain(Collective::AllReduce, 1024, &shape, None);
    assert!(explanation.candidates.iter().all(|candidate| {
        candidate.measured_s == Some(2e-6)
            && candidate.choice.algorithm.folds_in_rank_order(Collective::AllReduce)
    }));
    assert!(!explanation.candidates.is_empty());
    let without = Arc::new(only(Algorithm::Ring, measured_on(&figures)));
    let shape = Shape { tuned: Some(without), ..figures.clone() };
    let by_figures = choose(Collective::AllReduce, 1024, &figures, None);
    assert_eq!(choose(Collective::AllReduce, 1024, &shape, None), by_figures);
}

#[test]
fn a_table_is_what_it_was_when_it_has_been_sent() {
    let table = crossing(measured_on(&shape()));
    assert_eq!(Tuned::decode(table.encode().as_bytes()), Ok(table));
}

#[test]
fn what_nobody_measured_is_no_table() {
    let text = crossing(measured_on(&shape())).encode();
    let twice = text.replace("one-shot", "ring");
    for (damaged, why) in [
        (text.replace("\"format\": 3", "\"format\": 1"), "of another version of Ringtree"),
        (text.replace("1024", "4096"), "sizes that nobody measured"),
        (text.replace("1024", "-1"), "invalid value"),
        (text.replace("7000", "0"), "times that nobody measured"),
        (text.replace("7000", "9000000000000000"), "times that nobody measured"),
        (text.replace("7000", "7000, 1"), "times that nobody measured"),
        (text.replace("all-reduce", "all-forget"), "no collective \"all-forget\""),
        (text.replace("one-shot", "pairwise"), "no algorithm of all-reduce is \"pairwise\""),
        (twice, "ring of all-reduce comes twice"),
        (text[..text.len() / 2].to_string(), "EOF"),
        (String::new(), "EOF"),
        (text.clone() + &" ".repeat(1 << 20), "bytes"),
    ] {
        let said = Tuned::decode(damaged.as_bytes()).unwrap_err();
        assert!(said.contains(why), "{said}, not {why}");
    }
    let mut without = crossing(measured_on(&shape()));
    without.times[0].by_algorithm.clear();
    assert!(Tuned::decode(without.encode().as_bytes()).unwrap_err().contains("has no algorithm"));
    let mut both = crossing(measured_on(&shape()));
    both.times.push(both.times[0].clone());
    assert!(Tuned::decode(both.encode().as_bytes()).unwrap_err().contains("comes twice"));
}

#[test]
fn a_table_that_was_kept_is_found_again() {
    let scratch = Scratch::new();
    let cache = TuningCache::at(scratch.0.join("a/b"));
    let here = measured_on(&shape());
    assert_eq!((cache.find(&here), cache.tables().unwrap()), (None, Vec::new()));
    let first = fastest(Algorithm::Ring, here.clone());
    let path = cache.keep(&first).unwrap();
    assert_eq!(cache.find(&here), Some(first));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let second = fastest(Algorithm::Doubling, here.clone());
    assert_eq!(cache.keep(&second).unwrap(), path, "in place of the first");
    assert_eq!(cache.find(&here), Some(second.clone()));

    for other in [
        MeasuredOn { ranks: 5, ..here.clone() },
        MeasuredOn { processor: "another".into(), ..here.clone() },
        MeasuredOn { links: Links { sockets: 2, ..here.links.clone() }, ..here.clone() },
    ] {
        assert_eq!(cache.find(&other), None);
        assert_ne!(cache.path(&other), path);
    }
    assert_eq!(cache.tables().unwrap(), [(path, Ok(second))]);
    assert_eq!((cache.forget().unwrap(), cache.forget().unwrap()), (1, 0));
    assert_eq!((cache.find(&here), cache.tables().unwrap()), (None, Vec::new()));
}

#[test]
fn a_table_that_cannot_be_used_is_ignored() {
    let scratch = Scratch::new();
    let cache = TuningCache::at(&scratch.0);
    let here = measured_on(&shape());
    let table = fastest(Algorithm::Ring, here.clone());
    let path = cache.keep(&table).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let is_ignored = |why: &str| {
        assert_eq!(cache.find(&here), None, "{why}");
        let tables = cache.tables().unwrap();
        let said = tables[0].1.as_ref().unwrap_err();
        assert!(said.contains(why), "{said}, not {why}");
    };
    fs::write(&path, "some text").unwrap();
    is_ignored("it is damaged");
    fs::write(&path, text.replace("\"format\": 3", "\"format\": 1")).unwrap();
    is_ignored("it is of another version");
    fs::write(&path, text.replace("\"ranks\": 4", "\"ranks\": 5")).unwrap();
    is_ignored("it is a copy of another's");
    fs::write(&path, &text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o622)).unwrap();
    is_ignored("other users may write it");
    fs::remove_file(&path).unwrap();
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    is_ignored("it is no file");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("nowhere", &path).unwrap();
    is_ignored("it cannot be read");
    fs::remove_file(&path).unwrap();
    assert_eq!(cache.find(&here), None);
}

#[test]
fn all_ranks_measure_the_same_table_and_choose_by_it() {
    let scratch = Scratch::new();
    let cache = TuningCache::at(&scratch.0);
    let tables = on_each(3, |_| Tuning::Off, |comm| comm.tune(Duration::ZERO).unwrap());
    assert!(tables.iter().all(|table| *table == tables[0]));
    let measured: Vec<(Collective, &[u64])> = tables[0].sizes_bytes().collect();
    // Without time only the smallest size: of an element for each rank, where there are blocks.
    assert_eq!(measured.len(), Collective::all(0).len());
    for (collective, sizes_bytes) in measured {
        let bytes = match collective {
            Collective::Barrier => 0,
            _ if collective.is_of_blocks() => 12,
            _ => 8,
        };
        assert_eq!(sizes_bytes, [bytes], "{}", collective.name());
        let algorithms: Vec<Algorithm> =
            Algorithm::ALL.into_iter().filter(|a| a.serves(collective)).collect();
        let times: Vec<(Algorithm, f64)> = tables[0].times_s(collective, bytes).collect();
        assert_eq!(times.iter().map(|(a, _)| *a).collect::<Vec<_>>(), algorithms);
        assert!(times.iter().all(|(_, time_s)| *time_s > 0.0));
    }
    cache.keep(&tables[0]).unwrap();
    let kept = on_each(3, |_| Tuning::Kept(cache.clone()), |comm| comm.shape().tuned.clone());
    assert!(kept.iter().all(|table| table.as_deref() == Some(&tables[0])));
}

#[test]
fn a_communicator_that_offers_less_than_all_is_not_tuned() {
    let adjust = |settings: &mut crate::Settings| settings.reproducible = true;
    let communicators = Communicator::in_process_with(1, adjust).unwrap();
    let refused = communicators[0].tune(Duration::ZERO).unwrap_err().to_string();
    assert!(refused.contains("tune one that is not"), "{refused}");
}

#[test]
fn larger_sizes_are_measured_as_far_as_the_time_goes() {
    let tables = on_each(2, |_| Tuning::Off, |comm| comm.tune(Duration::from_secs(2)).unwrap());
    for (collective, sizes_bytes) in tables[0].sizes_bytes() {
        assert!(sizes_bytes.is_sorted_by(|a, b| a < b));
        let step = sizes_bytes.windows(2).all(|pair| pair[1] == STEP * pair[0]);
        assert!(step, "{}: {sizes_bytes:?}", collective.name());
    }
    let (_, sizes_bytes) = tables[0].sizes_bytes().next().unwrap();
    assert!(sizes_bytes.len() > 1, "{sizes_bytes:?}");
}

/// Whatever the others have, or if they alone have something.
#[test]
fn all_ranks_choose_by_rank_0s_table() {
    let scratch = Scratch::new();
    let caches = ["a", "b", "c"].map(|name| TuningCache::at(scratch.0.join(name)));
    let here = on_each(3, |_| Tuning::Off, |comm| comm.tune(Duration::ZERO).unwrap());
    let here = here[0].measured_on().clone();
    assert!(here.links.in_one_process && here.ranks == 3);
    caches[0].keep(&fastest(Algorithm::Doubling, here.clone())).unwrap();
    caches[1].keep(&fastest(Algorithm::Star, here.clone())).unwrap();

    let chosen = |tuning: &(dyn Fn(u32) -> Tuning + Sync)| {
        on_each(3, tuning, |comm| {
            let mut sum = [comm.rank() as f32; 256];
            comm.all_reduce(&mut sum, Op::Sum).unwrap();
            assert_eq!(sum, [3.0; 256]);
            let explanation = comm.explain(Collective::AllReduce, 256, DataType::F32);
            (comm.shape().tuned.is_some(), explanation.candidates[0].choice.algorithm)
        })
    };
    let by_rank_0s = chosen(&|rank| Tuning::Kept(caches[rank as usize].clone()));
    assert_eq!(by_rank_0s, [(true, Algorithm::Doubling); 3]);
    let off = chosen(&|rank| match rank {
        0 => Tuning::Kept(caches[0].clone()),
        _ => Tuning::Off,
    });
    assert_eq!(off, by_rank_0s);
    let by_figures = chosen(&|_| Tuning::Off);
    let others_alone = chosen(&|rank| match rank {
        0 => Tuning::Off,
        _ => Tuning::Kept(caches[1].clone()),
    });
    let empty = chosen(&|rank| Tuning::Kept(caches[(rank as usize + 2) % 3].clone()));
    assert!(by_figures.iter().all(|(is_tuned, _)| !is_tuned));
    assert_eq!((others_alone, empty), (by_figures.clone(), by_figures));
}

/// What each of `ranks` threads makes of its communicator.
fn on_each<T: Send>(
    ranks: u32,
    tuning: impl Fn(u32) -> Tuning,
    call: impl Fn(&Communicator) -> T + Sync,
) -> Vec<T> {
    let adjust = |settings: &mut crate::Settings| settings.tuning = tuning(settings.rank);
    let communicators = Communicator::in_process_with(ranks, adjust).unwrap();
    // Nobody leaves while another still calls.
    let end = Barrier::new(ranks as usize);
    std::thread::scope(|scope| {
        let threads: Vec<_> = communicators
            .into_iter()
            .map(|comm| {
                let (call, end) = (&call, &end);
                scope.spawn(move || {
                    let result = call(&comm);
                    end.wait();
                    result
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// A folder that is removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringtree-tuning-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        Scratch(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
