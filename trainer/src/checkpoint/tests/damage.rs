//! Checkpoints that a disk, a person or an enemy has changed.

use std::fs::{self, File};

use super::*;
use crate::checkpoint::layout::{self, Content, FileRecord};

/// Two checkpoints; the later one is damaged by each function in turn, for each of its files.
fn assert_passed_over(damage: impl Fn(&Path, &[u8]), reason: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    save(folder.path(), 2, &[100, 200]);
    let newest = folder.path().join("step-0000000200");
    for name in names(&newest) {
        let path = newest.join(&name);
        let bytes = fs::read(&path).expect("a file");
        damage(&path, &bytes);
        let unusable = assert_latest(folder.path(), 100);
        assert_eq!(unusable.len(), 1, "{unusable:?}");
        assert!(unusable[0].contains(&name) && unusable[0].contains(reason), "{unusable:?}");
        fs::write(&path, bytes).expect("the file again");
    }
    assert!(assert_latest(folder.path(), 200).is_empty());
}

#[test]
fn a_missing_file_is_noticed() {
    assert_passed_over(|path, _| fs::remove_file(path).expect("a file"), "No such file");
}

#[test]
fn a_truncated_file_is_noticed() {
    for keep in [|_: usize| 0, |bytes| bytes / 2, |bytes| bytes - 1] {
        let truncate = |path: &Path, bytes: &[u8]| {
            fs::write(path, &bytes[..keep(bytes.len())]).expect("a shorter file");
        };
        assert_passed_over(truncate, "is damaged");
    }
}

#[test]
fn a_flipped_byte_is_noticed_wherever_it_is() {
    for place in [|_: usize| 0, |bytes| bytes / 3, |bytes| bytes / 2, |bytes| bytes - 1] {
        let flip = |path: &Path, bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let place = place(bytes.len());
            bytes[place] ^= 1;
            fs::write(path, bytes).expect("a changed file");
        };
        assert_passed_over(flip, "");
    }
}

#[test]
fn every_byte_of_the_state_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    let newest = save(folder.path(), 1, &[100]);
    let path = newest.join("state.json");
    let bytes = fs::read(&path).expect("a file");
    for place in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[place] ^= 1;
        fs::write(&path, bytes).expect("a changed file");
        match Checkpoint::open(&newest) {
            Err(error) => assert!(error.to_string().contains("step-0000000100"), "{error}"),
            // 4e-324 is another way to write 5e-324.
            Ok(checkpoint) => assert_holds(&checkpoint, 100, 1),
        }
    }
}

/// Writes a state that tells of these files, with right lengths and checksums.
fn write_state(folder: &Path, names: &[&str]) {
    let record = |name: &&str| {
        let bytes = fs::read(folder.join(name)).expect("a file");
        let crc32 = crc32fast::hash(&bytes);
        FileRecord { name: name.to_string(), bytes: bytes.len() as u64, crc32 }
    };
    let files = names.iter().map(record).collect();
    let content = Content { ranks: 1, state: state(100), files };
    layout::write_state(&folder.join(layout::STATE), &content).expect("a state");
}

#[track_caller]
fn assert_refused(folder: &Path, reason: &str) {
    let error = Checkpoint::open(folder).expect_err("a hostile checkpoint").to_string();
    assert!(error.contains(reason), "{error}");
}

#[test]
fn a_hostile_header_takes_no_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |header_bytes: u64, header: &str| {
        let mut bytes = header_bytes.to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        fs::write(folder.path().join(layout::PARAMETERS), bytes).expect("a file");
        write_state(folder.path(), &[layout::PARAMETERS]);
    };
    for header_bytes in [u64::MAX, 1 << 40, 3] {
        file(header_bytes, "{}");
        assert_refused(folder.path(), "too long");
    }
    let huge =
        format!(r#"{{"w":{{"dtype":"F32","shape":[{0},{0}],"data_offsets":[0,4]}}}}"#, 1_u64 << 40);
    let beyond = r#"{"w":{"dtype":"F32","shape":[1024],"data_offsets":[0,4096]}}"#;
    let deep = "[".repeat(1 << 20);
    for (header, reason) in
        [(huge.as_str(), "damaged"), (beyond, "by its header"), (&deep, "damaged")]
    {
        file(header.len() as u64, header);
        assert_refused(folder.path(), reason);
    }
}

#[test]
fn a_hostile_state_takes_no_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(layout::STATE);
    let begin = r#"{"format":1,"crc32":0,"content":{"ranks":1,"state":{"user":"#;
    let (open, close) = ("[".repeat(1 << 20), "]".repeat(1 << 20));
    fs::write(&path, format!("{begin}{open}{close}}}}}}}")).expect("a file");
    assert_refused(folder.path(), "recursion limit");
    fs::write(&path, r#"{"format": 2}"#).expect("a file");
    assert_refused(folder.path(), "format is 2");
    File::create(&path).and_then(|file| file.set_len(1 << 40)).expect("a file without blocks");
    assert_refused(folder.path(), "more than");
}

#[test]
fn a_file_elsewhere_is_not_opened() {
    let folder = tempfile::tempdir().expect("a folder");
    let inside = folder.path().join("inside");
    fs::create_dir_all(inside.join("optimiser-")).expect("a folder");
    fs::write(folder.path().join("secret"), "x").expect("a file");
    for name in ["../secret", "optimiser-/../../secret"] {
        write_state(&inside, &[name]);
        assert_refused(&inside, "strange file");
    }
}

#[test]
fn gaps_and_overlaps_are_errors_that_name_the_parameter() {
    let pieces: [(&[(usize, usize)], &str); 5] = [
        (&[(0, 2), (3, 3)], "has a gap: elements 2 to 2"),
        (&[(1, 5)], "has a gap: elements 0 to 0"),
        (&[(0, 4), (3, 3)], "has an overlap: element 3"),
        (&[(0, 5)], "has 5 elements, and the parameter has 6"),
        (&[(0, 6), (6, 1)], "has 7 elements, and the parameter has 6"),
    ];
    for (pieces, reason) in pieces {
        let folder = tempfile::tempdir().expect("a folder");
        let mut snapshot = Snapshot::new(state(100));
        snapshot.add_parameter("fc1.bias", &[6], &[0.0_f32; 6]).expect("six elements");
        for (first, elements) in pieces {
            let values = vec![0.0_f32; *elements];
            snapshot.add_piece(StateKind::Momentum, "fc1.bias", *first, &values);
        }
        let mut only = writer(folder.path(), 0, 1);
        only.save(snapshot).expect("nothing before");
        let path = only.finish(LONG).expect("a checkpoint").expect("its folder");
        assert_refused(&path, &format!("momentum of fc1.bias {reason}"));
    }
}
