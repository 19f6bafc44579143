//! A checkpoint of the trainer: the text of its state, or the files of tensors beside a state that fits them (by the
//! first byte; the two bytes behind it are the length of the first file). It is refused, or all of it can be read.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ringtree_trainer::checkpoint::{Checkpoint, latest};
use ringtree_trainer::optimiser::StateKind;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("ringtree-fuzz-{}", std::process::id()));
    fs::create_dir_all(folder.join(NAME)).expect("a folder");
    folder
});

const NAME: &str = "step-0000000007";

/// A header may announce more; then there are too few bytes.
const MOST_ELEMENTS: usize = 1 << 16;

fuzz_target!(|bytes: &[u8]| {
    let [kind, low, high, rest @ ..] = bytes else { return };
    let write = |name: &str, content: &[u8]| {
        fs::write(FOLDER.join(NAME).join(name), content).expect("a file");
    };
    if kind % 2 == 0 {
        write("state.json", rest);
    } else {
        let (parameters, pieces) =
            rest.split_at(rest.len().min(u16::from_le_bytes([*low, *high]).into()));
        write("parameters.safetensors", parameters);
        write("optimiser-0-of-1.safetensors", pieces);
        write("state.json", state_of(parameters, pieces).as_bytes());
    }
    let found = latest(&FOLDER).expect("the folder can be read");
    if let Some(checkpoint) = &found.checkpoint {
        read_all(checkpoint);
    }
});

/// The text that the trainer would have written beside these files.
fn state_of(parameters: &[u8], pieces: &[u8]) -> String {
    let record = |name: &str, content: &[u8]| {
        let (bytes, crc32) = (content.len(), crc32fast::hash(content));
        format!(r#"{{"name":"{name}.safetensors","bytes":{bytes},"crc32":{crc32}}}"#)
    };
    let files = [record("parameters", parameters), record("optimiser-0-of-1", pieces)].join(",");
    let state =
        r#"{"step":7,"epoch":0,"consumed_samples":0,"seed":1,"bucket_order":[0],"user":null}"#;
    let content = format!(r#"{{"ranks":1,"state":{state},"files":[{files}]}}"#);
    let crc32 = crc32fast::hash(content.as_bytes());
    format!(r#"{{"format":1,"crc32":{crc32},"content":{content}}}"#)
}

fn read_all(checkpoint: &Checkpoint) {
    for name in checkpoint.names() {
        let shape = checkpoint.shape(&name).expect("it has that name");
        let elements: usize = shape.iter().product();
        if elements > MOST_ELEMENTS {
            continue;
        }
        let is_single = checkpoint.read(&name, &mut vec![0.0_f32; elements]).is_ok();
        let is_double = checkpoint.read(&name, &mut vec![0.0_f64; elements]).is_ok();
        assert!(!(is_single && is_double), "{name} has one type");
        for kind in StateKind::ALL {
            let all = checkpoint.read_state(kind, &name, 0, &mut vec![0.0_f32; elements]);
            assert!(all.is_err() || elements == 0 || checkpoint.has_state(kind, &name));
        }
    }
}
