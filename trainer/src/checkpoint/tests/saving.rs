//! What writers do: together, one after the other, and when one of them does not come.

use std::fs;

use super::*;
use crate::checkpoint::layout::{Attempt, optimiser_file_name};

/// The folder in which the ranks of a run meet for their first save.
fn first_attempt(step: u64, run: u64) -> String {
    Attempt { step, run, save: 1 }.folder_name()
}

#[test]
fn the_newest_stay_and_older_ones_go() {
    let folder = tempfile::tempdir().expect("a folder");
    save(folder.path(), 2, &[100, 200, 300, 400]);
    assert_eq!(names(folder.path()), ["step-0000000300", "step-0000000400"]);
    assert!(assert_latest(folder.path(), 400).is_empty());
}

#[test]
fn a_damaged_checkpoint_is_not_counted_among_those_that_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    save(folder.path(), 1, &[100]);
    let damaged = save(folder.path(), 1, &[200]);
    fs::remove_file(damaged.join("parameters.safetensors")).expect("a file");
    save(folder.path(), 1, &[300]);
    let expected = ["step-0000000100", "step-0000000200", "step-0000000300"];
    assert_eq!(names(folder.path()), expected);
    save(folder.path(), 1, &[400]);
    assert_eq!(names(folder.path()), ["step-0000000300", "step-0000000400"]);
}

/// After a damaged one was passed over, its step comes again.
#[test]
fn a_step_that_is_there_is_saved_beside_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let damaged = save(folder.path(), 1, &[100]);
    fs::remove_file(damaged.join("state.json")).expect("a file");
    save(folder.path(), 2, &[100]);
    assert_eq!(names(folder.path()), ["step-0000000100", "step-0000000100-1"]);
    assert!(assert_latest(folder.path(), 100).is_empty());
}

#[test]
fn ranks_whose_parts_do_not_come_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    save(folder.path(), 3, &[100]);
    let deadline = Duration::ZERO;
    let settings = WriterSettings { deadline, ..settings(folder.path(), 0, 3) };
    let mut alone = Writer::new(settings).expect("a folder");
    alone.save(snapshot(200, 0, 3)).expect("nothing before");
    let error = alone.finish(LONG).expect_err("two ranks do not come").to_string();
    assert!(error.contains("ranks 1, 2") && error.contains("one folder"), "{error}");
    assert_eq!(names(folder.path()), ["step-0000000100"]);
    assert!(assert_latest(folder.path(), 100).is_empty());
}

#[test]
fn a_part_of_an_earlier_run_is_not_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut earlier =
        Writer::new(WriterSettings { run: 1, ..settings(folder.path(), 1, 2) }).expect("a folder");
    earlier.save(snapshot(100, 1, 2)).expect("nothing before");
    earlier.finish(LONG).expect("its part");
    let settings =
        WriterSettings { run: 2, deadline: Duration::ZERO, ..settings(folder.path(), 0, 2) };
    let mut later = Writer::new(settings).expect("a folder");
    later.save(snapshot(100, 0, 2)).expect("nothing before");
    let error = later.finish(LONG).expect_err("rank 1 does not come").to_string();
    assert!(error.contains("rank 1 "), "{error}");
    // What the earlier run has left goes with the next checkpoint.
    assert_eq!(names(folder.path()), [first_attempt(100, 1)]);
    save(folder.path(), 1, &[100, 200]);
    assert_eq!(names(folder.path()), ["step-0000000100", "step-0000000200"]);
}

#[test]
fn a_rank_that_cannot_write_says_so_to_rank_0_and_harms_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut writers = [writer(folder.path(), 0, 2), writer(folder.path(), 1, 2)];
    // A folder lies where rank 1's file should be.
    let in_the_way = folder.path().join(first_attempt(100, RUN)).join(optimiser_file_name(1, 2));
    fs::create_dir_all(&in_the_way).expect("a folder");
    for (rank, writer) in writers.iter_mut().enumerate() {
        writer.save(snapshot(100, rank, 2)).expect("nothing before");
    }
    for (rank, writer) in writers.iter_mut().enumerate() {
        let error = writer.save(snapshot(200, rank, 2)).expect_err("the save before").to_string();
        assert!(error.contains("optimiser-1-of-2.safetensors"), "{error}");
        assert_eq!(error.contains("rank 1 could not write its part"), rank == 0, "{error}");
    }
    for writer in &mut writers {
        writer.finish(LONG).expect("the next save");
    }
    assert_eq!(names(folder.path()), ["step-0000000200"]);
    assert_latest(folder.path(), 200);
}

#[test]
fn a_save_is_busy_until_all_parts_have_come() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut first = writer(folder.path(), 0, 2);
    assert!(!first.is_busy());
    first.save(snapshot(100, 0, 2)).expect("nothing before");
    assert!(first.is_busy());
    let error = first.finish(Duration::ZERO).expect_err("rank 1 has not come").to_string();
    assert!(error.contains("still being written"), "{error}");
    let mut second = writer(folder.path(), 1, 2);
    second.save(snapshot(100, 1, 2)).expect("nothing before");
    assert_eq!(second.finish(LONG).expect("its part"), None);
    let path = first.finish(LONG).expect("both parts").expect("the checkpoint");
    assert!(!first.is_busy());
    assert_eq!(path, folder.path().join("step-0000000100"));
    assert_eq!(first.finish(LONG).expect("nothing since"), None);
}

#[test]
fn a_dropped_writer_waits_for_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut first = writer(folder.path(), 0, 2);
    first.save(snapshot(100, 0, 2)).expect("nothing before");
    drop(first);
    assert!(names(folder.path()).is_empty());
}

#[test]
fn two_arrays_of_one_name_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut only = writer(folder.path(), 0, 1);
    let mut twice = snapshot(100, 0, 1);
    twice.add_parameter("fc1.bias", &[1], &[0.0_f32]).expect("an element");
    only.save(twice).expect("nothing before");
    let error = only.finish(LONG).expect_err("a name twice").to_string();
    assert!(error.contains("two arrays are called fc1.bias"), "{error}");
}
